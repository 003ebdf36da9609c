/* MMX, SSE, AVX and their relatives, executed by native stubs (interp/fpu_stub.h). A handler does what the stub cannot:
 * address and translate the memory operand, prove a destination writable, move general registers and flags.
 * Loads and stores finish every possible memory fault before the stub runs; an FP exception in it is precise. */
#include "interp/fpu_stub.h"

void op_nm(Cpu *c, const Insn *in) { exc_raise(c, EXC_NM); }

INLINE u64 run(Cpu *c, const Insn *in, void *mem, u64 gpr) {
    fpu_ensure_live(c); /* after the memory operand: a slow access may have parked it */
    return STUB(in)(mem, 0, 0, gpr, c);
}

/* Comes before the segment's limit and before page faults. */
INLINE void check_aligned(Cpu *c, const Insn *in, u64 off) {
    if (unlikely((c->ea_base[in->seg] + off) & in->imm8b)) exc_gp0(c);
}

/* The host address of the source operand; buf holds it if it is not plain RAM. */
INLINE void *load_operand(Cpu *c, const Insn *in, void *buf) {
    u64 off = insn_ea(c, in);
    check_aligned(c, in, off);
    u64 lin = seg_lin_r(c, in->seg, off, in->osz);
    void *p = tlb_hit_r(c->tlb, lin, in->osz);
    return likely(p != NULL) ? p : (void *)ld_wide(c, in->seg, off, in->osz, buf);
}

static NOINLINE void store_slow(Cpu *c, const Insn *in, u64 off) {
    u8 buf[32] __attribute__((aligned(32)));
    void *p = st_wide_begin(c, in->seg, off, in->osz, buf);
    run(c, in, p, 0);
    st_wide_end(c, in->seg, off, in->osz, buf, p);
}

void op_native_reg(Cpu *c, const Insn *in) { run(c, in, NULL, 0); }

void op_native_load(Cpu *c, const Insn *in) {
    u8 buf[32] __attribute__((aligned(32)));
    run(c, in, load_operand(c, in, buf), 0);
}

void op_native_store(Cpu *c, const Insn *in) {
    u64 off = insn_ea(c, in);
    check_aligned(c, in, off);
    u64 lin = seg_lin_w(c, in->seg, off, in->osz);
    void *p = tlb_hit_w(c->tlb, lin, in->osz);
    if (likely(p != NULL)) run(c, in, p, 0);
    else store_slow(c, in, off);
}

void op_native_gpr_in(Cpu *c, const Insn *in) { run(c, in, NULL, REG64(c, in->reg)); }

/* Results are 32 bits zero-extended, or 64 bits. */
void op_native_gpr_out(Cpu *c, const Insn *in) { REG64(c, in->reg) = run(c, in, NULL, 0); }

void op_native_load_gpr_out(Cpu *c, const Insn *in) {
    u8 buf[32] __attribute__((aligned(32)));
    REG64(c, in->reg) = run(c, in, load_operand(c, in, buf), 0);
}

void op_native_flags(Cpu *c, const Insn *in) { c->cc = run(c, in, NULL, 0) & FL_CC; }

void op_native_load_flags(Cpu *c, const Insn *in) {
    u8 buf[32] __attribute__((aligned(32)));
    c->cc = run(c, in, load_operand(c, in, buf), 0) & FL_CC;
}

/* PCMPESTRI/M, PCMPISTRI/M: lengths in EAX and EDX, index in ECX (imm8b of the I forms), flags. The memory operand
 * needs no alignment. */
void op_native_pcmpstr(Cpu *c, const Insn *in) {
    u8 buf[16] __attribute__((aligned(16)));
    void *mem = NULL;
    if (in->flags & INF_MEM) {
        u64 off = insn_ea(c, in), lin = seg_lin_r(c, in->seg, off, 16);
        mem = tlb_hit_r(c->tlb, lin, 16);
        if (unlikely(mem == NULL)) mem = (void *)ld_wide(c, in->seg, off, 16, buf);
    }
    fpu_ensure_live(c);
    u64 res = STUB(in)(mem, c->r[R_RAX], c->r[R_RDX], c->r[R_RCX], c);
    c->cc = res >> 32 & FL_CC;
    if (in->imm8b) c->r[R_RCX] = (u32)res;
}

/* VZEROUPPER, VZEROALL outside 64-bit code reach eight registers only; a host stub would clear sixteen. */
void op_vzero_low(Cpu *c, const Insn *in) {
    fpu_park(c);
    fpu_zero(c->fpu.area + XS_YMMH, 8 * 16);
    if (in->flags & INF_VEX256) fpu_zero(c->fpu.area + FX_XMM, 8 * 16);
}

void op_movnti(Cpu *c, const Insn *in) {
    if (in->osz == 8) st64(c, in->seg, insn_ea(c, in), REG64(c, in->reg));
    else st32(c, in->seg, insn_ea(c, in), REG32(c, in->reg));
}
