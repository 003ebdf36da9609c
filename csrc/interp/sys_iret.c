/* IRET, IRETD, IRETQ (Intel SDM vol 2, IRET; vol 3A 6.12, 6.14.3): to the same or an outer level, to virtual-8086
 * mode, and as the return from a nested task. */
#include "interp/sys.h"

#define FL_LOADABLE (FL_CC | FL_TF | FL_IF | FL_DF | FL_IOPL | FL_NT | FL_RF | FL_AC | FL_VIF | FL_VIP | FL_ID)

/* What an IRET executed at cpl may change. */
static u64 iret_flag_mask(const Cpu *c, unsigned cpl, unsigned size) {
    u64 mask = FL_LOADABLE;
    if (cpl != 0) mask &= ~(u64)(FL_IOPL | FL_VIF | FL_VIP);
    if (cpl > cpu_iopl(c)) mask &= ~(u64)FL_IF;
    return size == 2 ? mask & 0xffff : mask;
}

/* RF only matters while an instruction breakpoint is armed; left set otherwise it would go stale. */
static void load_flags(Cpu *c, u64 v, u64 mask) {
    u64 old = cpu_rflags(c);
    v = (old & ~mask) | (v & mask);
    if (!(c->dr[7] & 0xff)) v &= ~(u64)FL_RF;
    c->dbg_rf = false; /* the RF just loaded is for the next instruction */
    cpu_set_rflags_raw(c, v);
}

/* With CR4.VME a virtual-8086 program without IOPL may still IRET: IF means VIF (SDM vol 3A 20.3.3.4). */
static void load_flags_vme(Cpu *c, u64 v) {
    u64 mask = FL_CC | FL_DF | FL_NT;
    cpu_set_rflags_raw(c, (cpu_rflags(c) & ~(mask | FL_VIF | FL_RF)) | (v & mask) | (v & FL_IF ? FL_VIF : 0));
}

static void iret_real(Cpu *c, unsigned size) {
    bool v86 = c->flags & FL_VM, vme = v86 && cpu_iopl(c) != 3;
    if (vme && (!(c->cr4 & CR4_VME) || size != 2)) exc_gp0(c);
    Stack s = stack_current(c);
    u64 rip = stack_pop(c, &s, size);
    unsigned sel = (unsigned)stack_pop(c, &s, size) & 0xffff;
    u64 fl = stack_pop(c, &s, size);
    if (rip > c->seg[SEG_CS].limit) exc_gp0(c);
    u64 mask = size == 2 ? 0xffff & FL_LOADABLE : 0x257fd5;
    if (v86) mask &= ~(u64)(FL_IOPL | FL_VIF | FL_VIP);
    if (vme && ((fl & FL_TF) || ((fl & FL_IF) && (c->flags & FL_VIP)))) exc_gp0(c);
    if (vme) load_flags_vme(c, fl);
    else load_flags(c, fl, mask);
    if (v86) seg_set_v86(c, SEG_CS, sel);
    else seg_set_real(c, SEG_CS, sel);
    c->r[R_RIP] = rip;
    stack_commit_sp(c, &s);
}

static void iret_to_v86(Cpu *c, Stack *s, u64 rip, unsigned sel, u64 fl) {
    static const u8 order[] = {SEG_ES, SEG_DS, SEG_FS, SEG_GS};
    u64 esp = stack_pop(c, s, 4);
    unsigned ss = (unsigned)stack_pop(c, s, 4) & 0xffff, data[4];
    for (unsigned i = 0; i < 4; i++) data[i] = (unsigned)stack_pop(c, s, 4) & 0xffff;
    cpu_set_rflags_raw(c, (fl & (FL_LOADABLE | FL_VM)) & ~(u64)(c->dr[7] & 0xff ? 0 : FL_RF));
    c->cpl = 3;
    seg_set_v86(c, SEG_CS, sel);
    seg_set_v86(c, SEG_SS, ss);
    for (unsigned i = 0; i < 4; i++) seg_set_v86(c, order[i], data[i]);
    c->r[R_RIP] = rip & 0xffff;
    c->r[R_RSP] = (u32)esp;
}

