/* The decoded-block cache: building, finding and dropping blocks. See block.h for the picture. */
#include "interp/trace.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define ARENA_BYTES (256u << 20)
#define ARENA_SLACK ((BLOCK_MAX_INSNS + 1) * sizeof(Insn) + sizeof(Block) + CACHE_LINE + 2 * sizeof(CodePage))
#define SMC_HOT     32 /* invalidations of a page within SMC_WINDOW instructions that make it hot */
#define SMC_WINDOW  (1u << 20)
#define HOT_LOOKUPS 4096
#define MAX_INTERPS 256

Block block_none = {.succ = {&block_none, &block_none}, .insn = &insn_none};
const Insn insn_none;

void (*block_drop_hook)(Cpu *c, Block *b);
static Interp *interps[MAX_INTERPS];
static u32 n_interps, interps_lock;

static void spin_lock(u32 *l) {
    while (__atomic_exchange_n(l, 1, __ATOMIC_ACQUIRE)) __builtin_ia32_pause();
}
static void spin_unlock(u32 *l) { __atomic_store_n(l, 0, __ATOMIC_RELEASE); }

static void invalidate_hook(Cpu *c, u64 ram_off, unsigned n);

static void *map_zeros(size_t bytes) {
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

static void unmap(Interp *it) {
    if (it->arena) munmap(it->arena, ARENA_BYTES);
    if (it->tables) munmap(it->tables, sizeof *it->tables);
    free(it);
}

Interp *interp_new(void) {
    Interp *it = calloc(1, sizeof *it);
    if (!it) return NULL;
    it->arena = map_zeros(ARENA_BYTES);
    it->tables = map_zeros(sizeof *it->tables);
    if (!it->arena || !it->tables) {
        unmap(it);
        return NULL;
    }
    it->stop = it->budget_end = ~0ull;
    for (unsigned i = 0; i < JUMP_CACHE_SIZE; i++) it->jump_cache[i] = &block_none;
    code_invalidate_hook = invalidate_hook;
    spin_lock(&interps_lock);
    if (n_interps < MAX_INTERPS) interps[n_interps++] = it;
    spin_unlock(&interps_lock);
    return it;
}

void interp_free(Interp *it) {
    if (!it) return;
    spin_lock(&interps_lock);
    for (u32 i = 0; i < n_interps; i++)
        if (interps[i] == it) interps[i] = interps[--n_interps];
    spin_unlock(&interps_lock);
    unmap(it);
}

static void *arena_alloc(Interp *it, size_t n) {
    void *p = it->arena + it->used;
    it->used += (n + 15) & ~(size_t)15;
    return p;
}

static Block *arena_block(Interp *it) {
    it->used = (it->used + CACHE_LINE - 1) & ~(size_t)(CACHE_LINE - 1);
    return arena_alloc(it, sizeof(Block));
}

void interp_flush_all(Cpu *c) {
    Interp *it = c->interp;
    fpu_park(c);
    madvise(it->tables, sizeof *it->tables, MADV_DONTNEED); /* zeros from now on */
    it->n_hot = 0;
    for (unsigned i = 0; i < JUMP_CACHE_SIZE; i++) it->jump_cache[i] = &block_none;
    it->used = 0;
    it->flushes++;
}

/* Pages */

static CodePage **page_slot(Interp *it, u64 page) {
    CodePage **s = &it->tables->pages[(page >> PAGE_BITS) * 0x9e3779b97f4a7c15ull >> (64 - PAGE_HASH_BITS)];
    while (*s && (*s)->page != page) s = &(*s)->next;
    return s;
}

static CodePage *page_get(Interp *it, u64 page) {
    CodePage **s = page_slot(it, page);
    if (!*s) {
        *s = arena_alloc(it, sizeof **s);
        **s = (CodePage){.page = page};
    }
    return *s;
}

static void page_link(Interp *it, Block *b, unsigned which) {
    CodePage *p = page_get(it, (which ? b->ram_off2 : b->ram_off) & PAGE_MASK);
    b->page_next[which] = p->blocks;
    p->blocks = b;
}

/* The link of b in the list of this page: a crossing block is in two lists. */
static Block **page_next(Block *b, u64 page) { return &b->page_next[(b->ram_off & PAGE_MASK) != page]; }

static void page_unlink(Interp *it, Block *b, u64 page) {
    CodePage *p = *page_slot(it, page);
    for (Block **s = p ? &p->blocks : NULL; s && *s; s = page_next(*s, page))
        if (*s == b) {
            *s = *page_next(b, page);
            return;
        }
}

static u32 block_hash(u64 ram_off, u64 rip, u32 mode) {
    return (u32)((ram_off ^ rip << 20 ^ (u64)mode << 40) * 0x9e3779b97f4a7c15ull >> (64 - BLOCK_HASH_BITS));
}

/* The store that hit the running block ends it: every instruction still to come is looked up afresh. */
static void op_leave_block(Cpu *c, const Insn *in) { exc_restart(c); }

static void block_drop(Cpu *c, Interp *it, Block *b) {
    Block **s = &it->tables->hash[block_hash(b->ram_off, b->rip, b->mode)];
    while (*s && *s != b) s = &(*s)->hash_next;
    if (*s) *s = b->hash_next;
    page_unlink(it, b, b->ram_off & PAGE_MASK);
    if (b->ram_off2 != ~0ull) page_unlink(it, b, b->ram_off2);
    b->tag = 0;
    b->dropped = true;
    if (b->code) block_drop_hook(c, b);
    if (c->run_end != b->insn + b->n) return;
    for (Insn *in = (Insn *)c->cur + 1; in < c->run_end; in++) in->fn = op_leave_block;
}

static bool block_overlaps(const Block *b, u64 off, unsigned n) {
    unsigned first = b->ram_off2 == ~0ull ? b->size : (unsigned)(PAGE_SIZE - (b->ram_off & ~PAGE_MASK));
    if (off < b->ram_off + first && b->ram_off < off + n) return true;
    return b->ram_off2 != ~0ull && off < b->ram_off2 + (b->size - first) && b->ram_off2 < off + n;
}

/* A page written to over and over is taken off the watch list and its code compared at every entry (CORE 9). Marks are
 * shared by all vCPUs, so they are only taken back when there is one. */
static void page_smc(Cpu *c, CodePage *p) {
    if (c->icount - p->smc_since > SMC_WINDOW) {
        p->smc_since = c->icount;
        p->smc = 0;
    }
    if (++p->smc < SMC_HOT) return;
    p->smc = 0;
    if (!p->hot) c->interp->n_hot++;
    p->hot = HOT_LOOKUPS;
    while (p->blocks) block_drop(c, c->interp, p->blocks);
    if (n_interps == 1) ram_unmark_code(c->machine, p->page);
}

static void invalidate_page(Cpu *c, u64 off, unsigned n) {
    Interp *it = c->interp;
    CodePage *p = *page_slot(it, off & PAGE_MASK);
    bool hit = false;
    for (Block *b = p ? p->blocks : NULL, *next; b; b = next) {
        next = *page_next(b, p->page);
        if (b->checked || !block_overlaps(b, off, n)) continue;
        block_drop(c, it, b);
        hit = true;
        c->n_smc++;
    }
    if (hit) page_smc(c, p);
    /* Data from now on; also where the marks are all that a dropped cache left. */
    if ((!p || !p->blocks) && n_interps == 1) ram_unmark_code(c->machine, off & PAGE_MASK);
}

static void invalidate(Cpu *c, u64 off, u64 n) {
    while (n) {
        u64 room = PAGE_SIZE - (off & ~PAGE_MASK), k = n < room ? n : room;
        invalidate_page(c, off, (unsigned)k);
        off += k;
        n -= k;
    }
}

static void post_remote(Interp *it, u64 off, unsigned n) {
    spin_lock(&it->lock);
    if (it->n_remote < REMOTE_MAX) {
        it->remote[it->n_remote].off = off;
        it->remote[it->n_remote].n = n;
    }
    if (it->n_remote <= REMOTE_MAX) it->n_remote++;
    spin_unlock(&it->lock);
    if (it->owner) cpu_pend(it->owner, PEND_KICK);
}

void interp_ask_flush(Cpu *c) {
    Interp *it = c->interp;
    spin_lock(&it->lock);
    it->n_remote = REMOTE_MAX + 1;
    spin_unlock(&it->lock);
    cpu_pend(c, PEND_KICK);
}

static bool same_machine(const Interp *it, const Cpu *c) { return it->owner && it->owner->machine == c->machine; }

/* Code was written to. The writing vCPU drops its blocks at once; the others at their next block boundary, before they
 * can see any later store of the writer and act on it. */
static void invalidate_hook(Cpu *c, u64 ram_off, unsigned n) {
    spin_lock(&interps_lock);
    for (u32 i = 0; i < n_interps; i++)
        if (!c || (interps[i] != c->interp && same_machine(interps[i], c))) post_remote(interps[i], ram_off, n);
    spin_unlock(&interps_lock);
    if (c && c->interp) invalidate(c, ram_off, n);
}

void block_drain_remote(Cpu *c) {
    Interp *it = c->interp;
    spin_lock(&it->lock);
    u32 n = it->n_remote;
    if (n > REMOTE_MAX) interp_flush_all(c);
    else
        for (u32 i = 0; i < n; i++) invalidate(c, it->remote[i].off, it->remote[i].n);
    it->n_remote = 0;
    spin_unlock(&it->lock);
}

/* Building */

static void op_too_long(Cpu *c, const Insn *in) { exc_gp0(c); }
void op_ud(Cpu *c, const Insn *in) { exc_ud(c); }

static void resolve(Cpu *c, Insn *in, const u8 *bytes) {
    OpFn fn = NULL;
    if (!in->feat || cpu_has(c, in->feat)) {
        fn = ops_integer_resolve(in, c->mode);
        if (!fn) fn = ops_system_resolve(in, c->mode);
        if (!fn) fn = ops_fpu_resolve(in, c->mode, bytes);
    }
    in->fn = fn ? fn : op_ud;
    if (!fn) in->flags |= INF_END;
}

int block_decode(Cpu *c, u64 rip, const u8 *bytes, unsigned avail, Insn *in) {
    c->n_decode++;
    int r = decode_insn(c->mode, c->feat, rip, bytes, avail < 15 ? avail : 15, in);
    if (r == DECODE_MORE) {
        if (avail < 15) return DECODE_MORE;
        r = DECODE_TOO_LONG;
    }
    if (r > 0) {
        resolve(c, in, bytes);
        return r;
    }
    in->fn = r == DECODE_UD ? op_ud : op_too_long;
    in->flags |= INF_END;
    in->len = (u8)(avail < 15 ? avail : 15); /* whatever made it invalid lies in these bytes */
    return in->len;
}

/* Where a block is being built. */
typedef struct Source {
    u64 rip, lin, ram_off, ram_off2;
    const u8 *host, *host2;
    unsigned avail; /* readable bytes in buf */
    u8 buf[BLOCK_MAX_BYTES + 16];
} Source;

static void source_read(Source *s) {
    unsigned page = (unsigned)(PAGE_SIZE - (s->ram_off & ~PAGE_MASK));
    s->avail = page < BLOCK_MAX_BYTES ? page : BLOCK_MAX_BYTES;
    memcpy(s->buf, s->host, s->avail);
    s->host2 = NULL;
    s->ram_off2 = ~0ull;
}

/* The instruction at the end of the page goes on in the next one: append its bytes. False if that is not RAM. */
static bool source_cross(Cpu *c, Source *s) {
    u64 lin2 = (s->lin + s->avail) & c->lin_mask;
    s->host2 = mmu_fetch(c, lin2, &s->ram_off2);
    if (s->ram_off2 == ~0ull) return false;
    memcpy(s->buf + s->avail, s->host2, 15 - s->avail);
    return true;
}

/* Bytes left below the code segment's limit; 64-bit code has none. */
static u64 limit_room(const Cpu *c, u64 rip) {
    if (c->mode & (MODE_CS64 | MODE_FLAT)) return ~0ull;
    const Segment *cs = &c->seg[SEG_CS];
    return rip > cs->limit ? 0 : cs->limit - rip + 1;
}

static unsigned decode_run(Cpu *c, Source *s, Insn *out, unsigned max, unsigned *size) {
    unsigned n = 0, pos = 0;
    while (n < max && pos < s->avail) {
        Insn *in = &out[n];
        int len = block_decode(c, s->rip + pos, s->buf + pos, s->avail - pos, in);
        if (len == DECODE_MORE || (u64)len > limit_room(c, s->rip + pos)) break;
        pos += (unsigned)len;
        n++;
        if (in->flags & INF_END) break;
    }
    *size = pos;
    return n;
}

/* The first instruction did not fit the page, or the segment. */
static unsigned decode_crossing(Cpu *c, Source *s, Insn *out, unsigned *size) {
    if (!limit_room(c, s->rip)) exc_gp0(c);
    if (s->avail >= 15) exc_gp0(c); /* whole in this page, so it is the limit that cuts it */
    if (limit_room(c, s->rip) <= s->avail) exc_gp0(c);
    if (!source_cross(c, s)) return 0;
    int len = block_decode(c, s->rip, s->buf, 15, out);
    if ((u64)len > limit_room(c, s->rip)) exc_gp0(c);
    *size = (unsigned)len;
    return 1;
}

static void mark_code(Cpu *c, const Source *s, const Block *b) {
    unsigned first = b->ram_off2 == ~0ull ? b->size : s->avail;
    ram_mark_code(c->machine, c, b->ram_off, first);
    if (b->ram_off2 != ~0ull) ram_mark_code(c->machine, c, b->ram_off2, b->size - first);
}

/* Another vCPU may have written between our read and the mark. */
static bool source_unchanged(const Source *s, const Block *b) {
    if (b->ram_off2 == ~0ull) return memcmp(s->buf, s->host, b->size) == 0;
    return memcmp(s->buf, s->host, s->avail) == 0 && memcmp(s->buf + s->avail, s->host2, b->size - s->avail) == 0;
}

static Block **twin_slot(Interp *it, u64 ram_off, u32 mode) {
    return &it->tables->twin[(ram_off ^ (u64)mode << 40) * 0x9e3779b97f4a7c15ull >> (64 - TWINS_BITS)];
}

static Block *block_add(Cpu *c, const Block *tmp) {
    Interp *it = c->interp;
    Block *b = arena_block(it), **h = &it->tables->hash[block_hash(tmp->ram_off, tmp->rip, tmp->mode)];
    *b = *tmp;
    b->hash_next = *h;
    *h = b;
    page_link(it, b, 0);
    if (b->ram_off2 != ~0ull) page_link(it, b, 1);
    *twin_slot(it, b->ram_off, b->mode) = b;
    c->n_block++;
    return b;
}

/* The same bytes met at another address, as shared libraries are by address space randomization: nothing in an Insn
 * depends on that, so they are not decoded again; and what was worth a translation there is so here. NULL: not so. */
static Block *block_share(Cpu *c, u64 ram_off) {
    const Block *t = *twin_slot(c->interp, ram_off, c->mode);
    if (!t || t->ram_off != ram_off || t->mode != c->mode || t->dropped) return NULL;
    if (!(c->mode & (MODE_CS64 | MODE_FLAT)) || t->checked || t->ram_off2 != ~0ull || log_on(LOG_IN_ASM)) return NULL;
    Block b = {.rip = c->r[R_RIP],
               .insn = t->insn,
               .n = t->n,
               .ram_off = ram_off,
               .ram_off2 = ~0ull,
               .mode = c->mode,
               .system = t->system,
               .plain = t->plain,
               .hits = t->code ? t->hits / 2 : t->hits,
               .succ = {&block_none, &block_none}};
    for (unsigned i = 0; i < b.n; i++) b.size += b.insn[i].len;
    return block_add(c, &b);
}

static Block *block_build(Cpu *c, u64 lin, const u8 *host, u64 ram_off) {
    Interp *it = c->interp;
    fpu_park(c);
    if (it->used + ARENA_SLACK > ARENA_BYTES) interp_flush_all(c);
    Block *shared = block_share(c, ram_off);
    if (shared) return shared;
    Source s = {.rip = c->r[R_RIP], .lin = lin, .ram_off = ram_off, .host = host};
    CodePage *page = page_get(it, ram_off & PAGE_MASK);
    Insn *insn = (Insn *)(void *)(it->arena + it->used);
    unsigned n, size;
    Block tmp;
    do {
        source_read(&s);
        n = decode_run(c, &s, insn, page->hot || machine_one_insn(c->machine) ? 1 : BLOCK_MAX_INSNS, &size);
        if (!n) n = decode_crossing(c, &s, insn, &size);
        if (!n) return NULL;
        tmp = (Block){.rip = s.rip,
                      .insn = insn,
                      .n = (u8)n,
                      .size = (u16)size,
                      .ram_off = ram_off,
                      .ram_off2 = s.ram_off2,
                      .mode = c->mode,
                      .succ = {&block_none, &block_none}};
        tmp.checked = page->hot && size <= sizeof tmp.bytes;
        memcpy(tmp.bytes, s.buf, sizeof tmp.bytes);
        if (!tmp.checked) mark_code(c, &s, &tmp);
    } while (!source_unchanged(&s, &tmp));
    tmp.system = (insn[n - 1].flags & (INF_END | INF_PLAIN)) == INF_END;
    arena_alloc(it, n * sizeof(Insn));
    Block *b = block_add(c, &tmp);
    if (log_on(LOG_IN_ASM) && log_wants(block_lin(c, b))) trace_decoded(c, b, s.buf);
    return b;
}

/* Finding */

static bool bytes_same(const u8 *a, const u8 *b, unsigned n) {
    for (unsigned i = 0; i < n; i++)
        if (a[i] != b[i]) return false;
    return true;
}

/* Is this candidate still what lies at lin? Its second page may be mapped elsewhere, its bytes may have changed. */
static bool block_holds(Cpu *c, const Block *b, u64 lin, const u8 *host) {
    unsigned first = (unsigned)(PAGE_SIZE - (b->ram_off & ~PAGE_MASK));
    if (first > b->size) first = b->size;
    if (b->checked && !bytes_same(b->bytes, host, first)) return false;
    if (b->ram_off2 == ~0ull) return true;
    u64 off2;
    const u8 *host2 = mmu_fetch(c, (lin + first) & c->lin_mask, &off2);
    if (off2 != b->ram_off2) return false;
    return !b->checked || bytes_same(b->bytes + first, host2, b->size - first);
}

bool block_page_written(Cpu *c, const Block *b) {
    const CodePage *p = *page_slot(c->interp, b->ram_off & PAGE_MASK);
    return p && (p->smc || p->hot);
}

static void page_cool(Cpu *c, u64 page) {
    CodePage *p = c->interp->n_hot ? *page_slot(c->interp, page) : NULL;
    if (!p || !p->hot || --p->hot) return;
    c->interp->n_hot--;
    while (p->blocks) block_drop(c, c->interp, p->blocks);
}

bool block_is_global(Cpu *c, const Block *b) {
    u64 lin = block_lin(c, b);
    return mmu_is_global(c, lin) && (b->ram_off2 == ~0ull || mmu_is_global(c, lin + PAGE_SIZE));
}

Block *block_lookup(Cpu *c) {
    Interp *it = c->interp;
    if (!(c->mode & MODE_CS64)) c->r[R_RIP] = (u32)c->r[R_RIP];
    u64 rip = c->r[R_RIP], lin = (c->ea_base[SEG_CS] + rip) & c->lin_mask, ram_off;
    c->cur = &insn_none;
    if (!limit_room(c, rip)) exc_gp0(c);
    const u8 *host = mmu_fetch(c, lin, &ram_off);
    if (ram_off == ~0ull) return NULL;
    page_cool(c, ram_off & PAGE_MASK);
    Block *b = it->tables->hash[block_hash(ram_off, rip, c->mode)];
    while (b && !(b->ram_off == ram_off && b->rip == rip && b->mode == c->mode)) b = b->hash_next;
    if (b && (b->size > limit_room(c, rip) || !block_holds(c, b, lin, host))) {
        block_drop(c, it, b);
        b = NULL;
    }
    if (!b) b = block_build(c, lin, host, ram_off);
    if (!b) return NULL;
    b->cs_base = c->seg[SEG_CS].base;
    if (!b->checked) {
        b->tag = c->mode & MODE_CPL3 || block_is_global(c, b) ? block_tag(c) : block_tag_local(c);
        it->jump_cache[(rip ^ rip >> 12) & (JUMP_CACHE_SIZE - 1)] = b;
    }
    return b;
}
