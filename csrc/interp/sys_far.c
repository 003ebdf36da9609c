/* Far JMP, CALL and RET: code segments, call gates, task gates and TSSs (Intel SDM vol 3A 5.8; vol 2 JMP, CALL, RET).
 */
#include "interp/sys.h"
#include "interp/trace.h"

/* Commits RIP, limits checked, in real and virtual-8086 mode. */
static void real_jump(Cpu *c, unsigned sel, u64 off) {
    if (off > c->seg[SEG_CS].limit) exc_gp0(c);
    if (c->flags & FL_VM) seg_set_v86(c, SEG_CS, sel);
    else seg_set_real(c, SEG_CS, sel);
    c->r[R_RIP] = off;
    cpu_update_mode(c);
}

/* Gates may be used from their DPL and below, with a selector whose RPL does not exceed it either. */
static void check_gate_rights(Cpu *c, const Desc *d, unsigned sel) {
    if (desc_dpl(d) < c->cpl || desc_dpl(d) < (sel & 3)) desc_fault(c, EXC_GP, sel);
    if (!desc_present(d)) desc_fault(c, EXC_NP, sel);
}

void task_check_gate(Cpu *c, unsigned tss, Desc *d) {
    if (tss & 4) desc_fault(c, EXC_GP, tss);
    desc_read_or_fault(c, tss, d, EXC_GP);
    if (desc_is_seg(d) || (desc_type(d) != DT_TSS16 && desc_type(d) != DT_TSS32)) desc_fault(c, EXC_GP, tss);
    if (!desc_present(d)) desc_fault(c, EXC_NP, tss);
}

/* A selector that names a TSS or a task gate. */
static void far_task(Cpu *c, Desc *d, unsigned sel, unsigned how) {
    if (desc_dpl(d) < c->cpl || desc_dpl(d) < (sel & 3)) desc_fault(c, EXC_GP, sel);
    if (!desc_present(d)) desc_fault(c, EXC_NP, sel);
    if (desc_type(d) == DT_TASK_GATE) {
        sel = gate_sel(d);
        task_check_gate(c, sel, d);
    }
    task_switch(c, sel, d, how, false, 0);
}

/* The entry point a call gate names. */
typedef struct GateTarget {
    Desc code;
    unsigned sel, size; /* size of what is pushed */
    unsigned params;
    u64 off;
} GateTarget;

static void gate_target(Cpu *c, Desc *gate, unsigned sel, GateTarget *t) {
    bool lma = cpu_lma(c);
    check_gate_rights(c, gate, sel);
    if (lma && !desc_read16(c, sel, gate)) desc_fault(c, EXC_GP, sel);
    t->sel = gate_sel(gate);
    t->size = lma ? 8 : desc_type(gate) == DT_CALL32 ? 4 : 2;
    t->params = lma ? 0 : gate->hi & 31;
    t->off = t->size == 2 ? gate_off32(gate) & 0xffff : gate_off32(gate) | (u64)gate->hi2 << 32;
    if (!(t->sel & 0xfffc)) exc_raise_err(c, EXC_GP, c->exc.delivering);
    desc_read_or_fault(c, t->sel, &t->code, EXC_GP);
    if (!desc_is_code(&t->code) || desc_dpl(&t->code) > c->cpl) desc_fault(c, EXC_GP, t->sel);
    if (lma && (t->code.hi >> 21 & 3) != 1) desc_fault(c, EXC_GP, t->sel); /* L=1, D=0 only */
    if (!desc_present(&t->code)) desc_fault(c, EXC_NP, t->sel);
}

static bool is_call_gate(Cpu *c, const Desc *d) {
    return desc_type(d) == DT_CALL32 || (desc_type(d) == DT_CALL16 && !cpu_lma(c));
}
static bool is_task(Cpu *c, const Desc *d) {
    unsigned t = desc_type(d);
    return !cpu_lma(c) && (t == DT_TSS16 || t == DT_TSS32 || t == DT_TASK_GATE);
}

static void far_jump(Cpu *c, unsigned sel, u64 off) {
    Desc d;
    if (!cpu_protected(c)) {
        real_jump(c, sel, off);
        return;
    }
    if (!(sel & 0xfffc)) exc_gp0(c);
    desc_read_or_fault(c, sel, &d, EXC_GP);
    if (desc_is_seg(&d)) {
        code_check_target(c, &d, sel, false);
        code_check_limit(c, &d, off);
        desc_mark_accessed(c, &d);
        code_load(c, &d, sel, c->cpl, off);
    } else if (is_call_gate(c, &d)) {
        GateTarget t;
        gate_target(c, &d, sel, &t);
        code_check_target(c, &t.code, t.sel, true);
        code_check_limit(c, &t.code, t.off);
        desc_mark_accessed(c, &t.code);
        code_load(c, &t.code, t.sel, c->cpl, t.off);
    } else if (is_task(c, &d)) {
        far_task(c, &d, sel, TASK_JMP);
    } else {
        desc_fault(c, EXC_GP, sel);
    }
    cpu_update_mode(c);
}

