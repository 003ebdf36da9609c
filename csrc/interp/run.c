/* The interpreter's run loop: find the block at rip, call its handlers, go on (ops.h, block.h).
 *
 * Between blocks one load of Cpu.pending decides whether anybody wants something. A handler that raises leaves by
 * longjmp to the caller of interp_run(); the instructions its block completed are counted on the way back in. */
#include "interp/trace.h"

/* Instructions of the running block that are counted but not done: all from cur on. */
static u64 undone(const Cpu *c) { return c->run_end ? (u64)(c->run_end - c->cur) : 0; }

/* A block is counted when it is entered; one that was left half-way (exception, restart) is corrected here. */
void interp_settle(Cpu *c) {
    c->icount -= undone(c);
    c->run_end = NULL;
}

u64 interp_icount(const Cpu *c) { return c->icount - undone(c); }

void interp_set_stop(Cpu *c, u64 icount) { c->interp->stop = c->interp->budget_end = icount; }

/* The bytes at rip, at most 15 and no more than the instruction needs: page by page from RAM, one by one elsewhere. */
static int fetch_decode(Cpu *c, u64 rip, Insn *in) {
    u8 buf[16];
    unsigned n = 0;
    for (;;) {
        u64 lin = (c->ea_base[SEG_CS] + rip + n) & c->lin_mask, ram_off;
        const Segment *cs = &c->seg[SEG_CS];
        if (!(c->mode & (MODE_CS64 | MODE_FLAT)) && rip + n > cs->limit) exc_gp0(c);
        const u8 *host = mmu_fetch(c, lin, &ram_off);
        unsigned room = ram_off == ~0ull ? 1 : (unsigned)(PAGE_SIZE - (lin & ~PAGE_MASK));
        while (room-- && n < 15) buf[n++] = *host++;
        fpu_park(c);
        int len = block_decode(c, rip, buf, n, in);
        if (len == DECODE_MORE) continue;
        if (!(c->mode & (MODE_CS64 | MODE_FLAT)) && rip + (unsigned)len - 1 > cs->limit) exc_gp0(c);
        return len;
    }
}

static void exec_insn(Cpu *c, const Insn *in) {
    c->cur = in;
    c->r[R_RIP] += in->len;
    in->fn(c, in);
    c->icount++;
}

/* One instruction outside the block cache: single-step, code in MMIO. */
static void exec_one(Cpu *c, Interp *it) {
    if (!(c->mode & MODE_CS64)) c->r[R_RIP] = (u32)c->r[R_RIP];
    c->cur = &insn_none;
    fetch_decode(c, c->r[R_RIP], &it->one);
    exec_insn(c, &it->one);
}

/* The first instruction of a block: interrupt shadow, the end of a budget. */
static void exec_first(Cpu *c, Interp *it) {
    u64 rip = c->r[R_RIP];
    Block *b = it->jump_cache[(rip ^ rip >> 12) & (JUMP_CACHE_SIZE - 1)];
    if (!block_still_holds(c, b, rip)) b = block_lookup(c);
    if (b) exec_insn(c, b->insn);
    else exec_one(c, it);
}

static void exec_step(Cpu *c, Interp *it) {
    c->cur = &insn_none;
    debug_before_insn(c);
    exec_one(c, it);
    c->cur = &insn_none;
    debug_after_insn(c);
}

bool run_special(Cpu *c, Interp *it) {
    c->run_end = NULL;
    if (c->pending & PEND_SHADOW) cpu_unpend(c, PEND_SHADOW);
    else if (cpu_attention(c)) return true;
    if (c->halted || c->icount >= it->budget_end) return true;
    if (debug_wants_step(c)) exec_step(c, it);
    else exec_first(c, it);
    return c->halted || c->leave_block;
}

/* Tracing sets stop to 0 to get here before every block. */
static bool traced(Cpu *c, Interp *it, const Block *b) {
    if (it->stop) return false;
    trace_entered(c, b);
    return c->icount + b->n <= it->budget_end;
}

