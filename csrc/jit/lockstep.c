/* Lock-step: a chain of blocks by the interpreter first, then by the translator from the same state, and both results
 * compared (CORE 17). For tests (`-accel dbt,lockstep=block|chain`): slow, and a difference ends the program with both
 * sides printed.
 *
 * A chain is one block, or up to 50 until the next poll that would leave, with links and jump caches at work.
 * The interpreter runs with a TLB that never hits, so that all its stores come through the MMU, which logs what they
 * overwrite. What devices, clock and random numbers answered is recorded, and the translator is fed with it. Then
 * memory and registers are set back. In this mode every translation announces itself when it is entered, by whatever
 * way control came, and a region every straight run in it: there the state is compared with the interpreter's at the
 * same instruction, and the chain is ended at the instruction where the interpreter ended it. Of chains blocks become
 * regions after few entries, so that both tiers are compared.
 *
 * Interrupts wait until a chain is over. Memory may be changed meanwhile by devices or other vCPUs; so a
 * difference counts if the interpreter, run once more, agrees with itself. */
#include "jit/lockstep.h"

#include "decode/disasm.h"
#include "interp/int.h"
#include "interp/trace.h"
#include "memory/state.h"

#include <stdlib.h>

#include <Zydis/Mnemonic.h>

enum { ALWAYS = 16, SOMETIMES = 255 };

/* The log of stores */

static void write_back(Cpu *c, u8 *p, const u8 *bytes, unsigned n) {
    bool same = true;
    for (unsigned i = 0; i < n; i++) same &= p[i] == bytes[i];
    if (same) return;
    fpu_copy(p, bytes, n);
    ram_store_after(c->machine, c, (u64)(p - c->machine->ram_base), n);
}

static void stores_keep(StoreLog *l) {
    for (u32 i = 0; i < l->n; i++) fpu_copy(l->e[i].after, l->e[i].p, l->e[i].n);
}
static void stores_undo(Cpu *c, const StoreLog *l) {
    for (u32 i = l->n; i--;) write_back(c, l->e[i].p, l->e[i].before, l->e[i].n);
}
static void stores_redo(Cpu *c, const StoreLog *l) {
    for (u32 i = 0; i < l->n; i++) write_back(c, l->e[i].p, l->e[i].after, l->e[i].n);
}
static bool stores_same(const StoreLog *l) {
    for (u32 i = 0; i < l->n; i++)
        for (unsigned b = 0; b < l->e[i].n; b++)
            if (l->e[i].p[b] != l->e[i].after[b]) return false;
    return true;
}

/* Counting instructions */

static u64 address_of(const Run *r, u32 i) {
    u64 rip = r->rip;
    for (u32 k = 0; k < i; k++) rip += r->insn[k].len;
    return r->block->mode & MODE_CS64 ? rip : (u32)rip;
}

static bool in_run(const Cpu *c, const Run *r) { return r->block && c->cur >= r->insn && c->cur < r->insn + r->n; }

static void begin_run(Lockstep *l, const Run *r) {
    l->running = *r;
    l->done += r->n;
}
static void begin_block(Lockstep *l, const Block *b) {
    begin_run(l, &(Run){.block = b, .insn = b->insn, .rip = b->rip, .n = b->n});
}
static void end_run(Lockstep *l) { l->running.block = NULL; }

/* An exception left the run at Cpu.cur. */
static void count_raised(const Cpu *c, Lockstep *l) {
    if (in_run(c, &l->running)) l->done -= l->running.n - (u32)(c->cur - l->running.insn);
}

/* Translated code has left: behind the run, behind an instruction in it that a handler did, or before one whose check
 * failed. */
static void count_left(const Cpu *c, Lockstep *l) {
    const Run *r = &l->running;
    const Jit *j = c->jit;
    if (j->interpret) {
        for (u32 i = 0; r->block && i < r->n; i++)
            if (address_of(r, i) == c->r[R_RIP]) {
                l->done -= r->n - i;
                break;
            }
    } else if (j->handled && in_run(c, r)) {
        u32 i = (u32)(c->cur - r->insn) + 1;
        if (i < r->n && address_of(r, i) == c->r[R_RIP]) l->done -= r->n - i;
    }
}

