/* Flags at faults (CORE 2). Where all flags are written again before anything reads them, checks, polls and counts may
 * clobber RFLAGS; what leaves translated code from there has the guest's flags nevertheless. How is decided before
 * anything is emitted, for spans: what lies behind an instruction that writes flags, a label or the begin, up to the
 * next such place.
 *
 * - Redone: the last writer's operands are still in registers, so its flags come from doing it again, or backwards and
 *   again.
 * - Joined: at a label it depends on the way control came. Each way stores which it was in Cpu.jit_way.
 * - Saved: in Cpu.jit_flags, before the span's first check.
 * - Right: RFLAGS are never clobbered, checks keep them.
 *
 * The code that recovers them lies behind the translation and is called on the way out; it clobbers r15. */
#include "jit/trans.h"

#include "interp/fpu_ops.h"

enum { SAVE_FROM = 2 }; /* as many checks in a span cost less if flags are saved before them */

enum { REDO_NOT, REDO_CMP, REDO_TEST, REDO_ADD, REDO_SUB, REDO_LOGIC, REDO_NEG };

static u8 redo_of(ZydisMnemonic m) {
    switch (m) {
    case ZYDIS_MNEMONIC_CMP: return REDO_CMP;
    case ZYDIS_MNEMONIC_TEST: return REDO_TEST;
    case ZYDIS_MNEMONIC_ADD: return REDO_ADD;
    case ZYDIS_MNEMONIC_SUB: return REDO_SUB;
    case ZYDIS_MNEMONIC_AND:
    case ZYDIS_MNEMONIC_OR:
    case ZYDIS_MNEMONIC_XOR: return REDO_LOGIC;
    case ZYDIS_MNEMONIC_NEG: return REDO_NEG;
    default: return REDO_NOT;
    }
}

/* The number of a general register, all of it or its low part; else NO_REG. */
static u8 low_part(const ZydisDecodedOperand *op) {
    ZydisRegister r = op->reg.value, full;
    if (op->type != ZYDIS_OPERAND_TYPE_REGISTER || (r >= ZYDIS_REGISTER_AH && r <= ZYDIS_REGISTER_BH)) return NO_REG;
    full = ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, r);
    bool general = full >= ZYDIS_REGISTER_RAX && full <= ZYDIS_REGISTER_R15;
    return general ? (u8)(full - ZYDIS_REGISTER_RAX) : NO_REG;
}

static bool in_registers(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *ops) {
    for (unsigned i = 0; i < zi->operand_count; i++) {
        bool flags = ops[i].type == ZYDIS_OPERAND_TYPE_REGISTER &&
                     ZydisRegisterGetClass(ops[i].reg.value) == ZYDIS_REGCLASS_FLAGS;
        if (!flags && ops[i].type != ZYDIS_OPERAND_TYPE_IMMEDIATE && low_part(&ops[i]) == NO_REG) return false;
    }
    return true;
}

/* Integer operations that are emitted as they are, and cannot fault. */
static bool stays_here(const Guest *g, const ZydisDecodedOperand *ops) {
    if (g->zi.encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY || g->in->fn == op_ud) return false;
    switch (g->zi.mnemonic) {
    case ZYDIS_MNEMONIC_LEA: return g->in->osz > 2 && g->in->asz > 2;
    case ZYDIS_MNEMONIC_DIV:
    case ZYDIS_MNEMONIC_IDIV:
    case ZYDIS_MNEMONIC_XCHG:
    case ZYDIS_MNEMONIC_BSWAP: return false;
    default: break;
    }
    switch (g->zi.meta.category) {
    case ZYDIS_CATEGORY_BINARY:
    case ZYDIS_CATEGORY_LOGICAL:
    case ZYDIS_CATEGORY_SHIFT:
    case ZYDIS_CATEGORY_ROTATE:
    case ZYDIS_CATEGORY_DATAXFER:
    case ZYDIS_CATEGORY_CMOV:
    case ZYDIS_CATEGORY_SETCC:
    case ZYDIS_CATEGORY_CONVERT: return in_registers(&g->zi, ops);
    default: return g->in->fn == op_nop;
    }
}

