/* Segment and descriptor-table instructions (Intel SDM vol 2: MOV, PUSH, POP, LDS.., LGDT.., LLDT, LTR, VERR, LAR, LSL,
 * ARPL). */
#include "interp/sys.h"

#include "cpu/debugreg.h"

static void write_reg(Cpu *c, u8 off, unsigned n, u64 v) {
    if (n == 2) REG16(c, off) = (u16)v;
    else REG64(c, off) = n == 4 ? (u32)v : v;
}
static unsigned read_rm16(Cpu *c, const Insn *in) {
    return in->flags & INF_MEM ? ld16(c, in->seg, insn_ea(c, in)) : REG16(c, in->rm);
}
/* Selectors and the machine status word: 16 bits to memory, zero-extended to the operand size in registers. */
static void store_rm16(Cpu *c, const Insn *in, u64 v) {
    if (in->flags & INF_MEM) st16(c, in->seg, insn_ea(c, in), (u16)v);
    else write_reg(c, in->rm, in->osz, v);
}
INLINE unsigned modrm_reg(const Insn *in) { return in->modrm >> 3 & 7; }

/* MOV SS and POP SS hold off interrupts and debug traps for one instruction. */
static void ss_shadow(Cpu *c) {
    cpu_pend(c, PEND_SHADOW);
    c->ss_shadow = c->mode & MODE_STEP || dr_any_armed(c);
}

static void op_mov_to_seg(Cpu *c, const Insn *in) {
    unsigned seg = modrm_reg(in);
    seg_load(c, seg, read_rm16(c, in));
    if (seg == SEG_SS) ss_shadow(c);
}
static void op_mov_from_seg(Cpu *c, const Insn *in) { store_rm16(c, in, c->seg[modrm_reg(in)].sel); }

/* 06 0E 16 1E, 0F A0, 0F A8 and the POPs one above. */
static unsigned implied_seg(const Insn *in) {
    return in->map == 0 ? in->opcode >> 3 & 3 : in->opcode & 8 ? SEG_GS : SEG_FS;
}

/* A push moves SP by the operand size but writes only the selector's 16 bits (Intel processors; SDM vol 2 PUSH). */
static void op_push_seg(Cpu *c, const Insn *in) {
    Stack s = stack_current(c);
    u64 old = s.sp;
    u16 sel = c->seg[implied_seg(in)].sel;
    if (in->osz == 8) {
        stack_push(c, &s, sel, 8);
    } else {
        s.sp = (old & ~size_mask(s.size)) | ((old - in->osz + 2) & size_mask(s.size));
        stack_push(c, &s, sel, 2);
    }
    stack_commit_sp(c, &s);
}
static void op_pop_seg(Cpu *c, const Insn *in) {
    Stack s = stack_current(c);
    unsigned seg = implied_seg(in);
    u64 sp = s.sp;
    unsigned sel = (unsigned)stack_pop(c, &s, 2);
    s.sp = (sp & ~size_mask(s.size)) | ((sp + in->osz) & size_mask(s.size));
    seg_load(c, seg, sel);
    stack_commit_sp(c, &s); /* by the old stack's width */
    if (seg == SEG_SS) ss_shadow(c);
}

static void load_far_pointer(Cpu *c, const Insn *in, unsigned seg) {
    u64 ea = insn_ea(c, in), ea2 = ea + in->osz, off;
    if (in->asz != 8) ea2 &= size_mask(in->asz);
    off = in->osz == 8 ? ld64(c, in->seg, ea) : in->osz == 4 ? ld32(c, in->seg, ea) : ld16(c, in->seg, ea);
    seg_load(c, seg, ld16(c, in->seg, ea2));
    write_reg(c, in->reg, in->osz, off);
}
static void op_lds(Cpu *c, const Insn *in) { load_far_pointer(c, in, SEG_DS); }
static void op_les(Cpu *c, const Insn *in) { load_far_pointer(c, in, SEG_ES); }
static void op_lss(Cpu *c, const Insn *in) { load_far_pointer(c, in, SEG_SS); }
static void op_lfs(Cpu *c, const Insn *in) { load_far_pointer(c, in, SEG_FS); }
static void op_lgs(Cpu *c, const Insn *in) { load_far_pointer(c, in, SEG_GS); }

static void check_umip(Cpu *c) {
    if ((c->cr4 & CR4_UMIP) && c->cpl != 0) exc_gp0(c);
}

