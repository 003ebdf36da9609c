/* Guest memory operands: linear address, software-TLB lookup, slow path (DESIGN "Memory", CORE 5, 7).
 *
 * Everything that can fail is done before the instruction changes anything, so the slow path simply has its op_* do the
 * whole instruction: that fills the TLB, reaches devices, announces stores to code, or raises. */
#include "jit/trans.h"

enum { RTAG = offsetof(TlbEntry, rtag), WTAG = offsetof(TlbEntry, wtag), DELTA = offsetof(TlbEntry, delta) };

static bool is_constant(const Insn *in) {
    return in->index == ROFF(R_ZERO) && (in->base == ROFF(R_RIP) || in->base == ROFF(R_ZERO));
}

bool address_supported(const Trans *t) {
    const Insn *in = t->g->in;
    if (in->asz == 2) return false;
    return t->wide || in->seg == SEG_FS || in->seg == SEG_GS || t->b->mode & MODE_FLAT;
}

/* A part of an address as a host register: its own, or scratch loaded with it. */
static unsigned part(Trans *t, unsigned n, unsigned scratch) {
    if (host_reg(n) != NO_REG) return host_reg(n);
    if (held_find(t, n) != NO_REG) return held_find(t, n);
    asm_load(&t->a, scratch, slot(t, n));
    return scratch;
}

static u64 constant_of(const Trans *t) {
    const Insn *in = t->g->in;
    u64 v = (u64)(i64)in->disp + (in->base == ROFF(R_RIP) ? t->g->next : 0);
    return in->asz == 4 ? (u32)v : v;
}

/* base + index << scale + disp, truncated to the address size. */
static void offset_of(Trans *t, unsigned to) {
    const Insn *in = t->g->in;
    bool narrow = in->asz == 4;
    if (is_constant(in)) {
        asm_imm(&t->a, to, constant_of(t));
        return;
    }
    Rm m = {.reg = NO_REG, .base = NO_REG, .index = NO_REG, .disp = in->disp};
    if (in->base / 8 >= R_R12 && in->base < ROFF(R_RIP) && in->index / 8 >= R_R12 && in->index != ROFF(R_ZERO))
        held_drop(t); /* loading one must not overwrite the other */
    if (in->base != ROFF(R_ZERO)) m.base = (u8)part(t, in->base / 8, to);
    if (in->index != ROFF(R_ZERO)) {
        m.index = (u8)part(t, in->index / 8, R15);
        m.scale = in->scale;
    }
    asm_lea_n(&t->a, narrow ? 0 : E_W, to, m);
}

void emit_ea(Trans *t, unsigned to) {
    const Insn *in = t->g->in;
    offset_of(t, to);
    held_drop_host(t, R14);
    held_drop_host(t, R15);
    bool based = in->seg == SEG_FS || in->seg == SEG_GS;
    if (!based) return;
    asm_load(&t->a, R15, rm_abs(&t->c->ea_base[in->seg]));
    asm_rm(&t->a, t->wide ? E_W : 0, MAP_1, 0x8d, to, rm_sib(to, R15, 0, 0));
}

Rm tlb_field(const Trans *t, unsigned offset, unsigned scale) {
    Rm m = rm_abs((const char *)t->tlb + offset);
    m.index = R15;
    m.scale = (u8)scale;
    return m;
}

/* The check of DESIGN "Memory" of the n bytes at the address in `host`, r13 or r14, which becomes the host's; of r14
 * the offset in the page is what remains in between, so that r13 is left to a group. The rel32 that is to lead to the
 * slow path. Clobbers r14, r15 and RFLAGS. */
static u8 *check_short(Trans *t, unsigned host, unsigned n, unsigned tag) {
    Asm *a = &t->a;
    asm_vex(a, 3, MAP_0F3A, 1, 0xf0, R15, 0, rm_reg(host)), put1(a, 7); /* rorx r15, host, 7 */
    asm_rm(a, 0, MAP_1, 0x81, 4, rm_reg(R15)), put4(a, (TLB_SIZE - 1) << 5);
    if (host != R14) asm_mov(a, R14, host);
    asm_rm(a, E_W, MAP_1, 0x03, R14, tlb_field(t, tag, 0));
    asm_rm(a, E_W, MAP_1, 0x81, 7, rm_reg(R14)), put4(a, PAGE_SIZE - n);
    u8 *slow = asm_jcc(a, 7, asm_here(a));
    if (host == R14) asm_rm(a, E_W, MAP_1, 0x2b, host, tlb_field(t, tag, 0));
    asm_rm(a, E_W, MAP_1, 0x03, host, tlb_field(t, DELTA, 0));
    return slow;
}

void emit_tag(Trans *t, unsigned to, unsigned address, unsigned tag) {
    Asm *a = &t->a;
    asm_vex(a, 2, MAP_0F38, 1, 0xf5, R15, address, rm_abs(&t->c->jit_mask[MASK_TLB])); /* pext */
    Rm times4 = {.reg = NO_REG, .base = NO_REG, .index = R15, .scale = 2};
    asm_lea(a, R15, times4);
    asm_load(a, to, tlb_field(t, tag, 3));
}