/* Pushes the return address on the current stack; the caller commits RSP after its last check. */
static Stack push_return(Cpu *c, unsigned size) {
    Stack s = stack_current(c);
    stack_push(c, &s, c->seg[SEG_CS].sel, size);
    stack_push(c, &s, c->r[R_RIP], size);
    return s;
}

/* A call to an inner level: the stack comes from the TSS, parameters are copied (SDM vol 3A 5.8.5). */
static void call_inner(Cpu *c, GateTarget *t) {
    unsigned dpl = desc_dpl(&t->code), new_ss;
    u64 new_sp;
    Desc ss_desc;
    tss_stack(c, dpl, &new_ss, &new_sp);
    bool lma = cpu_lma(c);
    Segment ss = {.sel = (u16)dpl, .rights = (u16)(dpl << 5)};
    if (!lma) ss = stack_segment_inner(c, new_ss, dpl, &ss_desc);
    Stack old = stack_current(c), s = stack_make(c, ss, new_sp, dpl, lma ? 0 : sel_error(c, new_ss));
    if (lma) s.size = 8;
    u32 params[31];
    for (unsigned i = 0; i < t->params; i++) params[i] = (u32)stack_pop(c, &old, t->size);
    code_check_limit(c, &t->code, t->off);
    stack_push(c, &s, c->seg[SEG_SS].sel, t->size);
    stack_push(c, &s, c->r[R_RSP], t->size);
    for (unsigned i = t->params; i > 0; i--) stack_push(c, &s, params[i - 1], t->size);
    stack_push(c, &s, c->seg[SEG_CS].sel, t->size);
    stack_push(c, &s, c->r[R_RIP], t->size);
    if (!lma) desc_mark_accessed(c, &ss_desc);
    desc_mark_accessed(c, &t->code);
    c->seg[SEG_SS] = ss;
    code_load(c, &t->code, t->sel, dpl, t->off);
    stack_commit_sp(c, &s);
}

static void call_gate(Cpu *c, Desc *d, unsigned sel) {
    GateTarget t;
    gate_target(c, d, sel, &t);
    if (!desc_conforming(&t.code) && desc_dpl(&t.code) < c->cpl) {
        call_inner(c, &t);
        return;
    }
    code_check_limit(c, &t.code, t.off);
    Stack s = stack_current(c);
    if (cpu_lma(c)) s.size = 8; /* a 64-bit gate called from compatibility mode pushes to the 64-bit stack */
    stack_push(c, &s, c->seg[SEG_CS].sel, t.size);
    stack_push(c, &s, c->r[R_RIP], t.size);
    desc_mark_accessed(c, &t.code);
    code_load(c, &t.code, t.sel, c->cpl, t.off);
    stack_commit_sp(c, &s);
}

static void far_call(Cpu *c, unsigned sel, u64 off, unsigned size) {
    Desc d;
    Stack s;
    if (!cpu_protected(c)) {
        if (off > c->seg[SEG_CS].limit) exc_gp0(c);
        s = push_return(c, size);
        real_jump(c, sel, off);
        stack_commit_sp(c, &s);
        return;
    }
    if (log_on(LOG_PCALL)) trace_far(c, "lcall", sel, off);
    if (!(sel & 0xfffc)) exc_gp0(c);
    desc_read_or_fault(c, sel, &d, EXC_GP);
    if (desc_is_seg(&d)) {
        code_check_target(c, &d, sel, false);
        code_check_limit(c, &d, off);
        s = push_return(c, size);
        desc_mark_accessed(c, &d);
        code_load(c, &d, sel, c->cpl, off);
        stack_commit_sp(c, &s);
    } else if (is_call_gate(c, &d)) {
        call_gate(c, &d, sel);
    } else if (is_task(c, &d)) {
        far_task(c, &d, sel, TASK_CALL);
    } else {
        desc_fault(c, EXC_GP, sel);
    }
    cpu_update_mode(c);
}

static void ret_same(Cpu *c, Desc *d, unsigned sel, u64 rip, Stack *s, unsigned drop) {
    code_check_limit(c, d, rip);
    desc_mark_accessed(c, d);
    s->sp += drop;
    code_load(c, d, sel, c->cpl, rip);
    stack_commit_sp(c, s);
}

