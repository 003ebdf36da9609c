/* What the integer handlers share: flags from the host, operand access by size and addressing form, form numbering.
 *
 * Handlers are straight-line code made by macros, one function per operation, operand form and size; resolving picks
 * the function once, when the instruction is decoded. Flags are those of the host instruction itself, so undefined
 * ones agree with native execution (CORE 17). */
#ifndef QPY_INTERP_INT_H
#define QPY_INTERP_INT_H

#include "interp/ops.h"

#include <Zydis/Mnemonic.h>

OpFn int_alu_resolve(Insn *in, u32 mode);
OpFn int_unary_resolve(Insn *in, u32 mode);
OpFn int_shift_resolve(Insn *in, u32 mode);
OpFn int_muldiv_resolve(Insn *in, u32 mode);
OpFn int_mov_resolve(Insn *in, u32 mode);
OpFn int_xchg_resolve(Insn *in, u32 mode);
OpFn int_stack_resolve(Insn *in, u32 mode);
OpFn int_branch_resolve(Insn *in, u32 mode);
OpFn int_string_resolve(Insn *in, u32 mode);
OpFn int_bit_resolve(Insn *in, u32 mode);
OpFn int_misc_resolve(Insn *in, u32 mode);

/* Flags. After the operation `lahf; seto %al` leaves them in AX; ax must enter the asm zeroed above bit 15. */
#define FLAGS_TO_AX   "\n\tlahf\n\tseto %%al"
#define CARRY_FROM_CC "btl $0, %k[cc]\n\t"
/* The other way round, for instructions that leave some flags alone or undefined. */
#define FLAGS_FROM_AX "addb $0x7f, %%al\n\tsahf\n\t"
INLINE u32 cc_to_ax(u64 cc) { return (u32)((cc & 0xff) << 8 | cc >> 11); }
INLINE u64 cc_from_ax(u32 ax) { return (ax >> 8 | ax << 11) & FL_CC; }

/* Is condition n (low four bits of Jcc, SETcc, CMOVcc) true? (SDM vol 1, appendix B) */
INLINE bool cond_o(u64 cc) { return cc & FL_OF; }
INLINE bool cond_b(u64 cc) { return cc & FL_CF; }
INLINE bool cond_z(u64 cc) { return cc & FL_ZF; }
INLINE bool cond_be(u64 cc) { return cc & (FL_CF | FL_ZF); }
INLINE bool cond_s(u64 cc) { return cc & FL_SF; }
INLINE bool cond_p(u64 cc) { return cc & FL_PF; }
INLINE bool cond_l(u64 cc) { return (cc >> 4 ^ cc) & FL_SF; } /* OF shifted onto SF */
INLINE bool cond_le(u64 cc) { return ((cc >> 4 ^ cc) & FL_SF) | (cc & FL_ZF); }
INLINE bool cond_no(u64 cc) { return !cond_o(cc); }
INLINE bool cond_nb(u64 cc) { return !cond_b(cc); }
INLINE bool cond_nz(u64 cc) { return !cond_z(cc); }
INLINE bool cond_nbe(u64 cc) { return !cond_be(cc); }
INLINE bool cond_ns(u64 cc) { return !cond_s(cc); }
INLINE bool cond_np(u64 cc) { return !cond_p(cc); }
INLINE bool cond_nl(u64 cc) { return !cond_l(cc); }
INLINE bool cond_nle(u64 cc) { return !cond_le(cc); }
/* X(name, index) for all conditions in opcode order. */
#define FOR_CONDS(X) X(o) X(no) X(b) X(nb) X(z) X(nz) X(be) X(nbe) X(s) X(ns) X(p) X(np) X(l) X(nl) X(le) X(nle)

