/* ModRM, SIB, REX and VEX (Intel SDM vol 2A, 2.1-2.3). */
#include "jit/asm.h"

#include <assert.h>

static bool byte_needs_rex(unsigned r) { return r >= 4 && r < 8; }

static u8 rex_of(unsigned flags, unsigned reg, Rm rm, bool *need) {
    u8 rex = 0;
    *need = false;
    if (flags & E_W) rex |= 8;
    if (reg < 16 && reg & 8) rex |= 4;
    if (rm.reg != NO_REG) {
        if (rm.reg < 16 && rm.reg & 8) rex |= 1;
        if (flags & E_BYTE_RM && byte_needs_rex(rm.reg)) *need = true;
    } else {
        if (rm.base != NO_REG && rm.base & 8) rex |= 1;
        if (rm.index != NO_REG && rm.index & 8) rex |= 2;
    }
    if (flags & E_BYTE_REG && byte_needs_rex(reg)) *need = true;
    if (rex) *need = true;
    return rex;
}

bool asm_fits(unsigned flags, unsigned reg, Rm rm) {
    bool need, high = (flags & E_BYTE_REG && reg >= AH) || (flags & E_BYTE_RM && rm.reg != NO_REG && rm.reg >= AH);
    rex_of(flags, reg, rm, &need);
    return !(need && high);
}

static unsigned low3(unsigned r) { return r >= AH ? (r - AH) + 4 : r & 7; }

static void put_mem(Asm *a, unsigned reg, Rm rm) {
    unsigned r = low3(reg) << 3;
    if (rm.base == NO_REG) { /* absolute, or index without base */
        put1(a, r | 4);
        put1(a, rm.index == NO_REG ? 0x25 : (unsigned)(rm.scale << 6 | (rm.index & 7) << 3 | 5));
        put4(a, (u32)rm.disp);
        return;
    }
    unsigned mod = rm.disp == 0 && (rm.base & 7) != 5 ? 0 : rm.disp == (i8)rm.disp ? 1 : 2;
    if (rm.index != NO_REG || (rm.base & 7) == 4) {
        put1(a, mod << 6 | r | 4);
        unsigned index = rm.index == NO_REG ? 4 : rm.index & 7;
        put1(a, rm.scale << 6 | index << 3 | (rm.base & 7));
    } else {
        put1(a, mod << 6 | r | (rm.base & 7));
    }
    if (mod == 1) put1(a, (u8)rm.disp);
    if (mod == 2) put4(a, (u32)rm.disp);
}

static void put_modrm(Asm *a, unsigned reg, Rm rm) {
    if (rm.reg != NO_REG) put1(a, 0xc0 | low3(reg) << 3 | low3(rm.reg));
    else put_mem(a, reg, rm);
}

void asm_rm(Asm *a, unsigned flags, unsigned map, u8 opcode, unsigned reg, Rm rm) {
    bool need;
    u8 rex = rex_of(flags, reg, rm, &need);
    assert(asm_fits(flags, reg, rm));
    if (flags & E_LOCK) put1(a, 0xf0);
    if (flags & E_66) put1(a, 0x66);
    if (flags & E_F2) put1(a, 0xf2);
    if (flags & E_F3) put1(a, 0xf3);
    if (need) put1(a, 0x40 | rex);
    if (map != MAP_1) put1(a, 0x0f);
    if (map == MAP_0F38) put1(a, 0x38);
    if (map == MAP_0F3A) put1(a, 0x3a);
    put1(a, opcode);
    put_modrm(a, reg, rm);
}

void asm_vex(Asm *a, unsigned pp, unsigned map, unsigned w, u8 opcode, unsigned reg, unsigned vvvv, Rm rm) {
    bool need;
    u8 rex = rex_of(0, reg, rm, &need);
    put1(a, 0xc4);
    put1(a, (~(unsigned)rex & 7) << 5 | map);
    put1(a, w << 7 | (~vvvv & 15) << 3 | pp);
    put1(a, opcode);
    put_modrm(a, reg, rm);
}

void asm_imm(Asm *a, unsigned to, u64 v) {
    if (v == (u32)v) {
        if (to & 8) put1(a, 0x41);
        put1(a, 0xb8 | (to & 7));
        put4(a, v);
    } else if ((i64)v == (i32)v) {
        asm_rm(a, E_W, MAP_1, 0xc7, 0, rm_reg(to));
        put4(a, v);
    } else {
        put1(a, 0x48 | (to >> 3));
        put1(a, 0xb8 | (to & 7));
        put8(a, v);
    }
}

void asm_jmp(Asm *a, u64 target) {
    put1(a, 0xe9);
    put4(a, target - (asm_here(a) + 4));
}
