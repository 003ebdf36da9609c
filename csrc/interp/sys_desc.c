/* Descriptors and stacks: reading, checking and loading segment registers (Intel SDM vol 3A 3.4, 5.2-5.7), the stack
 * a far transfer pushes to. Checks come in the order of the SDM's pseudo code; a load happens after the last of them.
 */
#include "interp/sys.h"

static bool table_of(Cpu *c, unsigned sel, u64 *base, u32 *limit) {
    if (!(sel & 4)) {
        *base = c->gdt.base;
        *limit = c->gdt.limit;
        return true;
    }
    *base = c->seg[SEG_LDTR].base;
    *limit = c->seg[SEG_LDTR].limit;
    return c->seg[SEG_LDTR].rights & SR_P;
}

bool desc_read(Cpu *c, unsigned sel, Desc *d) {
    u64 base;
    u32 limit;
    if (!table_of(c, sel, &base, &limit) || (sel & 0xfff8) + 7 > limit) return false;
    d->lin = base + (sel & 0xfff8);
    u64 v = sys_read(c, d->lin, 8);
    d->lo = (u32)v;
    d->hi = (u32)(v >> 32);
    d->hi2 = 0;
    return true;
}

bool desc_read16(Cpu *c, unsigned sel, Desc *d) {
    u64 base;
    u32 limit;
    if (!table_of(c, sel, &base, &limit) || (sel & 0xfff8) + 15 > limit || !desc_read(c, sel, d)) return false;
    u64 v = sys_read(c, d->lin + 8, 8);
    d->hi2 = (u32)v;
    if (v >> 40 & 0x1f) desc_fault(c, EXC_GP, sel); /* the upper half has type 0 (SDM 3.5.2) */
    return true;
}

void desc_fault(Cpu *c, unsigned vector, unsigned sel) { exc_raise_err(c, vector, sel_error(c, sel)); }

void desc_read_or_fault(Cpu *c, unsigned sel, Desc *d, unsigned vector) {
    if (!desc_read(c, sel, d)) desc_fault(c, vector, sel);
}

void desc_mark_accessed(Cpu *c, const Desc *d) {
    if (!(d->hi >> 8 & 1)) sys_write(c, d->lin + 5, 1, (d->hi >> 8 & 0xff) | 1);
}

Segment desc_segment(const Desc *d, unsigned sel) {
    return (Segment){.base = desc_base(d),
                     .limit = desc_limit(d),
                     .sel = (u16)sel,
                     .rights = (u16)(desc_rights(d) | (desc_is_seg(d) ? SR_ACCESSED : 0))};
}

void seg_set_null(Cpu *c, unsigned seg, unsigned sel) {
    c->seg[seg] = (Segment){.sel = (u16)sel, .rights = seg == SEG_SS ? (u16)((sel & 3) << 5) : 0};
}

/* Real mode keeps limit and rights: that is what makes "unreal" mode (SDM vol 3A 20.1.4). */
void seg_set_real(Cpu *c, unsigned seg, unsigned sel) {
    Segment *s = &c->seg[seg];
    s->sel = (u16)sel;
    s->base = (u64)(sel & 0xffff) << 4;
    if (seg == SEG_CS) s->rights = (s->rights & SR_DB) | 0x9b;
    else s->rights = (s->rights & (SR_DB | SR_G)) | 0x93;
}

void seg_set_v86(Cpu *c, unsigned seg, unsigned sel) {
    c->seg[seg] = (Segment){.base = (u64)(sel & 0xffff) << 4, .limit = 0xffff, .sel = (u16)sel, .rights = 0xf3};
}

static void ss_load(Cpu *c, unsigned sel) {
    Desc d;
    if (!(sel & 0xfffc)) {
        if (!cpu_code64(c) || c->cpl == 3 || (sel & 3) != c->cpl) exc_gp0(c);
        seg_set_null(c, SEG_SS, sel);
        return;
    }
    desc_read_or_fault(c, sel, &d, EXC_GP);
    if ((sel & 3) != c->cpl || !desc_writable(&d) || desc_dpl(&d) != c->cpl) desc_fault(c, EXC_GP, sel);
    if (!desc_present(&d)) desc_fault(c, EXC_SS, sel);
    desc_mark_accessed(c, &d);
    c->seg[SEG_SS] = desc_segment(&d, sel);
}

static void data_load(Cpu *c, unsigned seg, unsigned sel) {
    Desc d;
    if (!(sel & 0xfffc)) {
        seg_set_null(c, seg, sel);
        return;
    }
    desc_read_or_fault(c, sel, &d, EXC_GP);
    bool code = desc_is_code(&d);
    if (!desc_is_seg(&d) || (code && !(d.hi >> 9 & 1))) desc_fault(c, EXC_GP, sel);
    if (!(code && desc_conforming(&d)) && ((sel & 3) > desc_dpl(&d) || c->cpl > desc_dpl(&d)))
        desc_fault(c, EXC_GP, sel);
    if (!desc_present(&d)) desc_fault(c, EXC_NP, sel);
    desc_mark_accessed(c, &d);
    c->seg[seg] = desc_segment(&d, sel);
}

void seg_load(Cpu *c, unsigned seg, unsigned sel) {
    sel &= 0xffff;
    if (!(c->cr0 & CR0_PE)) seg_set_real(c, seg, sel);
    else if (c->flags & FL_VM) seg_set_v86(c, seg, sel);
    else if (seg == SEG_SS) ss_load(c, sel);
    else data_load(c, seg, sel);
    cpu_update_mode(c);
}