/* The same without touching RFLAGS: PEXT, LEA and NOT compute, JRCXZ decides; rcx waits at home. */
static u8 *check_keeping(Trans *t, unsigned host, Rm home, unsigned n, unsigned tag) {
    Asm *a = &t->a;
    asm_store(a, home, RCX);
    emit_tag(t, RCX, host, tag);
    asm_lea(a, RCX, rm_sib(RCX, host, 0, (i32)n - 1)); /* address + tag + n - 1 */
    asm_vex(a, 2, MAP_0F38, 1, 0xf5, RCX, RCX, rm_abs(&t->c->jit_mask[MASK_PAGE]));
    u8 *over = asm_jrcxz(a);
    asm_load(a, RCX, home);
    u8 *slow = asm_jmp_later(a);
    asm_land(a, over);
    asm_load(a, RCX, home);
    asm_load(a, R15, tlb_field(t, DELTA, 3));
    asm_lea(a, host, rm_sib(host, R15, 0, 0));
    return slow;
}

u8 *emit_check(Trans *t, unsigned host, Rm home, unsigned n, bool write) {
    unsigned tag = write ? WTAG : RTAG;
    return keep_flags(t) ? check_keeping(t, host, home, n, tag) : check_short(t, host, n, tag);
}

void emit_check_linear(Trans *t, unsigned n, bool write) {
    held_drop_host(t, R14);
    held_drop_host(t, R15);
    if (!t->group.on) held_drop_host(t, R13);
    Rm home = t->group.on ? rm_abs(&t->c->jit_tmp[2]) : rm_reg(R13);
    cold_helper(t, emit_check(t, R14, home, n, write));
    t->mem = rm_at(R14, 0);
}

/* An address known here: one entry to look at, one value its tag must have. */
static bool check_constant(Trans *t, unsigned n, bool write) {
    const Insn *in = t->g->in;
    Asm *a = &t->a;
    u64 v = constant_of(t), page = v & PAGE_MASK;
    if (!is_constant(in) || in->seg == SEG_FS || in->seg == SEG_GS || keep_flags(t)) return false;
    if ((v & ~PAGE_MASK) + n > PAGE_SIZE || (!t->wide && v > (u32)v)) return false;
    const TlbEntry *e = &t->tlb[v >> PAGE_BITS & (TLB_SIZE - 1)];
    bool near = (i64)v == (i32)v && (i64)-page == (i32)-page;
    held_drop_host(t, R14);
    held_drop_host(t, R15);
    if (near) {
        asm_rm(a, E_W, MAP_1, 0x81, 7, rm_abs(write ? &e->wtag : &e->rtag)), put4(a, -page);
        cold_helper(t, asm_jcc(a, 5, asm_here(a)));
        asm_load(a, R14, rm_abs(&e->delta));
    } else {
        asm_imm(a, R14, page);
        asm_mov(a, R15, R14);
        asm_rm(a, E_W, MAP_1, 0x03, R15, rm_abs(write ? &e->wtag : &e->rtag));
        cold_helper(t, asm_jcc(a, 5, asm_here(a)));
        asm_rm(a, E_W, MAP_1, 0x03, R14, rm_abs(&e->delta));
    }
    t->mem = rm_at(R14, near ? (i32)v : (i32)(v & ~PAGE_MASK));
    return true;
}

/* Can the operand be in a group: a base, perhaps an index, no segment base, nothing to truncate? */
bool group_possible(const Trans *t, const Insn *in) {
    return t->wide && in->asz == 8 && in->base < ROFF(R_RIP) && in->index != ROFF(R_RSP) && in->seg != SEG_FS &&
           in->seg != SEG_GS;
}

static bool try_group(Trans *t, unsigned base, unsigned index, i32 disp, unsigned n, bool write) {
    if (t->strip) return strip_serves(t, n, write);
    Place at = group_place(t, base, index, index == NO_REG ? 0 : t->g->in->scale);
    group_note(t, at, disp, n, write);
    return group_serves(t, at, disp, n, write);
}

void emit_address(Trans *t, unsigned n, bool write) {
    const Insn *in = t->g->in;
    unsigned index = in->index == ROFF(R_ZERO) ? NO_REG : in->index / 8;
    if (group_possible(t, in) && try_group(t, in->base / 8, index, in->disp, n, write)) return;
    if (check_constant(t, n, write)) return;
    emit_ea(t, R14);
    emit_check_linear(t, n, write);
}

void emit_address_reg(Trans *t, unsigned base, i32 disp, unsigned n, bool write) {
    Asm *a = &t->a;
    if (t->wide && try_group(t, base, NO_REG, disp, n, write)) return;
    if (host_reg(base) == NO_REG) {
        asm_load(a, R14, slot(t, base));
        if (disp) asm_lea(a, R14, rm_at(R14, disp));
    } else {
        asm_lea_n(a, t->wide ? E_W : 0, R14, rm_at(host_reg(base), disp));
    }
    emit_check_linear(t, n, write);
}
