/* Strips: innermost loops of a region run many iterations at a time without checks (DESIGN "Memory").
 *
 * A loop qualifies if it is a straight run that ends with the branch back, leaves nothing to handlers and has operands
 * whose address moves by a constant each time round. It begins as it is, with its checks, which also brings pages into
 * the TLB. After some iterations each stream, the operands off the same registers, is probed once: where it is in its
 * page says how many iterations stay inside. So many are done by a copy of the body that adds one distance, host
 * address less what moves, to each operand's registers; then comes the next probe. A probe that fails, or finds less
 * than MIN iterations, goes back to the checked loop for a while. Nothing leaves to the dispatcher for it.
 *
 * The probe takes the place of the loop's poll: strips end where a page does, and the checked loop comes here again
 * and again. As with groups, whatever would make a distance wrong leaves the translation. */
#include "jit/trans.h"

#include "interp/fpu_ops.h"

enum {
    WARM = 8,         /* iterations before the first probe: many loops are shorter */
    WARM_TEST = 2,    /* the same in lock-step, where chains are short */
    AGAIN = 8,        /* and after a probe that failed */
    MIN = 4,          /* a shorter strip does not pay */
    STRIDE_MAX = 512, /* bytes a stream moves at most each time round */
    WIDTH_MAX = 1024, /* bytes its operands span */
    RECIPROCAL_BITS = 24,
};

/* The explicit memory operand, and whether there are others. */
void strip_operands(Guest *g, const ZydisDecodedOperand *ops) {
    for (unsigned i = 0; i < g->zi.operand_count; i++) {
        if (ops[i].type != ZYDIS_OPERAND_TYPE_MEMORY || ops[i].mem.type == ZYDIS_MEMOP_TYPE_AGEN) continue;
        if (ops[i].visibility != ZYDIS_OPERAND_VISIBILITY_EXPLICIT) g->implied = true;
        else if (g->in->fn != op_nop) g->bytes_used = (u8)(ops[i].size / 8);
        g->stores |= (ops[i].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) != 0;
    }
}

/* What a register holds in the course of an iteration: what `of` held when it began, and a constant. */
typedef struct Value {
    u8 of; /* NO_REG: something else */
    i64 add;
} Value;

/* *to = *from + the result, in 64 bits; false: the instruction is something else. */
static bool sums(const Guest *g, unsigned *to, unsigned *from, i64 *add) {
    const Insn *in = g->in;
    unsigned ext = g->zi.raw.modrm.reg, reg = ext | (unsigned)g->zi.raw.rex.R << 3;
    *to = *from = g->zi.raw.modrm.rm | (unsigned)g->zi.raw.rex.B << 3;
    *add = 0;
    if (in->map || in->osz != 8 || g->zi.encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY) return false;
    if (in->opcode == 0x8d) {
        *to = reg, *from = in->base / 8, *add = in->disp;
        return in->asz == 8 && in->base < ROFF(R_RIP) && in->index == ROFF(R_ZERO);
    }
    if (g->zi.raw.modrm.mod != 3) return false;
    if (in->opcode == 0x89) return *from = reg, true;
    if (in->opcode == 0x8b) return *to = reg, true;
    bool by_one = in->opcode == 0xff && ext < 2, by_imm = in->opcode == 0x81 || in->opcode == 0x83;
    i64 n = by_one ? 1 : (i32)in->imm;
    *add = ext ? -n : n;
    return by_one || (by_imm && (ext == 0 || ext == 5));
}

static void values_begin(Value *v) {
    for (unsigned n = 0; n < 16; n++) v[n] = (Value){(u8)n, 0};
}

static void values_step(const Guest *g, Value *v) {
    unsigned to, from;
    i64 add;
    if (sums(g, &to, &from, &add)) {
        v[to] = (Value){v[from].of, v[from].add + add};
        return;
    }
    for (unsigned n = 0; n < 16; n++)
        if (g->written >> n & 1) v[n].of = NO_REG;
    if (g->sp_change) v[R_RSP].of = NO_REG;
}

