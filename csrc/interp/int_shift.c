/* SHL SHR SAR ROL ROR RCL RCR SHLD SHRD (SDM vol 2). The count is masked to 5 bits (6 for 64-bit operands); a masked
 * count of zero changes no flag. Rotates only change CF and OF. The host does all that by itself once it has the
 * guest's flags. */
#include "interp/int.h"

#define DEF_SHIFT_HOST(name, bits)                                                                                     \
    INLINE u##bits name##_c##bits(Cpu *c, u##bits d, u8 count) {                                                       \
        u32 ax = cc_to_ax(c->cc);                                                                                      \
        asm(FLAGS_FROM_AX #name " %%cl, %[d]" FLAGS_TO_AX : "+a"(ax), [d] "+r"(d) : "c"(count) : "cc");                \
        c->cc = cc_from_ax(ax);                                                                                        \
        return d;                                                                                                      \
    }
#define DEF_SHIFT_FORM(name, bits, form, count)                                                                        \
    static void op_##name##_r##form##bits(Cpu *c, const Insn *in) {                                                    \
        set##bits(c, in->rm, name##_c##bits(c, get##bits(c, in->rm), (u8)(count)));                                    \
    }                                                                                                                  \
    static void op_##name##_m##form##bits(Cpu *c, const Insn *in) {                                                    \
        Rmw m;                                                                                                         \
        u##bits *p = rmw_G(c, &m, in, bits / 8);                                                                       \
        *p = name##_c##bits(c, *p, (u8)(count));                                                                       \
        rmw_end(c, &m);                                                                                                \
    }
#define DEF_SHIFT_SIZE(name, bits)                                                                                     \
    DEF_SHIFT_HOST(name, bits)                                                                                         \
    DEF_SHIFT_FORM(name, bits, i, in->imm)                                                                             \
    DEF_SHIFT_FORM(name, bits, c, c->r[R_RCX])
#define DEF_SHIFT(name)                                                                                                \
    DEF_SHIFT_SIZE(name, 8)                                                                                            \
    DEF_SHIFT_SIZE(name, 16)                                                                                           \
    DEF_SHIFT_SIZE(name, 32)                                                                                           \
    DEF_SHIFT_SIZE(name, 64)                                                                                           \
    static const OpFn name##_table[4][4] = {SIZES(op_##name##_rc), SIZES(op_##name##_ri), SIZES(op_##name##_mc),       \
                                            SIZES(op_##name##_mi)};
DEF_SHIFT(shl)
DEF_SHIFT(shr)
DEF_SHIFT(sar)
DEF_SHIFT(rol)
DEF_SHIFT(ror)
DEF_SHIFT(rcl)
DEF_SHIFT(rcr)

/* SHLD, SHRD: bits come in from reg. */
#define DEF_DOUBLE_HOST(name, bits)                                                                                    \
    INLINE u##bits name##_c##bits(Cpu *c, u##bits d, u##bits s, u8 count) {                                            \
        u32 ax = cc_to_ax(c->cc);                                                                                      \
        asm(FLAGS_FROM_AX #name " %%cl, %[s], %[d]" FLAGS_TO_AX                                                        \
            : "+a"(ax), [d] "+r"(d)                                                                                    \
            : [s] "r"(s), "c"(count)                                                                                   \
            : "cc");                                                                                                   \
        c->cc = cc_from_ax(ax);                                                                                        \
        return d;                                                                                                      \
    }
#define DEF_DOUBLE_FORM(name, bits, form, count)                                                                       \
    static void op_##name##_r##form##bits(Cpu *c, const Insn *in) {                                                    \
        u##bits s = get##bits(c, in->reg);                                                                             \
        set##bits(c, in->rm, name##_c##bits(c, get##bits(c, in->rm), s, (u8)(count)));                                 \
    }                                                                                                                  \
    static void op_##name##_m##form##bits(Cpu *c, const Insn *in) {                                                    \
        Rmw m;                                                                                                         \
        u##bits *p = rmw_G(c, &m, in, bits / 8);                                                                       \
        *p = name##_c##bits(c, *p, get##bits(c, in->reg), (u8)(count));                                                \
        rmw_end(c, &m);                                                                                                \
    }
#define DEF_DOUBLE_SIZE(name, bits)                                                                                    \
    DEF_DOUBLE_HOST(name, bits)                                                                                        \
    DEF_DOUBLE_FORM(name, bits, i, in->imm)                                                                            \
    DEF_DOUBLE_FORM(name, bits, c, c->r[R_RCX])
#define DEF_DOUBLE(name)                                                                                               \
    DEF_DOUBLE_SIZE(name, 16)                                                                                          \
    DEF_DOUBLE_SIZE(name, 32)                                                                                          \
    DEF_DOUBLE_SIZE(name, 64)                                                                                          \
    static const OpFn name##_table[4][4] = {SIZES_16UP(op_##name##_rc), SIZES_16UP(op_##name##_ri),                    \
                                            SIZES_16UP(op_##name##_mc), SIZES_16UP(op_##name##_mi)};
DEF_DOUBLE(shld)
DEF_DOUBLE(shrd)

OpFn int_shift_resolve(Insn *in, u32 mode) {
    const OpFn(*table)[4];
    switch (in->op) {
    case ZYDIS_MNEMONIC_SHL: table = shl_table; break;
    case ZYDIS_MNEMONIC_SHR: table = shr_table; break;
    case ZYDIS_MNEMONIC_SAR: table = sar_table; break;
    case ZYDIS_MNEMONIC_ROL: table = rol_table; break;
    case ZYDIS_MNEMONIC_ROR: table = ror_table; break;
    case ZYDIS_MNEMONIC_RCL: table = rcl_table; break;
    case ZYDIS_MNEMONIC_RCR: table = rcr_table; break;
    case ZYDIS_MNEMONIC_SHLD: table = shld_table; break;
    case ZYDIS_MNEMONIC_SHRD: table = shrd_table; break;
    default: return NULL;
    }
    unsigned form = (in->flags & INF_MEM ? 2 : 0) + (in->flags & INF_IMM ? 1 : 0);
    return table[form][size_index(in->osz)];
}
