/* ADD OR ADC SBB AND SUB XOR CMP TEST (SDM vol 2). */
#include "interp/int.h"

/* The host instruction on a register or on guest memory itself; name##_r / name##_m by size. */
#define DEF_PLAIN(name, bits)                                                                                          \
    INLINE u##bits name##_r##bits(Cpu *c, u##bits d, u##bits s) {                                                      \
        u32 ax = 0;                                                                                                    \
        asm(#name " %[s], %[d]" FLAGS_TO_AX : "+a"(ax), [d] "+r"(d) : [s] "r"(s) : "cc");                              \
        c->cc = cc_from_ax(ax);                                                                                        \
        return d;                                                                                                      \
    }                                                                                                                  \
    INLINE void name##_m##bits(Cpu *c, u##bits *d, u##bits s) {                                                        \
        u32 ax = 0;                                                                                                    \
        asm volatile(#name " %[s], %[d]" FLAGS_TO_AX : "+a"(ax), [d] "+m"(*d) : [s] "r"(s) : "cc");                    \
        c->cc = cc_from_ax(ax);                                                                                        \
    }                                                                                                                  \
    INLINE void name##_l##bits(Cpu *c, u##bits *d, u##bits s) {                                                        \
        u32 ax = 0;                                                                                                    \
        asm volatile("lock " #name " %[s], %[d]" FLAGS_TO_AX : "+a"(ax), [d] "+m"(*d) : [s] "r"(s) : "cc", "memory");  \
        c->cc = cc_from_ax(ax);                                                                                        \
    }
#define DEF_CARRY(name, bits)                                                                                          \
    INLINE u##bits name##_r##bits(Cpu *c, u##bits d, u##bits s) {                                                      \
        u32 ax = 0;                                                                                                    \
        asm(CARRY_FROM_CC #name " %[s], %[d]" FLAGS_TO_AX                                                              \
            : "+a"(ax), [d] "+r"(d)                                                                                    \
            : [s] "r"(s), [cc] "r"(c->cc)                                                                              \
            : "cc");                                                                                                   \
        c->cc = cc_from_ax(ax);                                                                                        \
        return d;                                                                                                      \
    }                                                                                                                  \
    INLINE void name##_m##bits(Cpu *c, u##bits *d, u##bits s) {                                                        \
        u32 ax = 0;                                                                                                    \
        asm volatile(CARRY_FROM_CC #name " %[s], %[d]" FLAGS_TO_AX                                                     \
                     : "+a"(ax), [d] "+m"(*d)                                                                          \
                     : [s] "r"(s), [cc] "r"(c->cc)                                                                     \
                     : "cc");                                                                                          \
        c->cc = cc_from_ax(ax);                                                                                        \
    }                                                                                                                  \
    INLINE void name##_l##bits(Cpu *c, u##bits *d, u##bits s) {                                                        \
        u32 ax = 0;                                                                                                    \
        asm volatile(CARRY_FROM_CC "lock " #name " %[s], %[d]" FLAGS_TO_AX                                             \
                     : "+a"(ax), [d] "+m"(*d)                                                                          \
                     : [s] "r"(s), [cc] "r"(c->cc)                                                                     \
                     : "cc", "memory");                                                                                \
        c->cc = cc_from_ax(ax);                                                                                        \
    }

#define DEF_REG_DST(name, bits, form, src)                                                                             \
    static void op_##name##_##form##bits(Cpu *c, const Insn *in) {                                                     \
        u##bits s = src;                                                                                               \
        set##bits(c, in->rm, name##_r##bits(c, get##bits(c, in->rm), s));                                              \
    }