static void store_table(Cpu *c, const Insn *in, const DescTable *t) {
    check_umip(c);
    u64 ea = insn_ea(c, in), ea2 = ea + 2;
    if (in->asz != 8) ea2 &= size_mask(in->asz);
    unsigned n = cpu_code64(c) ? 8 : 4;
    mem_probe(c, in->seg, ea2, n, ACC_WRITE);
    st16(c, in->seg, ea, t->limit);
    if (n == 8) st64(c, in->seg, ea2, t->base);
    else st32(c, in->seg, ea2, (u32)t->base);
}
static void load_table(Cpu *c, const Insn *in, DescTable *t) {
    require_cpl0(c);
    u64 ea = insn_ea(c, in), ea2 = ea + 2;
    if (in->asz != 8) ea2 &= size_mask(in->asz);
    u16 limit = ld16(c, in->seg, ea);
    u64 base = cpu_code64(c) ? ld64(c, in->seg, ea2) : ld32(c, in->seg, ea2);
    if (cpu_code64(c) && !lin_canonical(c, base)) exc_gp0(c);
    if (in->osz == 2) base &= 0xffffff;
    *t = (DescTable){.base = base, .limit = limit};
}
static void op_sgdt(Cpu *c, const Insn *in) { store_table(c, in, &c->gdt); }
static void op_sidt(Cpu *c, const Insn *in) { store_table(c, in, &c->idt); }
static void op_lgdt(Cpu *c, const Insn *in) { load_table(c, in, &c->gdt); }
static void op_lidt(Cpu *c, const Insn *in) { load_table(c, in, &c->idt); }

static void op_sldt(Cpu *c, const Insn *in) {
    check_umip(c);
    store_rm16(c, in, c->seg[SEG_LDTR].sel);
}
static void op_str(Cpu *c, const Insn *in) {
    check_umip(c);
    store_rm16(c, in, c->seg[SEG_TR].sel);
}
static void op_smsw(Cpu *c, const Insn *in) {
    check_umip(c);
    store_rm16(c, in, c->cr0);
}

/* LLDT and LTR read 16-byte descriptors in long mode, from the GDT only. */
static void system_desc(Cpu *c, unsigned sel, Desc *d) {
    bool ok = !(sel & 4) && (cpu_lma(c) ? desc_read16(c, sel, d) : desc_read(c, sel, d));
    if (!ok || desc_is_seg(d)) desc_fault(c, EXC_GP, sel);
}
static Segment system_segment(Cpu *c, const Desc *d, unsigned sel) {
    Segment s = desc_segment(d, sel);
    if (cpu_lma(c)) s.base |= (u64)d->hi2 << 32;
    if (cpu_lma(c) && !lin_canonical(c, s.base)) desc_fault(c, EXC_GP, sel);
    return s;
}

static void op_lldt(Cpu *c, const Insn *in) {
    require_cpl0(c);
    unsigned sel = read_rm16(c, in);
    Desc d;
    if (!(sel & 0xfffc)) {
        c->seg[SEG_LDTR] = (Segment){.sel = (u16)sel};
        return;
    }
    system_desc(c, sel, &d);
    if (desc_type(&d) != DT_LDT) desc_fault(c, EXC_GP, sel);
    if (!desc_present(&d)) desc_fault(c, EXC_NP, sel);
    c->seg[SEG_LDTR] = system_segment(c, &d, sel);
}

static void op_ltr(Cpu *c, const Insn *in) {
    require_cpl0(c);
    unsigned sel = read_rm16(c, in);
    Desc d;
    if (!(sel & 0xfffc)) exc_gp0(c);
    system_desc(c, sel, &d);
    unsigned type = desc_type(&d);
    if (type != DT_TSS32 && (type != DT_TSS16 || cpu_lma(c))) desc_fault(c, EXC_GP, sel);
    if (!desc_present(&d)) desc_fault(c, EXC_NP, sel);
    Segment s = system_segment(c, &d, sel);
    sys_write(c, d.lin + 5, 1, (d.hi >> 8 & 0xff) | 2);
    s.rights |= 2;
    c->seg[SEG_TR] = s;
}

static void set_zf(Cpu *c, bool on) { c->cc = on ? c->cc | FL_ZF : c->cc & ~(u64)FL_ZF; }

/* VERR VERW LAR LSL answer in ZF and never fault on the selector. */
static bool readable_target(Cpu *c, unsigned sel, Desc *d) { return (sel & 0xfffc) && desc_read(c, sel, d); }
static bool privilege_ok(Cpu *c, unsigned sel, const Desc *d) {
    if (desc_is_code(d) && desc_conforming(d)) return true;
    return desc_dpl(d) >= c->cpl && desc_dpl(d) >= (sel & 3);
}
static void op_verr(Cpu *c, const Insn *in) {
    unsigned sel = read_rm16(c, in);
    Desc d;
    set_zf(c, readable_target(c, sel, &d) && desc_is_seg(&d) && privilege_ok(c, sel, &d) &&
                  (!desc_is_code(&d) || (d.hi >> 9 & 1)));
}
static void op_verw(Cpu *c, const Insn *in) {
    unsigned sel = read_rm16(c, in);
    Desc d;
    set_zf(c, readable_target(c, sel, &d) && privilege_ok(c, sel, &d) && desc_writable(&d));
}

