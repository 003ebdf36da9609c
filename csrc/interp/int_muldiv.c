/* MUL IMUL DIV IDIV MULX (SDM vol 2). Division checks for #DE first: the host must never see a bad quotient. */
#include "interp/int.h"

/* rDX:rAX = rAX * s; AX = AL * s for bytes. */
#define DEF_WIDE_MUL(name, bits)                                                                                       \
    static void op_##name##bits(Cpu *c, const Insn *in) {                                                              \
        u##bits s = (u##bits)rm_read(c, in, bits / 8), lo = get##bits(c, ROFF(R_RAX)), hi;                             \
        u32 flags = 0;                                                                                                 \
        u8 of;                                                                                                         \
        asm(#name " %[s]\n\tseto %[of]\n\tmov %%rax, %%rcx\n\tlahf\n\tmovzx %%ah, %[f]\n\tmov %%rcx, %%rax"            \
            : "+a"(lo), "=d"(hi), [of] "=&r"(of), [f] "=&Q"(flags)                                                     \
            : [s] "r"(s)                                                                                               \
            : "cc", "rcx");                                                                                            \
        set##bits(c, ROFF(R_RAX), lo);                                                                                 \
        set##bits(c, ROFF(R_RDX), hi);                                                                                 \
        c->cc = (flags & 0xd5) | (u64)of << 11;                                                                        \
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
        u32 ax = REG8(c, ROFF(R_RAX)), product;                                                                        \
        asm(#name "b %[s]\n\tmovzwl %%ax, %[p]" FLAGS_TO_AX : "+a"(ax), [p] "=&r"(product) : [s] "r"(s) : "cc");       \
        REG16(c, ROFF(R_RAX)) = (u16)product;                                                                          \
        c->cc = cc_from_ax((u16)ax);                                                                                   \
    }
DEF_BYTE_MUL(mul)
DEF_BYTE_MUL(imul)
static const OpFn mul_table[4] = SIZES(op_mul), imul_table[4] = SIZES(op_imul);

/* reg = a * b, signed, truncated. */
#define DEF_IMUL2(bits)                                                                                                \
    INLINE void imul2_##bits(Cpu *c, unsigned dst, u##bits a, u##bits b) {                                             \
        u32 ax = 0;                                                                                                    \
        asm("imul %[b], %[a]" FLAGS_TO_AX : "+a"(ax), [a] "+r"(a) : [b] "r"(b) : "cc");                                \
        c->cc = cc_from_ax(ax);                                                                                        \
        set##bits(c, dst, a);                                                                                          \
    }                                                                                                                  \
    static void op_imul_rm##bits(Cpu *c, const Insn *in) {                                                             \
        u##bits s = (u##bits)rm_read(c, in, bits / 8);                                                                 \
        imul2_##bits(c, in->reg, get##bits(c, in->reg), s);                                                            \
    }                                                                                                                  \
    static void op_imul_rmi##bits(Cpu *c, const Insn *in) {                                                            \
        imul2_##bits(c, in->reg, (u##bits)rm_read(c, in, bits / 8), (u##bits)in->imm);                                 \
    }
DEF_IMUL2(16)
DEF_IMUL2(32)
DEF_IMUL2(64)
static const OpFn imul_rm_table[4] = SIZES_16UP(op_imul_rm), imul_rmi_table[4] = SIZES_16UP(op_imul_rmi);