/* By how much each register moves in one iteration, of those that are again what they were but for a constant. */
typedef struct Moves {
    u16 known;
    i64 step[16];
} Moves;

static Moves moves_of(const Trans *t, const Loop *l) {
    Moves m = {0};
    Value v[16];
    values_begin(v);
    for (unsigned i = l->first; i <= l->last; i++) values_step(&t->guest[i], v);
    for (unsigned n = 0; n < 16; n++) {
        if (v[n].of != n) continue;
        m.known |= 1u << n;
        m.step[n] = v[n].add;
    }
    return m;
}

/* Is there nothing in the loop that a strip cannot do? */
static bool straight(const Trans *t, const Loop *l) {
    if (t->guest[l->first].recover < JOINED) return false;
    for (unsigned i = l->first; i <= l->last; i++) {
        const Guest *g = &t->guest[i];
        bool branch = g->in->flags & INF_END, jump = branch && g->in->op == ZYDIS_MNEMONIC_JMP;
        if (!g->zi.length || g->implied || g->helped || (i > l->first && g->label)) return false;
        if (branch && (!direct_branch(g->in) || (jump && i != l->last))) return false;
        if (g->zi.meta.isa_set == ZYDIS_ISA_SET_X87) return false;
    }
    return true;
}

/* The stream off these registers, made if there is none yet; NULL: no room. */
static Stream *stream_for(Loop *l, unsigned base, unsigned index, unsigned scale) {
    Stream *s = l->stream;
    for (; s < l->stream + l->n; s++)
        if (s->base == base && s->index == index && s->scale == scale) return s;
    if (l->n == STREAMS) return NULL;
    l->n++;
    *s = (Stream){.base = (u8)base, .index = (u8)index, .scale = (u8)scale, .moving = NO_REG, .lo = INT32_MAX};
    s->hi = INT32_MIN;
    return s;
}

/* Does the address move by a constant, which one register brings? */
static bool set_motion(Stream *s, const Moves *m) {
    bool indexed = s->index != NO_REG;
    i64 base = m->step[s->base], index = indexed ? m->step[s->index] * (1 << s->scale) : 0, stride = base + index;
    if (!(m->known >> s->base & 1) || (indexed && !(m->known >> s->index & 1)) || (base && index)) return false;
    if (stride > STRIDE_MAX || stride < -STRIDE_MAX) return false;
    s->stride = (i32)stride;
    s->moving = base ? s->base : index ? s->index : NO_REG;
    s->shift = index ? s->scale : 0;
    return true;
}

static bool near(i64 n) { return n < 1 << 20 && n > -(1 << 20); }

/* Puts the operand into its stream. v: what registers hold at the instruction. */
static void stream_add(Loop *l, Guest *g, const Moves *m, const Value *v) {
    const Insn *in = g->in;
    const Value *base = &v[in->base / 8], none = {NO_REG, 0}, *index = &none;
    if (in->index != ROFF(R_ZERO)) index = &v[in->index / 8];
    if (base->of == NO_REG || (index->of == NO_REG && index != &none)) return;
    Loop grown = *l;
    Stream *s = stream_for(&grown, base->of, index->of, in->scale);
    if (!s || !set_motion(s, m)) return;
    i64 by_index = (i64)((u64)index->add << in->scale), moved = base->add + by_index, off = in->disp + moved,
        end = off + g->bytes_used;
    bool by_base = s->moving == s->base;
    if (!near(off) || !near(base->add) || !near(index->add)) return;
    if (off < s->lo) s->lo = (i32)off;
    if (end > s->hi) s->hi = (i32)end;
    if (s->hi - s->lo > WIDTH_MAX) return;
    s->write |= g->stores;
    s->members++;
    g->moving = s->moving == NO_REG ? NO_REG : by_base ? in->base / 8 : in->index / 8;
    g->fixed = (i32)(off - (g->moving == NO_REG ? 0 : by_base ? base->add : by_index));
    g->stream = (u8)(s - grown.stream + 1);
    *l = grown;
}

