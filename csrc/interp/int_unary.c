/* INC DEC NEG NOT, and the binary-coded-decimal adjustments (SDM vol 2). */
#include "interp/int.h"

/* INC and DEC keep CF: the host does too, once it is loaded. */
#define DEF_UNARY_HOST(name, bits)                                                                                     \
    INLINE u##bits name##_r##bits(Cpu *c, u##bits d) {                                                                 \
        u32 ax = 0;                                                                                                    \
        asm(CARRY_FROM_CC #name " %[d]" FLAGS_TO_AX : "+a"(ax), [d] "+r"(d) : [cc] "r"(c->cc) : "cc");                 \
        c->cc = cc_from_ax(ax);                                                                                        \
        return d;                                                                                                      \
    }
#define UNARY_MEM(name, lock, suffix, p)                                                                               \
    u32 ax = 0;                                                                                                        \
    asm volatile(CARRY_FROM_CC lock #name suffix " %[d]" FLAGS_TO_AX                                                   \
                 : "+a"(ax), [d] "+m"(*p)                                                                              \
                 : [cc] "r"(c->cc)                                                                                     \
                 : "cc", "memory");                                                                                    \
    c->cc = cc_from_ax(ax)
#define DEF_UNARY_REG(name, bits)                                                                                      \
    DEF_UNARY_HOST(name, bits)                                                                                         \
    static void op_##name##_r##bits(Cpu *c, const Insn *in) {                                                          \
        set##bits(c, in->rm, name##_r##bits(c, get##bits(c, in->rm)));                                                 \
    }
#define DEF_UNARY_SIZE(name, bits, suffix)                                                                             \
    DEF_UNARY_REG(name, bits)                                                                                          \
    DEF_RMWS(op_##name##_m, bits, UNARY_MEM(name, "", suffix, p);)                                                     \
    DEF_RMW_G(op_##name##_lm##bits, bits, UNARY_MEM(name, "lock ", suffix, p);)
#define DEF_UNARY(name)                                                                                                \
    DEF_UNARY_SIZE(name, 8, "b")                                                                                       \
    DEF_UNARY_SIZE(name, 16, "w")                                                                                      \
    DEF_UNARY_SIZE(name, 32, "l")                                                                                      \
    DEF_UNARY_SIZE(name, 64, "q")                                                                                      \
    static const OpFn name##_table[U_COUNT][4] = {SIZES(op_##name##_r), ADDR_ROWS(op_##name##_m),                      \
                                                  SIZES(op_##name##_lm)};
DEF_UNARY(inc)
DEF_UNARY(dec)
DEF_UNARY(neg)

/* NOT changes no flag. */
#define DEF_NOT(bits, suffix)                                                                                          \
    static void op_not_r##bits(Cpu *c, const Insn *in) { set##bits(c, in->rm, (u##bits) ~get##bits(c, in->rm)); }      \
    DEF_RMWS(op_not_m, bits, *p = (u##bits) ~*p;)                                                                      \
    DEF_RMW_G(op_not_lm##bits, bits, asm volatile("lock not" suffix " %0" : "+m"(*p) : : "memory");)
DEF_NOT(8, "b")
DEF_NOT(16, "w")
DEF_NOT(32, "l")
DEF_NOT(64, "q")
static const OpFn not_table[U_COUNT][4] = {SIZES(op_not_r), ADDR_ROWS(op_not_m), SIZES(op_not_lm)};

/* DAA and friends do not exist in 64-bit mode, so they are spelt out (SDM vol 2, their "Operation" sections). */
static u64 cc_of_result8(u8 v) { return (v == 0 ? FL_ZF : 0u) | (v & FL_SF) | (__builtin_parity(v) ? 0u : FL_PF); }

static void decimal_adjust(Cpu *c, bool subtract) {
    u8 old = REG8(c, ROFF(R_RAX)), al = old, six = 6;
    bool cf = c->cc & FL_CF, af = (old & 15) > 9 || c->cc & FL_AF, carry = old > 0x99 || cf;
    if (af) {
        carry |= subtract && old < six; /* the borrow of the low adjustment */
        al = (u8)(subtract ? al - six : al + six);
    }
    if (old > 0x99 || cf) al = (u8)(subtract ? al - 0x60 : al + 0x60);
    REG8(c, ROFF(R_RAX)) = al;
    c->cc = cc_of_result8(al) | (carry ? FL_CF : 0) | (af ? FL_AF : 0);
}
static void op_daa(Cpu *c, const Insn *in) { decimal_adjust(c, false); }
static void op_das(Cpu *c, const Insn *in) { decimal_adjust(c, true); }

static void ascii_adjust(Cpu *c, bool subtract) {
    u16 ax = REG16(c, ROFF(R_RAX));
    bool adjust = (ax & 15) > 9 || c->cc & FL_AF;
    if (adjust) ax = (u16)(subtract ? ax - 0x106 : ax + 0x106);
    ax &= 0xff0f;
    REG16(c, ROFF(R_RAX)) = ax;
    c->cc = cc_of_result8((u8)ax) | (adjust ? FL_CF | FL_AF : 0);
}
static void op_aaa(Cpu *c, const Insn *in) { ascii_adjust(c, false); }
static void op_aas(Cpu *c, const Insn *in) { ascii_adjust(c, true); }

static void op_aam(Cpu *c, const Insn *in) {
    u8 al = REG8(c, ROFF(R_RAX)), base = (u8)in->imm;
    if (!base) exc_raise(c, EXC_DE);
    REG16(c, ROFF(R_RAX)) = (u16)((al / base) << 8 | al % base);
    c->cc = cc_of_result8(al % base);
}

static void op_aad(Cpu *c, const Insn *in) {
    u16 ax = REG16(c, ROFF(R_RAX));
    u8 al = (u8)((ax >> 8) * (u8)in->imm + ax);
    REG16(c, ROFF(R_RAX)) = al;
    c->cc = cc_of_result8(al);
}

OpFn int_unary_resolve(Insn *in, u32 mode) {
    const OpFn(*table)[4];
    switch (in->op) {
    case ZYDIS_MNEMONIC_INC: table = inc_table; break;
    case ZYDIS_MNEMONIC_DEC: table = dec_table; break;
    case ZYDIS_MNEMONIC_NEG: table = neg_table; break;
    case ZYDIS_MNEMONIC_NOT: table = not_table; break;
    case ZYDIS_MNEMONIC_DAA: return op_daa;
    case ZYDIS_MNEMONIC_DAS: return op_das;
    case ZYDIS_MNEMONIC_AAA: return op_aaa;
    case ZYDIS_MNEMONIC_AAS: return op_aas;
    case ZYDIS_MNEMONIC_AAM: return op_aam;
    case ZYDIS_MNEMONIC_AAD: return op_aad;
    default: return NULL;
    }
    return table[one_operand_form(in, mode)][size_index(in->osz)];
}
