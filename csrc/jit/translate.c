/* One block into host code: decode again for what Insn does not keep, find live flags, emit, place the cold parts. */
#include "jit/trans.h"

#include <string.h>

#include "decode/feat.h"
#include "interp/fpu_ops.h"
#include "jit/lockstep.h"
#include "memory/state.h"

bool jit_eligible(const Cpu *c, const Block *b) {
    u32 code = b->mode & (MODE_CS64 | MODE_CS32);
    if (b->checked || !code || b->mode & (MODE_STEP | MODE_VM) || !(b->mode & MODE_PE)) return false;
    if (code == MODE_CS32 && (b->mode & (MODE_FLAT | MODE_SS32)) != (MODE_FLAT | MODE_SS32)) return false;
    return c->tlb != tlb_never;
}

static void decode_all(Trans *t, const u8 *bytes) {
    static const u64 no_features[4];
    ZydisDecoder d;
    ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
    decode_init_zydis(&d, t->b->mode, no_features);
    u64 rip = t->b->rip;
    for (unsigned i = 0; i < t->n; i++) {
        Guest *g = &t->guest[i];
        g->in = &t->code->insn[i];
        unsigned len = g->in->len;
        memcpy(g->bytes, bytes, len);
        if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(&d, bytes, len, &g->zi, ops))) memset(&g->zi, 0, sizeof g->zi);
        else group_registers(g, ops), strip_operands(g, ops), flags_operands(g, ops);
        bytes += len;
        rip += len;
        g->next = rip;
    }
}

/* The bytes the block was decoded from: still in RAM, or it would have been dropped; a crossing one in two places. */
static void source_bytes(Cpu *c, const Block *b, u8 *out) {
    unsigned first = (unsigned)(PAGE_SIZE - (b->ram_off & ~PAGE_MASK));
    if (first > b->size) first = b->size;
    memcpy(out, machine_ram_host(c->machine, b->ram_off), first);
    if (first < b->size) memcpy(out + first, machine_ram_host(c->machine, b->ram_off2), b->size - first);
}

static void call_handler(Trans *t, const u8 *by) {
    t->g->helped = true;
    group_barrier(t);
    x87_settle(t);
    flags_recover(t);
    asm_imm(&t->a, R15, (u64)t->g->in);
    asm_imm(&t->a, R14, t->g->next);
    asm_call(&t->a, (u64)by);
}

void emit_helper(Trans *t) { call_handler(t, t->jit->helper); }

/* Everything at the end of a block that is not a plain branch: the handler says where to go on. */
static void emit_system(Trans *t) {
    call_handler(t, t->jit->system);
    emit_goto(t, t->g->next, false);
}

static void emit_insn(Trans *t) {
    u16 f = t->g->in->flags;
    if (t->g->zi.length && emit_int(t)) return; /* knows of held registers */
    if (t->g->in->fn != op_native_reg) held_drop(t);
    bool done = t->g->zi.length &&
                (emit_string(t) || emit_control(t) || emit_stack(t) || emit_vector(t) || emit_sys(t) || emit_bits(t));
    if (done) return;
    if ((f & (INF_END | INF_PLAIN)) == INF_END) emit_system(t);
    else emit_helper(t); /* REP: the next instruction follows when it is done */
}

bool run_begins(const Trans *t, unsigned i) { return !i || t->guest[i].label || t->guest[i - 1].in->flags & INF_END; }

unsigned run_left(const Trans *t) {
    unsigned end = t->i + 1;
    while (end < t->n && !run_begins(t, end)) end++;
    return end - t->i;
}

/* Lock-step follows every way into a translation, and through a region. A group goes on: r13 survives. */
static void emit_announcement(Trans *t) {
    Announcement *x = jit_alloc(t->jit, sizeof *x);
    u64 rip = guest_rip(t->g);
    x->insn.fn = lockstep_entered;
    x->run = (Run){.block = t->b, .insn = t->g->in, .rip = rip, .n = run_left(t)};
    held_drop(t);
    flags_recover(t);
    asm_imm(&t->a, R15, (u64)&x->insn);
    asm_imm(&t->a, R14, rip);
    asm_call(&t->a, (u64)t->jit->helper);
}

