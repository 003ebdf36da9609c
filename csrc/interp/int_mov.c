/* MOV and its relatives: MOVZX MOVSX MOVSXD MOVBE MOVNTI LEA CMOVcc SETcc BSWAP CBW..CQO XLAT (SDM vol 2). */
#include "interp/int.h"

#define DEF_MOV(bits)                                                                                                  \
    static void op_mov_rr##bits(Cpu *c, const Insn *in) { set##bits(c, in->rm, get##bits(c, in->reg)); }               \
    static void op_mov_ri##bits(Cpu *c, const Insn *in) { set##bits(c, in->rm, (u##bits)in->imm); }                    \
    DEF_LOADS(op_mov_rm, bits, bits, set##bits(c, in->reg, s);)                                                        \
    DEF_STORES(op_mov_mr, bits, get##bits(c, in->reg))                                                                 \
    DEF_STORES(op_mov_mi, bits, (u##bits)in->imm)                                                                      \
    /* accumulator <-> absolute address: A0-A3 carry up to 64 bits of it */                                            \
    static void op_mov_load_abs##bits(Cpu *c, const Insn *in) {                                                        \
        set##bits(c, ROFF(R_RAX), ld##bits(c, in->seg, in->imm));                                                      \
    }                                                                                                                  \
    static void op_mov_store_abs##bits(Cpu *c, const Insn *in) {                                                       \
        st##bits(c, in->seg, in->imm, get##bits(c, ROFF(R_RAX)));                                                      \
    }
DEF_MOV(8)
DEF_MOV(16)
DEF_MOV(32)
DEF_MOV(64)
static const OpFn mov_table[F_COUNT][4] = {SIZES(op_mov_rr), SIZES(op_mov_ri), ADDR_ROWS(op_mov_rm),
                                           ADDR_ROWS(op_mov_mr), ADDR_ROWS(op_mov_mi)};
static const OpFn load_abs_table[4] = SIZES(op_mov_load_abs);
static const OpFn store_abs_table[4] = SIZES(op_mov_store_abs);

static OpFn resolve_mov(Insn *in, u32 mode) {
    if (in->map == 0 && in->opcode >= 0xa0 && in->opcode <= 0xa3)
        return (in->opcode < 0xa2 ? load_abs_table : store_abs_table)[size_index(in->osz)];
    bool general = in->map == 0 && (in->opcode == 0x88 || in->opcode == 0x89 || in->opcode == 0x8a ||
                                    in->opcode == 0x8b || in->opcode >= 0xb0);
    if (!general) return NULL; /* segment, control and debug registers */
    return mov_table[two_operand_form(in, mode)][size_index(in->osz)];
}

/* Widening moves: from source bits to destination bits, zero (u) or sign (i) extended. */
#define DEF_WIDEN(name, sign, from, to)                                                                                \
    static void op_##name##_r##from##_##to(Cpu *c, const Insn *in) {                                                   \
        set##to(c, in->reg, (u##to)(sign##to)(sign##from)get##from(c, in->rm));                                        \
    }                                                                                                                  \
    DEF_LOADS(op_##name##_, from##_##to, from, set##to(c, in->reg, (u##to)(sign##to)(sign##from)s);)
#define DEF_WIDEN_ALL(name, sign)                                                                                      \
    DEF_WIDEN(name, sign, 8, 16)                                                                                       \
    DEF_WIDEN(name, sign, 8, 32)                                                                                       \
    DEF_WIDEN(name, sign, 8, 64)                                                                                       \
    DEF_WIDEN(name, sign, 16, 16)                                                                                      \
    DEF_WIDEN(name, sign, 16, 32)                                                                                      \
    DEF_WIDEN(name, sign, 16, 64)
DEF_WIDEN_ALL(movzx, u)
DEF_WIDEN_ALL(movsx, i)
DEF_WIDEN(movsxd, i, 16, 16)
DEF_WIDEN(movsxd, i, 32, 32)
DEF_WIDEN(movsxd, i, 32, 64)
#define WIDEN_ROW(name, form, from)                                                                                    \
    { NULL, op_##name##_##form##from##_16, op_##name##_##form##from##_32, op_##name##_##form##from##_64 }
#define WIDEN_TABLE(name, from)                                                                                        \
    {                                                                                                                  \
        WIDEN_ROW(name, r, from), WIDEN_ROW(name, g, from), WIDEN_ROW(name, b, from), WIDEN_ROW(name, x, from),        \
            WIDEN_ROW(name, f, from)                                                                                   \
    }
static const OpFn movzx_table[2][S_COUNT][4] = {WIDEN_TABLE(movzx, 8), WIDEN_TABLE(movzx, 16)};
static const OpFn movsx_table[2][S_COUNT][4] = {WIDEN_TABLE(movsx, 8), WIDEN_TABLE(movsx, 16)};
#define MOVSXD_ROW(form)                                                                                               \
    { NULL, op_movsxd_##form##16_16, op_movsxd_##form##32_32, op_movsxd_##form##32_64 }
static const OpFn movsxd_table[S_COUNT][4] = {MOVSXD_ROW(r), MOVSXD_ROW(g), MOVSXD_ROW(b), MOVSXD_ROW(x),
                                              MOVSXD_ROW(f)};

#define DEF_LEA(bits)                                                                                                  \
    static void op_lea##bits(Cpu *c, const Insn *in) { set##bits(c, in->reg, (u##bits)insn_ea(c, in)); }
DEF_LEA(16)
DEF_LEA(32)
DEF_LEA(64)
static const OpFn lea_table[4] = SIZES_16UP(op_lea);
static void op_lea64_b(Cpu *c, const Insn *in) { REG64(c, in->reg) = lin_B(c, in); }
static void op_lea64_x(Cpu *c, const Insn *in) { REG64(c, in->reg) = lin_X(c, in); }
static void op_lea32_x(Cpu *c, const Insn *in) { REG64(c, in->reg) = lin_F(c, in); }

static OpFn resolve_lea(const Insn *in) {
    if (in->osz == 8 && in->asz == 8) return in->index == ROFF(R_ZERO) ? op_lea64_b : op_lea64_x;
    if (in->osz == 4 && in->asz >= 4) return op_lea32_x;
    return lea_table[size_index(in->osz)];
}

/* The memory operand of CMOVcc is read even if the condition is false; a 32-bit destination is then zero-extended. */
#define DEF_CMOV_SIZE(cond, bits)                                                                                      \
    static void op_cmov_##cond##_r##bits(Cpu *c, const Insn *in) {                                                     \
        u##bits s = get##bits(c, in->rm), d = get##bits(c, in->reg);                                                   \
        set##bits(c, in->reg, cond_##cond(c->cc) ? s : d);                                                             \
    }                                                                                                                  \
    static void op_cmov_##cond##_m##bits(Cpu *c, const Insn *in) {                                                     \
        u##bits s = ld##bits(c, in->seg, insn_ea(c, in)), d = get##bits(c, in->reg);                                   \
        set##bits(c, in->reg, cond_##cond(c->cc) ? s : d);                                                             \
    }
#define DEF_CMOV(cond) DEF_CMOV_SIZE(cond, 16) DEF_CMOV_SIZE(cond, 32) DEF_CMOV_SIZE(cond, 64)
FOR_CONDS(DEF_CMOV)
#define CMOV_ROW(cond) {SIZES_16UP(op_cmov_##cond##_r), SIZES_16UP(op_cmov_##cond##_m)},
static const OpFn cmov_table[16][2][4] = {FOR_CONDS(CMOV_ROW)};

#define DEF_SET(cond)                                                                                                  \
    static void op_set_##cond##_r(Cpu *c, const Insn *in) { REG8(c, in->rm) = cond_##cond(c->cc); }                    \
    static void op_set_##cond##_m(Cpu *c, const Insn *in) { st8(c, in->seg, insn_ea(c, in), cond_##cond(c->cc)); }
FOR_CONDS(DEF_SET)
#define SET_ROW(cond) {op_set_##cond##_r, op_set_##cond##_m},
static const OpFn set_table[16][2] = {FOR_CONDS(SET_ROW)};

static u64 bswap_n(u64 v, unsigned n) {
    return n == 8 ? __builtin_bswap64(v) : n == 4 ? __builtin_bswap32((u32)v) : __builtin_bswap16((u16)v);
}
static void op_movbe_load(Cpu *c, const Insn *in) {
    set_n(c, in->reg, bswap_n(rm_read(c, in, in->osz), in->osz), in->osz);
}
static void op_movbe_store(Cpu *c, const Insn *in) {
    rm_write(c, in, bswap_n(get_n(c, in->reg, in->osz), in->osz), in->osz);
}
static void op_bswap64(Cpu *c, const Insn *in) { REG64(c, in->rm) = __builtin_bswap64(REG64(c, in->rm)); }
static void op_bswap32(Cpu *c, const Insn *in) { set32(c, in->rm, __builtin_bswap32(REG32(c, in->rm))); }
/* Undefined on paper; silicon clears the 16-bit register. */
static void op_bswap16(Cpu *c, const Insn *in) { REG16(c, in->rm) = 0; }
/* 32 bits whatever the operand size of the code, or 64. */
static void op_movnti(Cpu *c, const Insn *in) {
    unsigned n = in->osz == 8 ? 8 : 4;
    rm_write(c, in, get_n(c, in->reg, n), n);
}

static void op_cbw(Cpu *c, const Insn *in) { REG16(c, ROFF(R_RAX)) = (u16)(i8)REG8(c, ROFF(R_RAX)); }
static void op_cwde(Cpu *c, const Insn *in) { set32(c, ROFF(R_RAX), (u32)(i16)REG16(c, ROFF(R_RAX))); }
static void op_cdqe(Cpu *c, const Insn *in) { c->r[R_RAX] = (u64)(i32)REG32(c, ROFF(R_RAX)); }
static void op_cwd(Cpu *c, const Insn *in) { REG16(c, ROFF(R_RDX)) = (u16)((i16)REG16(c, ROFF(R_RAX)) >> 15); }
static void op_cdq(Cpu *c, const Insn *in) { set32(c, ROFF(R_RDX), (u32)((i32)REG32(c, ROFF(R_RAX)) >> 31)); }
static void op_cqo(Cpu *c, const Insn *in) { c->r[R_RDX] = (u64)((i64)c->r[R_RAX] >> 63); }

static void op_xlat(Cpu *c, const Insn *in) {
    u64 a = c->r[R_RBX] + REG8(c, ROFF(R_RAX));
    if (in->asz != 8) a = in->asz == 4 ? (u32)a : (u16)a;
    REG8(c, ROFF(R_RAX)) = ld8(c, in->seg, a);
}

static OpFn resolve_widen(Insn *in, u32 mode) {
    if (in->op == ZYDIS_MNEMONIC_MOVSXD) return movsxd_table[source_form(in, mode)][size_index(in->osz)];
    unsigned wide = in->opcode & 1; /* 0F B6/B7, BE/BF */
    const OpFn(*table)[4] = in->op == ZYDIS_MNEMONIC_MOVZX ? movzx_table[wide] : movsx_table[wide];
    return table[source_form(in, mode)][size_index(in->osz)];
}

OpFn int_mov_resolve(Insn *in, u32 mode) {
    unsigned mem = in->flags & INF_MEM ? 1 : 0;
    if (in->map == 1 && in->opcode >= 0x40 && in->opcode <= 0x4f && !(in->flags & INF_VEX))
        return cmov_table[in->opcode & 15][mem][size_index(in->osz)];
    if (in->map == 1 && in->opcode >= 0x90 && in->opcode <= 0x9f && !(in->flags & INF_VEX))
        return set_table[in->opcode & 15][mem];
    switch (in->op) {
    case ZYDIS_MNEMONIC_MOV: return resolve_mov(in, mode);
    case ZYDIS_MNEMONIC_MOVZX:
    case ZYDIS_MNEMONIC_MOVSX:
    case ZYDIS_MNEMONIC_MOVSXD: return resolve_widen(in, mode);
    case ZYDIS_MNEMONIC_LEA: return resolve_lea(in);
    case ZYDIS_MNEMONIC_MOVBE: return in->flags & INF_REGDST ? op_movbe_load : op_movbe_store;
    case ZYDIS_MNEMONIC_MOVNTI: return op_movnti;
    case ZYDIS_MNEMONIC_BSWAP: return in->osz == 8 ? op_bswap64 : in->osz == 4 ? op_bswap32 : op_bswap16;
    case ZYDIS_MNEMONIC_CBW: return op_cbw;
    case ZYDIS_MNEMONIC_CWDE: return op_cwde;
    case ZYDIS_MNEMONIC_CDQE: return op_cdqe;
    case ZYDIS_MNEMONIC_CWD: return op_cwd;
    case ZYDIS_MNEMONIC_CDQ: return op_cdq;
    case ZYDIS_MNEMONIC_CQO: return op_cqo;
    case ZYDIS_MNEMONIC_XLAT: return op_xlat;
    default: return NULL;
    }
}