/* The interpreter's turn */

static bool repeatable(const Block *b) {
    if (b->system) return false;
    for (unsigned i = 0; i < b->n; i++)
        if (b->insn[i].op == ZYDIS_MNEMONIC_RDMSR) return false;
    return true;
}

static void note_point(const Cpu *c, Lockstep *l, const Block *b) {
    ChainPoint *p = &l->points[l->n_points++];
    p->block = b;
    p->done = l->done;
    p->cc = c->cc;
    fpu_copy(p->r, c->r, sizeof p->r);
}

static void interpret_chain(Cpu *c) {
    Lockstep *l = c->jit->lockstep;
    u32 mode = c->mode, gen = c->map_changes, flushes = c->interp->flushes;
    while (l->n_points < l->max_blocks && !cpu_wanted(c) && l->stores.n < STORE_LOG_MAX / 2) {
        Block *b = jit_find(c);
        if (!b || !repeatable(b)) return;
        note_point(c, l, b);
        begin_block(l, b);
        b->hits++;
        block_exec(c, b);
        end_run(l);
        l->useless |= c->mode != mode || c->map_changes != gen || c->interp->flushes != flushes;
        if (l->useless) return;
    }
}

/* The translator's turn */

/* Is the state the interpreter's, where that began a block? */
static bool follows(Cpu *c, Lockstep *l) {
    while (l->at < l->n_points && l->points[l->at].done < l->done) l->at++;
    if (l->at == l->n_points || l->points[l->at].done != l->done) return true;
    const ChainPoint *p = &l->points[l->at];
    bool same = p->cc == c->cc;
    for (unsigned i = 0; i <= R_RIP; i++) same &= p->r[i] == c->r[i];
    if (same) return true;
    l->wrong = p;
    l->wrong_cc = c->cc;
    fpu_copy(l->wrong_r, c->r, sizeof l->wrong_r);
    return false;
}

/* Called by a translation before a run; `leave` keeps it from going on. What does not fit is interpreted. */
void lockstep_entered(Cpu *c, const Insn *in) {
    const Announcement *a = (const void *)in;
    Jit *j = c->jit;
    Lockstep *l = j->lockstep;
    if (!l->on) return;
    end_run(l);
    l->last = a->run.block;
    if (!follows(c, l) || l->done + a->run.n > l->target) {
        j->interpret = l->done < l->target;
        j->leave = true;
        return;
    }
    begin_run(l, &a->run);
    l->entered++;
}

static void interpret_some(Cpu *c, Lockstep *l, Block *b, u32 n) {
    c->jit->interpret = false;
    begin_block(l, b);
    c->run_end = b->insn + b->n;
    for (const Insn *in = b->insn; in < b->insn + n; in++) {
        c->cur = in;
        c->r[R_RIP] += in->len;
        in->fn(c, in);
    }
    c->run_end = NULL;
    end_run(l);
    l->done -= b->n - n;
}

static void translate(Cpu *c, Block *b) {
    if (b->code || !jit_eligible(c, b)) return;
    fpu_park(c);
    b->hits = 0; /* to be compared */
    jit_translate(c, b);
}

static void translate_chain(Cpu *c) {
    Jit *j = c->jit;
    Lockstep *l = j->lockstep;
    bool links = c->machine->lockstep == LOCKSTEP_CHAIN && !log_on(LOG_NOCHAIN);
    JitExit *from = NULL;
    while (!l->wrong) {
        if (l->done >= l->target && l->want.vector == NO_VECTOR) return;
        jit_take_flushes(c);
        c->poll = 0;
        Block *b = jit_find(c);
        l->useless = jit_flushed(c) || !jit_room(j) || !b;
        if (l->useless || l->done >= l->target) return;
        translate(c, b);
        u32 room = l->target - l->done;
        if (!jit_can_enter(c, b) || b->n > room) {
            from = NULL;
            interpret_some(c, l, b, b->n > room ? room : b->n);
            continue;
        }
        if (links && from) jit_link(c, from, b);
        else if (links) jit_cache_fill(c, b);
        from = jit_enter(c, b);
        count_left(c, l);
        end_run(l);
    }
}