/* In code that is not flat the segment's base and limit may have changed under the same mapping and mode. */
INLINE bool block_fits(const Cpu *c, const Block *b) {
    if (likely(c->mode & (MODE_FLAT | MODE_CS64))) return true;
    return b->cs_base == c->seg[SEG_CS].base && b->rip + b->size - 1 <= c->seg[SEG_CS].limit;
}

INLINE bool block_matches(const Cpu *c, const Block *b, u64 rip) {
    bool found = b->tag == block_tag(c) || b->tag == block_tag_local(c);
    return likely(b->rip == rip) && likely(found) && block_fits(c, b);
}

bool block_still_holds(const Cpu *c, const Block *b, u64 rip) { return block_matches(c, b, rip); }

void block_exec(Cpu *c, const Block *b) {
    const Insn *in = b->insn, *end = in + b->n;
    c->icount += b->n;
    c->run_end = end;
    u64 rip = c->r[R_RIP];
    do {
        rip += in->len;
        c->cur = in;
        c->r[R_RIP] = rip;
        in->fn(c, in);
    } while (++in != end && likely(!c->leave_block));
    c->icount -= (u64)(end - in);
    c->run_end = NULL;
}

/* NULL: there is no block for this (single-step, code outside of RAM). */
static NOINLINE Block *find_block(Cpu *c, Interp *it, Block *prev) {
    u64 rip = c->r[R_RIP];
    if (unlikely(c->mode & MODE_STEP || c->dbg_code) && debug_wants_step(c)) return NULL;
    Block *b = it->jump_cache[(rip ^ rip >> 12) & (JUMP_CACHE_SIZE - 1)];
    u32 flushes = it->flushes;
    c->run_end = NULL; /* looking up may raise */
    if (!block_matches(c, b, rip)) b = block_lookup(c);
    if (b && prev != &block_none && flushes == it->flushes) {
        prev->succ[1] = prev->succ[0];
        prev->succ[0] = b;
    }
    return b;
}

void interp_begin(Cpu *c) {
    Interp *it = c->interp;
    interp_settle(c);
    it->owner = c;
    it->stop = log_on(LOG_EXEC | LOG_CPU) ? 0 : it->budget_end;
    if (unlikely(it->n_remote)) block_drain_remote(c);
}

/* counted: also look after every instruction whether to go back to the dispatcher (block.h). */
INLINE void run_blocks(Cpu *c, bool counted) {
    Interp *it = c->interp;
    interp_begin(c);
    Block *prev = &block_none;
    for (;;) {
        u64 rip = c->r[R_RIP];
        Block *b = NULL;
        if (likely(!cpu_attention(c))) {
            if (block_matches(c, prev->succ[0], rip)) b = prev->succ[0];
            else if (block_matches(c, prev->succ[1], rip)) b = prev->succ[1];
            else b = find_block(c, it, prev);
        }
        if (unlikely(!b) || (unlikely(c->icount + b->n > it->stop) && !traced(c, it, b))) {
            if (run_special(c, it)) return;
            prev = &block_none;
            continue;
        }
        const Insn *in = b->insn, *end = in + b->n;
        c->icount += b->n;
        c->run_end = end;
        rip = c->r[R_RIP];
        do {
            rip += in->len;
            c->cur = in;
            c->r[R_RIP] = rip;
            in->fn(c, in);
        } while (++in != end && !(counted && c->leave_block));
        if (counted && c->leave_block) {
            c->icount -= (u64)(end - in);
            break;
        }
        prev = b;
        if (unlikely(b->system) && unlikely(c->halted)) break;
    }
    c->run_end = NULL;
}

void interp_run(Cpu *c) {
    if (unlikely(machine_counts(c->machine))) run_blocks(c, true);
    else run_blocks(c, false);
}
