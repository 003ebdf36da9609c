/* The translator's run loop: enters translated blocks, interprets the others, links what follows what.
 *
 * Translated code leaves with the JitExit it took, or 0 when RIP is set and nothing is to be linked. All of it runs
 * with the guest's FPU state live, so this file is built without vector registers. */
#include "jit/jit.h"
#include "base/clock.h"
#include "cpu/fpu.h"
#include "interp/fpu_ops.h"
#include "interp/int.h"
#include "interp/trace.h"

enum { HOT = 12, GROUP_FAILS = 200, TIMED = 16 };

typedef u64 (*EnterFn)(Cpu *c, const u8 *code);

static u64 budget_left(const Cpu *c) {
    u64 left = c->interp->budget_end - c->icount;
    return left <= INT64_MAX ? left : INT64_MAX;
}

/* Repeated instructions count by themselves; what follows in the run is not done if the handler leaves. */
static void count_handler(Cpu *c, const Insn *in, bool left) {
    if (left) {
        c->icount -= (u64)(c->run_end - (in + 1));
        c->run_end = NULL;
    }
    c->jit_left = (i64)budget_left(c);
}

/* Calls a handler for translated code. True: it does not go on behind the instruction, as it was: rip is set. */
static bool handle(Cpu *c, const Insn *in, u64 next) {
    Jit *j = c->jit;
    u32 gen = c->map_changes, mode = c->mode;
    c->cc = cc_from_ax((u16)c->jit_ax);
    c->r[R_RIP] = next;
    c->cur = in;
    j->stats.helper++;
    in->fn(c, in);
    fpu_ensure_live(c);
    c->jit_ax = cc_to_ax(c->cc);
    bool left = c->r[R_RIP] != next || j->leave || c->map_changes != gen || c->mode != mode || c->leave_block;
    if (unlikely(j->counts)) count_handler(c, in, left);
    return left;
}

/* What translated code calls. True: leave to the dispatcher. */
static u64 run_handler(Cpu *c, const Insn *in, u64 next) {
    bool left = handle(c, in, next);
    c->jit->stats.exit_handler += left;
    return left;
}

static u64 run_handler_counted(Cpu *c, const Insn *in, u64 next) {
    tally_add(&c->jit->tally, in);
    return run_handler(c, in, next);
}

/* May translated code go on, though perhaps somewhere else? Asks what the dispatcher would. */
static bool may_go_on(const Cpu *c) {
    const Jit *j = c->jit;
    if (j->leave || j->counts || c->halted || c->leave_block || c->tlb == tlb_never) return false;
    return !cpu_attention(c) && j->interp_flushes == c->interp->flushes;
}

/* The instruction at a block's end. JIT_AFAR: the guest goes on at rip, in whatever mode it is now, and what it has
 * flushed is taken back. */
static u64 run_system(Cpu *c, const Insn *in, u64 next) {
    Jit *j = c->jit;
    bool left = handle(c, in, next);
    if (may_go_on(c)) {
        if (!left) return JIT_NEXT;
        jit_take_flushes(c);
        const JitMode *m = jit_mode_of(j, c->mode);
        if (m) {
            c->jit_cache = jit_cache_of(j, m)->code;
            return JIT_AFAR;
        }
    }
    j->stats.exit_handler++;
    return JIT_LEAVE;
}

static u64 run_system_counted(Cpu *c, const Insn *in, u64 next) {
    tally_add(&c->jit->tally, in);
    return run_system(c, in, next);
}

/* The host raised an exception in a translated instruction: it is the guest's. */
static _Noreturn void raise_fault(Cpu *c, const Insn *in, u64 next) {
    c->cc = cc_from_ax((u16)c->jit_ax);
    c->r[R_RIP] = next;
    c->cur = in;
    c->jit->stats.host_faults++;
    u32 trap = (u32)c->jit_tmp[0];
    if (trap == EXC_RESTART) exc_restart(c);
    if (trap == EXC_DE) exc_raise(c, EXC_DE);
    fpu_host_fault(c, trap);
}

void jit_bind(Cpu *c) { /* before the shared stubs are made */
    c->jit_fn[0] = (const void *)run_handler;
    c->jit_fn[1] = (const void *)raise_fault;
    c->jit_fn[2] = (const void *)run_system;
}

/* Translations point into the interpreter's blocks, so both caches are emptied together. */
bool jit_flushed(Cpu *c) {
    if (likely(c->jit->interp_flushes == c->interp->flushes)) return false;
    jit_reset(c);
    return true;
}

static void consider(Cpu *c, Block *b) {
    if (b->hits++ != HOT || !jit_eligible(c, b)) return;
    fpu_park(c);
    i64 begin = host_ns();
    jit_translate(c, b);
    c->jit->stats.translate_ns += host_ns() - begin;
}

/* Some are timed and stand for all; time in devices is no part of it. One that raises is not seen. */
static void interpret(Cpu *c, Block *b) {
    JitStats *s = &c->jit->stats;
    if (likely(s->interpreted++ % TIMED)) {
        block_exec(c, b);
        return;
    }
    i64 begin = host_ns() - c->device_ns;
    block_exec(c, b);
    s->interpret_ns += TIMED * (host_ns() - c->device_ns - begin);
}

/* What is pending may have to wait (interrupts are off): translated code is not to leave for that again and again.
 * Cleared first and looked at second, so that nothing set meanwhile is lost. */
bool jit_wanted(Cpu *c) {
    if (unlikely(c->poll)) __atomic_store_n(&c->poll, 0, __ATOMIC_SEQ_CST);
    return cpu_attention(c);
}

