/* Ways from one translation to another, and how they end when code is dropped or mappings change.
 *
 * Everything found by linear address is tied to the translation of its page: jump-cache entries and cross-page exits.
 * A flush of that page takes them back; what was reached through global pages survives a CR3 write. Links inside a
 * page need no such care: whoever runs in a page runs in the mapping it was entered through. */
#include "jit/jit.h"
#include "cpu/fpu.h"

#include <stdlib.h>

static void patch(const Jit *j, u8 *site, const u8 *target) {
    *(u32 *)site = (u32)((u64)target - ((u64)j->rx + (u64)(site - j->rw) + 4));
}

static void unlink_exit(Jit *j, JitExit *x) {
    if (x->site) patch(j, x->site, x->stub);
    x->code = x->stub;
    x->patience = JIT_PATIENCE;
    x->to = NULL;
    j->stats.unlinked++;
}

/* Takes x out of its target's list, then back to its stub. */
static void exit_reset(Jit *j, JitExit *x) {
    if (!x->to) return;
    for (JitExit **p = &x->to->in; *p; p = &(*p)->next_in)
        if (*p == x) {
            *p = x->next_in;
            break;
        }
    unlink_exit(j, x);
}

static bool list_add(Cpu *c, ExitList *l, JitExit *x) {
    if (l->n == l->max) {
        fpu_park(c); /* realloc() copies with vector registers */
        u32 max = l->max ? 2 * l->max : 1024;
        JitExit **v = realloc(l->v, max * sizeof *v);
        if (!v) return false;
        l->v = v;
        l->max = max;
    }
    l->v[l->n++] = x;
    return true;
}

/* So that a flush of its target's page finds it. False: no memory. */
static bool remember(Cpu *c, JitExit *x, const Block *b) {
    bool global = block_is_global(c, b);
    ExitList *l = &c->jit->filled[global];
    x->second = b->ram_off2 == ~0ull ? b->rip : b->rip + PAGE_SIZE;
    if (x->listed != 1 + global && !list_add(c, l, x)) return false;
    x->listed = 1 + global;
    pages_note(&l->pages, b->rip);
    pages_note(&l->pages, x->second);
    return true;
}

void jit_link(Cpu *c, JitExit *x, Block *b) {
    Jit *j = c->jit;
    if (x->to || x->rip != b->rip) return;
    if ((!x->site || b->ram_off2 != ~0ull) && !remember(c, x, b)) return;
    x->to = b->code;
    x->next_in = b->code->in;
    b->code->in = x;
    x->code = b->code->entry;
    if (x->site) patch(j, x->site, x->code);
    j->stats.linked++;
}

void jit_drop(Cpu *c, Block *b) {
    Jit *j = c->jit;
    JitCode *code = b->code;
    b->code = NULL;
    if (!j || !code) return;
    while (code->in) {
        JitExit *x = code->in;
        code->in = x->next_in;
        unlink_exit(j, x);
    }
    jit_cache_drop(j, b, code);
    code->block = NULL;
    j->leave = true;
}

/* Flushes */

static bool in_range(u64 rip, u64 base, u64 size) { return (rip & PAGE_MASK) - base < size; }

static void flush_list(Jit *j, ExitList *l) {
    for (u32 i = 0; i < l->n; i++) {
        l->v[i]->listed = 0;
        exit_reset(j, l->v[i]);
    }
    l->n = 0;
    pages_clear(&l->pages);
}

static void flush_range_of_list(Jit *j, ExitList *l, u64 base, u64 size) {
    for (u32 i = 0; i < l->n; i++)
        if (in_range(l->v[i]->rip, base, size) || in_range(l->v[i]->second, base, size)) exit_reset(j, l->v[i]);
}

static void flush_range(Cpu *c, u64 base, u64 size, u32 space_before) {
    Jit *j = c->jit;
    for (unsigned k = 0; k < 2; k++)
        if (size > PAGE_SIZE || pages_maybe(&j->filled[k].pages, base))
            flush_range_of_list(j, &j->filled[k], base, size);
    jit_caches_flush_range(c, base, size, space_before);
}

void jit_take_flushes(Cpu *c) {
    Jit *j = c->jit;
    FlushLog *f = &c->flush_log;
    u32 space = j->space;
    if (!f->kinds && !f->n) return;
    if (f->kinds) {
        flush_list(j, &j->filled[0]);
        if (f->kinds & FLUSHED_ALL) flush_list(j, &j->filled[1]);
        jit_caches_flush(c, f->kinds);
    }
    if (!(f->kinds & FLUSHED_ALL))
        for (u32 i = 0; i < f->n; i++) flush_range(c, f->range[i].base, f->range[i].size, space);
    f->kinds = f->n = 0;
}
