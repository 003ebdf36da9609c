/* Encoding host instructions (Intel SDM vol 2, chapter 2). Registers are 0-15; AH CH DH BH are 16-19. */
#ifndef QPY_JIT_ASM_H
#define QPY_JIT_ASM_H

#include "base/common.h"

enum { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15, AH };

typedef struct Asm {
    u8 *p;  /* next byte, writable view */
    i64 rx; /* executable address - writable address */
} Asm;

INLINE u64 asm_here(const Asm *a) { return (u64)a->p + (u64)a->rx; }
INLINE void put1(Asm *a, u64 v) { *a->p++ = (u8)v; }
INLINE void put2(Asm *a, u64 v) { put1(a, v), put1(a, v >> 8); }
INLINE void put4(Asm *a, u64 v) { put2(a, v), put2(a, v >> 16); }
INLINE void put8(Asm *a, u64 v) { put4(a, v), put4(a, v >> 32); }
INLINE void put_n(Asm *a, u64 v, unsigned n) {
    for (unsigned i = 0; i < n; i++) put1(a, v >> 8 * i);
}

/* The r/m operand: a register, an absolute address below 2 GiB, or [base + index << scale + disp]. */
enum { NO_REG = 0xff };
typedef struct Rm {
    u8 reg; /* NO_REG: memory */
    u8 base, index, scale;
    i32 disp;
} Rm;
INLINE Rm rm_reg(unsigned r) { return (Rm){.reg = (u8)r}; }
INLINE Rm rm_abs(const volatile void *p) {
    return (Rm){.reg = NO_REG, .base = NO_REG, .index = NO_REG, .disp = (i32)(u32)(u64)p};
}
INLINE Rm rm_at(unsigned base, i32 disp) {
    return (Rm){.reg = NO_REG, .base = (u8)base, .index = NO_REG, .disp = disp};
}
INLINE Rm rm_sib(unsigned base, unsigned index, unsigned scale, i32 disp) {
    return (Rm){.reg = NO_REG, .base = (u8)base, .index = (u8)index, .scale = (u8)scale, .disp = disp};
}

enum { E_W = 1, E_66 = 2, E_F2 = 4, E_F3 = 8, E_LOCK = 16, E_BYTE_REG = 32, E_BYTE_RM = 64 };
/* Of an operand of n bytes; bytes are told by the opcode and E_BYTE_*. */
INLINE unsigned asm_size(unsigned n) { return n == 8 ? E_W : n == 2 ? E_66 : 0; }
enum { MAP_1, MAP_0F, MAP_0F38, MAP_0F3A };

/* One instruction with ModRM; immediates follow by put. */
void asm_rm(Asm *a, unsigned flags, unsigned map, u8 opcode, unsigned reg, Rm rm);
/* VEX-encoded general-register instruction: pp 0 none, 1 66, 2 F3, 3 F2. */
void asm_vex(Asm *a, unsigned pp, unsigned map, unsigned w, u8 opcode, unsigned reg, unsigned vvvv, Rm rm);
/* True if these registers can be encoded together (AH-BH and REX exclude each other). */
bool asm_fits(unsigned flags, unsigned reg, Rm rm);

INLINE void asm_mov(Asm *a, unsigned to, unsigned from) { asm_rm(a, E_W, MAP_1, 0x8b, to, rm_reg(from)); }
INLINE void asm_load(Asm *a, unsigned to, Rm from) { asm_rm(a, E_W, MAP_1, 0x8b, to, from); }
INLINE void asm_load32(Asm *a, unsigned to, Rm from) { asm_rm(a, 0, MAP_1, 0x8b, to, from); }
INLINE void asm_store(Asm *a, Rm to, unsigned from) { asm_rm(a, E_W, MAP_1, 0x89, from, to); }
/* A MOV where that does it: the host may do that by renaming. */
INLINE void asm_lea_n(Asm *a, unsigned flags, unsigned to, Rm m) {
    if (m.base == NO_REG || m.index != NO_REG || m.disp) asm_rm(a, flags, MAP_1, 0x8d, to, m);
    else if (to != m.base || !(flags & E_W)) asm_rm(a, flags, MAP_1, 0x8b, to, rm_reg(m.base));
}
INLINE void asm_lea(Asm *a, unsigned to, Rm m) { asm_lea_n(a, E_W, to, m); }
void asm_imm(Asm *a, unsigned to, u64 v); /* mov; flags stay */
void asm_jmp(Asm *a, u64 target);
/* Returns the place of the rel32 to patch. */
INLINE u8 *asm_jcc(Asm *a, unsigned cond, u64 target) {
    put1(a, 0x0f), put1(a, 0x80 | cond);
    put4(a, target - (asm_here(a) + 4));
    return a->p - 4;
}
INLINE void asm_call(Asm *a, u64 target) {
    put1(a, 0xe8);
    put4(a, target - (asm_here(a) + 4));
}
/* A jump whose target comes later: the place of its rel32. */
INLINE u8 *asm_jmp_later(Asm *a) {
    put1(a, 0xe9), put4(a, 0);
    return a->p - 4;
}
/* Jumps a little forward if rcx is 0, to where asm_land() gets what this returned. RFLAGS stay. */
INLINE u8 *asm_jrcxz(Asm *a) {
    put1(a, 0xe3), put1(a, 0);
    return a->p - 1;
}
INLINE void asm_land(const Asm *a, u8 *site) { *site = (u8)(a->p - (site + 1)); }
INLINE void asm_patch(Asm *a, u8 *site, u64 target) { *(u32 *)site = (u32)(target - ((u64)site + (u64)a->rx + 4)); }

#endif
