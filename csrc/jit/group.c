/* Groups: accesses off the same unchanged registers share one TLB check (DESIGN "Memory", CORE 7).
 *
 * A block is emitted twice. The first pass notes its accesses and what lies between them; in
 * the second a group is opened, as early as RFLAGS may be clobbered, for those that fit one page together: r13 then
 * holds the host address of the first. A failing check changes nothing: the dispatcher interprets
 * from there. A block whose operands straddle pages again and again is translated anew without groups.
 *
 * Nothing may invalidate r13 while a group is on: every helper that flushed a translation leaves the block. */
#include "jit/trans.h"

enum { SPAN = 1024 };

/* Which general registers an instruction changes. RSP moving by a constant is not a change: offsets follow it. */
void group_registers(Guest *g, const ZydisDecodedOperand *ops) {
    for (unsigned i = 0; i < g->zi.operand_count; i++) {
        if (ops[i].type != ZYDIS_OPERAND_TYPE_REGISTER || !(ops[i].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)) continue;
        ZydisRegister full = ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, ops[i].reg.value);
        if (full >= ZYDIS_REGISTER_RAX && full <= ZYDIS_REGISTER_R15) g->written |= 1u << (full - ZYDIS_REGISTER_RAX);
    }
    const Insn *in = g->in;
    unsigned op = in->map ? 0x100u : in->opcode, ext = g->zi.raw.modrm.reg;
    bool to_rsp = g->zi.raw.modrm.mod == 3 && g->zi.raw.modrm.rm == R_RSP && !g->zi.raw.rex.B && in->osz == 8;
    if ((op & 0xf8) == 0x50 || op == 0x68 || op == 0x6a || op == 0x9c || (op == 0xff && ext == 6)) g->sp_change = -8;
    else if ((op & 0xf8) == 0x58 && in->rm != ROFF(R_RSP)) g->sp_change = 8;
    else if ((op == 0x81 || op == 0x83) && to_rsp && ext == 0) g->sp_change = (i32)in->imm;
    else if ((op == 0x81 || op == 0x83) && to_rsp && ext == 5) g->sp_change = -(i32)in->imm;
    else return;
    if (in->osz != 8 || g->sp_change > SPAN || g->sp_change < -SPAN) g->sp_change = 0;
    else g->written &= (u16) ~(1u << R_RSP);
}

Place group_place(const Trans *t, unsigned base, unsigned index, unsigned scale) {
    Place p = {.base = (u8)base, .index = (u8)index, .scale = (u8)scale, .version = t->version[base]};
    if (index != NO_REG) p.index_version = t->version[index];
    return p;
}

static bool same_place(const Place *a, const Place *b) {
    return a->base == b->base && a->index == b->index && a->scale == b->scale && a->version == b->version &&
           a->index_version == b->index_version;
}

/* Are the registers of this place now what it means? */
static bool place_current(const Trans *t, const Place *p) {
    return p->version == t->version[p->base] && (p->index == NO_REG || p->index_version == t->version[p->index]);
}

static i32 origin(const Trans *t, const Place *p) {
    i32 sp = p->base == R_RSP ? t->sp : 0;
    return p->index == R_RSP ? 0 : sp;
}

void group_note(Trans *t, Place at, i32 disp, unsigned n, bool write) {
    if (!t->planning || disp > SPAN * SPAN || disp < -SPAN * SPAN) return;
    t->access[t->n_access++] =
        (Access){.at = at, .insn = (u8)t->i, .n = (u8)n, .write = write, .off = origin(t, &at) + disp};
}

void groups_end(Trans *t) {
    t->group.on = false;
    for (unsigned s = 0; s < ARRAY_LEN(t->stored); s++) t->stored[s].on = false;
}

void group_barrier(Trans *t) {
    groups_end(t);
    if (!t->planning) return;
    if (t->n_access && t->access[t->n_access - 1].barrier) return;
    t->access[t->n_access++] = (Access){.insn = (u8)t->i, .barrier = true};
}

void group_barrier_behind(Trans *t) {
    if (t->planning) t->access[t->n_access++] = (Access){.insn = (u8)(t->i - 1), .barrier = true};
}

/* What follows may not be reached: it is not checked before this. */
void group_branch(Trans *t) {
    if (t->planning) t->access[t->n_access++] = (Access){.insn = (u8)t->i, .branch = true};
}

static bool covers(const Group *p, Place at, i32 off, unsigned n, bool write) {
    return p->on && same_place(&p->at, &at) && off >= p->lo && off + (i32)n <= p->hi && (p->write || !write);
}

static bool joins(const Group *p, const Access *x) {
    if (!same_place(&x->at, &p->at)) return false;
    i32 lo = x->off < p->lo ? x->off : p->lo, hi = x->off + x->n > p->hi ? x->off + x->n : p->hi;
    return hi - lo <= SPAN;
}