static void ret_outer(Cpu *c, Desc *d, unsigned sel, u64 rip, Stack *s, unsigned size, unsigned drop) {
    unsigned rpl = sel & 3;
    s->sp = (s->sp & ~size_mask(s->size)) | ((s->sp + drop) & size_mask(s->size));
    u64 new_sp = stack_pop(c, s, size);
    unsigned ss_sel = (unsigned)stack_pop(c, s, size) & 0xffff;
    bool to64 = cpu_lma(c) && (d->hi >> 21 & 1), null_ss = !(ss_sel & 0xfffc);
    Desc sd;
    if (null_ss) {
        if (!to64 || rpl == 3 || (ss_sel & 3) != rpl) exc_gp0(c);
    } else {
        desc_read_or_fault(c, ss_sel, &sd, EXC_GP);
        if ((ss_sel & 3) != rpl || !desc_writable(&sd) || desc_dpl(&sd) != rpl) desc_fault(c, EXC_GP, ss_sel);
        if (!desc_present(&sd)) desc_fault(c, EXC_SS, ss_sel);
    }
    code_check_limit(c, d, rip);
    desc_mark_accessed(c, d);
    if (!null_ss) desc_mark_accessed(c, &sd);
    code_load(c, d, sel, rpl, rip);
    if (null_ss) seg_set_null(c, SEG_SS, ss_sel);
    else c->seg[SEG_SS] = desc_segment(&sd, ss_sel);
    seg_drop_privileged(c);
    cpu_update_mode(c);
    Stack outer = stack_current(c);
    outer.sp = new_sp + drop;
    stack_commit_sp(c, &outer);
}

static void far_return(Cpu *c, unsigned size, unsigned drop) {
    Stack s = stack_current(c);
    u64 rip = stack_pop(c, &s, size);
    unsigned sel = (unsigned)stack_pop(c, &s, size) & 0xffff;
    Desc d;
    if (!cpu_protected(c)) {
        real_jump(c, sel, rip);
        s.sp += drop;
        stack_commit_sp(c, &s);
        return;
    }
    if (log_on(LOG_PCALL)) trace_far(c, "lret", sel, rip);
    if (!(sel & 0xfffc)) exc_gp0(c);
    desc_read_or_fault(c, sel, &d, EXC_GP);
    unsigned rpl = sel & 3;
    if (!desc_is_code(&d) || rpl < c->cpl) desc_fault(c, EXC_GP, sel);
    if (desc_conforming(&d) ? desc_dpl(&d) > rpl : desc_dpl(&d) != rpl) desc_fault(c, EXC_GP, sel);
    if (cpu_lma(c) && (d.hi >> 21 & 3) == 3) desc_fault(c, EXC_GP, sel);
    if (!desc_present(&d)) desc_fault(c, EXC_NP, sel);
    if (rpl > c->cpl) ret_outer(c, &d, sel, rip, &s, size, drop);
    else ret_same(c, &d, sel, rip, &s, drop);
    cpu_update_mode(c);
}

/* ptr16:16, ptr16:32 */
static void op_jmp_ptr(Cpu *c, const Insn *in) {
    far_jump(c, (unsigned)(in->imm >> 32) & 0xffff, in->imm & size_mask(in->osz));
}
static void op_call_ptr(Cpu *c, const Insn *in) {
    far_call(c, (unsigned)(in->imm >> 32) & 0xffff, in->imm & size_mask(in->osz), in->osz);
}

/* m16:16, m16:32, m16:64: the offset comes first. */
static unsigned far_pointer(Cpu *c, const Insn *in, unsigned size, u64 *off) {
    u64 ea = insn_ea(c, in), ea2 = ea + size;
    if (in->asz != 8) ea2 &= size_mask(in->asz);
    *off = size == 8 ? ld64(c, in->seg, ea) : size == 4 ? ld32(c, in->seg, ea) : ld16(c, in->seg, ea);
    return ld16(c, in->seg, ea2);
}
static void op_jmp_mem(Cpu *c, const Insn *in) {
    u64 off;
    unsigned sel = far_pointer(c, in, in->osz, &off);
    far_jump(c, sel, off);
}
static void op_call_mem(Cpu *c, const Insn *in) {
    u64 off;
    unsigned sel = far_pointer(c, in, in->osz, &off);
    far_call(c, sel, off, in->osz);
}

static void op_retf(Cpu *c, const Insn *in) {
    far_return(c, in->osz, in->flags & INF_IMM ? (unsigned)in->imm & 0xffff : 0);
}

OpFn sys_resolve_far(Insn *in, u32 mode) {
    if (in->map != 0) return NULL;
    OpFn fn = NULL;
    unsigned reg = in->modrm >> 3 & 7;
    switch (in->opcode) {
    case 0xea: fn = op_jmp_ptr; break;
    case 0x9a: fn = op_call_ptr; break;
    case 0xff: fn = reg == 5 ? op_jmp_mem : reg == 3 ? op_call_mem : NULL; break;
    case 0xca:
    case 0xcb: fn = op_retf; break;
    }
    if (fn) in->flags |= INF_END;
    return fn;
}