static void emit_run_begin(Trans *t) {
    if (!t->i) t->code->run = run_left(t);
    if (unlikely(t->jit->lockstep)) emit_announcement(t);
    if (t->jit->counts) emit_charge(t);
    if (t->strip && (t->jit->lockstep || t->jit->counts)) strip_reload(t);
}

static bool finish(Trans *t) {
    Block *b = t->b;
    Jit *j = t->jit;
    t->code->end = (u32)(t->a.p - j->rw);
    cold_emit(t);
    j->stats.translated++;
    j->stats.regions += t->region;
    j->stats.code_bytes += (u64)(t->a.p - j->rw) - j->used;
    j->used = (u32)((t->a.p - j->rw) + 15) & ~15u;
    j->codes[j->n_codes++] = t->code;
    b->code = t->code;
    jit_trace(t);
    return true;
}

void emit_guest(Trans *t) {
    t->g = &t->guest[t->i];
    t->moved = false;
    t->mode_after = t->b->mode;
    if (t->g->label || !only_registers(t->g)) held_flush(t);
    if (!t->strip) region_label(t);
    if (!t->ended && t->g->save) flags_save(t);
    if (!t->strip) region_loop(t);
    if (!t->i) emit_heat(t);
    if (!t->ended && run_begins(t, t->i)) emit_run_begin(t);
    t->code->points[t->code->n_points++] = (JitPoint){.at = (u32)(t->a.p - t->jit->rw), .insn = (u16)t->i};
    if (t->ended) return; /* nothing leads here */
    if (!t->strip) group_open(t);
    emit_insn(t);
    if (t->ended) held_drop(t);
    cold_end_insn(t);
    if (!t->strip) group_step(t);
}

/* One pass over the block. The planning one leaves only Trans.access behind. */
static void emit_all(Trans *t) {
    u8 *begin = t->a.p;
    u32 arena = t->jit->arena_used;
    t->sp = t->late = 0;
    emit_found(t);
    t->code->entry = (const u8 *)asm_here(&t->a);
    held_drop(t);
    memset(t->version, 0, sizeof t->version);
    t->code->n_points = 0;
    for (t->i = 0; t->i < t->n; t->i++) emit_guest(t);
    if (!t->ended) {
        held_flush(t);
        emit_goto(t, t->g->next, false);
    }
    if (!t->planning) {
        strips_emit(t);
        return;
    }
    t->planning = false;
    t->a.p = begin;
    t->jit->arena_used = arena;
    t->n_cold = t->n_fix = t->n_recovering = 0;
    t->ended = false;
    t->x87 = NULL;
}

bool jit_translate(Cpu *c, Block *b) {
    static __thread Trans trans;
    Trans *t = &trans;
    Jit *j = c->jit;
    u8 bytes[REGION_BYTES + 16];
    memset(t, 0, offsetof(Trans, access));
    t->n_cold = t->n_access = t->n_fix = t->n_loops = t->n_recovering = 0;
    memset(t->recovery, 0, sizeof t->recovery);
    t->c = c, t->jit = j, t->b = b, t->n = b->n;
    t->wide = b->mode & MODE_CS64;
    t->mode = jit_mode(j, b->mode);
    if (!t->mode) return false;
    t->tlb = c->tlbs[c->mmu_mode];
    t->a = (Asm){.p = j->rw + j->used, .rx = (i64)(j->rx - j->rw)};
    t->code = jit_alloc(j, sizeof *t->code);
    t->code->block = b;
    t->code->insn = b->insn;
    if (b->region) t->region = region_make(c, j, b, &t->code->insn, &t->n);
    t->code->mode = t->mode;
    t->code->points = jit_alloc(j, 2 * t->n * sizeof(JitPoint)); /* loops may come twice */
    source_bytes(c, b, bytes);
    memset(t->guest, 0, t->n * sizeof t->guest[0]);
    decode_all(t, bytes);
    region_labels(t);
    flags_plan(t);
    strips_find(t);
    if (t->wide && (!b->plain || t->n_loops)) {
        t->planning = true;
        emit_all(t);
    }
    if (b->plain) t->n_access = 0;
    strips_planned(t);
    emit_all(t);
    return finish(t);
}