/* The group that begins with access k; how many members. */
static unsigned gather(const Trans *t, unsigned k, Group *p) {
    const Access *first = &t->access[k];
    *p = (Group){.at = first->at,
                 .on = true,
                 .write = first->write,
                 .last = first->insn,
                 .lo = first->off,
                 .hi = first->off + first->n};
    unsigned members = 1;
    bool certain = true;
    for (k++; k < t->n_access && !t->access[k].barrier; k++) {
        const Access *x = &t->access[k];
        certain &= !x->branch;
        if (x->branch || !joins(p, x) || (!certain && x->write && !p->write)) continue;
        if (x->off < p->lo) p->lo = x->off;
        if (x->off + x->n > p->hi) p->hi = x->off + x->n;
        p->write |= x->write;
        p->last = x->insn;
        members++;
    }
    return members;
}

void group_address(Trans *t, const Place *at, i32 disp, unsigned host) {
    Asm *a = &t->a;
    Rm m = {.reg = NO_REG, .base = (u8)host_reg(at->base), .index = NO_REG, .disp = disp};
    if (m.base == NO_REG) asm_load(a, m.base = (u8)host, slot(t, at->base));
    if (at->index != NO_REG) {
        m.index = (u8)host_reg(at->index);
        m.scale = at->scale;
        if (m.index == NO_REG) asm_load(a, m.index = R15, slot(t, at->index));
    }
    asm_lea(a, host, m);
}

/* r13 or r14 = the host address of the group's begin. */
static void emit_group_check(Trans *t, const Group *p, unsigned host) {
    group_address(t, &p->at, p->lo - origin(t, &p->at), host);
    cold_interpret(t, emit_check(t, host, rm_abs(&t->c->jit_tmp[2]), (u32)(p->hi - p->lo), p->write));
}

static bool stored_already(const Trans *t, const Access *x) {
    for (unsigned s = 0; s < ARRAY_LEN(t->stored); s++)
        if (covers(&t->stored[s], x->at, x->off, x->n, x->write)) return true;
    return false;
}

/* The access that was noted for this operand while planning, or n_access. */
static unsigned noted(const Trans *t, const Place *at, i32 off, bool write) {
    unsigned k = 0;
    for (; k < t->n_access; k++) {
        const Access *x = &t->access[k];
        if (x->insn == t->i && !x->barrier && !x->branch && x->off == off && x->write == write &&
            same_place(&x->at, at))
            break;
    }
    return k;
}

/* r13 is taken, but others will come to this place: the host address is kept in memory. */
static bool open_stored(Trans *t, Place at, i32 off, bool write) {
    unsigned s = 0, k;
    Group p;
    if (t->planning) return false;
    while (s < ARRAY_LEN(t->stored) && t->stored[s].on) s++;
    if (s == ARRAY_LEN(t->stored)) return false;
    if ((k = noted(t, &at, off, write)) == t->n_access || gather(t, k, &p) < 2) return false;
    held_drop(t);
    emit_group_check(t, &p, R14);
    asm_store(&t->a, rm_abs(&t->c->jit_group[s]), R14);
    t->stored[s] = p;
    t->mem = rm_at(R14, off - p.lo);
    return true;
}

bool group_serves(Trans *t, Place at, i32 disp, unsigned n, bool write) {
    i32 off = origin(t, &at) + disp;
    if (covers(&t->group, at, off, n, write)) {
        t->mem = rm_at(R13, off - t->group.lo);
        return true;
    }
    for (unsigned s = 0; s < ARRAY_LEN(t->stored); s++) {
        if (!covers(&t->stored[s], at, off, n, write)) continue;
        held_drop_host(t, R14);
        asm_load(&t->a, R14, rm_abs(&t->c->jit_group[s]));
        t->mem = rm_at(R14, off - t->stored[s].lo);
        return true;
    }
    return open_stored(t, at, off, write);
}

/* Before an instruction: is there a group to open? With no other one on, and where RFLAGS may go or when it cannot
 * wait. */
void group_open(Trans *t) {
    bool keep = keep_flags(t);
    if (t->planning || t->group.on) return;
    for (unsigned k = 0; k < t->n_access; k++) {
        const Access *x = &t->access[k];
        if (x->insn < t->i) continue;
        if (x->barrier || x->branch) return;
        if (!place_current(t, &x->at) || stored_already(t, x)) continue; /* its address is not known yet; is known */
        Group p;
        if (gather(t, k, &p) < 2 && (keep || !keeps_flags(&t->guest[x->insn]))) continue;
        if (x->insn != t->i && (keep || !keeps_flags(&t->guest[x->insn]))) return; /* it can wait */
        held_drop(t);
        emit_group_check(t, &p, R13);
        t->group = p;
        return;
    }
}

static bool is_over(const Trans *t, const Group *p) { return t->i >= p->last || !place_current(t, &p->at); }

/* Behind an instruction: what it changed. */
void group_step(Trans *t) {
    const Guest *g = t->g;
    t->sp += g->sp_change;
    for (unsigned n = 0; n < 16; n++)
        if (g->written >> n & 1) t->version[n]++;
    if (t->group.on && is_over(t, &t->group)) t->group.on = false;
    for (unsigned s = 0; s < ARRAY_LEN(t->stored); s++)
        if (t->stored[s].on && is_over(t, &t->stored[s])) t->stored[s].on = false;
}
