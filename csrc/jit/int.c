/* Integer instructions: the guest's opcode again, with its operands where translated code has them (SDM vol 2).
 *
 * What an instruction does to its two ModRM operands decides how they are brought: a mapped register as it is, r12-r15
 * from and to Cpu.r, memory through [r14]. */
#include "jit/trans.h"

#include "interp/fpu_ops.h"

enum { NONE, RD = 1, WR = 2, RW = 3, EXT = 4 /* the reg field is part of the opcode */ };
/* How one opcode uses r/m and reg. sizes: bytes of the r/m operand, 0: the operand size. */
typedef struct Use {
    u8 rm, reg, rm_size;
    bool byte;     /* both operands are bytes */
    bool reg_only; /* not with a memory operand: its op_* does that */
    bool no_slot;  /* r/m must be a register (a memory form would mean something else) */
} Use;

static bool alu_use(u8 opcode, Use *u) {
    bool cmp = (opcode & 0x38) == 0x38;
    if ((opcode & 7) > 3) return false;
    u->byte = !(opcode & 1);
    bool to_reg = opcode & 2;
    u->rm = to_reg || cmp ? RD : RW;
    u->reg = !to_reg || cmp ? RD : RW;
    return true;
}

static bool group3_use(const Guest *g, Use *u) {
    unsigned ext = g->zi.raw.modrm.reg;
    u->reg = EXT;
    u->rm = ext == 2 || ext == 3 ? RW : RD;
    u->byte = !(g->in->opcode & 1);
    return true;
}

static bool one_byte_use(const Guest *g, Use *u) {
    u8 op = g->in->opcode;
    unsigned ext = g->zi.raw.modrm.reg;
    if (op < 0x40) return alu_use(op, u);
    switch (op) {
    case 0x80:
    case 0x81:
    case 0x83: *u = (Use){.rm = ext == 7 ? RD : RW, .reg = EXT, .byte = op == 0x80}; return true;
    case 0x84:
    case 0x85: *u = (Use){.rm = RD, .reg = RD, .byte = op == 0x84}; return true;
    case 0x86:
    case 0x87: *u = (Use){.rm = RW, .reg = RW, .byte = op == 0x86, .no_slot = true}; return true;
    case 0x88:
    case 0x89: *u = (Use){.rm = WR, .reg = RD, .byte = op == 0x88}; return true;
    case 0x8a:
    case 0x8b: *u = (Use){.rm = RD, .reg = WR, .byte = op == 0x8a}; return true;
    case 0x63: *u = (Use){.rm = RD, .reg = WR, .rm_size = 4}; return g->zi.mnemonic == ZYDIS_MNEMONIC_MOVSXD;
    case 0x69:
    case 0x6b: *u = (Use){.rm = RD, .reg = WR}; return true;
    case 0xc0:
    case 0xc1:
    case 0xd0:
    case 0xd1:
    case 0xd2:
    case 0xd3: *u = (Use){.rm = RW, .reg = EXT, .byte = !(op & 1)}; return true;
    case 0xc6:
    case 0xc7: *u = (Use){.rm = WR, .reg = EXT, .byte = op == 0xc6}; return ext == 0;
    case 0xf6:
    case 0xf7: return group3_use(g, u);
    case 0xfe:
    case 0xff: *u = (Use){.rm = RW, .reg = EXT, .byte = op == 0xfe}; return ext < 2;
    default: return false;
    }
}

static bool two_byte_use(const Guest *g, Use *u) {
    u8 op = g->in->opcode;
    unsigned ext = g->zi.raw.modrm.reg;
    if ((op & 0xf0) == 0x40) return *u = (Use){.rm = RD, .reg = RW}, true;
    if ((op & 0xf0) == 0x90) return *u = (Use){.rm = WR, .reg = EXT, .byte = true}, true;
    switch (op) {
    case 0xa3: *u = (Use){.rm = RD, .reg = RD, .reg_only = true, .no_slot = true}; return true;
    case 0xab:
    case 0xb3:
    case 0xbb: *u = (Use){.rm = RW, .reg = RD, .reg_only = true, .no_slot = true}; return true;
    case 0xba: *u = (Use){.rm = ext == 4 ? RD : RW, .reg = EXT}; return ext >= 4;
    case 0xa4:
    case 0xa5:
    case 0xac:
    case 0xad: *u = (Use){.rm = RW, .reg = RD}; return true;
    case 0xaf: *u = (Use){.rm = RD, .reg = RW}; return true;
    case 0xb0:
    case 0xb1:
    case 0xc0:
    case 0xc1: *u = (Use){.rm = RW, .reg = op < 0xc0 ? RD : RW, .byte = !(op & 1), .no_slot = true}; return true;
    case 0xb6:
    case 0xbe: *u = (Use){.rm = RD, .reg = WR, .rm_size = 1}; return true;
    case 0xb7:
    case 0xbf: *u = (Use){.rm = RD, .reg = WR, .rm_size = 2}; return true;
    case 0xb8:
    case 0xbc:
    case 0xbd: *u = (Use){.rm = RD, .reg = RW}; return true;
    case 0xc3: *u = (Use){.rm = WR, .reg = RD}; return g->in->flags & INF_MEM;
    default: return false;
    }
}

