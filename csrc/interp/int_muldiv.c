/* MUL IMUL DIV IDIV MULX (SDM vol 2). Division checks for #DE first: the host must never see a bad quotient. */
#include "interp/int.h"

/* The host instruction on rAX (and rDX), with the guest's flags before and after. */
#define HOST_RAX(name, a, s, d, lo)                                                                                    \
    asm(FLAGS_FROM_AX "mov %[a_], %%rax\n\t" #name " %[s_]\n\tmov %%rax, %[lo_]" FLAGS_TO_AX                           \
        : "+a"(ax), [lo_] "=&r"(lo), "+&d"(d)                                                                          \
        : [s_] "r"(s), [a_] "r"(a)                                                                                     \
        : "cc");                                                                                                       \
    c->cc = cc_from_ax((u16)ax)

/* rDX:rAX = rAX * s; AX = AL * s for bytes. */
#define DEF_WIDE_MUL(name, bits)                                                                                       \
    static void op_##name##bits(Cpu *c, const Insn *in) {                                                              \
        u##bits s = (u##bits)rm_read(c, in, bits / 8);                                                                 \
        u64 lo, hi = 0;                                                                                                \
        u32 ax = cc_to_ax(c->cc);                                                                                      \
        HOST_RAX(name, c->r[R_RAX], s, hi, lo);                                                                        \
        set##bits(c, ROFF(R_RAX), (u##bits)lo);                                                                        \
        set##bits(c, ROFF(R_RDX), (u##bits)hi);                                                                        \
    }
DEF_WIDE_MUL(mul, 16)
DEF_WIDE_MUL(mul, 32)
DEF_WIDE_MUL(mul, 64)
DEF_WIDE_MUL(imul, 16)
DEF_WIDE_MUL(imul, 32)
DEF_WIDE_MUL(imul, 64)
#define DEF_BYTE_MUL(name)                                                                                             \
    static void op_##name##8(Cpu * c, const Insn *in) {                                                                \
        u8 s = (u8)rm_read(c, in, 1);                                                                                  \
        u64 lo, hi = 0;                                                                                                \
        u32 ax = cc_to_ax(c->cc);                                                                                      \
        HOST_RAX(name, c->r[R_RAX], s, hi, lo);                                                                        \
        REG16(c, ROFF(R_RAX)) = (u16)lo;                                                                               \
    }
DEF_BYTE_MUL(mul)
DEF_BYTE_MUL(imul)
static const OpFn mul_table[4] = SIZES(op_mul), imul_table[4] = SIZES(op_imul);

/* reg = a * b, signed, truncated. */
#define DEF_IMUL2(bits)                                                                                                \
    INLINE void imul2_##bits(Cpu *c, unsigned dst, u##bits a, u##bits b) {                                             \
        u32 ax = cc_to_ax(c->cc);                                                                                      \
        asm(FLAGS_FROM_AX "imul %[b], %[a]" FLAGS_TO_AX : "+a"(ax), [a] "+r"(a) : [b] "r"(b) : "cc");                  \
        c->cc = cc_from_ax(ax);                                                                                        \
        set##bits(c, dst, a);                                                                                          \
    }                                                                                                                  \
    static void op_imul_r##bits(Cpu *c, const Insn *in) {                                                              \
        imul2_##bits(c, in->reg, get##bits(c, in->reg), get##bits(c, in->rm));                                         \
    }                                                                                                                  \
    DEF_LOADS(op_imul_, bits, bits, imul2_##bits(c, in->reg, get##bits(c, in->reg), s);)                               \
    static void op_imul_rmi##bits(Cpu *c, const Insn *in) {                                                            \
        imul2_##bits(c, in->reg, (u##bits)rm_read(c, in, bits / 8), (u##bits)in->imm);                                 \
    }
DEF_IMUL2(16)
DEF_IMUL2(32)
DEF_IMUL2(64)
static const OpFn imul_rm_table[S_COUNT][4] = {SIZES_16UP(op_imul_r), SIZES_16UP(op_imul_g), SIZES_16UP(op_imul_b),
                                               SIZES_16UP(op_imul_x), SIZES_16UP(op_imul_f)};
static const OpFn imul_rmi_table[4] = SIZES_16UP(op_imul_rmi);

