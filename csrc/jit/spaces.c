/* Jump caches: from a linear address to the translation there, for indirect branches and for whatever else finds no
 * direct way. One for each mode; of user code one for each of the address spaces (PCIDs) that ran last, so that it is
 * still there when a process goes on (what is cached under a PCID outlives CR3 writes that say so: Intel SDM vol 3A,
 * 4.10.4).
 *
 * An entry holds as long as the translation of its page: a flush of the page clears it in the space that runs, and
 * elsewhere if the page may be global; a flush of the PCID empties its space when that comes to run again. */
#include "jit/jit.h"
#include "mmu/tlb.h"

#include <sys/mman.h>

static unsigned page_bit(u64 lin) { return (unsigned)((lin >> PAGE_BITS ^ lin >> 24) & 4095); }
void pages_note(PageSet *s, u64 lin) { s->bits[page_bit(lin) / 64] |= BIT(page_bit(lin) % 64); }
bool pages_maybe(const PageSet *s, u64 lin) { return s->bits[page_bit(lin) / 64] >> page_bit(lin) % 64 & 1; }
void pages_clear(PageSet *s) {
    for (unsigned i = 0; i < ARRAY_LEN(s->bits); i++) s->bits[i] = 0;
}

/* One jump cache */

static void entry_clear(const Jit *j, JumpCache *k, u32 i) { k->code[i] = j->target_missed; }

static void cache_empty(const Jit *j, JumpCache *k) {
    for (u32 i = 0; i < JIT_CACHE_SIZE; i++) entry_clear(j, k, i);
    for (u32 i = 0; i < ARRAY_LEN(k->listed); i++) k->listed[i] = 0;
    k->n_filled = 0;
    pages_clear(&k->pages);
    k->ready = true;
    k->used = false;
}

static void clear_filled(const Jit *j, JumpCache *k) {
    for (u32 i = 0; i < k->n_filled; i++) {
        entry_clear(j, k, k->filled[i]);
        k->listed[k->filled[i] / 64] = 0;
    }
    k->n_filled = 0;
}

/* Entries of a page lie in a part of the cache: an index is the low bits of an address. */
static void clear_range(const Jit *j, JumpCache *k, u64 base, u64 size) {
    bool one = size <= PAGE_SIZE;
    if (!k->ready || (one && !pages_maybe(&k->pages, base))) return;
    u32 first = one ? jump_index(base & PAGE_MASK) : 0, n = one ? PAGE_SIZE : JIT_CACHE_SIZE;
    for (u32 i = first; i < first + n; i++)
        if ((k->rip[i] & PAGE_MASK) - base < size) entry_clear(j, k, i);
}

static void cache_put(Jit *j, JumpCache *k, const Block *b, bool lasting) {
    u32 i = jump_index(b->rip);
    if (!lasting && !(k->listed[i / 64] >> i % 64 & 1)) {
        k->listed[i / 64] |= BIT(i % 64);
        k->filled[k->n_filled++] = (u16)i;
    }
    k->code[i] = b->code->found;
    k->rip[i] = b->rip;
    k->used = true;
    pages_note(&k->pages, b->rip);
    j->stats.cache_fill++;
}

/* Those of all modes and spaces */

static bool by_space(const JitMode *m) { return m->mode & MODE_CPL3; }
static u32 n_caches(const JitMode *m) { return by_space(m) ? JIT_SPACES : 1; }

JitMode *jit_mode_of(Jit *j, u32 mode) {
    for (u32 i = 0; i < j->n_modes; i++)
        if (j->modes[i].mode == mode) return &j->modes[i];
    return NULL;
}

JitMode *jit_mode(Jit *j, u32 mode) {
    JitMode *m = jit_mode_of(j, mode);
    if (m || j->n_modes == JIT_MODES) return m;
    m = &j->modes[j->n_modes];
    m->mode = mode;
    m->of = mmap(NULL, n_caches(m) * sizeof *m->of, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_32BIT, -1, 0);
    if (m->of == MAP_FAILED) return NULL;
    j->n_modes++;
    jit_cache_of(j, m);
    return m;
}

