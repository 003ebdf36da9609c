/* x87 instructions on native stubs, their instruction and operand pointers, and x87 exceptions (Intel SDM vol 1,
 * chapter 8). Guest exceptions run with the guest's own masks: a pending unmasked one makes the host raise #MF at the
 * next waiting instruction, exactly where the guest must see it. */
#include "interp/fpu_stub.h"

INLINE u64 run(Cpu *c, const Insn *in, void *mem) {
    fpu_ensure_live(c);
    return STUB(in)(mem, c->cc << 8, 0, 0, c);
}

void x87_wait(Cpu *c) {
    static void *fwait;
    static const u8 code = 0x9b;
    if (likely(!c->fpu.x87_unmasked)) return;
    if (!fwait) fwait = stub_get(&code, 1, HEAD_NONE, TAIL_NONE);
    fpu_ensure_live(c);
    ((StubFn)fwait)(NULL, 0, 0, 0, c);
}

/* SDM vol 1, 8.1.8 and 8.1.9 */
INLINE void track(Cpu *c, const Insn *in) {
    c->fpu.fip = c->r[R_RIP] - in->len;
    c->fpu.fcs = c->seg[SEG_CS].sel;
    c->fpu.fop = (u16)((in->opcode & 7) << 8 | in->modrm);
}

INLINE void track_mem(Cpu *c, const Insn *in, u64 off) {
    track(c, in);
    c->fpu.fdp = off;
    c->fpu.fds = c->seg[in->seg].sel;
}

void op_x87_reg(Cpu *c, const Insn *in) {
    run(c, in, NULL);
    track(c, in);
}

void op_x87_load(Cpu *c, const Insn *in) {
    u8 buf[16] __attribute__((aligned(16)));
    x87_wait(c); /* #MF comes before any fault of the operand */
    u64 off = insn_ea(c, in), lin = seg_lin_r(c, in->seg, off, in->osz);
    void *p = tlb_hit_r(c->tlb, lin, in->osz);
    if (unlikely(p == NULL)) p = (void *)ld_wide(c, in->seg, off, in->osz, buf);
    run(c, in, p);
    track_mem(c, in, off);
}

/* After a store that may have raised an unmasked exception: whether memory was written. Only the precision exception
 * lets the result through (SDM vol 1, 8.5). */
static bool was_stored(Cpu *c) {
    u16 fsw, fcw;
    if (likely(!c->fpu.x87_unmasked)) return true;
    __asm__ volatile("fnstsw %0\n\tfnstcw %1" : "=m"(fsw), "=m"(fcw));
    return !(fsw & ~fcw & 0x1f);
}

static NOINLINE void store_slow(Cpu *c, const Insn *in, u64 off) {
    u8 buf[16] __attribute__((aligned(16)));
    void *p = st_wide_begin(c, in->seg, off, in->osz, buf);
    run(c, in, p);
    track_mem(c, in, off);
    if (p != buf || was_stored(c)) st_wide_end(c, in->seg, off, in->osz, buf, p);
}

void op_x87_store(Cpu *c, const Insn *in) {
    x87_wait(c);
    u64 off = insn_ea(c, in), lin = seg_lin_w(c, in->seg, off, in->osz);
    void *p = tlb_hit_w(c->tlb, lin, in->osz);
    if (likely(p != NULL)) {
        run(c, in, p);
        track_mem(c, in, off);
    } else {
        store_slow(c, in, off);
    }
}

void op_x87_flags(Cpu *c, const Insn *in) {
    c->cc = run(c, in, NULL) & FL_CC;
    track(c, in);
}

void op_x87_cmov(Cpu *c, const Insn *in) { op_x87_reg(c, in); }

void op_mmx_load(Cpu *c, const Insn *in) {
    x87_wait(c);
    op_native_load(c, in);
}

void op_mmx_store(Cpu *c, const Insn *in) {
    x87_wait(c);
    op_native_store(c, in);
}

void op_fldcw(Cpu *c, const Insn *in) {
    x87_wait(c);
    u16 fcw = ld16(c, in->seg, insn_ea(c, in));
    run(c, in, &fcw);
    c->fpu.x87_unmasked = (fcw & FCW_MASKS) != FCW_MASKS;
}

void op_fninit(Cpu *c, const Insn *in) {
    run(c, in, NULL);
    c->fpu.fop = c->fpu.fcs = c->fpu.fds = 0;
    c->fpu.fip = c->fpu.fdp = 0;
    c->fpu.x87_unmasked = false;
    fpu_ferr_clear(c);
}

void op_fnclex(Cpu *c, const Insn *in) {
    run(c, in, NULL);
    fpu_ferr_clear(c);
}

void op_fnstsw_ax(Cpu *c, const Insn *in) { REG16(c, ROFF(R_RAX)) = (u16)run(c, in, NULL); }

/* With IGNNE# asserted a waiting instruction ignores what is pending: it runs with everything masked. */
static void run_ignoring(Cpu *c) {
    fpu_park(c);
    u16 masks = *fpu_u16(c, FX_FCW) & FCW_MASKS;
    *fpu_u16(c, FX_FCW) |= FCW_MASKS;
    fpu_settle(c);
    c->fpu.ferr = c->fpu.ignne = true;
    c->cur->fn(c, c->cur);
    fpu_park(c);
    if (c->cur->fn != op_fldcw) *fpu_u16(c, FX_FCW) = (*fpu_u16(c, FX_FCW) & ~FCW_MASKS) | masks;
    fpu_settle(c);
}

/* MS-DOS compatible reporting (SDM vol 1, 8.7.2): FERR# goes up and the processor waits at this instruction for the
 * interrupt, unless IGNNE# is asserted. */
_Noreturn static void compatible_mf(Cpu *c) {
    bool wait = !c->fpu.ignne && (c->fpu.ferr || io_ferr(c));
    c->fpu.ferr = wait;
    if (wait) exc_restart(c);
    run_ignoring(c);
    c->r[R_RIP] += c->cur->len; /* the restart rewinds to what is now the next instruction */
    exc_restart(c);
}

_Noreturn void fpu_host_fault(Cpu *c, unsigned trap) {
    switch (trap) {
    case EXC_XM: exc_raise(c, c->cr4 & CR4_OSXMMEXCPT ? EXC_XM : EXC_UD);
    case EXC_MF:
        if (c->cr0 & CR0_NE) exc_raise(c, EXC_MF);
        compatible_mf(c);
    case EXC_GP: exc_gp0(c);
    default: exc_ud(c);
    }
}