void seg_drop_privileged(Cpu *c) {
    static const u8 data[] = {SEG_ES, SEG_DS, SEG_FS, SEG_GS};
    for (unsigned i = 0; i < ARRAY_LEN(data); i++) {
        Segment *s = &c->seg[data[i]];
        bool conforming = (s->rights & (SR_CODE | SR_DC)) == (SR_CODE | SR_DC);
        if (!(s->rights & SR_P) ? (s->sel & 0xfffc) != 0 : !conforming && SR_GET_DPL(s->rights) < c->cpl) {
            u64 base = s->base;
            seg_set_null(c, data[i], 0);
            if (cpu_lma(c) && data[i] >= SEG_FS) s->base = base; /* only the selector and rights go */
        }
    }
}

/* The checks of a direct far JMP or CALL to a code segment, or of one through a gate. */
void code_check_target(Cpu *c, const Desc *d, unsigned sel, bool by_gate) {
    if (!desc_is_code(d)) desc_fault(c, EXC_GP, sel);
    if (desc_conforming(d)) {
        if (desc_dpl(d) > c->cpl) desc_fault(c, EXC_GP, sel);
    } else if ((!by_gate && (sel & 3) > c->cpl) || desc_dpl(d) != c->cpl) {
        desc_fault(c, EXC_GP, sel);
    }
    if (cpu_lma(c) && (d->hi >> 21 & 3) == 3) desc_fault(c, EXC_GP, sel); /* L and D together */
    if (!desc_present(d)) desc_fault(c, EXC_NP, sel);
}

void code_check_limit(Cpu *c, const Desc *d, u64 off) {
    bool bad = cpu_lma(c) && (d->hi >> 21 & 1) ? !lin_canonical(c, off) : off > desc_limit(d);
    if (bad) exc_raise_err(c, EXC_GP, c->exc.delivering);
}

void code_load(Cpu *c, const Desc *d, unsigned sel, unsigned cpl, u64 rip) {
    c->seg[SEG_CS] = desc_segment(d, (sel & 0xfffc) | cpl);
    c->cpl = (u8)cpl;
    c->r[R_RIP] = rip;
}

Segment stack_segment_inner(Cpu *c, unsigned sel, unsigned dpl, Desc *d) {
    if (!(sel & 0xfffc)) desc_fault(c, EXC_TS, sel);
    desc_read_or_fault(c, sel, d, EXC_TS);
    if ((sel & 3) != dpl || desc_dpl(d) != dpl || !desc_writable(d)) desc_fault(c, EXC_TS, sel);
    if (!desc_present(d)) desc_fault(c, EXC_SS, sel);
    return desc_segment(d, sel);
}

Stack stack_make(Cpu *c, Segment ss, u64 sp, unsigned cpl, u32 error) {
    return (Stack){
        .ss = ss, .sp = sp, .size = ss.rights & SR_DB ? 4 : 2, .mmu = cpl == 3 ? MMU_USER : MMU_KERNEL, .error = error};
}

Stack stack_current(Cpu *c) {
    Stack s = stack_make(c, c->seg[SEG_SS], c->r[R_RSP], c->cpl, 0);
    s.mmu = c->mmu_mode;
    if (cpu_code64(c)) s.size = 8;
    return s;
}

static u64 stack_lin(Cpu *c, const Stack *s, u64 off, unsigned n) {
    if (s->size == 8) return off;
    const Segment *g = &s->ss;
    u64 last = off + n - 1;
    bool down = cpu_protected(c) && !(g->rights & SR_CODE) && (g->rights & SR_DC);
    bool bad = down ? off <= g->limit || last > (g->rights & SR_DB ? 0xffffffff : 0xffff) : last > g->limit;
    if (bad && !(g->limit == 0xffffffff && !down)) exc_raise_err(c, EXC_SS, s->error);
    return (g->base + off) & 0xffffffff;
}

static TlbEntry *stack_tlb(Cpu *c, const Stack *s) { return c->tlb == tlb_never ? tlb_never : c->tlbs[s->mmu]; }

void stack_push(Cpu *c, Stack *s, u64 v, unsigned n) {
    s->sp = (s->sp & ~size_mask(s->size)) | ((s->sp - n) & size_mask(s->size));
    u64 lin = stack_lin(c, s, s->sp & size_mask(s->size), n);
    void *p = tlb_hit_w(stack_tlb(c, s), lin, n);
    if (unlikely(!p)) mem_slow_write(c, lin, n, v, SEG_SS, s->mmu);
    else if (n == 8) *(u64 *)p = v;
    else if (n == 4) *(u32 *)p = (u32)v;
    else *(u16 *)p = (u16)v;
}

u64 stack_pop(Cpu *c, Stack *s, unsigned n) {
    u64 lin = stack_lin(c, s, s->sp & size_mask(s->size), n);
    s->sp = (s->sp & ~size_mask(s->size)) | ((s->sp + n) & size_mask(s->size));
    void *p = tlb_hit_r(stack_tlb(c, s), lin, n);
    if (unlikely(!p)) return mem_slow_read(c, lin, n, SEG_SS, s->mmu);
    return n == 8 ? *(u64 *)p : n == 4 ? *(u32 *)p : *(u16 *)p;
}

void stack_commit_sp(Cpu *c, const Stack *s) {
    if (s->size == 2) c->r[R_RSP] = (c->r[R_RSP] & ~0xffffull) | (s->sp & 0xffff);
    else c->r[R_RSP] = s->size == 4 ? (u32)s->sp : s->sp;
}