static void iret_check_code(Cpu *c, const Desc *d, unsigned sel) {
    unsigned rpl = sel & 3;
    if (!desc_is_code(d) || rpl < c->cpl) desc_fault(c, EXC_GP, sel);
    if (desc_conforming(d) ? desc_dpl(d) > rpl : desc_dpl(d) != rpl) desc_fault(c, EXC_GP, sel);
    if (cpu_lma(c) && (d->hi >> 21 & 3) == 3) desc_fault(c, EXC_GP, sel);
    if (!desc_present(d)) desc_fault(c, EXC_NP, sel);
}

static void iret_stack(Cpu *c, const Desc *code, unsigned sel, unsigned ss_sel, Desc *d) {
    unsigned rpl = sel & 3;
    bool to64 = cpu_lma(c) && (code->hi >> 21 & 1);
    if (!(ss_sel & 0xfffc)) {
        if (!to64 || rpl == 3 || (ss_sel & 3) != rpl) exc_gp0(c);
        return;
    }
    desc_read_or_fault(c, ss_sel, d, EXC_GP);
    if ((ss_sel & 3) != rpl || !desc_writable(d) || desc_dpl(d) != rpl) desc_fault(c, EXC_GP, ss_sel);
    if (!desc_present(d)) desc_fault(c, EXC_SS, ss_sel);
}

static void iret_protected(Cpu *c, unsigned size) {
    Stack s = stack_current(c);
    u64 rip = stack_pop(c, &s, size);
    unsigned sel = (unsigned)stack_pop(c, &s, size) & 0xffff, old_cpl = c->cpl;
    u64 fl = stack_pop(c, &s, size), mask = iret_flag_mask(c, old_cpl, size);
    Desc d, sd = {0};
    if ((fl & FL_VM) && size == 4 && old_cpl == 0 && !cpu_lma(c)) {
        iret_to_v86(c, &s, rip, sel, fl);
        return;
    }
    if (!(sel & 0xfffc)) exc_gp0(c);
    desc_read_or_fault(c, sel, &d, EXC_GP);
    iret_check_code(c, &d, sel);
    bool outer = (sel & 3) > old_cpl || cpu_code64(c);
    if (!outer) {
        code_check_limit(c, &d, rip);
        desc_mark_accessed(c, &d);
        code_load(c, &d, sel, old_cpl, rip);
        stack_commit_sp(c, &s);
        load_flags(c, fl, mask);
        return;
    }
    u64 new_sp = stack_pop(c, &s, size);
    unsigned ss_sel = (unsigned)stack_pop(c, &s, size) & 0xffff;
    iret_stack(c, &d, sel, ss_sel, &sd);
    code_check_limit(c, &d, rip);
    desc_mark_accessed(c, &d);
    if (ss_sel & 0xfffc) desc_mark_accessed(c, &sd);
    code_load(c, &d, sel, sel & 3, rip);
    if (ss_sel & 0xfffc) c->seg[SEG_SS] = desc_segment(&sd, ss_sel);
    else seg_set_null(c, SEG_SS, ss_sel);
    if (c->cpl != old_cpl) seg_drop_privileged(c);
    load_flags(c, fl, mask);
    cpu_update_mode(c);
    Stack to = stack_current(c);
    to.sp = new_sp;
    stack_commit_sp(c, &to);
}

/* NT set: back to the task that called this one. */
static void iret_task(Cpu *c) {
    if (cpu_lma(c)) exc_gp0(c);
    unsigned link = (unsigned)sys_read(c, c->seg[SEG_TR].base, 2);
    Desc d;
    if (link & 4) desc_fault(c, EXC_TS, link);
    desc_read_or_fault(c, link, &d, EXC_TS);
    unsigned type = desc_type(&d);
    if (desc_is_seg(&d) || (type != DT_TSS16_BUSY && type != DT_TSS32_BUSY)) desc_fault(c, EXC_TS, link);
    if (!desc_present(&d)) desc_fault(c, EXC_NP, link);
    task_switch(c, link, &d, TASK_IRET, false, 0);
}

void op_iret(Cpu *c, const Insn *in) {
    c->nmi_masked = false; /* whether or not it faults (SDM vol 3A 6.7.1) */
    if (!cpu_protected(c)) iret_real(c, in->osz);
    else if (c->flags & FL_NT) iret_task(c);
    else iret_protected(c, in->osz);
    cpu_update_mode(c);
}
