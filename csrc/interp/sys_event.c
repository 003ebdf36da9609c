/* Delivery of exceptions, interrupts and software interrupts (Intel SDM vol 3A chapter 6; virtual-8086 mode: 20.3).
 *
 * Delivery is a transaction: tables are read and checked, then the frame is pushed, then registers change. A fault on
 * the way leaves the interrupted state whole and meets ExcState.delivering, which makes it a double fault, a triple
 * fault or simply the next exception (table 6-5). */
#include "interp/sys.h"
#include "interp/trace.h"

typedef struct Event {
    unsigned vector;
    u32 error;
    bool has_error;
    bool soft; /* INT n, INT3, INTO: the gate's DPL counts, EXT is 0 */
    u64 flags; /* the RFLAGS image of the frame */
} Event;

static u32 idt_error(Cpu *c, unsigned vector) { return vector * 8 + 2 + c->exc.delivering; }

static void clear_flags(Cpu *c, u64 clear) {
    c->flags &= ~clear;
    c->dbg_tf = false;
    c->dbg_step = false;
    c->ss_shadow = false;
}

/* IP, CS and FLAGS through the interrupt vector table; also the redirected INT n of virtual-8086 mode. */
static void deliver_ivt(Cpu *c, u64 ivt, unsigned vector, u64 image, u64 clear) {
    u32 entry = (u32)sys_read(c, ivt + vector * 4, 4);
    Stack s = stack_current(c);
    stack_push(c, &s, image, 2);
    stack_push(c, &s, c->seg[SEG_CS].sel, 2);
    stack_push(c, &s, c->r[R_RIP], 2);
    stack_commit_sp(c, &s);
    if (c->flags & FL_VM) seg_set_v86(c, SEG_CS, entry >> 16);
    else seg_set_real(c, SEG_CS, entry >> 16);
    c->r[R_RIP] = entry & 0xffff;
    clear_flags(c, clear);
}

static void deliver_real(Cpu *c, const Event *e) {
    if (e->vector * 4 + 3 > c->idt.limit) exc_raise_err(c, EXC_GP, idt_error(c, e->vector));
    deliver_ivt(c, c->idt.base, e->vector, e->flags, FL_IF | FL_TF | FL_RF | FL_AC);
}

/* CR4.VME: INT n of a virtual-8086 program goes to its own vector table if the TSS bitmap says so (SDM 20.3.3). */
static bool redirect_v86(Cpu *c, const Event *e) {
    const Segment *tr = &c->seg[SEG_TR];
    if (!(c->cr4 & CR4_VME) || tr->limit < 103) return false;
    unsigned at = (unsigned)sys_read(c, tr->base + 102, 2) - 32 + e->vector / 8;
    if (at > tr->limit || (sys_read(c, tr->base + at, 1) >> (e->vector & 7) & 1)) return false;
    u64 image = e->flags;
    if (cpu_iopl(c) == 3) {
        deliver_ivt(c, 0, e->vector, image, FL_IF | FL_TF);
        return true;
    }
    image = (image & ~(u64)FL_IF) | FL_IOPL | (image & FL_VIF ? FL_IF : 0);
    deliver_ivt(c, 0, e->vector, image, FL_VIF | FL_TF);
    return true;
}

static void read_idt_gate(Cpu *c, const Event *e, Desc *g) {
    unsigned size = cpu_lma(c) ? 16 : 8;
    u32 err = idt_error(c, e->vector);
    if (e->vector * size + size - 1 > c->idt.limit) exc_raise_err(c, EXC_GP, err);
    u64 lin = c->idt.base + e->vector * size, v = sys_read(c, lin, 8);
    *g = (Desc){.lo = (u32)v, .hi = (u32)(v >> 32), .lin = lin};
    unsigned type = desc_type(g);
    bool ok = type == DT_INT32 || type == DT_TRAP32;
    if (size == 8) ok = ok || type == DT_INT16 || type == DT_TRAP16 || type == DT_TASK_GATE;
    else g->hi2 = (u32)sys_read(c, lin + 8, 4);
    if (desc_is_seg(g) || !ok) exc_raise_err(c, EXC_GP, err);
    if (e->soft && desc_dpl(g) < c->cpl) exc_raise_err(c, EXC_GP, err);
    if (!desc_present(g)) exc_raise_err(c, EXC_NP, err);
}