/* Registers by size; a 32-bit write clears the upper half. */
INLINE u8 get8(const Cpu *c, unsigned o) { return REG8(c, o); }
INLINE u16 get16(const Cpu *c, unsigned o) { return REG16(c, o); }
INLINE u32 get32(const Cpu *c, unsigned o) { return REG32(c, o); }
INLINE u64 get64(const Cpu *c, unsigned o) { return REG64(c, o); }
INLINE void set8(Cpu *c, unsigned o, u8 v) { REG8(c, o) = v; }
INLINE void set16(Cpu *c, unsigned o, u16 v) { REG16(c, o) = v; }
INLINE void set32(Cpu *c, unsigned o, u32 v) { REG64(c, o) = v; }
INLINE void set64(Cpu *c, unsigned o, u64 v) { REG64(c, o) = v; }
INLINE u64 get_n(const Cpu *c, unsigned o, unsigned n) {
    return n == 8 ? REG64(c, o) : n == 4 ? REG32(c, o) : n == 2 ? REG16(c, o) : REG8(c, o);
}
INLINE void set_n(Cpu *c, unsigned o, u64 v, unsigned n) {
    if (n == 8) REG64(c, o) = v;
    else if (n == 4) set32(c, o, (u32)v);
    else if (n == 2) REG16(c, o) = (u16)v;
    else REG8(c, o) = (u8)v;
}

/* Addressing forms. G: any. Through a flat segment, where the linear address needs no check: B 64-bit [base + disp],
 * X 64-bit [base + index + disp], F 32-bit [base + index + disp]. */
INLINE u64 lin_B(const Cpu *c, const Insn *in) { return REG64(c, in->base) + (u64)(i64)in->disp; }
INLINE u64 lin_X(const Cpu *c, const Insn *in) { return lin_B(c, in) + (REG64(c, in->index) << in->scale); }
INLINE u64 lin_F(const Cpu *c, const Insn *in) { return (u32)lin_X(c, in); }

/* Read-modify-write at a linear address of a flat segment; see mmu.h. */
INLINE void *rmw_begin_lin(Cpu *c, Rmw *m, const Insn *in, u64 lin, unsigned n) {
    m->lin = lin;
    m->n = (u8)n;
    m->seg = in->seg;
    m->slow = false;
    rmw_slow_begin(c, m);
    return m->p;
}
INLINE void *rmw_G(Cpu *c, Rmw *m, const Insn *in, unsigned n) { return rmw_begin(c, m, in->seg, insn_ea(c, in), n); }

/* Handlers with a memory operand, one per addressing form. The flat forms hit the TLB inline and leave a miss to a cold
 * twin by tail call, so that the fast path needs no stack frame. The body sees
 * LOADS: u<bits> s, the operand; RMWS: u<bits> *p, where it lies; STORES stores the expression. */
#define DEF_LOAD_G(name, bits, ...)                                                                                    \
    static void name(Cpu *c, const Insn *in) {                                                                         \
        u##bits s = ld##bits(c, in->seg, insn_ea(c, in));                                                              \
        __VA_ARGS__                                                                                                    \
    }
#define DEF_LOAD_FLAT(name, bits, form, ...)                                                                           \
    static COLD void name##_miss(Cpu *c, const Insn *in) {                                                             \
        u##bits s = (u##bits)mem_slow_read(c, lin_##form(c, in), bits / 8, in->seg, c->mmu_mode);                      \
        __VA_ARGS__                                                                                                    \
    }                                                                                                                  \
    static void name(Cpu *c, const Insn *in) {                                                                         \
        u64 lin = lin_##form(c, in);                                                                                   \
        const TlbEntry *e = tlb_slot(c->tlb, lin);                                                                     \
        if (unlikely(lin + e->rtag > PAGE_SIZE - bits / 8)) {                                                          \
            name##_miss(c, in);                                                                                        \
            return;                                                                                                    \
        }                                                                                                              \
        u##bits s = *(const u##bits *)(lin + (u64)e->delta);                                                           \
        __VA_ARGS__                                                                                                    \
    }