/* The stream with most operands comes first: it has a register. */
static void sort_streams(Trans *t, Loop *l) {
    unsigned best = 0;
    for (unsigned s = 1; s < l->n; s++)
        if (l->stream[s].members > l->stream[best].members) best = s;
    Stream swap = l->stream[0];
    l->stream[0] = l->stream[best];
    l->stream[best] = swap;
    for (unsigned i = l->first; i <= l->last; i++) {
        Guest *g = &t->guest[i];
        if (g->stream == 1) g->stream = (u8)(best + 1);
        else if (g->stream == best + 1) g->stream = 1;
    }
}

static bool find_streams(Trans *t, Loop *l) {
    Moves m = moves_of(t, l);
    Value v[16];
    values_begin(v);
    for (unsigned i = l->first; i <= l->last; i++) {
        Guest *g = &t->guest[i];
        if (g->bytes_used && group_possible(t, g->in)) stream_add(l, g, &m, v);
        values_step(g, v);
    }
    l->counter = NO_REG;
    for (unsigned s = 0; s < l->n; s++)
        if (l->stream[s].moving != NO_REG) l->counter = l->stream[s].moving;
    if (l->counter == NO_REG) return false;
    l->step = (i32)m.step[l->counter];
    sort_streams(t, l);
    return true;
}

void strips_find(Trans *t) {
    for (unsigned i = 0; t->region && t->wide && i < t->n && t->n_loops < LOOPS; i++) {
        const Guest *g = &t->guest[i];
        Loop l = {.first = g->target, .last = (u8)i};
        if (g->target == NO_INSN || g->target > i || !straight(t, &l) || !find_streams(t, &l)) continue;
        Guest *behind = &t->guest[i + 1]; /* what strips go to */
        if (i + 1 < t->n && !behind->label) behind->label = behind->kept = true;
        t->loop[t->n_loops++] = l;
    }
}

void strips_planned(Trans *t) {
    for (unsigned k = 0; k < t->n_loops; k++) t->loop[k].on = straight(t, &t->loop[k]);
}

Loop *strip_loop(Trans *t, unsigned first) {
    for (unsigned k = 0; k < t->n_loops; k++)
        if (t->loop[k].on && t->loop[k].first == first) return &t->loop[k];
    return NULL;
}

static void set_warm(Trans *t, unsigned n) {
    asm_rm(&t->a, 0, MAP_1, 0xc7, 0, rm_abs(&t->c->jit_strip.warm)), put4(&t->a, n);
}

void strip_enter(Trans *t, Loop *l) {
    Asm *a = &t->a;
    set_warm(t, t->jit->lockstep ? WARM_TEST : WARM);
    l->again = a->p;
    asm_rm(a, 0, MAP_1, 0xff, 1, rm_abs(&t->c->jit_strip.warm)); /* dec */
    l->to_probe = asm_jcc(a, 4, asm_here(a));
    l->checked = a->p;
}

bool strip_serves(Trans *t, unsigned n, bool write) {
    Asm *a = &t->a;
    const Guest *g = t->g;
    if (!g->stream || n > g->bytes_used) return false;
    const Stream *s = &t->strip->stream[g->stream - 1];
    unsigned k = g->stream - 1u, base = R13;
    i32 disp = g->fixed - s->lo;
    if (write && !s->write) return false;
    if (t->strip->owns && k > 2) return false;
    held_drop_host(t, R14);
    if (t->strip->owns) base = R13 + k;
    else if (k) asm_load(a, base = R14, rm_abs(&t->c->jit_group[k - 1]));
    if (g->moving == NO_REG) {
        t->mem = rm_at(base, disp);
    } else if (host_reg(g->moving) != NO_REG) {
        t->mem = rm_sib(base, host_reg(g->moving), s->shift, disp);
    } else {
        held_drop_host(t, R15);
        asm_load(a, R15, slot(t, g->moving));
        asm_lea(a, R14, rm_sib(base, R15, s->shift, disp));
        t->mem = rm_at(R14, 0);
    }
    return true;
}