static bool three_byte_use(const Guest *g, Use *u) {
    bool first = g->in->opcode == 0xf0;
    switch (g->zi.mnemonic) {
    case ZYDIS_MNEMONIC_MOVBE: *u = (Use){.rm = first ? RD : WR, .reg = first ? WR : RD}; return true;
    case ZYDIS_MNEMONIC_CRC32: *u = (Use){.rm = RD, .reg = RW, .rm_size = first}; return true;
    case ZYDIS_MNEMONIC_ADCX:
    case ZYDIS_MNEMONIC_ADOX: *u = (Use){.rm = RD, .reg = RW}; return true;
    default: return false;
    }
}

static bool use_of(const Guest *g, Use *u) {
    *u = (Use){0};
    if (g->zi.encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY) return false;
    switch (g->in->map) {
    case 0: return one_byte_use(g, u);
    case 1: return two_byte_use(g, u);
    case 2: return three_byte_use(g, u);
    default: return false;
    }
}

/* Host number of a byte register as ModRM names it. */
static unsigned byte_reg(const Guest *g, unsigned n) {
    bool rex = g->zi.attributes & ZYDIS_ATTRIB_HAS_REX;
    if (!rex && n >= 4 && n < 8) return AH + n - 4;
    return host_reg(n);
}

typedef struct Operand {
    u8 guest; /* guest register; NO_REG: none */
    u8 host;  /* where it is while the instruction runs */
    bool in_slot;
} Operand;

static unsigned enc_flags(const Guest *g, const Use *u) {
    const Insn *in = g->in;
    unsigned f = 0;
    bool size_matters = !u->byte || (u->reg != EXT && u->rm_size);
    if (in->osz == 8 && size_matters) f |= E_W;
    if (in->osz == 2 && size_matters) f |= E_66;
    if (in->flags & INF_LOCK) f |= E_LOCK;
    if (u->byte || u->rm_size == 1) f |= E_BYTE_RM;
    if (u->byte && u->reg != EXT) f |= E_BYTE_REG;
    switch (in->op) {
    case ZYDIS_MNEMONIC_TZCNT:
    case ZYDIS_MNEMONIC_LZCNT:
    case ZYDIS_MNEMONIC_POPCNT:
    case ZYDIS_MNEMONIC_ADOX: return f | E_F3;
    case ZYDIS_MNEMONIC_ADCX: return f | E_66;
    case ZYDIS_MNEMONIC_CRC32: return f | E_F2;
    default: return f;
    }
}

static unsigned rm_bytes(const Guest *g, const Use *u) { return u->byte ? 1 : u->rm_size ? u->rm_size : g->in->osz; }
static unsigned reg_bytes(const Guest *g, const Use *u) { return u->byte ? 1 : g->in->osz; }

static unsigned field_reg(const Guest *g) { return g->zi.raw.modrm.reg | (unsigned)g->zi.raw.rex.R << 3; }
static unsigned field_rm(const Guest *g) { return g->zi.raw.modrm.rm | (unsigned)g->zi.raw.rex.B << 3; }

static void put_imm(Trans *t) {
    const ZydisDecodedInstruction *zi = &t->g->zi;
    if (zi->raw.imm[0].size) put_n(&t->a, zi->raw.imm[0].value.u, zi->raw.imm[0].size / 8);
}

static unsigned opcode_map(const Insn *in) { return in->map; }