void jit_modes_free(Jit *j) {
    for (u32 i = 0; i < j->n_modes; i++) munmap(j->modes[i].of, n_caches(&j->modes[i]) * sizeof *j->modes[i].of);
}

JumpCache *jit_cache_of(const Jit *j, const JitMode *m) {
    JumpCache *k = &m->of[by_space(m) ? j->space : 0];
    if (unlikely(!k->ready)) cache_empty(j, k);
    return k;
}

void jit_cache_fill(Cpu *c, Block *b) {
    Jit *j = c->jit;
    const JitMode *m = jit_mode_of(j, b->mode);
    if (!m || b->ram_off2 != ~0ull) return;
    JumpCache *k = jit_cache_of(j, m);
    if (k->code[jump_index(b->rip)] == b->code->found) return;
    cache_put(j, k, b, !by_space(m) && block_is_global(c, b));
}

void jit_cache_drop(Jit *j, const Block *b, const JitCode *code) {
    const JitMode *m = jit_mode_of(j, b->mode);
    u32 i = jump_index(b->rip);
    for (u32 s = 0; m && s < n_caches(m); s++)
        if (m->of[s].ready && m->of[s].code[i] == code->found) entry_clear(j, &m->of[s], i);
}

void jit_caches_empty(Jit *j) {
    for (u32 n = 0; n < j->n_modes; n++)
        for (u32 s = 0; s < n_caches(&j->modes[n]); s++)
            if (j->modes[n].of[s].used) cache_empty(j, &j->modes[n].of[s]);
}

/* Flushes */

static void space_clear(Jit *j, u32 space) {
    for (u32 n = 0; n < j->n_modes; n++) {
        if (!by_space(&j->modes[n])) continue;
        JumpCache *k = &j->modes[n].of[space];
        if (!k->n_filled) continue;
        clear_filled(j, k);
        pages_clear(&k->pages);
    }
}

/* Where this PCID was, or in place of the one that ran longest ago. */
static u32 space_for(const Jit *j, u32 pcid) {
    u32 oldest = 0;
    for (u32 s = 0; s < JIT_SPACES; s++) {
        if (j->spaces[s].pcid == pcid && j->spaces[s].gen) return s;
        if (j->spaces[s].used < j->spaces[oldest].used) oldest = s;
    }
    return oldest;
}

/* CR3 was written, or what is cached under its PCID dropped. */
static void space_enter(Cpu *c) {
    Jit *j = c->jit;
    u32 pcid = cpu_pcid(c), s = space_for(j, pcid);
    u64 gen = c->l2_pcid_gen[pcid % PCID_SLOTS];
    JitSpace *to = &j->spaces[s];
    if (to->pcid != pcid || to->gen != gen) space_clear(j, s);
    *to = (JitSpace){.pcid = pcid, .gen = gen, .used = ++j->space_tick};
    j->space = s;
}

void jit_caches_flush(Cpu *c, u32 kinds) {
    Jit *j = c->jit;
    if (kinds & FLUSHED_ALL) jit_caches_empty(j);
    else
        for (u32 n = 0; n < j->n_modes; n++)
            if (!by_space(&j->modes[n])) clear_filled(j, j->modes[n].of);
    space_enter(c);
}

void jit_caches_flush_range(Cpu *c, u64 base, u64 size, u32 before) {
    Jit *j = c->jit;
    bool everywhere = c->low_globals || base >= LOW_HALF;
    for (u32 n = 0; n < j->n_modes; n++)
        for (u32 s = 0; s < n_caches(&j->modes[n]); s++) {
            bool concerned = !by_space(&j->modes[n]) || everywhere || s == j->space || s == before;
            if (concerned) clear_range(j, &j->modes[n].of[s], base, size);
        }
}