/* r15 = how many iterations fit in the page behind the first one, whose lowest byte is at offset r14. */
static void emit_room(Trans *t, const Stream *s) {
    Asm *a = &t->a;
    u32 stride = (u32)(s->stride < 0 ? -s->stride : s->stride);
    if (s->stride > 0) {
        asm_imm(a, R15, PAGE_SIZE - (u32)(s->hi - s->lo));
        asm_rm(a, E_W, MAP_1, 0x2b, R15, rm_reg(R14));
    } else {
        asm_mov(a, R15, R14);
    }
    if (!(stride & (stride - 1))) {
        if (stride > 1) asm_rm(a, 0, MAP_1, 0xc1, 5, rm_reg(R15)), put1(a, (u32)__builtin_ctz(stride));
    } else { /* at most one too few */
        asm_rm(a, E_W, MAP_1, 0x69, R15, rm_reg(R15)), put4(a, (1u << RECIPROCAL_BITS) / stride);
        asm_rm(a, E_W, MAP_1, 0xc1, 5, rm_reg(R15)), put1(a, RECIPROCAL_BITS);
    }
}

/* room = the least of all streams so far, in r15 and memory. */
static void emit_least(Trans *t, bool first) {
    Asm *a = &t->a;
    Rm room = rm_abs(&t->c->jit_strip.room);
    if (!first) {
        asm_rm(a, E_W, MAP_1, 0x3b, R15, room);
        asm_rm(a, E_W, MAP_0F, 0x47, R15, room); /* cmova */
    }
    asm_store(a, room, R15);
}

/* r13 = distance of a stream that is in the TLB with all its bytes in one page; the rel32 to lead elsewhere. */
static u8 *emit_probe_stream(Trans *t, const Stream *s, bool *first) {
    Asm *a = &t->a;
    Place at = {.base = s->base, .index = s->index, .scale = s->scale};
    group_address(t, &at, s->lo, R13);
    u8 *failed = emit_check(t, R13, rm_abs(&t->c->jit_tmp[2]), (u32)(s->hi - s->lo), s->write);
    if (s->moving == NO_REG) return failed;
    emit_room(t, s);
    emit_least(t, *first);
    *first = false;
    get_reg(t, R15, s->moving);
    if (s->shift) asm_rm(a, E_W, MAP_1, 0xc1, 4, rm_reg(R15)), put1(a, s->shift);
    asm_rm(a, E_W, MAP_1, 0x2b, R13, rm_reg(R15));
    return failed;
}

/* Where the counter will be when the strip ends; r15 is clobbered. */
static u8 *emit_end(Trans *t, const Loop *l) {
    Asm *a = &t->a;
    asm_load(a, R15, rm_abs(&t->c->jit_strip.room));
    asm_rm(a, E_W, MAP_1, 0x83, 7, rm_reg(R15)), put1(a, MIN - 1);
    u8 *failed = asm_jcc(a, 2, asm_here(a));
    asm_rm(a, E_W, MAP_1, 0x69, R15, rm_reg(R15)), put4(a, (u32)l->step);
    asm_lea(a, R15, rm_at(R15, (i32)l->step));
    if (host_reg(l->counter) == NO_REG) asm_rm(a, E_W, MAP_1, 0x03, R15, slot(t, l->counter));
    else asm_lea(a, R15, rm_sib(R15, host_reg(l->counter), 0, 0));
    asm_store(a, rm_abs(&t->c->jit_strip.end), R15);
    asm_rm(a, E_W, MAP_1, 0xff, 0, rm_abs(&t->c->n_strip)); /* inc */
    return failed;
}