/* With a memory operand: reg from its home, or through a scratch register. */
static bool emit_with_memory(Trans *t, const Use *u) {
    const Guest *g = t->g;
    unsigned flags = enc_flags(g, u), reg = g->zi.raw.modrm.reg, guest = field_reg(g);
    bool through = false;
    if (u->reg_only || !address_supported(t)) return false;
    if (u->reg != EXT) {
        reg = u->byte ? byte_reg(g, guest) : host_reg(guest);
        through = reg == NO_REG;
        if (through) reg = R15;
    }
    if (!asm_fits(flags, reg, rm_at(R14, 0))) return false;
    emit_address(t, rm_bytes(g, u), u->rm & WR || g->in->flags & INF_LOCK);
    if (through) reg = held_get(t, guest, u->reg & RD || reg_bytes(g, u) < 4, t->mem.base);
    asm_rm(&t->a, flags, opcode_map(g->in), g->in->opcode, reg, t->mem);
    put_imm(t);
    if (through && u->reg & WR) held_wrote(t, reg);
    return true;
}

/* r12-r15 as r/m: a register that holds it, or, where it is only read, its slot. */
static Rm unmapped_rm(Trans *t, const Use *u, unsigned n) {
    bool only_read = !(u->rm & WR);
    if (only_read && !u->no_slot && held_find(t, n) == NO_REG) return slot(t, n);
    bool also_source = u->reg != EXT && field_reg(t->g) == n;
    return rm_reg(held_get(t, n, u->rm & RD || also_source || rm_bytes(t->g, u) < 4, NO_REG));
}

static bool emit_with_register(Trans *t, const Use *u) {
    const Guest *g = t->g;
    unsigned flags = enc_flags(g, u), reg = g->zi.raw.modrm.reg, guest = field_reg(g), n = field_rm(g);
    bool reg_through = false, rm_through = false;
    Rm rm = rm_reg(flags & E_BYTE_RM ? byte_reg(g, n) : host_reg(n));
    rm_through = rm.reg == NO_REG;
    if (u->reg != EXT) {
        reg = flags & E_BYTE_REG ? byte_reg(g, guest) : host_reg(guest);
        reg_through = reg == NO_REG;
    }
    if (!asm_fits(flags, reg_through ? R15 : reg, rm_through ? rm_reg(R14) : rm)) return false;
    if (rm_through) rm = unmapped_rm(t, u, n);
    if (reg_through) reg = held_get(t, guest, u->reg & RD || reg_bytes(g, u) < 4, rm.reg);
    asm_rm(&t->a, flags, opcode_map(g->in), g->in->opcode, reg, rm);
    put_imm(t);
    if (rm_through && u->rm & WR) held_wrote(t, rm.reg);
    if (reg_through && u->reg & WR) held_wrote(t, reg);
    return true;
}

/* Two writes of one register that is brought twice would disagree. */
static bool same_unmapped(const Guest *g) {
    return !(g->in->flags & INF_MEM) && field_reg(g) == field_rm(g) && host_reg(field_reg(g)) == NO_REG;
}

static bool emit_modrm(Trans *t) {
    Use u;
    if (!use_of(t->g, &u)) return false;
    if (t->g->in->flags & INF_MEM) return emit_with_memory(t, &u);
    if (u.reg == RW && u.rm & WR && same_unmapped(t->g)) return false;
    if (t->g->in->map == 1 && (t->g->in->opcode & 0xfe) == 0xb0 && host_reg(field_rm(t->g)) == NO_REG) return false;
    return emit_with_register(t, &u);
}

/* Of mapped registers to a mapped one. */
static bool lea_mapped(Trans *t, unsigned to) {
    const Insn *in = t->g->in;
    bool based = in->base != ROFF(R_ZERO), indexed = in->index != ROFF(R_ZERO);
    Rm m = {.reg = NO_REG, .base = NO_REG, .index = NO_REG, .scale = in->scale, .disp = in->disp};
    if (to == NO_REG || (!based && !indexed) || in->base == ROFF(R_RIP)) return false;
    if (based && (m.base = (u8)host_reg(in->base / 8)) == NO_REG) return false;
    if (indexed && (m.index = (u8)host_reg(in->index / 8)) == NO_REG) return false;
    asm_rm(&t->a, in->osz == 4 || in->asz == 4 ? 0 : E_W, MAP_1, 0x8d, to, m);
    return true;
}

