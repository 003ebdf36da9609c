/* Task switches and the other uses of the TSS (Intel SDM vol 3A chapter 7; I/O bitmap: vol 1 19.5.2). */
#include "interp/sys.h"

#include "cpu/debugreg.h"

/* Offsets in the two TSS formats (SDM figures 7-2 and 7-10). */
typedef struct TssLayout {
    u8 ip, flags, regs, segs, ldt, width, limit;
} TssLayout;
static const TssLayout tss16 = {.ip = 14, .flags = 16, .regs = 18, .segs = 34, .ldt = 42, .width = 2, .limit = 43};
static const TssLayout tss32 = {.ip = 32, .flags = 36, .regs = 40, .segs = 72, .ldt = 96, .width = 4, .limit = 103};
enum { TSS_CR3 = 28, TSS_TRAP = 100, TSS_IO_MAP = 102 };

static bool is_tss32(unsigned rights) { return rights & 8; }

void tss_stack(Cpu *c, unsigned dpl, unsigned *ss, u64 *sp) {
    const Segment *tr = &c->seg[SEG_TR];
    bool wide = is_tss32(tr->rights), lma = cpu_lma(c);
    unsigned off = lma || wide ? 4 + 8 * dpl : 2 + 4 * dpl, n = lma ? 8 : wide ? 6 : 4;
    if (off + n - 1 > tr->limit) desc_fault(c, EXC_TS, tr->sel);
    *sp = sys_read(c, tr->base + off, lma ? 8 : wide ? 4 : 2);
    *ss = lma ? dpl : (unsigned)sys_read(c, tr->base + off + (wide ? 4 : 2), 2);
}

/* Ports are free at CPL <= IOPL; else the TSS bitmap decides, and in virtual-8086 mode it always does. */
void io_permission(Cpu *c, unsigned port, unsigned n) {
    if (!(c->cr0 & CR0_PE) || (!(c->flags & FL_VM) && c->cpl <= cpu_iopl(c))) return;
    const Segment *tr = &c->seg[SEG_TR];
    if (!(tr->rights & SR_P) || !is_tss32(tr->rights) || tr->limit < 103) exc_gp0(c);
    unsigned at = (unsigned)sys_read(c, tr->base + TSS_IO_MAP, 2) + port / 8;
    if (at + 1 > tr->limit) exc_gp0(c); /* both bytes are always read */
    unsigned bits = (unsigned)sys_read(c, tr->base + at, 2);
    if (bits >> (port & 7) & ((1u << n) - 1)) exc_gp0(c);
}

static const u8 tss_seg_order[] = {SEG_ES, SEG_CS, SEG_SS, SEG_DS, SEG_FS, SEG_GS};

/* Proves the old TSS writable and the new one readable, so that nothing faults between (SDM 7.3 step 8). */
static void touch_tss(Cpu *c, u64 base, unsigned limit, bool write) {
    for (u64 lin = base; lin <= base + limit; lin = (lin | 0xfff) + 1) {
        u64 v = sys_read(c, lin, 1);
        if (write) sys_write(c, lin, 1, v);
    }
    u64 v = sys_read(c, base + limit, 1);
    if (write) sys_write(c, base + limit, 1, v);
}

static void save_state(Cpu *c, u64 flags) {
    const Segment *tr = &c->seg[SEG_TR];
    const TssLayout *t = is_tss32(tr->rights) ? &tss32 : &tss16;
    sys_write(c, tr->base + t->ip, t->width, c->r[R_RIP]);
    sys_write(c, tr->base + t->flags, t->width, flags);
    for (unsigned i = 0; i < 8; i++) sys_write(c, tr->base + t->regs + i * t->width, t->width, c->r[i]);
    for (unsigned i = 0; i < (t->width == 4 ? 6u : 4u); i++)
        sys_write(c, tr->base + t->segs + i * t->width, 2, c->seg[tss_seg_order[i]].sel);
}