static void handler_code(Cpu *c, const Desc *g, Desc *code) {
    unsigned sel = gate_sel(g);
    if (!(sel & 0xfffc)) exc_raise_err(c, EXC_GP, c->exc.delivering);
    desc_read_or_fault(c, sel, code, EXC_GP);
    if (!desc_is_code(code) || desc_dpl(code) > c->cpl) desc_fault(c, EXC_GP, sel);
    if (cpu_lma(c) && (code->hi >> 21 & 3) != 1) desc_fault(c, EXC_GP, sel);
    if (!desc_present(code)) desc_fault(c, EXC_NP, sel);
}

static void push_frame(Cpu *c, Stack *s, const Event *e, unsigned size) {
    stack_push(c, s, e->flags, size);
    stack_push(c, s, c->seg[SEG_CS].sel, size);
    stack_push(c, s, c->r[R_RIP], size);
    if (e->has_error) stack_push(c, s, e->error, size);
}

static void finish(Cpu *c, const Desc *g) {
    bool interrupt_gate = !(desc_type(g) & 1);
    clear_flags(c, FL_TF | FL_NT | FL_RF | FL_VM | (interrupt_gate ? FL_IF : 0));
    cpu_update_mode(c);
}

/* From virtual-8086 mode the data segments are pushed too, and null in the handler. */
static void push_v86_segments(Cpu *c, Stack *s, unsigned size) {
    stack_push(c, s, c->seg[SEG_GS].sel, size);
    stack_push(c, s, c->seg[SEG_FS].sel, size);
    stack_push(c, s, c->seg[SEG_DS].sel, size);
    stack_push(c, s, c->seg[SEG_ES].sel, size);
}

static void deliver_inner(Cpu *c, const Event *e, const Desc *g, const Desc *code, unsigned size) {
    unsigned dpl = desc_dpl(code), ss_sel;
    u64 sp, off = gate_off32(g) & size_mask(size);
    bool v86 = c->flags & FL_VM;
    Desc ssd;
    tss_stack(c, dpl, &ss_sel, &sp);
    Segment ss = stack_segment_inner(c, ss_sel, dpl, &ssd);
    code_check_limit(c, code, off);
    Stack s = stack_make(c, ss, sp, dpl, sel_error(c, ss_sel));
    if (v86) push_v86_segments(c, &s, size);
    stack_push(c, &s, c->seg[SEG_SS].sel, size);
    stack_push(c, &s, c->r[R_RSP], size);
    push_frame(c, &s, e, size);
    desc_mark_accessed(c, &ssd);
    desc_mark_accessed(c, code);
    if (v86)
        for (unsigned i = SEG_ES; i <= SEG_GS; i++) seg_set_null(c, i, 0);
    c->flags &= ~(u64)FL_VM;
    c->seg[SEG_SS] = ss;
    code_load(c, code, gate_sel(g), dpl, off);
    stack_commit_sp(c, &s);
    finish(c, g);
}

static void deliver_same(Cpu *c, const Event *e, const Desc *g, const Desc *code, unsigned size) {
    u64 off = gate_off32(g) & size_mask(size);
    code_check_limit(c, code, off);
    Stack s = stack_current(c);
    s.error = c->exc.delivering;
    push_frame(c, &s, e, size);
    desc_mark_accessed(c, code);
    code_load(c, code, gate_sel(g), c->cpl, off);
    stack_commit_sp(c, &s);
    finish(c, g);
}

static void deliver_task(Cpu *c, const Event *e, const Desc *g) {
    unsigned tss = gate_sel(g);
    Desc d;
    task_check_gate(c, tss, &d);
    c->flags = (c->flags & ~(u64)FL_RF) | (e->flags & FL_RF);
    clear_flags(c, 0);
    task_switch(c, tss, &d, TASK_EVENT, e->has_error, e->error);
}

static void deliver_protected(Cpu *c, const Event *e) {
    Desc g, code;
    read_idt_gate(c, e, &g);
    if (desc_type(&g) == DT_TASK_GATE) {
        deliver_task(c, e, &g);
        return;
    }
    unsigned size = desc_type(&g) & 8 ? 4 : 2;
    handler_code(c, &g, &code);
    bool inner = !desc_conforming(&code) && desc_dpl(&code) < c->cpl;
    if ((c->flags & FL_VM) && (!inner || desc_dpl(&code) != 0)) desc_fault(c, EXC_GP, gate_sel(&g));
    if (inner) deliver_inner(c, e, &g, &code, size);
    else deliver_same(c, e, &g, &code, size);
}