/* Both */

/* Runs one side; the vector of the exception it raised, or NO_VECTOR. */
static NOINLINE u32 run_once(Cpu *c, void (*side)(Cpu *c)) {
    void *jmp[5];
    u32 vector = NO_VECTOR;
    for (unsigned i = 0; i < 5; i++) jmp[i] = c->jmp[i];
    if (__builtin_setjmp(c->jmp)) vector = c->exc.vector;
    else side(c);
    for (unsigned i = 0; i < 5; i++) c->jmp[i] = jmp[i];
    interp_begin(c);
    return vector;
}

/* The same, going on where a block wrote to itself. `end`: how far it came, the block it was in included. */
static u32 run_side(Cpu *c, void (*side)(Cpu *c), u32 *end) {
    Lockstep *l = c->jit->lockstep;
    l->done = 0;
    l->last = NULL;
    end_run(l);
    for (;;) {
        u32 vector = run_once(c, side);
        *end = l->done;
        if (vector == NO_VECTOR) return vector;
        count_raised(c, l);
        bool own_code = l->running.block && !l->running.block->tag;
        end_run(l);
        if (vector != EXC_RESTART) return vector;
        if (!own_code) l->useless = true;
        if (l->useless) return vector;
    }
}

static u32 interpret(Cpu *c, StoreLog *log, u32 *end) {
    Lockstep *l = c->jit->lockstep;
    log->n = 0;
    log->full = false;
    l->n_points = 0;
    c->stores = log;
    cpu_update_mode(c); /* the TLB that never hits */
    c->feed = &l->feed;
    u32 vector = run_side(c, interpret_chain, end);
    c->stores = NULL;
    c->feed = NULL;
    cpu_update_mode(c);
    return vector;
}

/* From the same state: does the interpreter come to the same result again? */
static bool agrees_with_itself(Cpu *c, Lockstep *l, u32 done) {
    u32 end;
    stores_undo(c, &l->stores);
    outcome_give(c, &l->before);
    l->max_blocks = l->n_points;
    l->feed.at = 0;
    l->feed.different = false;
    outcome_take(c, &l->again, interpret(c, &l->stores_again, &end));
    bool same = !l->useless && !l->feed.different && l->done == done && stores_same(&l->stores) &&
                !outcome_difference(&l->want, &l->again);
    stores_undo(c, &l->stores_again);
    return same;
}

static const char *verdict(const Lockstep *l, u32 done) {
    if (l->wrong) return "state at a block's begin";
    if (l->feed.different || l->feed.at != l->feed.n) return "access to a device";
    const char *what = outcome_difference(&l->want, &l->got);
    if (!what && l->done != done) what = "number of instructions";
    return what || stores_same(&l->stores) ? what : "memory";
}

static void print_code(const char *title, unsigned bits, u64 rip, const u8 *p, u64 n) {
    log_printf("%s:\n", title);
    for (u64 i = 0; i < n;) {
        char text[96];
        int len = disasm(bits, rip + i, p + i, (unsigned)(n - i), text, sizeof text);
        log_printf("  0x%08lx:  %s\n", (unsigned long)(rip + i), text);
        i += len > 0 ? (unsigned)len : 1;
    }
}

static void print_block(const Cpu *c, const Block *b) {
    u64 room = PAGE_SIZE - (b->ram_off & ~PAGE_MASK), n = b->size < room ? b->size : room;
    const JitCode *k = b->code;
    log_printf("block at %lx, mode %x, %u instructions\n", (unsigned long)b->rip, b->mode, b->n);
    print_code("guest code", b->mode & MODE_CS64 ? 64 : 32, b->rip, machine_ram_host(c->machine, b->ram_off), n);
    if (k) print_code("host code", 64, (u64)k->entry, k->entry, k->end - (u64)(k->entry - c->jit->rx));
}

