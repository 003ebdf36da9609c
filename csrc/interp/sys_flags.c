/* PUSHF, POPF, CLI, STI, software interrupts, IRET's entry, HLT (Intel SDM vol 2; virtual-8086 and protected-mode
 * virtual interrupts: vol 3A 20.3, 20.4). */
#include "interp/sys.h"

static bool v86_restricted(const Cpu *c) { return (c->flags & FL_VM) && cpu_iopl(c) < 3; }

static void op_pushf(Cpu *c, const Insn *in) {
    u64 v = cpu_rflags(c) & ~(u64)(FL_VM | FL_RF);
    if (unlikely(v86_restricted(c))) {
        if (!(c->cr4 & CR4_VME) || in->osz != 2) exc_gp0(c);
        v = (v & ~(u64)FL_IF) | FL_IOPL | (v & FL_VIF ? FL_IF : 0);
    }
    Stack s = stack_current(c);
    stack_push(c, &s, v, in->osz);
    stack_commit_sp(c, &s);
}

/* What POPF may change at this privilege level. RF is always cleared. */
static u64 popf_mask(const Cpu *c, unsigned size) {
    u64 mask = FL_CC | FL_TF | FL_DF | FL_NT | FL_AC | FL_ID;
    if (c->cpl == 0) mask |= FL_IOPL;
    if (c->cpl <= cpu_iopl(c)) mask |= FL_IF;
    return size == 2 ? mask & 0xffff : mask;
}

static void popf_vme(Cpu *c, u64 v, Stack *s) {
    if ((v & FL_TF) || ((v & FL_IF) && (c->flags & FL_VIP))) exc_gp0(c);
    u64 mask = FL_CC | FL_DF | FL_NT;
    cpu_set_rflags_raw(c, (cpu_rflags(c) & ~(mask | FL_VIF | FL_RF)) | (v & mask) | (v & FL_IF ? FL_VIF : 0));
    stack_commit_sp(c, s);
}

static void op_popf(Cpu *c, const Insn *in) {
    Stack s = stack_current(c);
    if (unlikely(v86_restricted(c)) && (!(c->cr4 & CR4_VME) || in->osz != 2)) exc_gp0(c);
    u64 v = stack_pop(c, &s, in->osz);
    if (unlikely(v86_restricted(c))) {
        popf_vme(c, v, &s);
        return;
    }
    u64 mask = popf_mask(c, in->osz), old = cpu_rflags(c);
    cpu_set_rflags_raw(c, (old & ~(mask | FL_RF)) | (v & mask));
    stack_commit_sp(c, &s);
    if (unlikely((old ^ v) & (FL_TF | FL_AC))) cpu_update_mode(c);
}

/* CLI and STI act on VIF for virtual-8086 programs (VME) and ring-3 programs (PVI) that lack IOPL. */
static bool uses_vif(const Cpu *c) {
    if (c->flags & FL_VM) return c->cr4 & CR4_VME;
    return c->cpl == 3 && (c->cr4 & CR4_PVI);
}

static void op_cli(Cpu *c, const Insn *in) {
    if (likely(!(c->cr0 & CR0_PE) || (c->cpl <= cpu_iopl(c) && !v86_restricted(c)))) c->flags &= ~(u64)FL_IF;
    else if (uses_vif(c)) c->flags &= ~(u64)FL_VIF;
    else exc_gp0(c);
}

static void op_sti(Cpu *c, const Insn *in) {
    if (likely(!(c->cr0 & CR0_PE) || (c->cpl <= cpu_iopl(c) && !v86_restricted(c)))) {
        if (!(c->flags & FL_IF)) cpu_pend(c, PEND_SHADOW);
        c->flags |= FL_IF;
        return;
    }
    if (!uses_vif(c) || (c->flags & FL_VIP)) exc_gp0(c);
    c->flags |= FL_VIF;
}

static void op_int(Cpu *c, const Insn *in) { event_soft_int(c, (u8)in->imm, false); }
static void op_int3(Cpu *c, const Insn *in) { event_soft_int(c, EXC_BP, true); }
static void op_into(Cpu *c, const Insn *in) {
    if (c->cc & FL_OF) event_soft_int(c, EXC_OF, true);
}
static void op_int1(Cpu *c, const Insn *in) { exc_raise_trap(c, EXC_DB); }

static void op_hlt(Cpu *c, const Insn *in) {
    require_cpl0(c);
    c->halted = true;
}

static void op_stac(Cpu *c, const Insn *in) {
    if (c->cpl != 0) exc_ud(c);
    c->flags |= FL_AC;
    cpu_update_mode(c);
}
static void op_clac(Cpu *c, const Insn *in) {
    if (c->cpl != 0) exc_ud(c);
    c->flags &= ~(u64)FL_AC;
    cpu_update_mode(c);
}

OpFn sys_resolve_flags(Insn *in, u32 mode) {
    OpFn fn = NULL;
    if (in->map == 1) {
        if (in->opcode != 0x01) return NULL;
        fn = in->modrm == 0xca ? op_clac : in->modrm == 0xcb ? op_stac : NULL;
        if (fn) in->flags |= INF_END;
        return fn;
    }
    if (in->map != 0) return NULL;
    switch (in->opcode) {
    case 0x9c: return op_pushf;
    case 0xfa: return op_cli;
    case 0x9d: fn = op_popf; break;
    case 0xfb: fn = op_sti; break;
    case 0xcc: fn = op_int3; break;
    case 0xcd: fn = op_int; break;
    case 0xce: fn = op_into; break;
    case 0xcf: fn = op_iret; break;
    case 0xf1: fn = op_int1; break;
    case 0xf4: fn = op_hlt; break;
    }
    if (fn) in->flags |= INF_END;
    return fn;
}