/* 64-bit mode: one frame format, 16-byte aligned stack, interrupt stack table (SDM 6.14). */
static void deliver_long(Cpu *c, const Event *e) {
    Desc g, code;
    read_idt_gate(c, e, &g);
    handler_code(c, &g, &code);
    u64 off = gate_off32(&g) | (u64)g.hi2 << 32, sp = c->r[R_RSP];
    bool inner = !desc_conforming(&code) && desc_dpl(&code) < c->cpl;
    unsigned cpl = inner ? desc_dpl(&code) : c->cpl, ist = g.hi & 7, ss;
    if (ist) {
        unsigned at = 0x24 + 8 * (ist - 1);
        if (at + 7 > c->seg[SEG_TR].limit) desc_fault(c, EXC_TS, c->seg[SEG_TR].sel);
        sp = sys_read(c, c->seg[SEG_TR].base + at, 8);
    } else if (inner) {
        tss_stack(c, cpl, &ss, &sp);
    }
    code_check_limit(c, &code, off);
    Stack s = {.ss = c->seg[SEG_SS], .sp = sp & ~15ull, .size = 8, .mmu = cpl == 3 ? MMU_USER : MMU_KERNEL};
    stack_push(c, &s, c->seg[SEG_SS].sel, 8);
    stack_push(c, &s, c->r[R_RSP], 8);
    push_frame(c, &s, e, 8);
    desc_mark_accessed(c, &code);
    if (inner) seg_set_null(c, SEG_SS, cpl);
    code_load(c, &code, gate_sel(&g), cpl, off);
    c->r[R_RSP] = s.sp;
    finish(c, &g);
}

static void deliver(Cpu *c, const Event *e, unsigned kind) {
    if (log_on(LOG_INT)) trace_event(c, e->vector, e->error, kind);
    if (!(c->cr0 & CR0_PE)) deliver_real(c, e);
    else if (cpu_lma(c)) deliver_long(c, e);
    else deliver_protected(c, e);
    cpu_update_mode(c);
}

static bool contributory(unsigned v) { return v == EXC_DE || (v >= EXC_TS && v <= EXC_GP); }

static void triple_fault(Cpu *c) {
    if (log_on(LOG_CPU_RESET)) trace_reset(c, "Triple fault");
    c->exc.delivering = false;
    c->exit_reason = EXIT_SHUTDOWN;
    cpu_pend(c, PEND_EXIT);
}

/* Table 6-5: what a fault during the delivery of another event becomes. False: shutdown. */
static bool combine(ExcState *x) {
    unsigned first = x->first, second = x->vector;
    bool bad = contributory(second) || second == EXC_PF;
    if (first == EXC_DF && bad) return false;
    if ((contributory(first) && contributory(second)) || (first == EXC_PF && bad)) {
        x->vector = EXC_DF;
        x->error = 0;
        x->has_error = true;
        x->trap = false;
    }
    return true;
}

/* Faults show RF set in the frame, so that the restarted instruction passes its breakpoint; instruction breakpoints
 * themselves, traps and aborts do not (SDM vol 3B 17.3.1.1). */
static bool frame_sets_rf(const ExcState *x) {
    return !x->trap && x->vector != EXC_DB && x->vector != EXC_DF && x->vector != EXC_MC;
}

void exc_dispatch(Cpu *c) {
    ExcState *x = &c->exc;
    if (x->vector == EXC_RESTART) return;
    if (x->vector == EXC_PF) c->cr2 = x->addr;
    if (x->delivering && !combine(x)) {
        triple_fault(c);
        return;
    }
    c->n_exc++;
    c->halted = false; /* a single-step trap after HLT */
    x->keep_rip = false;
    x->delivering = true;
    x->first = (u8)x->vector;
    if (x->vector == EXC_DB) c->dr[7] &= ~(u64)(1 << 13); /* GD */
    Event e = {.vector = x->vector, .error = x->error, .has_error = x->has_error, .flags = cpu_rflags(c)};
    if (frame_sets_rf(x)) e.flags |= FL_RF;
    deliver(c, &e, 0);
    x->delivering = false;
}

void event_interrupt(Cpu *c, unsigned vector) {
    c->exc.delivering = true;
    c->exc.first = EXC_NMI; /* external interrupts are benign whatever their vector */
    Event e = {.vector = vector, .flags = cpu_rflags(c)};
    deliver(c, &e, 2);
    c->exc.delivering = false;
}

void event_soft_int(Cpu *c, unsigned vector, bool int3_or_into) {
    Event e = {.vector = vector, .soft = true, .flags = cpu_rflags(c)};
    if (c->flags & FL_VM && !int3_or_into) {
        if (redirect_v86(c, &e)) {
            cpu_update_mode(c);
            return;
        }
        if (cpu_iopl(c) != 3) exc_gp0(c);
    }
    deliver(c, &e, 1);
}