#define DEF_LOADS(name, suffix, bits, ...)                                                                             \
    DEF_LOAD_G(name##g##suffix, bits, __VA_ARGS__)                                                                     \
    DEF_LOAD_FLAT(name##b##suffix, bits, B, __VA_ARGS__)                                                               \
    DEF_LOAD_FLAT(name##x##suffix, bits, X, __VA_ARGS__)                                                               \
    DEF_LOAD_FLAT(name##f##suffix, bits, F, __VA_ARGS__)

#define DEF_STORE_FLAT(name, bits, form, value)                                                                        \
    static COLD void name##_miss(Cpu *c, const Insn *in) {                                                             \
        mem_slow_write(c, lin_##form(c, in), bits / 8, value, in->seg, c->mmu_mode);                                   \
    }                                                                                                                  \
    static void name(Cpu *c, const Insn *in) {                                                                         \
        u64 lin = lin_##form(c, in);                                                                                   \
        const TlbEntry *e = tlb_slot(c->tlb, lin);                                                                     \
        if (unlikely(lin + e->wtag > PAGE_SIZE - bits / 8)) {                                                          \
            name##_miss(c, in);                                                                                        \
            return;                                                                                                    \
        }                                                                                                              \
        *(u##bits *)(lin + (u64)e->delta) = value;                                                                     \
    }
#define DEF_STORES(name, bits, value)                                                                                  \
    static void name##g##bits(Cpu *c, const Insn *in) { st##bits(c, in->seg, insn_ea(c, in), value); }                 \
    DEF_STORE_FLAT(name##b##bits, bits, B, value)                                                                      \
    DEF_STORE_FLAT(name##x##bits, bits, X, value)                                                                      \
    DEF_STORE_FLAT(name##f##bits, bits, F, value)

#define DEF_RMW_G(name, bits, ...)                                                                                     \
    static void name(Cpu *c, const Insn *in) {                                                                         \
        Rmw m;                                                                                                         \
        u##bits *p = rmw_G(c, &m, in, bits / 8);                                                                       \
        __VA_ARGS__                                                                                                    \
        rmw_end(c, &m);                                                                                                \
    }
#define DEF_RMW_FLAT(name, bits, form, ...)                                                                            \
    static COLD void name##_miss(Cpu *c, const Insn *in) {                                                             \
        Rmw m;                                                                                                         \
        u##bits *p = rmw_begin_lin(c, &m, in, lin_##form(c, in), bits / 8);                                            \
        __VA_ARGS__                                                                                                    \
        rmw_end(c, &m);                                                                                                \
    }                                                                                                                  \
    static void name(Cpu *c, const Insn *in) {                                                                         \
        u64 lin = lin_##form(c, in);                                                                                   \
        const TlbEntry *e = tlb_slot(c->tlb, lin);                                                                     \
        if (unlikely(lin + e->wtag > PAGE_SIZE - bits / 8)) {                                                          \
            name##_miss(c, in);                                                                                        \
            return;                                                                                                    \
        }                                                                                                              \
        u##bits *p = (u##bits *)(lin + (u64)e->delta);                                                                 \
        __VA_ARGS__                                                                                                    \
    }
#define DEF_RMWS(name, bits, ...)                                                                                      \
    DEF_RMW_G(name##g##bits, bits, __VA_ARGS__)                                                                        \
    DEF_RMW_FLAT(name##b##bits, bits, B, __VA_ARGS__)                                                                  \
    DEF_RMW_FLAT(name##x##bits, bits, X, __VA_ARGS__)                                                                  \
    DEF_RMW_FLAT(name##f##bits, bits, F, __VA_ARGS__)

/* Linear accesses of a flat stack. */
#define DEF_LINEAR_ACCESS(bits)                                                                                        \
    INLINE u##bits ldl##bits(Cpu *c, unsigned seg, u64 lin) {                                                          \
        u##bits *p = tlb_hit_r(c->tlb, lin, bits / 8);                                                                 \
        return likely(p != NULL) ? *p : (u##bits)mem_slow_read(c, lin, bits / 8, seg, c->mmu_mode);                    \
    }                                                                                                                  \
    INLINE void stl##bits(Cpu *c, unsigned seg, u64 lin, u##bits v) {                                                  \
        u##bits *p = tlb_hit_w(c->tlb, lin, bits / 8);                                                                 \
        if (likely(p != NULL)) *p = v;                                                                                 \
        else mem_slow_write(c, lin, bits / 8, v, seg, c->mmu_mode);                                                    \
    }
DEF_LINEAR_ACCESS(32)
DEF_LINEAR_ACCESS(64)

/* rm as a source of n bytes, register or memory, for the less frequent instructions. */
INLINE u64 ld_n(Cpu *c, unsigned seg, u64 off, unsigned n) {
    return n == 8 ? ld64(c, seg, off) : n == 4 ? ld32(c, seg, off) : n == 2 ? ld16(c, seg, off) : ld8(c, seg, off);
}
INLINE void st_n(Cpu *c, unsigned seg, u64 off, u64 v, unsigned n) {
    if (n == 8) st64(c, seg, off, v);
    else if (n == 4) st32(c, seg, off, (u32)v);
    else if (n == 2) st16(c, seg, off, (u16)v);
    else st8(c, seg, off, (u8)v);
}
INLINE u64 rm_read(Cpu *c, const Insn *in, unsigned n) {
    return in->flags & INF_MEM ? ld_n(c, in->seg, insn_ea(c, in), n) : get_n(c, in->rm, n);
}
INLINE void rm_write(Cpu *c, const Insn *in, u64 v, unsigned n) {
    if (in->flags & INF_MEM) st_n(c, in->seg, insn_ea(c, in), v, n);
    else set_n(c, in->rm, v, n);
}

/* Size index of tables: 8, 16, 32, 64 bits. */
INLINE unsigned size_index(unsigned osz) { return osz == 8 ? 3 : osz == 4 ? 2 : osz == 2 ? 1 : 0; }
#define SIZES(name)                                                                                                    \
    { name##8, name##16, name##32, name##64 }
#define SIZES_16UP(name)                                                                                               \
    { NULL, name##16, name##32, name##64 }
#define FOR_SIZES(X, ...) X(__VA_ARGS__, 8) X(__VA_ARGS__, 16) X(__VA_ARGS__, 32) X(__VA_ARGS__, 64)

/* Rows g b x f of a table. */
#define ADDR_ROWS(name) SIZES(name##g), SIZES(name##b), SIZES(name##x), SIZES(name##f)
enum { ADDR_G, ADDR_B, ADDR_X, ADDR_F, ADDR_FORMS };
INLINE unsigned addr_form(const Insn *in, u32 mode) {
    if (in->seg == SEG_FS || in->seg == SEG_GS || !(mode & MODE_FLAT)) return ADDR_G;
    if (!(mode & MODE_CS64)) return in->asz == 4 && in->seg != SEG_CS ? ADDR_F : ADDR_G; /* CS: not for stores */
    if (in->asz != 8) return ADDR_G;
    return in->index == ROFF(R_ZERO) ? ADDR_B : ADDR_X;
}

/* Two-operand forms: destination, source; L are locked. In register-register forms rm is made the destination. */
enum {
    F_RR,
    F_RI,
    F_RM,
    F_MR = F_RM + ADDR_FORMS,
    F_MI = F_MR + ADDR_FORMS,
    F_LMR = F_MI + ADDR_FORMS,
    F_LMI,
    F_COUNT
};
INLINE unsigned two_operand_form(Insn *in, u32 mode) {
    if (!(in->flags & INF_MEM)) {
        if (in->flags & INF_IMM) return F_RI;
        if (in->flags & INF_REGDST) {
            u8 t = in->rm;
            in->rm = in->reg;
            in->reg = t;
            in->flags &= (u16)~INF_REGDST;
        }
        return F_RR;
    }
    if (in->flags & INF_LOCK) return in->flags & INF_IMM ? F_LMI : F_LMR;
    unsigned a = addr_form(in, mode);
    if (in->flags & INF_REGDST) return F_RM + a;
    return (in->flags & INF_IMM ? F_MI : F_MR) + a;
}
/* One-operand forms: register, memory, locked memory. */
enum { U_R, U_M, U_LM = U_M + ADDR_FORMS, U_COUNT };
INLINE unsigned one_operand_form(const Insn *in, u32 mode) {
    if (!(in->flags & INF_MEM)) return U_R;
    return in->flags & INF_LOCK ? U_LM : U_M + addr_form(in, mode);
}
/* Source forms: register, memory. */
enum { S_R, S_M, S_COUNT = S_M + ADDR_FORMS };
INLINE unsigned source_form(const Insn *in, u32 mode) { return in->flags & INF_MEM ? S_M + addr_form(in, mode) : S_R; }

#endif