static _Noreturn void report(Cpu *c, const Lockstep *l, const char *what, u32 done) {
    fpu_park(c);
    log_printf("lockstep: %s differs in the chain at %lx: %u of %u instructions\n", what,
               (unsigned long)l->before.r[R_RIP], l->done, done);
    outcome_print("before", &l->before);
    outcome_print("interpreted", &l->want);
    outcome_print("translated", &l->got);
    u32 first = 0, last = l->n_points;
    if (l->wrong) {
        log_printf("interpreted and translated at the begin of %lx: cc %lx %lx\n", (unsigned long)l->wrong->r[R_RIP],
                   (unsigned long)l->wrong->cc, (unsigned long)l->wrong_cc);
        for (unsigned i = 0; i <= R_RIP; i++)
            log_printf(" %016lx %016lx%s\n", (unsigned long)l->wrong->r[i], (unsigned long)l->wrong_r[i],
                       l->wrong->r[i] == l->wrong_r[i] ? "" : "  <--");
        last = (u32)(l->wrong - l->points) + 1;
        first = last > 2 ? last - 2 : 0;
    }
    for (u32 i = first; i < last; i++) print_block(c, l->points[i].block);
    if (l->last && l->last->region) print_block(c, l->last);
    abort();
}

/* One side after the other; the interpreter's result stays. The vector it ended with. */
static u32 both(Cpu *c) {
    Jit *j = c->jit;
    Lockstep *l = j->lockstep;
    u64 count = c->icount;
    u32 end;
    outcome_take(c, &l->before, NO_VECTOR);
    l->useless = false;
    l->wrong = NULL;
    l->at = l->entered = 0;
    l->feed.n = l->feed.at = 0;
    l->feed.replay = l->feed.full = l->feed.different = false;
    u32 vector = interpret(c, &l->stores, &l->target), done = l->done;
    outcome_take(c, &l->want, vector);
    if (l->useless || !l->n_points || l->stores.full || l->feed.full) return vector;
    u64 counted = c->icount;
    ExcState exc = c->exc;
    stores_keep(&l->stores);
    stores_undo(c, &l->stores);
    outcome_give(c, &l->before);
    c->icount = count;
    l->feed.replay = true;
    c->feed = &l->feed;
    l->on = true;
    outcome_take(c, &l->got, run_side(c, translate_chain, &end));
    l->on = false;
    c->feed = NULL;
    j->interpret = false;
    const char *what = l->useless ? NULL : verdict(l, done);
    if (!l->useless && !what) j->stats.compared += l->entered;
    if (what && agrees_with_itself(c, l, done)) report(c, l, what, done);
    if (what)
        log_printf("lockstep: %s in the chain at %lx came from outside\n", what, (unsigned long)l->before.r[R_RIP]);
    stores_redo(c, &l->stores);
    outcome_give(c, &l->want);
    c->icount = counted;
    c->exc = exc;
    return vector;
}

static void run_chain(Cpu *c) {
    Lockstep *l = c->jit->lockstep;
    l->max_blocks = c->machine->lockstep == LOCKSTEP_CHAIN ? 1 + l->tick % CHAIN_MAX : 1;
    c->hold = true;
    u32 vector = both(c);
    c->hold = false;
    if (vector != NO_VECTOR) __builtin_longjmp(c->jmp, 1);
}

void jit_run_lockstep(Cpu *c) {
    Lockstep *l = c->jit->lockstep;
    interp_begin(c);
    for (;;) {
        Block *b = NULL;
        jit_take_flushes(c);
        if (unlikely(!jit_room(c->jit))) interp_flush_all(c);
        if (likely(!jit_wanted(c))) b = jit_find(c);
        jit_flushed(c);
        if (!b) {
            if (run_special(c, c->interp)) return;
            continue;
        }
        translate(c, b);
        if (b->code && repeatable(b) && (b->hits < ALWAYS || (++l->tick & SOMETIMES) == 0)) {
            run_chain(c);
        } else {
            b->hits++;
            block_exec(c, b);
        }
        if (c->halted) return;
    }
}