void flags_operands(Guest *g, const ZydisDecodedOperand *ops) {
    g->stays = g->in->fn == op_native_reg || stays_here(g, ops);
    Redo r = {.how = redo_of(g->zi.mnemonic), .to = low_part(&ops[0]), .from = NO_REG, .size = (u8)(ops[0].size / 8)};
    if (g->zi.encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY || r.how == REDO_NOT || r.to == NO_REG) return;
    if (r.how != REDO_NEG && r.how != REDO_LOGIC) {
        if (ops[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE) r.imm = (i32)ops[1].imm.value.s;
        else if ((r.from = low_part(&ops[1])) == NO_REG) return;
    }
    if (r.how == REDO_ADD && r.from == r.to) return;
    g->redo = r;
}

static u16 registers_of(const Redo *r) { return (u16)(1u << r->to | (r->from == NO_REG ? 0 : 1u << r->from)); }

/* Spans */

typedef struct Span {
    u8 first, end; /* instructions; the last one perhaps writes flags */
    u8 last;       /* the last one from which control may leave, or branch inside; NO_INSN: none */
    u8 checks;     /* of memory operands where no flag is live */
    u8 source;     /* of the flags: RIGHT, REDONE + instruction, JOINED + label */
    u16 changed;   /* registers, before `last` */
} Span;

static bool is_joined(const Guest *g) { return g->label && !g->live && !g->kept; }

static bool writes_flags(const Guest *g) {
    const ZydisAccessedFlags *f = g->zi.cpu_flags;
    if (g->partial == PARTIAL_UNSEEN) return false;
    return !g->zi.length || (f && (f->modified | f->set_0 | f->set_1 | f->undefined) & FL_CC);
}

static u16 changed_registers(const Guest *g) {
    if (!g->zi.length) return 0xffff;
    return (u16)(g->written | (g->sp_change ? 1u << R_RSP : 0));
}

/* From the middle of this translation. */
static bool may_leave(const Guest *g) { return g->target != NO_INSN || !g->stays; }

static bool has_memory(const Guest *g) { return g->bytes_used || g->implied; }

/* Does control come to what follows, with flags known? */
static bool goes_on(const Guest *g) {
    return !(g->in->flags & INF_END) || (direct_branch(g->in) && g->in->op != ZYDIS_MNEMONIC_JMP);
}

/* Does control stay here until all flags are written, behind instruction i? */
static bool unseen(const Trans *t, unsigned i) {
    for (i++; i < t->n && !t->guest[i].label && !may_leave(&t->guest[i]); i++)
        if (flags_killed(&t->guest[i]) == FL_CC) return true;
    return false;
}

/* What some instruction leaves of the flags before it matters only if somebody may look. */
static void find_partial(Trans *t) {
    for (unsigned i = 0; i < t->n; i++) {
        Guest *g = &t->guest[i];
        if (writes_flags(g) && flags_killed(g) != FL_CC) g->partial = unseen(t, i) ? PARTIAL_UNSEEN : PARTIAL;
    }
}

static Span span_from(const Trans *t, unsigned first) {
    Span s = {.first = (u8)first, .last = NO_INSN};
    u16 changed = 0;
    for (unsigned i = first;; i++) {
        const Guest *g = &t->guest[i];
        if (may_leave(g) || (i == first && g->label)) s.last = (u8)i, s.changed = changed;
        s.checks = (u8)(s.checks + (!g->live && has_memory(g)));
        changed |= changed_registers(g);
        s.end = (u8)i;
        if (writes_flags(g) || !goes_on(g) || i + 1 == t->n) return s;
        if (!g[1].label) continue;
        s.last = (u8)i, s.changed = changed;
        return s;
    }
}

/* Where the flags come from that an instruction leaves. */
static u8 source_behind(const Trans *t, const Span *s) {
    const Guest *g = &t->guest[s->end];
    if (writes_flags(g)) return g->redo.how == REDO_NOT ? RIGHT : (u8)(REDONE + s->end);
    return goes_on(g) ? s->source : RIGHT;
}

static unsigned make_spans(Trans *t, Span *spans) {
    unsigned n = 0;
    u8 source = RIGHT;
    for (unsigned i = 0; i < t->n; i = spans[n++].end + 1u) {
        Guest *g = &t->guest[i];
        if (g->label) {
            g->came = source;
            source = is_joined(g) ? (u8)(JOINED + i) : RIGHT;
        }
        Span *s = &spans[n];
        *s = span_from(t, i);
        bool redone = source >= REDONE && source < JOINED;
        if (redone && registers_of(&t->guest[source - REDONE].redo) & s->changed) source = RIGHT;
        s->source = source;
        for (i = s->first; i <= s->end; i++) t->guest[i].source = source;
        source = source_behind(t, s);
    }
    return n;
}

static bool add_ways(const Trans *t, Guest *label, u8 source) {
    u64 before = label->ways;
    if (source >= JOINED) label->ways |= t->guest[source - JOINED].ways;
    else if (source >= REDONE) label->ways |= 1ull << (source - REDONE);
    return label->ways != before;
}

/* Which instructions' flags may be there, at each label. */
static void find_ways(Trans *t) {
    bool changed = true;
    for (unsigned i = 0; i < t->n; i++) t->guest[i].ways = 0;
    while (changed) {
        changed = false;
        for (unsigned i = 0; i < t->n; i++) {
            Guest *g = &t->guest[i];
            if (g->label) changed |= add_ways(t, g, g->came);
            if (g->target != NO_INSN) changed |= add_ways(t, &t->guest[g->target], g->source);
        }
    }
}

static u16 registers_of_ways(const Trans *t, const Guest *label) {
    u16 r = 0;
    for (unsigned i = 0; i < t->n; i++)
        if (label->ways >> i & 1) r |= registers_of(&t->guest[i].redo);
    return r;
}

/* Labels behind which an operand of one of their ways changes too early get RFLAGS that are right. */
static bool keep_some(Trans *t, const Span *spans, unsigned n) {
    bool found = false;
    find_ways(t);
    for (const Span *s = spans; s < spans + n; s++) {
        if (s->source < JOINED) continue;
        Guest *label = &t->guest[s->source - JOINED];
        if (!(registers_of_ways(t, label) & s->changed)) continue;
        found = label->kept = true;
    }
    return found;
}

static void mark(Trans *t, const Span *s) {
    u8 how = s->source;
    bool save = how == RIGHT && s->checks >= SAVE_FROM;
    for (unsigned i = s->first; s->last != NO_INSN && i <= s->last; i++) {
        Guest *g = &t->guest[i];
        if (save && !g->live && has_memory(g)) {
            g->save = true;
            save = false;
            how = SAVED;
        }
        if (!g->live) g->recover = how;
    }
    const Guest *end = &t->guest[s->end];
    for (unsigned i = s->last == NO_INSN ? s->first : s->last + 1u; i <= s->end && flags_killed(end) == FL_CC; i++)
        t->guest[i].unread = !t->guest[i].live;
    if (how == SAVED && !writes_flags(end) && s->end + 1u < t->n && end[1].label) t->guest[s->end + 1].came = SAVED;
}

void flags_plan(Trans *t) {
    Span spans[BLOCK_MAX_INSNS];
    unsigned n;
    find_partial(t);
    do {
        flags_liveness(t);
        n = make_spans(t, spans);
    } while (keep_some(t, spans, n));
    for (unsigned i = 0; i < n; i++) mark(t, &spans[i]);
}

bool flags_kept_behind(const Trans *t, unsigned i) {
    const Guest *g = &t->guest[i];
    if (flags_live_behind(t, i) || i + 1 == t->n || g->in->flags & INF_END) return true;
    return g[1].label || (!g[1].unread && (g[1].recover == RIGHT || g[1].save));
}

/* Emitting */

void flags_save(Trans *t) {
    held_flush(t);
    held_drop_host(t, R15);
    asm_mov(&t->a, R15, RAX);
    jit_flags_to(&t->a, rm_abs(&t->c->jit_flags));
    asm_mov(&t->a, RAX, R15);
}

static void set_way(Trans *t, unsigned way) {
    asm_rm(&t->a, 0, MAP_1, 0xc7, 0, rm_abs(&t->c->jit_way)), put4(&t->a, way);
}

/* Control is about to come to a label from where flags are recovered like this. */
static void go_to_label(Trans *t, const Guest *label, u8 how) {
    if (!is_joined(label) || how >= JOINED) return;
    if (how == RIGHT) flags_save(t);
    set_way(t, how < REDONE ? 0 : how - REDONE + 1u);
}

/* Is the branch back of a strip's loop, which was taken before it, the only one that says which way it goes? */
static bool says_nothing_new(const Trans *t) {
    const Loop *l = t->strip;
    if (!l || t->i != l->last || t->g->source < REDONE) return false;
    for (unsigned i = l->first; i < l->last; i++)
        if (t->guest[i].target != NO_INSN) return false;
    return true;
}

void flags_branch(Trans *t) {
    const Guest *g = t->g;
    if (!says_nothing_new(t)) go_to_label(t, &t->guest[g->target], g->source == RIGHT ? g->recover : g->source);
}

void flags_fall(Trans *t, const Guest *label) { go_to_label(t, label, label->came); }

void flags_recover(Trans *t) {
    if (t->g->recover == RIGHT) return;
    asm_call(&t->a, asm_here(&t->a));
    t->recovering[t->n_recovering++] = (Fix){t->a.p - 4, t->g->recover};
}

/* With r15, in the size of the operands: the opcode's form for bytes is the one before it. */
static void with_r15(Trans *t, const Redo *r, u8 opcode, unsigned reg, Rm rm) {
    unsigned bytes = r->size == 1 ? E_BYTE_RM | (reg == R15 ? E_BYTE_REG : 0) : 0;
    asm_rm(&t->a, asm_size(r->size) | bytes, MAP_1, r->size == 1 ? opcode - 1 : opcode, reg, rm);
}
static void put_imm(Trans *t, const Redo *r) { put_n(&t->a, (u32)r->imm, r->size < 4 ? r->size : 4); }

static Rm place_of(const Trans *t, unsigned n) { return host_reg(n) == NO_REG ? slot(t, n) : rm_reg(host_reg(n)); }

/* One of the eight operations 0 (ADD) to 7 (CMP) on r15 and the second operand. */
static void operate(Trans *t, const Redo *r, unsigned op) {
    if (r->from != NO_REG) {
        with_r15(t, r, (u8)(op << 3 | 3), R15, place_of(t, r->from));
    } else {
        with_r15(t, r, 0x81, op, rm_reg(R15));
        put_imm(t, r);
    }
}
static void add(Trans *t, const Redo *r) { operate(t, r, 0); }
static void sub(Trans *t, const Redo *r) { operate(t, r, 5); }
static void cmp(Trans *t, const Redo *r) { operate(t, r, 7); }
static void neg(Trans *t, const Redo *r) { with_r15(t, r, 0xf7, 3, rm_reg(R15)); }

static void test(Trans *t, const Redo *r) {
    if (r->from != NO_REG) {
        with_r15(t, r, 0x85, R15, place_of(t, r->from));
    } else {
        with_r15(t, r, 0xf7, 0, rm_reg(R15));
        put_imm(t, r);
    }
}

static void redo(Trans *t, const Redo *r) {
    get_reg(t, R15, r->to);
    switch (r->how) {
    case REDO_CMP: cmp(t, r); break;
    case REDO_TEST: test(t, r); break;
    case REDO_ADD: sub(t, r), add(t, r); break;
    case REDO_SUB: add(t, r), sub(t, r); break;
    case REDO_NEG: neg(t, r), neg(t, r); break;
    default: with_r15(t, r, 0x85, R15, place_of(t, r->to)); break; /* of a logical operation's result */
    }
    put1(&t->a, 0xc3);
}

static void restore(Trans *t) {
    asm_mov(&t->a, R15, RAX);
    jit_flags_from(&t->a, rm_abs(&t->c->jit_flags));
    asm_mov(&t->a, RAX, R15);
    put1(&t->a, 0xc3);
}

static void redo_way(Trans *t, const Guest *label) {
    Asm *a = &t->a;
    for (unsigned i = 0; i < t->n; i++) {
        if (!(label->ways >> i & 1)) continue;
        asm_rm(a, 0, MAP_1, 0x83, 7, rm_abs(&t->c->jit_way)), put1(a, i + 1); /* cmp */
        u8 *other = asm_jcc(a, 5, asm_here(a));
        redo(t, &t->guest[i].redo);
        asm_patch(a, other, asm_here(a));
    }
    restore(t);
}

u64 flags_recovery(Trans *t, u8 how) {
    u64 *at = &t->recovery[how];
    if (*at || how == RIGHT) return *at;
    *at = asm_here(&t->a);
    if (how == SAVED) restore(t);
    else if (how < JOINED) redo(t, &t->guest[how - REDONE].redo);
    else redo_way(t, &t->guest[how - JOINED]);
    return *at;
}

/* Behind the translation: all that its cold parts and faults call. */
void flags_recoveries(Trans *t) {
    JitCode *k = t->code;
    for (unsigned i = 0; i < t->n_recovering; i++)
        asm_patch(&t->a, t->recovering[i].site, flags_recovery(t, t->recovering[i].insn));
    for (unsigned i = 0; i < t->n_cold; i++)
        if (cold_recovers(&t->cold[i])) flags_recovery(t, t->guest[t->cold[i].insn].recover);
    for (JitPoint *p = k->points; p < k->points + k->n_points; p++) {
        const Guest *g = &t->guest[p->insn];
        if (g->recover == RIGHT || !may_leave(g)) continue;
        p->recover = (u16)(flags_recovery(t, g->recover) - (u64)t->jit->rx - k->end + 1);
    }
}