typedef struct NewTask {
    u32 cr3, ip, flags, regs[8], segs[6], ldt;
    bool wide, trap;
} NewTask;

static void read_task(Cpu *c, const Segment *tr, NewTask *n) {
    n->wide = is_tss32(tr->rights);
    const TssLayout *t = n->wide ? &tss32 : &tss16;
    n->cr3 = n->wide ? (u32)sys_read(c, tr->base + TSS_CR3, 4) : 0;
    n->ip = (u32)sys_read(c, tr->base + t->ip, t->width);
    n->flags = (u32)sys_read(c, tr->base + t->flags, t->width);
    for (unsigned i = 0; i < 8; i++) {
        n->regs[i] = (u32)sys_read(c, tr->base + t->regs + i * t->width, t->width);
        if (!n->wide) n->regs[i] |= 0xffff0000;
    }
    for (unsigned i = 0; i < 6; i++)
        n->segs[i] = i < 4 || n->wide ? (u32)sys_read(c, tr->base + t->segs + i * t->width, 2) : 0;
    n->ldt = (u32)sys_read(c, tr->base + t->ldt, 2);
    n->trap = n->wide && (sys_read(c, tr->base + TSS_TRAP, 2) & 1);
}

static void set_busy(Cpu *c, unsigned sel, bool busy) {
    Desc d;
    desc_read_or_fault(c, sel, &d, EXC_TS);
    u32 hi = busy ? d.hi | 0x200 : d.hi & ~0x200u;
    sys_write(c, d.lin + 4, 4, hi);
}

/* Faults from here on happen in the new task, whose selectors are already in place (SDM 7.3, table 7-1). */
static void load_ldt(Cpu *c, unsigned sel) {
    Desc d;
    c->seg[SEG_LDTR] = (Segment){.sel = (u16)sel};
    if (!(sel & 0xfffc)) return;
    if ((sel & 4) || !desc_read(c, sel, &d) || desc_is_seg(&d) || desc_type(&d) != DT_LDT || !desc_present(&d))
        desc_fault(c, EXC_TS, sel);
    c->seg[SEG_LDTR] = desc_segment(&d, sel);
}

static void load_task_cs(Cpu *c, unsigned sel) {
    Desc d;
    unsigned rpl = sel & 3;
    if (!(sel & 0xfffc)) desc_fault(c, EXC_TS, sel);
    desc_read_or_fault(c, sel, &d, EXC_TS);
    if (!desc_is_code(&d)) desc_fault(c, EXC_TS, sel);
    if (desc_conforming(&d) ? desc_dpl(&d) > rpl : desc_dpl(&d) != rpl) desc_fault(c, EXC_TS, sel);
    if (!desc_present(&d)) desc_fault(c, EXC_NP, sel);
    desc_mark_accessed(c, &d);
    c->seg[SEG_CS] = desc_segment(&d, sel);
}

static void load_task_ss(Cpu *c, unsigned sel) {
    Desc d;
    if (!(sel & 0xfffc)) desc_fault(c, EXC_TS, sel);
    desc_read_or_fault(c, sel, &d, EXC_TS);
    if ((sel & 3) != c->cpl || !desc_writable(&d) || desc_dpl(&d) != c->cpl) desc_fault(c, EXC_TS, sel);
    if (!desc_present(&d)) desc_fault(c, EXC_SS, sel);
    desc_mark_accessed(c, &d);
    c->seg[SEG_SS] = desc_segment(&d, sel);
}

static void load_task_data(Cpu *c, unsigned seg, unsigned sel) {
    Desc d;
    seg_set_null(c, seg, sel);
    if (!(sel & 0xfffc)) return;
    desc_read_or_fault(c, sel, &d, EXC_TS);
    bool code = desc_is_code(&d);
    if (!desc_is_seg(&d) || (code && !(d.hi >> 9 & 1))) desc_fault(c, EXC_TS, sel);
    if (!(code && desc_conforming(&d)) && ((sel & 3) > desc_dpl(&d) || c->cpl > desc_dpl(&d)))
        desc_fault(c, EXC_TS, sel);
    if (!desc_present(&d)) desc_fault(c, EXC_NP, sel);
    desc_mark_accessed(c, &d);
    c->seg[seg] = desc_segment(&d, sel);
}

