/* Ways from one translation to another, and how they end when code is dropped or mappings change.
 *
 * Everything found by linear address is tied to the translation of its page: jump-cache entries and cross-page exits.
 * A flush of that page takes them back; what was reached through global pages survives a CR3 write. Links inside a
 * page need no such care: whoever runs in a page runs in the mapping it was entered through. */
#include "jit/jit.h"
#include "cpu/fpu.h"
#include "mmu/tlb.h"

#include <stdlib.h>

static void patch(const Jit *j, u8 *site, const u8 *target) {
    *(u32 *)site = (u32)((u64)target - ((u64)j->rx + (u64)(site - j->rw) + 4));
}

static void unlink_exit(Jit *j, JitExit *x) {
    if (x->site) patch(j, x->site, x->stub);
    x->code = x->stub;
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

/* Most pages that a guest flushes hold no code: a look at the count tells. */
static u32 *page_count(Jit *j, u64 rip) { return &j->pages[(rip >> PAGE_BITS ^ rip >> 27) & (JIT_PAGES - 1)]; }
static void page_note(Jit *j, u64 rip) { ++*page_count(j, rip); }
static void page_forget(Jit *j, u64 rip) { --*page_count(j, rip); }

static bool page_global(Cpu *c, u64 lin) {
    const L2Entry *e = l2_find(c, lin);
    return e && e->val & L2_G;
}

/* Is the translation through which b was found, of both its pages, global? */
static bool block_global(Cpu *c, const Block *b) {
    if (!page_global(c, b->rip)) return false;
    return b->ram_off2 == ~0ull || page_global(c, b->rip + PAGE_SIZE);
}

static void list_add(Cpu *c, ExitList *l, JitExit *x) {
    if (l->n == l->max) {
        fpu_park(c); /* realloc() copies with vector registers */
        u32 max = l->max ? 2 * l->max : 1024;
        JitExit **v = realloc(l->v, max * sizeof *v);
        if (!v) return;
        l->v = v;
        l->max = max;
    }
    l->v[l->n++] = x;
    x->listed = true;
    page_note(c->jit, x->rip);
    page_note(c->jit, x->second);
}

void jit_link(Cpu *c, JitExit *x, Block *b) {
    Jit *j = c->jit;
    if (x->to || x->rip != b->rip) return;
    if (!x->site) {
        u64 second = b->ram_off2 == ~0ull ? b->rip : b->rip + PAGE_SIZE;
        if (x->listed) { /* before this it led to a block of another length */
            page_forget(j, x->second);
            page_note(j, second);
        }
        x->second = second;
        if (!x->listed) list_add(c, &j->filled[block_global(c, b)], x);
        if (!x->listed) return; /* no memory to remember it */
    } else if (b->ram_off2 != ~0ull) {
        return; /* its second page must be looked at every time */
    }
    x->to = b->code;
    x->next_in = b->code->in;
    b->code->in = x;
    x->code = b->code->entry;
    if (x->site) patch(j, x->site, x->code);
    j->stats.linked++;
}

/* Jump caches */

JitMode *jit_mode_of(Jit *j, u32 mode) {
    for (u32 i = 0; i < j->n_modes; i++)
        if (j->mode_words[i] == mode) return j->modes[i];
    return NULL;
}

static void entry_clear(Jit *j, JitMode *m, u32 i) {
    if (m->cache[i] == j->target_missed) return;
    m->cache[i] = j->target_missed;
    page_forget(j, m->rip[i]);
}

void jit_cache_fill(Cpu *c, Block *b) {
    Jit *j = c->jit;
    JitMode *m = jit_mode_of(j, b->mode);
    u32 index = jump_index(b->rip);
    if (!m || b->ram_off2 != ~0ull || m->cache[index] == b->code->found) return;
    if (!block_global(c, b)) {
        if (m->n_filled == JIT_CACHE_SIZE) return;
        m->filled[m->n_filled++] = (u16)index;
    }
    entry_clear(j, m, index);
    m->cache[index] = b->code->found;
    m->rip[index] = b->rip;
    page_note(j, b->rip);
    j->stats.cache_fill++;
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
    JitMode *m = jit_mode_of(j, b->mode);
    if (m && m->cache[jump_index(b->rip)] == code->found) entry_clear(j, m, jump_index(b->rip));
    code->block = NULL;
    j->leave = true;
}

/* Flushes */

static bool in_range(u64 rip, u64 base, u64 size) { return (rip & PAGE_MASK) - base < size; }

static void flush_list(Jit *j, ExitList *l) {
    for (u32 i = 0; i < l->n; i++) {
        l->v[i]->listed = false;
        page_forget(j, l->v[i]->rip);
        page_forget(j, l->v[i]->second);
        exit_reset(j, l->v[i]);
    }
    l->n = 0;
}

static void flush_range_of_list(Jit *j, ExitList *l, u64 base, u64 size) {
    for (u32 i = 0; i < l->n; i++)
        if (in_range(l->v[i]->rip, base, size) || in_range(l->v[i]->second, base, size)) exit_reset(j, l->v[i]);
}

static void flush_caches(Jit *j, bool all) {
    for (u32 k = 0; k < j->n_modes; k++) {
        JitMode *m = j->modes[k];
        if (all)
            for (u32 i = 0; i < JIT_CACHE_SIZE; i++) entry_clear(j, m, i);
        else
            for (u32 i = 0; i < m->n_filled; i++) entry_clear(j, m, m->filled[i]);
        m->n_filled = 0;
    }
}

/* A page's entries lie together. */
static void flush_range_of_caches(Jit *j, u64 base, u64 size) {
    u32 first = size > PAGE_SIZE ? 0 : jump_index(base), n = size > PAGE_SIZE ? JIT_CACHE_SIZE : (u32)PAGE_SIZE;
    for (u32 k = 0; k < j->n_modes; k++)
        for (u32 i = first; i < first + n; i++)
            if (in_range(j->modes[k]->rip[i], base, size)) entry_clear(j, j->modes[k], i);
}

static void flush_range(Jit *j, u64 base, u64 size) {
    if (size <= PAGE_SIZE && !*page_count(j, base)) return;
    flush_range_of_list(j, &j->filled[0], base, size);
    flush_range_of_list(j, &j->filled[1], base, size);
    flush_range_of_caches(j, base, size);
}

void jit_take_flushes(Cpu *c) {
    Jit *j = c->jit;
    FlushLog *f = &c->flush_log;
    if (!f->kinds && !f->n) return;
    if (f->kinds) {
        flush_list(j, &j->filled[0]);
        if (f->kinds & FLUSHED_ALL) flush_list(j, &j->filled[1]);
        flush_caches(j, f->kinds & FLUSHED_ALL);
    }
    if (!(f->kinds & FLUSHED_ALL))
        for (u32 i = 0; i < f->n; i++) flush_range(j, f->range[i].base, f->range[i].size);
    f->kinds = f->n = 0;
}