static bool emit_lea(Trans *t) {
    const Insn *in = t->g->in;
    unsigned guest = field_reg(t->g), to = host_reg(guest);
    if (in->osz == 2 || in->asz == 2) return false;
    if (lea_mapped(t, to)) return true;
    Insn plain = *in;
    plain.seg = SEG_DS;
    t->g->in = &plain;
    emit_ea(t, R14);
    t->g->in = in;
    if (to != NO_REG) {
        asm_rm(&t->a, in->osz == 4 ? 0 : E_W, MAP_1, 0x8b, to, rm_reg(R14));
        return true;
    }
    if (in->osz == 4) asm_rm(&t->a, 0, MAP_1, 0x8b, R14, rm_reg(R14));
    asm_store(&t->a, slot(t, guest), R14);
    held_forget(t, guest);
    t->held[R14 - R13] = (u8)guest;
    return true;
}

/* B8-BF, B0-B7 */
static bool emit_mov_imm(Trans *t) {
    const Guest *g = t->g;
    unsigned n = (g->in->opcode & 7) | (unsigned)g->zi.raw.rex.B << 3;
    u64 v = g->zi.raw.imm[0].value.u;
    if (g->in->opcode < 0xb8) {
        unsigned r = byte_reg(g, n);
        asm_rm(&t->a, E_BYTE_RM, MAP_1, 0xc6, 0, r == NO_REG ? slot(t, n) : rm_reg(r));
        put1(&t->a, v);
        held_forget(t, n);
        return true;
    }
    unsigned r = host_reg(n);
    if (g->in->osz == 2) {
        asm_rm(&t->a, E_66, MAP_1, 0xc7, 0, r == NO_REG ? slot(t, n) : rm_reg(r));
        put2(&t->a, v);
        held_forget(t, n);
        return true;
    }
    unsigned to = r == NO_REG ? held_get(t, n, false, NO_REG) : r;
    asm_imm(&t->a, to, g->in->osz == 4 ? (u32)v : v);
    if (r == NO_REG) held_wrote(t, to);
    return true;
}

/* XCHG rAX, r; BSWAP r; in 32-bit code INC and DEC r: the register is in the opcode. */
static bool emit_xchg_acc(Trans *t) {
    const Guest *g = t->g;
    unsigned n = (g->in->opcode & 7) | (unsigned)g->zi.raw.rex.B << 3, r = host_reg(n);
    if (g->in->op != ZYDIS_MNEMONIC_XCHG) return g->in->op == ZYDIS_MNEMONIC_PAUSE;
    unsigned flags = asm_size(g->in->osz);
    unsigned host = r == NO_REG ? held_get(t, n, true, NO_REG) : r;
    asm_rm(&t->a, flags, MAP_1, 0x87, RAX, rm_reg(host));
    if (r == NO_REG) held_wrote(t, host);
    return true;
}

static bool emit_bswap(Trans *t) {
    const Guest *g = t->g;
    unsigned n = (g->in->opcode & 7) | (unsigned)g->zi.raw.rex.B << 3, r = host_reg(n);
    if (g->in->osz == 2) return false;
    unsigned to = r == NO_REG ? held_get(t, n, true, NO_REG) : r;
    put1(&t->a, 0x40 | (g->in->osz == 8 ? 8 : 0) | to >> 3);
    put1(&t->a, 0x0f), put1(&t->a, 0xc8 | (to & 7));
    if (r == NO_REG) held_wrote(t, to);
    return true;
}

static bool emit_inc_dec_short(Trans *t) {
    const Insn *in = t->g->in;
    unsigned n = in->opcode & 7;
    if (in->osz == 1) return false;
    asm_rm(&t->a, in->osz == 2 ? E_66 : 0, MAP_1, 0xff, in->opcode >> 3 & 1, rm_reg(host_reg(n)));
    return true;
}

/* ALU and TEST with the accumulator and an immediate, and what has only implied mapped registers: the same bytes. */
static bool emit_same_bytes(Trans *t) {
    const Guest *g = t->g;
    for (unsigned i = 0; i < g->in->len; i++) put1(&t->a, g->bytes[i]);
    return true;
}

static bool acc_imm(u8 op) { return (op < 0x40 && (op & 6) == 4) || (op & 0xfe) == 0xa8; }