/* Dividends of up to 64 bits. */
static void op_div8(Cpu *c, const Insn *in) {
    u32 a = REG16(c, ROFF(R_RAX)), d = (u8)rm_read(c, in, 1);
    if (!d || a / d > 0xff) exc_raise(c, EXC_DE);
    REG16(c, ROFF(R_RAX)) = (u16)((a % d) << 8 | a / d);
}
static void op_idiv8(Cpu *c, const Insn *in) {
    i32 a = (i16)REG16(c, ROFF(R_RAX)), d = (i8)rm_read(c, in, 1);
    if (!d || a / d != (i8)(a / d)) exc_raise(c, EXC_DE);
    REG16(c, ROFF(R_RAX)) = (u16)((u8)(a % d) << 8 | (u8)(a / d));
}
static void op_div16(Cpu *c, const Insn *in) {
    u32 a = (u32)REG16(c, ROFF(R_RDX)) << 16 | REG16(c, ROFF(R_RAX)), d = (u16)rm_read(c, in, 2);
    if (!d || a / d > 0xffff) exc_raise(c, EXC_DE);
    REG16(c, ROFF(R_RAX)) = (u16)(a / d);
    REG16(c, ROFF(R_RDX)) = (u16)(a % d);
}
static void op_idiv16(Cpu *c, const Insn *in) {
    i64 a = (i32)((u32)REG16(c, ROFF(R_RDX)) << 16 | REG16(c, ROFF(R_RAX))), d = (i16)rm_read(c, in, 2);
    if (!d || a / d != (i16)(a / d)) exc_raise(c, EXC_DE);
    REG16(c, ROFF(R_RAX)) = (u16)(a / d);
    REG16(c, ROFF(R_RDX)) = (u16)(a % d);
}
static void op_div32(Cpu *c, const Insn *in) {
    u64 a = (u64)REG32(c, ROFF(R_RDX)) << 32 | REG32(c, ROFF(R_RAX)), d = (u32)rm_read(c, in, 4);
    if (!d || a / d > 0xffffffff) exc_raise(c, EXC_DE);
    set32(c, ROFF(R_RAX), (u32)(a / d));
    set32(c, ROFF(R_RDX), (u32)(a % d));
}
static void op_idiv32(Cpu *c, const Insn *in) {
    i64 a = (i64)((u64)REG32(c, ROFF(R_RDX)) << 32 | REG32(c, ROFF(R_RAX))), d = (i32)rm_read(c, in, 4);
    if (!d || (a == INT64_MIN && d == -1) || a / d != (i32)(a / d)) exc_raise(c, EXC_DE);
    set32(c, ROFF(R_RAX), (u32)(a / d));
    set32(c, ROFF(R_RDX), (u32)(a % d));
}

/* hi:lo / d with hi < d. */
static u64 divide128(u64 hi, u64 lo, u64 d, u64 *rem) {
    asm("divq %[d]" : "+a"(lo), "+d"(hi) : [d] "r"(d) : "cc");
    *rem = hi;
    return lo;
}
static void op_div64(Cpu *c, const Insn *in) {
    u64 d = rm_read(c, in, 8);
    if (c->r[R_RDX] >= d) exc_raise(c, EXC_DE);
    c->r[R_RAX] = divide128(c->r[R_RDX], c->r[R_RAX], d, &c->r[R_RDX]);
}
static void op_idiv64(Cpu *c, const Insn *in) {
    u64 d = rm_read(c, in, 8), hi = c->r[R_RDX], lo = c->r[R_RAX], rem;
    bool neg = hi >> 63, dneg = d >> 63;
    if (neg) { /* magnitudes, then signs */
        lo = -lo;
        hi = ~hi + !lo;
    }
    if (dneg) d = -d;
    if (hi >= d) exc_raise(c, EXC_DE);
    u64 q = divide128(hi, lo, d, &rem);
    if (q > BIT(63) - 1 + (neg != dneg)) exc_raise(c, EXC_DE);
    c->r[R_RAX] = neg != dneg ? -q : q;
    c->r[R_RDX] = neg ? -rem : rem;
}
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
        return (in->flags & INF_IMM ? imul_rmi_table : imul_rm_table)[size];
    case ZYDIS_MNEMONIC_DIV: return div_table[size];
    case ZYDIS_MNEMONIC_IDIV: return idiv_table[size];
    case ZYDIS_MNEMONIC_MULX: return in->osz == 8 ? op_mulx64 : op_mulx32;
    default: return NULL;
    }
}