static void load_segments(Cpu *c, const NewTask *n) {
    if (c->flags & FL_VM) {
        for (unsigned i = 0; i < 6; i++) seg_set_v86(c, tss_seg_order[i], n->segs[i]);
        c->cpl = 3;
        cpu_update_mode(c);
        load_ldt(c, n->ldt);
        return;
    }
    /* Selectors first, unusable, so that a fault finds the new task's state. */
    for (unsigned i = 0; i < 6; i++) c->seg[tss_seg_order[i]] = (Segment){.sel = (u16)n->segs[i]};
    c->cpl = n->segs[1] & 3;
    load_ldt(c, n->ldt);
    cpu_update_mode(c);
    load_task_cs(c, n->segs[1]);
    load_task_ss(c, n->segs[2]);
    load_task_data(c, SEG_ES, n->segs[0]);
    load_task_data(c, SEG_DS, n->segs[3]);
    load_task_data(c, SEG_FS, n->segs[4]);
    load_task_data(c, SEG_GS, n->segs[5]);
}

static void push_task_error(Cpu *c, bool wide, u32 error) {
    Stack s = stack_current(c);
    stack_push(c, &s, error, wide ? 4 : 2);
    stack_commit_sp(c, &s);
}

/* Loads what no check can refuse. From here on a fault belongs to the new task, before its first instruction. */
static void enter_task(Cpu *c, const NewTask *n, unsigned how) {
    c->r[R_RIP] = n->ip;
    cpu_set_rflags_raw(c, (n->flags & 0x3f7fd5) | (how == TASK_CALL || how == TASK_EVENT ? FL_NT : 0));
    for (unsigned i = 0; i < 8; i++) c->r[i] = n->regs[i];
    c->cr0 |= CR0_TS;
    bool armed = dr_any_armed(c);
    c->dr[7] &= ~0x155ull; /* local breakpoints end with their task */
    if (armed) tlb_flush_all(c);
    if (n->wide && (c->cr0 & CR0_PG)) cr3_write(c, n->cr3);
    c->exc.keep_rip = true;
}

void task_switch(Cpu *c, unsigned sel, const Desc *d, unsigned how, bool has_error, u32 error) {
    Segment new_tr = desc_segment(d, sel), old = c->seg[SEG_TR];
    new_tr.rights |= 2;
    unsigned need = is_tss32(new_tr.rights) ? tss32.limit : tss16.limit;
    if (new_tr.limit < need) desc_fault(c, EXC_TS, sel);
    touch_tss(c, old.base, is_tss32(old.rights) ? tss32.limit : tss16.limit, true);
    touch_tss(c, new_tr.base, need, how == TASK_CALL || how == TASK_EVENT);
    NewTask n;
    read_task(c, &new_tr, &n);
    u64 flags = cpu_rflags(c);
    if (how == TASK_IRET) flags &= ~(u64)FL_NT;
    if (how == TASK_JMP || how == TASK_IRET) set_busy(c, old.sel, false);
    save_state(c, flags);
    if (how == TASK_CALL || how == TASK_EVENT) sys_write(c, new_tr.base, 2, old.sel);
    if (how != TASK_IRET) set_busy(c, sel, true);
    c->seg[SEG_TR] = new_tr;
    enter_task(c, &n, how);
    load_segments(c, &n);
    cpu_update_mode(c);
    if (has_error) push_task_error(c, n.wide, error);
    if (!(c->flags & FL_VM) && n.ip > c->seg[SEG_CS].limit) exc_raise_err(c, EXC_GP, c->exc.delivering);
    c->exc.keep_rip = false;
    if (n.trap) {
        c->dr[6] |= 1 << 15; /* BT */
        exc_raise_trap(c, EXC_DB);
    }
}