/* A0-A3: the address is the immediate. */
static bool emit_moffs(Trans *t) {
    const Insn *in = t->g->in;
    Insn flat = *in;
    bool store = in->opcode & 2, byte = !(in->opcode & 1);
    if (!address_supported(t) || (i64)in->imm != (i32)in->imm || in->asz == 2) return false;
    if (t->wide && in->asz == 4) return false;
    flat.disp = (i32)in->imm;
    flat.base = flat.index = ROFF(R_ZERO);
    t->g->in = &flat;
    emit_address(t, byte ? 1 : in->osz, store);
    t->g->in = in;
    unsigned flags = byte ? E_BYTE_REG : asm_size(in->osz);
    asm_rm(&t->a, flags, MAP_1, (u8)((store ? 0x88 : 0x8a) | !byte), RAX, t->mem);
    return true;
}

/* CMPXCHG8B, CMPXCHG16B */
static bool emit_cmpxchg_wide(Trans *t) {
    const Insn *in = t->g->in;
    if (!(in->flags & INF_MEM) || (in->modrm >> 3 & 7) != 1 || !address_supported(t)) return false;
    bool wide = t->g->zi.raw.rex.W;
    emit_address(t, wide ? 16 : 8, true);
    asm_rm(&t->a, (wide ? E_W : 0) | (in->flags & INF_LOCK ? E_LOCK : 0), MAP_0F, 0xc7, 1, t->mem);
    return true;
}

static bool emit_two_byte(Trans *t) {
    const Guest *g = t->g;
    u8 op = g->in->opcode;
    switch (g->zi.mnemonic) {
    case ZYDIS_MNEMONIC_SERIALIZE: put1(&t->a, 0x0f), put1(&t->a, 0xae), put1(&t->a, 0xf0); return true; /* mfence */
    case ZYDIS_MNEMONIC_LFENCE:
    case ZYDIS_MNEMONIC_MFENCE:
    case ZYDIS_MNEMONIC_SFENCE: return emit_same_bytes(t);
    default: break;
    }
    if (g->zi.encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY) return false;
    if (op >= 0xc8 && op <= 0xcf) return emit_bswap(t);
    if (op == 0xc7) return emit_cmpxchg_wide(t);
    return emit_modrm(t);
}

static bool emit_one_byte(Trans *t) {
    const Insn *in = t->g->in;
    u8 op = in->opcode;
    if (acc_imm(op)) return emit_same_bytes(t);
    if (op == 0x8d) return emit_lea(t);
    if (op >= 0xb0 && op <= 0xbf) return emit_mov_imm(t);
    if ((op & 0xf8) == 0x90) return emit_xchg_acc(t);
    if ((op & 0xfc) == 0xa0) return emit_moffs(t);
    if ((op & 0xf0) == 0x40 && !t->wide) return emit_inc_dec_short(t);
    switch (op) {
    case 0x98: /* CBW, CWDE, CDQE */
    case 0x99:
    case 0x9e: /* SAHF, LAHF */
    case 0x9f:
    case 0xf5: /* CMC CLC STC */
    case 0xf8:
    case 0xf9: return emit_same_bytes(t);
    default: return emit_modrm(t);
    }
}

static bool divides(const Insn *in) { return in->map == 0 && (in->opcode & 0xfe) == 0xf6 && (in->modrm >> 3 & 7) >= 6; }

static bool writes_part_of_slot(const Insn *in) {
    return in->map == 0 && in->opcode >= 0xb0 && in->opcode <= 0xbf && (in->opcode < 0xb8 || in->osz == 2);
}

bool only_registers(const Guest *g) {
    const Insn *in = g->in;
    if (!g->zi.length || in->flags & (INF_MEM | INF_END | INF_REP | INF_REPNE) || in->map > 1 || in->fn == op_ud)
        return false;
    if (g->zi.encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY || divides(in) || writes_part_of_slot(in)) return false;
    bool implied = in->map == 0 && (in->opcode == 0x8d || (in->opcode & 0xfc) == 0xa0);
    return !implied && in->fn != op_native_reg;
}

/* #DE, or CMPXCHG16B that is misaligned: #GP. */
static bool may_raise(const Insn *in) { return divides(in) || (in->map == 1 && in->opcode == 0xc7); }

bool emit_int(Trans *t) {
    const Insn *in = t->g->in;
    if (in->flags & INF_END || in->fn == op_ud) return false;
    if (in->flags & (INF_REP | INF_REPNE)) return false;
    if (in->fn == op_nop) return true;
    if (t->x87 && may_raise(in)) { /* the guest's handler may look at the x87 pointers */
        held_drop_host(t, R15);
        x87_settle(t);
    }
    if (in->map == 0) return emit_one_byte(t);
    return in->map == 1 ? emit_two_byte(t) : emit_modrm(t);
}