/* The block at rip, or NULL. */
Block *jit_find(Cpu *c) {
    Interp *it = c->interp;
    if (unlikely(c->mode & MODE_STEP || c->dbg_code) && debug_wants_step(c)) return NULL;
    u64 rip = c->r[R_RIP];
    Block *b = it->jump_cache[(rip ^ rip >> 12) & (JUMP_CACHE_SIZE - 1)];
    return block_still_holds(c, b, rip) ? b : block_lookup(c);
}

/* What the check wanted is interpreted, which also brings its page into the TLB. */
static void group_failed(Cpu *c, JitExit *x) {
    Jit *j = c->jit;
    Block *b = x->from->block;
    j->stats.group_failed++;
    j->interpret = true;
    if (++x->fails < GROUP_FAILS || !b) return;
    b->plain = true;
    b->hits = HOT;
    jit_drop(c, b);
}

/* Entered often: it becomes a region. */
static void promote(Cpu *c, JitExit *x) {
    Block *b = x->from->block;
    if (!b) return;
    b->region = true;
    b->hits = HOT;
    jit_drop(c, b);
}

JitExit *jit_enter(Cpu *c, Block *b) {
    Jit *j = c->jit;
    fpu_ensure_live(c);
    c->jit_ax = cc_to_ax(c->cc);
    c->cur = &insn_none;
    u32 gen = c->map_changes;
    j->leave = false;
    j->stats.entered++;
    c->jit_cache = jit_cache_of(j, b->code->mode)->code;
    if (j->counts) c->jit_left = (i64)budget_left(c);
    else c->icount += b->n; /* what is run by way of links goes uncounted */
    u64 r = ((EnterFn)j->enter)(c, b->code->entry);
    c->cc = cc_from_ax((u16)c->jit_ax);
    c->run_end = NULL;
    j->handled = !r;
    j->stats.exit_handled += !r;
    if (!r) return NULL;
    JitExit *x = (JitExit *)(r & ~(u64)JIT_EXIT_BITS);
    c->r[R_RIP] = x->rip;
    c->icount -= x->undone;
    unsigned how = r & JIT_EXIT_BITS;
    j->stats.poll += how == JIT_EXIT_POLL;
    j->stats.exit_unlinked += !how;
    if (how == JIT_EXIT_INTERPRET) group_failed(c, x);
    if (how == JIT_EXIT_HOT) promote(c, x);
    return how || c->mode != x->mode || c->map_changes != gen ? NULL : x;
}

bool jit_can_enter(const Cpu *c, const Block *b) { return b->code && c->tlb != tlb_never && !c->jit->interpret; }

void jit_run_block(Cpu *c) {
    c->jit->heat = 0; /* blocks are entered one by one */
    interp_begin(c);
    jit_take_flushes(c);
    Block *b = jit_find(c);
    jit_flushed(c);
    if (b && !b->code && jit_eligible(c, b)) {
        fpu_park(c);
        jit_translate(c, b);
    }
    if (b && jit_can_enter(c, b)) jit_enter(c, b);
    else if (b) block_exec(c, b);
    if (c->jit->interpret) {
        c->jit->interpret = false;
        block_exec(c, jit_find(c));
    }
}

/* Code that counts and code that does not are not mixed. */
static void set_counting(Cpu *c) {
    Jit *j = c->jit;
    bool counts = machine_counts(c->machine) || c->interp->budget_end != ~0ull;
    if (likely(counts == j->counts)) return;
    j->counts = counts;
    interp_flush_all(c);
}

/* Interpreted or translated: a region's first run may be shorter, or longer where the block was cut. */
static bool fits_budget(const Cpu *c, const Block *b) {
    if (likely(!c->jit->counts)) return true;
    u32 n = b->code && b->code->run > b->n ? b->code->run : b->n;
    return c->icount + n <= c->interp->budget_end;
}

void jit_run(Cpu *c) {
    Interp *it = c->interp;
    JitExit *from = NULL;
    interp_begin(c);
    set_counting(c);
    jit_flushed(c);
    c->jit_fn[0] = (const void *)(log_on(LOG_HANDLER) ? run_handler_counted : run_handler);
    c->jit_fn[2] = (const void *)(log_on(LOG_HANDLER) ? run_system_counted : run_system);
    for (;;) {
        Block *b = NULL;
        bool shadow = from && from->shadow;
        jit_take_flushes(c);
        if (unlikely(!jit_room(c->jit))) {
            interp_flush_all(c);
            jit_flushed(c);
            from = NULL;
        }
        if (likely(!jit_wanted(c))) b = jit_find(c);
        if (unlikely(jit_flushed(c))) from = NULL;
        if (unlikely(!b) || !fits_budget(c, b)) {
            from = NULL;
            c->jit->interpret = false;
            if (shadow) cpu_pend(c, PEND_SHADOW);
            if (run_special(c, it)) return;
            continue;
        }
        if (!b->code) consider(c, b);
        if (jit_can_enter(c, b)) {
            if (!from) jit_cache_fill(c, b);
            else if (!log_on(LOG_NOCHAIN)) jit_link(c, from, b);
            from = jit_enter(c, b);
            if (unlikely(c->halted) || unlikely(c->leave_block)) return;
            continue;
        }
        from = NULL;
        c->jit->interpret = false;
        interpret(c, b);
        if ((b->system && c->halted) || unlikely(c->leave_block)) return;
    }
}