#define DEF_ALL_FORMS(name, bits)                                                                                      \
    DEF_REG_DST(name, bits, rr, get##bits(c, in->reg))                                                                 \
    DEF_REG_DST(name, bits, ri, (u##bits)in->imm)                                                                      \
    DEF_LOADS(op_##name##_rm, bits, bits, set##bits(c, in->reg, name##_r##bits(c, get##bits(c, in->reg), s));)         \
    DEF_RMWS(op_##name##_mr, bits, name##_m##bits(c, p, get##bits(c, in->reg));)                                       \
    DEF_RMWS(op_##name##_mi, bits, name##_m##bits(c, p, (u##bits)in->imm);)                                            \
    DEF_RMW_G(op_##name##_lmr##bits, bits, name##_l##bits(c, p, get##bits(c, in->reg));)                               \
    DEF_RMW_G(op_##name##_lmi##bits, bits, name##_l##bits(c, p, (u##bits)in->imm);)
#define DEF_ALU(name, host, bits) host(name, bits) DEF_ALL_FORMS(name, bits)
#define FORM_TABLE(name)                                                                                               \
    static const OpFn name##_table[F_COUNT][4] = {                                                                     \
        SIZES(op_##name##_rr),     SIZES(op_##name##_ri),  ADDR_ROWS(op_##name##_rm), ADDR_ROWS(op_##name##_mr),       \
        ADDR_ROWS(op_##name##_mi), SIZES(op_##name##_lmr), SIZES(op_##name##_lmi)};
#define DEF_ALU_ALL(name, host) FOR_SIZES(DEF_ALU, name, host) FORM_TABLE(name)

DEF_ALU_ALL(add, DEF_PLAIN)
DEF_ALU_ALL(or, DEF_PLAIN)
DEF_ALU_ALL(adc, DEF_CARRY)
DEF_ALU_ALL(sbb, DEF_CARRY)
DEF_ALU_ALL(and, DEF_PLAIN)
DEF_ALU_ALL(sub, DEF_PLAIN)
DEF_ALU_ALL(xor, DEF_PLAIN)

/* CMP and TEST only read. */
#define DEF_FLAGS_ONLY(name, bits)                                                                                     \
    INLINE void name##_f##bits(Cpu *c, u##bits d, u##bits s) {                                                         \
        u32 ax = 0;                                                                                                    \
        asm(#name " %[s], %[d]" FLAGS_TO_AX : "+a"(ax) : [d] "r"(d), [s] "r"(s) : "cc");                               \
        c->cc = cc_from_ax(ax);                                                                                        \
    }
#define DEF_FLAGS_FORM(name, bits, form, dst, src)                                                                     \
    static void op_##name##_##form##bits(Cpu *c, const Insn *in) {                                                     \
        u##bits d = dst, s = src;                                                                                      \
        name##_f##bits(c, d, s);                                                                                       \
    }
#define DEF_FLAGS_FORMS(name, bits)                                                                                    \
    DEF_FLAGS_ONLY(name, bits)                                                                                         \
    DEF_FLAGS_FORM(name, bits, rr, get##bits(c, in->rm), get##bits(c, in->reg))                                        \
    DEF_FLAGS_FORM(name, bits, ri, get##bits(c, in->rm), (u##bits)in->imm)                                             \
    DEF_LOADS(op_##name##_rm, bits, bits, name##_f##bits(c, get##bits(c, in->reg), s);)                                \
    DEF_LOADS(op_##name##_mr, bits, bits, name##_f##bits(c, s, get##bits(c, in->reg));)                                \
    DEF_LOADS(op_##name##_mi, bits, bits, name##_f##bits(c, s, (u##bits)in->imm);)
#define FLAGS_TABLE(name)                                                                                              \
    static const OpFn name##_table[F_COUNT][4] = {SIZES(op_##name##_rr), SIZES(op_##name##_ri),                        \
                                                  ADDR_ROWS(op_##name##_rm), ADDR_ROWS(op_##name##_mr),                \
                                                  ADDR_ROWS(op_##name##_mi)};
FOR_SIZES(DEF_FLAGS_FORMS, cmp)
FOR_SIZES(DEF_FLAGS_FORMS, test)
FLAGS_TABLE(cmp)
FLAGS_TABLE(test)

/* xor r,r and sub r,r: the usual way to write zero. */
#define CC_ZERO_RESULT (FL_ZF | FL_PF)
static void op_zero64(Cpu *c, const Insn *in) {
    REG64(c, in->rm) = 0;
    c->cc = CC_ZERO_RESULT;
}

/* test r,r needs no second operand. */
#define DEF_TEST_SELF(bits)                                                                                            \
    static void op_test_self##bits(Cpu *c, const Insn *in) {                                                           \
        u##bits d = get##bits(c, in->rm);                                                                              \
        test_f##bits(c, d, d);                                                                                         \
    }
DEF_TEST_SELF(32)
DEF_TEST_SELF(64)

static OpFn self_form(const Insn *in, unsigned form) {
    if (form != F_RR || in->rm != in->reg || in->osz < 4) return NULL;
    if (in->op == ZYDIS_MNEMONIC_XOR || in->op == ZYDIS_MNEMONIC_SUB) return op_zero64;
    if (in->op == ZYDIS_MNEMONIC_TEST) return in->osz == 8 ? op_test_self64 : op_test_self32;
    return NULL;
}

OpFn int_alu_resolve(Insn *in, u32 mode) {
    const OpFn(*table)[4];
    switch (in->op) {
    case ZYDIS_MNEMONIC_ADD: table = add_table; break;
    case ZYDIS_MNEMONIC_OR: table = or_table; break;
    case ZYDIS_MNEMONIC_ADC: table = adc_table; break;
    case ZYDIS_MNEMONIC_SBB: table = sbb_table; break;
    case ZYDIS_MNEMONIC_AND: table = and_table; break;
    case ZYDIS_MNEMONIC_SUB: table = sub_table; break;
    case ZYDIS_MNEMONIC_XOR: table = xor_table; break;
    case ZYDIS_MNEMONIC_CMP: table = cmp_table; break;
    case ZYDIS_MNEMONIC_TEST: table = test_table; break;
    default: return NULL;
    }
    unsigned form = two_operand_form(in, mode);
    OpFn fn = self_form(in, form);
    return fn ? fn : table[form][size_index(in->osz)];
}