/* System types LAR and LSL know, by bit; long mode has fewer (SDM vol 2, LAR table 3-53, LSL table 3-60). */
static bool system_type_ok(Cpu *c, const Desc *d, u32 legacy, u32 lma) {
    return desc_is_seg(d) || ((cpu_lma(c) ? lma : legacy) >> desc_type(d) & 1);
}
static void op_lar(Cpu *c, const Insn *in) {
    unsigned sel = read_rm16(c, in);
    Desc d;
    bool ok = readable_target(c, sel, &d) && privilege_ok(c, sel, &d) && system_type_ok(c, &d, 0x1a3e, 0x1a04);
    set_zf(c, ok);
    if (ok) write_reg(c, in->reg, in->osz, d.hi & (in->osz == 2 ? 0xff00 : 0xf0ff00));
}
static void op_lsl(Cpu *c, const Insn *in) {
    unsigned sel = read_rm16(c, in);
    Desc d;
    bool ok = readable_target(c, sel, &d) && privilege_ok(c, sel, &d) && system_type_ok(c, &d, 0x0a0e, 0x0a04);
    set_zf(c, ok);
    if (ok) write_reg(c, in->reg, in->osz, desc_limit(&d));
}

static void op_arpl(Cpu *c, const Insn *in) {
    unsigned src = REG16(c, in->reg) & 3;
    Rmw m;
    u16 *p = in->flags & INF_MEM ? rmw_begin(c, &m, in->seg, insn_ea(c, in), 2) : &REG16(c, in->rm);
    bool raise = (*p & 3u) < src;
    if (raise) *p = (u16)((*p & ~3u) | src);
    if (in->flags & INF_MEM) rmw_end(c, &m);
    set_zf(c, raise);
}

static OpFn resolve_group6(const Insn *in, bool protected_mode) {
    static const OpFn fns[8] = {op_sldt, op_str, op_lldt, op_ltr, op_verr, op_verw};
    return protected_mode ? fns[modrm_reg(in)] : NULL;
}
static OpFn resolve_group7(const Insn *in) {
    static const OpFn fns[4] = {op_sgdt, op_sidt, op_lgdt, op_lidt};
    if (modrm_reg(in) == 4) return op_smsw;
    return in->flags & INF_MEM && modrm_reg(in) < 4 ? fns[modrm_reg(in)] : NULL;
}

/* Loads that may change flatness, stack size or code attributes end the block; in 64-bit code none of them does. */
static OpFn loads(Insn *in, u32 mode, OpFn fn, unsigned seg) {
    if (seg == SEG_SS || (!(mode & MODE_CS64) && seg < SEG_FS)) in->flags |= INF_END;
    return fn;
}

static OpFn resolve_one_byte(Insn *in, u32 mode, bool protected_mode) {
    switch (in->opcode) {
    case 0x06:
    case 0x0e:
    case 0x16:
    case 0x1e: return op_push_seg;
    case 0x07:
    case 0x17:
    case 0x1f: return loads(in, mode, op_pop_seg, implied_seg(in));
    case 0x8c: return modrm_reg(in) < 6 ? op_mov_from_seg : NULL;
    case 0x8e:
        return modrm_reg(in) < 6 && modrm_reg(in) != SEG_CS ? loads(in, mode, op_mov_to_seg, modrm_reg(in)) : NULL;
    case 0xc4: return loads(in, mode, op_les, SEG_ES);
    case 0xc5: return loads(in, mode, op_lds, SEG_DS);
    case 0x63: return !(mode & MODE_CS64) && protected_mode ? op_arpl : NULL;
    }
    return NULL;
}

OpFn sys_resolve_segment(Insn *in, u32 mode) {
    bool protected_mode = (mode & MODE_PE) && !(mode & MODE_VM);
    if (in->flags & INF_VEX) return NULL;
    if (in->map == 0) return resolve_one_byte(in, mode, protected_mode);
    if (in->map != 1) return NULL;
    switch (in->opcode) {
    case 0x00: return resolve_group6(in, protected_mode);
    case 0x01: return resolve_group7(in);
    case 0x02: return protected_mode ? op_lar : NULL;
    case 0x03: return protected_mode ? op_lsl : NULL;
    case 0xa0:
    case 0xa8: return op_push_seg;
    case 0xa1: return loads(in, mode, op_pop_seg, SEG_FS);
    case 0xa9: return loads(in, mode, op_pop_seg, SEG_GS);
    case 0xb2: return loads(in, mode, op_lss, SEG_SS);
    case 0xb4: return loads(in, mode, op_lfs, SEG_FS);
    case 0xb5: return loads(in, mode, op_lgs, SEG_GS);
    }
    return NULL;
}