static void emit_probe(Trans *t, const Loop *l) {
    Asm *a = &t->a;
    u8 *failed[STREAMS + 1];
    bool first = true;
    for (unsigned k = l->n; k--;) {
        failed[k] = emit_probe_stream(t, &l->stream[k], &first);
        if (k) asm_store(a, rm_abs(&t->c->jit_group[k - 1]), R13);
    }
    failed[l->n] = emit_end(t, l);
    u8 *over = (asm_jmp(a, asm_here(a)), a->p - 4);
    for (unsigned k = 0; k <= l->n; k++) asm_patch(a, failed[k], asm_here(a));
    set_warm(t, AGAIN);
    asm_jmp(a, (u64)l->checked + (u64)a->rx);
    asm_patch(a, over, asm_here(a));
}

void strip_reload(Trans *t) {
    for (unsigned k = 1; t->strip->owns && k < t->strip->n && k < 3; k++)
        asm_load(&t->a, R13 + k, rm_abs(&t->c->jit_group[k - 1]));
}

/* Does the instruction just emitted leave r14 and r15 alone? */
static bool spares_scratch(const Trans *t) {
    const JitCode *k = t->code;
    const u8 *p = t->jit->rw + k->points[k->n_points - 1].at;
    ZydisDecoder d;
    ZydisDecodedInstruction zi;
    ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
    ZydisDecoderInit(&d, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    for (; p < t->a.p; p += zi.length) {
        if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(&d, p, (ZyanUSize)(t->a.p - p), &zi, ops))) return false;
        if (zi.mnemonic == ZYDIS_MNEMONIC_CALL) return false;
        for (unsigned i = 0; i < zi.operand_count; i++) {
            if (ops[i].type != ZYDIS_OPERAND_TYPE_REGISTER || !(ops[i].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE))
                continue;
            ZydisRegister r = ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, ops[i].reg.value);
            if (r == ZYDIS_REGISTER_R14 || r == ZYDIS_REGISTER_R15) return false;
        }
    }
    return true;
}

/* False: it uses the registers that it was to own. */
static bool emit_body(Trans *t, Loop *l, u64 probe) {
    Asm *a = &t->a;
    unsigned counter = host_reg(l->counter);
    strip_reload(t);
    l->again = a->p;
    if (counter == NO_REG) asm_load(a, counter = R15, slot(t, l->counter));
    asm_rm(a, E_W, MAP_1, 0x3b, counter, rm_abs(&t->c->jit_strip.end));
    asm_jcc(a, 4, probe);
    for (t->i = l->first; t->i <= l->last; t->i++) {
        emit_guest(t);
        if (l->owns && !spares_scratch(t)) return false;
    }
    const Guest *behind = &t->guest[l->last + 1];
    if (!t->ended) flags_fall(t, behind), asm_jmp(a, (u64)behind->host + (u64)a->rx);
    return true;
}

/* With the distances in registers if nothing else in the loop needs them. */
static void emit_copy(Trans *t, Loop *l, u64 probe) {
    u8 *begin = t->a.p;
    unsigned n_cold = t->n_cold, n_recovering = t->n_recovering;
    u32 n_points = t->code->n_points, arena = t->jit->arena_used;
    l->owns = l->n > 1 && host_reg(l->counter) != NO_REG;
    if (emit_body(t, l, probe)) return;
    t->a.p = begin;
    t->n_cold = n_cold;
    t->n_recovering = n_recovering;
    t->code->n_points = n_points;
    t->jit->arena_used = arena;
    t->ended = false;
    t->late = 0;
    held_drop(t);
    l->owns = false;
    emit_body(t, l, probe);
}

/* Behind the region: what its loops jump to. */
void strips_emit(Trans *t) {
    for (unsigned k = 0; k < t->n_loops; k++) {
        Loop *l = &t->loop[k];
        if (!l->on) continue;
        u64 probe = asm_here(&t->a);
        asm_patch(&t->a, l->to_probe, probe);
        t->strip = l;
        t->i = l->first;
        t->g = &t->guest[l->first];
        t->ended = false;
        t->mode_after = t->b->mode;
        held_drop(t);
        groups_end(t);
        t->group = (Group){.on = true}; /* r13 is taken */
        emit_poll_here(t);
        emit_probe(t, l);
        emit_copy(t, l, probe);
        t->strip = NULL;
        t->ended = true;
    }
}