/* Is the quotient of the signed division hi:lo / d too large? Decided on magnitudes. */
static bool idiv64_overflows(u64 hi, u64 lo, u64 d) {
    bool neg = hi >> 63, dneg = d >> 63;
    if (neg) {
        lo = -lo;
        hi = ~hi + !lo;
    }
    if (dneg) d = -d;
    if (hi >= d) return true;
    asm("divq %[d]" : "+a"(lo), "+d"(hi) : [d] "r"(d) : "cc");
    return lo > BIT(63) - 1 + (neg != dneg);
}
static bool div_overflows(u64 a, u64 d, unsigned bits) { return !d || a / d >> bits; }
static bool idiv_overflows(i64 a, i64 d, unsigned bits) {
    if (!d || (a == INT64_MIN && d == -1)) return true;
    i64 q = a / d;
    return q != q << (64 - bits) >> (64 - bits);
}

static void op_div8(Cpu *c, const Insn *in) {
    u64 lo, hi = 0, d = (u8)rm_read(c, in, 1);
    u32 ax = cc_to_ax(c->cc);
    if (div_overflows(REG16(c, ROFF(R_RAX)), d, 8)) exc_raise(c, EXC_DE);
    HOST_RAX(div, c->r[R_RAX], (u8)d, hi, lo);
    REG16(c, ROFF(R_RAX)) = (u16)lo;
}
static void op_idiv8(Cpu *c, const Insn *in) {
    u64 lo, hi = 0;
    i8 d = (i8)rm_read(c, in, 1);
    u32 ax = cc_to_ax(c->cc);
    if (idiv_overflows((i16)REG16(c, ROFF(R_RAX)), d, 8)) exc_raise(c, EXC_DE);
    HOST_RAX(idiv, c->r[R_RAX], d, hi, lo);
    REG16(c, ROFF(R_RAX)) = (u16)lo;
}
#define DEF_DIV(name, bits, overflows)                                                                                 \
    static void op_##name##bits(Cpu *c, const Insn *in) {                                                              \
        u##bits d = (u##bits)rm_read(c, in, bits / 8);                                                                 \
        u64 lo, hi = c->r[R_RDX];                                                                                      \
        u32 ax = cc_to_ax(c->cc);                                                                                      \
        if (overflows) exc_raise(c, EXC_DE);                                                                           \
        HOST_RAX(name, c->r[R_RAX], d, hi, lo);                                                                        \
        set##bits(c, ROFF(R_RAX), (u##bits)lo);                                                                        \
        set##bits(c, ROFF(R_RDX), (u##bits)hi);                                                                        \
    }
#define PAIR16 ((u32)hi << 16 | REG16(c, ROFF(R_RAX)))
#define PAIR32 (hi << 32 | REG32(c, ROFF(R_RAX)))
DEF_DIV(div, 16, div_overflows(PAIR16, d, 16))
DEF_DIV(div, 32, div_overflows(PAIR32, d, 32))
DEF_DIV(div, 64, hi >= d)
DEF_DIV(idiv, 16, idiv_overflows((i32)PAIR16, (i16)d, 16))
DEF_DIV(idiv, 32, idiv_overflows((i64)PAIR32, (i32)d, 32))
DEF_DIV(idiv, 64, idiv64_overflows(hi, c->r[R_RAX], d))
static const OpFn div_table[4] = SIZES(op_div), idiv_table[4] = SIZES(op_idiv);

/* MULX: no flags; if both destinations are one register it gets the high half. */
static void op_mulx32(Cpu *c, const Insn *in) {
    u64 p = (u64)REG32(c, ROFF(R_RDX)) * (u32)rm_read(c, in, 4);
    set32(c, in->reg2, (u32)p);
    set32(c, in->reg, (u32)(p >> 32));
}
static void op_mulx64(Cpu *c, const Insn *in) {
    unsigned __int128 p = (unsigned __int128)c->r[R_RDX] * rm_read(c, in, 8);
    REG64(c, in->reg2) = (u64)p;
    REG64(c, in->reg) = (u64)(p >> 64);
}

OpFn int_muldiv_resolve(Insn *in, u32 mode) {
    unsigned size = size_index(in->osz);
    switch (in->op) {
    case ZYDIS_MNEMONIC_MUL: return mul_table[size];
    case ZYDIS_MNEMONIC_IMUL:
        if (!(in->flags & INF_HASREG)) return imul_table[size];
        return in->flags & INF_IMM ? imul_rmi_table[size] : imul_rm_table[source_form(in, mode)][size];
    case ZYDIS_MNEMONIC_DIV: return div_table[size];
    case ZYDIS_MNEMONIC_IDIV: return idiv_table[size];
    case ZYDIS_MNEMONIC_MULX: return in->osz == 8 ? op_mulx64 : op_mulx32;
    default: return NULL;
    }
}
