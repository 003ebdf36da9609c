/* Software TLB upkeep: fills, flushes, the second level (Intel SDM vol 3A 4.10; CORE 8).
 *
 * First level: one direct-mapped table per access mode, used by interpreter and translated code. Second level: tagged
 * with PCID, any mode, dropped by bumping a generation, so that a CR3 write costs what was filled since the last one.
 */
#include "mmu/tlb.h"
#include "cpu/debugreg.h"
#include "cpu/model.h"

/* The tag no address of this entry's set can match. */
INLINE u64 tag_none(const Cpu *c, const TlbEntry *e) {
    u64 set = (u64)(e - &c->tlbs[0][0]) & (TLB_SIZE - 1);
    return -((set ^ TLB_SIZE / 2) << PAGE_BITS);
}

static TlbEntry *entry_at(Cpu *c, unsigned i) { return &c->tlbs[i / TLB_SIZE][i % TLB_SIZE]; }

static void entry_clear(Cpu *c, TlbEntry *e) {
    e->rtag = e->wtag = tag_none(c, e);
    e->meta &= TLBM_LISTED;
}

static unsigned l2_slot(u64 page, unsigned pcid) { return (page ^ page >> L2_BITS ^ pcid * 0x9e5u) & (L2_SIZE - 1); }
/* Neighbours do not collide, so that the direct map of a guest kernel leaves other regions' bits alone. */
static unsigned large_bit(u64 lin) { return (lin >> 21 ^ lin >> 33 ^ lin >> 45) & 4095; }
static bool large_maybe(const Cpu *c, u64 lin) { return c->large_seen[large_bit(lin) / 64] >> large_bit(lin) % 64 & 1; }

static bool huge_maybe(const Cpu *c, u64 lin) {
    if (c->n_huge > ARRAY_LEN(c->huge_seen)) return true;
    for (unsigned i = 0; i < c->n_huge; i++)
        if (c->huge_seen[i] == lin >> 30) return true;
    return false;
}
static void huge_note(Cpu *c, u64 lin) {
    if (huge_maybe(c, lin)) return;
    if (c->n_huge < ARRAY_LEN(c->huge_seen)) c->huge_seen[c->n_huge] = lin >> 30;
    c->n_huge++;
}

L2Entry *l2_find(Cpu *c, u64 lin) {
    u64 page = lin & PAGE_MASK;
    unsigned pcid = cpu_pcid(c);
    L2Entry *e = &c->l2[l2_slot(page >> PAGE_BITS, pcid)];
    if (e->key == (page | pcid) && e->gen == c->l2_pcid_gen[pcid % PCID_SLOTS] && !(e->val & L2_G)) return e;
    e = &c->l2[l2_slot(page >> PAGE_BITS, 0)];
    if (e->key == page && e->gen == c->l2_global_gen && (e->val & L2_G)) return e;
    return NULL;
}

bool mmu_is_global(Cpu *c, u64 lin) {
    const L2Entry *e = l2_find(c, lin);
    return e && e->val & L2_G;
}

void l2_insert(Cpu *c, u64 lin, u64 val) {
    u64 page = lin & PAGE_MASK;
    unsigned pcid = val & L2_G ? 0 : cpu_pcid(c);
    L2Entry *e = &c->l2[l2_slot(page >> PAGE_BITS, pcid)];
    e->key = page | pcid;
    e->val = val;
    e->gen = val & L2_G ? c->l2_global_gen : c->l2_pcid_gen[pcid % PCID_SLOTS];
    c->low_globals |= val & L2_G && lin < LOW_HALF;
    if (val & L2_HUGE) huge_note(c, lin);
    else if (val & L2_LARGE) c->large_seen[large_bit(lin) / 64] |= BIT(large_bit(lin) % 64);
}

/* Whether stores may go straight to the host page: plain RAM that nobody watches, with D already set. */
static bool store_direct(Cpu *c, u64 val, unsigned mmu, const MemRange *r, u64 ram_off) {
    return (val & L2_D) && r->kind == RANGE_RAM && r->write_off == r->ram_off && !r->write_upcall &&
           mmu_allowed(c, val, ACC_WRITE, mmu) && !ram_page_needs_slow_write(c->machine, ram_off);
}

void tlb_fill(Cpu *c, u64 lin, u64 val, unsigned mmu, const MemRange *r) {
    if (r->kind != RANGE_RAM && r->kind != RANGE_ROM) return;
    u64 page = lin & PAGE_MASK;
    u64 ram_off = r->ram_off + ((val & PAGE_MASK & c->a20_mask) - r->gpa);
    TlbEntry *e = tlb_slot(c->tlbs[mmu], lin);
    u64 listed = e->meta & TLBM_LISTED;
    if (!(val & L2_G) && !listed) {
        c->nonglobal[c->n_nonglobal++] = (u16)(e - &c->tlbs[0][0]);
        listed = TLBM_LISTED;
    }
    bool watched = c->dbg_data && dr_in_page(c, lin, false);
    e->rtag = watched ? tag_none(c, e) : -page;
    e->wtag = !watched && store_direct(c, val, mmu, r, ram_off) ? -page : tag_none(c, e);
    e->delta = (i64)((u64)machine_ram_host(c->machine, ram_off) - page);
    e->meta = (val & PAGE_MASK) | listed | (val & L2_G ? TLBM_GLOBAL : 0);
    c->n_tlb_fill++;
}

static void pcid_flush(Cpu *c, unsigned pcid) {
    c->l2_pcid_gen[pcid % PCID_SLOTS] = ++c->l2_gen;
    c->space_gen[pcid % PCID_SLOTS].gen = 0;
}

void tlb_flush_all(Cpu *c) {
    tlb_drop_first_level(c);
    for (unsigned i = 0; i < PCID_SLOTS; i++) c->l2_pcid_gen[i] = ++c->l2_gen;
    c->l2_global_gen = ++c->l2_gen;
    for (unsigned i = 0; i < ARRAY_LEN(c->large_seen); i++) c->large_seen[i] = 0;
    c->n_huge = 0;
    c->low_globals = false;
    c->last_range = NULL;
    c->n_tlb_flush++;
}

__attribute__((constructor)) static void tlb_init(void) { cpu_flush_hook = tlb_flush_all; }

/* Some page of the address space that runs is mapped another way. */
static void user_gen_renew(Cpu *c) {
    unsigned pcid = cpu_pcid(c), slot = pcid % PCID_SLOTS;
    c->user_gen = ++c->last_gen;
    c->space_gen[slot].pcid = pcid;
    c->space_gen[slot].gen = c->user_gen;
    cpu_choose_gen(c);
}

/* CR3 was written. */
static void user_gen_resume(Cpu *c) {
    unsigned pcid = cpu_pcid(c), slot = pcid % PCID_SLOTS;
    bool known = c->space_gen[slot].gen && c->space_gen[slot].pcid == pcid;
    if (!known) user_gen_renew(c);
    c->user_gen = c->space_gen[slot].gen;
    cpu_choose_gen(c);
}

/* A global page may be. */
static void gens_renew(Cpu *c) {
    for (unsigned i = 0; i < PCID_SLOTS; i++) c->space_gen[i].gen = 0;
    c->global_gen = ++c->last_gen;
    user_gen_renew(c);
}

/* Tells the translator, which keeps addresses of code by linear address (FlushLog). */
static void note_flush(Cpu *c, u64 base, u64 size) {
    FlushLog *f = &c->flush_log;
    if (f->n == FLUSH_LOG_MAX) f->kinds |= FLUSHED_ALL;
    else f->range[f->n++] = (FlushRange){base, size};
    c->map_changes++;
    if (base >= LOW_HALF || c->low_globals) gens_renew(c);
    else user_gen_renew(c);
}
static void note_flush_kind(Cpu *c, u32 kind) {
    c->flush_log.kinds |= kind;
    c->map_changes++;
    if (kind == FLUSHED_ALL) gens_renew(c);
    else user_gen_resume(c);
}

void tlb_drop_first_level(Cpu *c) {
    for (unsigned i = 0; i < MMU_MODES * TLB_SIZE; i++) {
        TlbEntry *e = entry_at(c, i);
        e->rtag = e->wtag = tag_none(c, e);
        e->meta = 0;
    }
    c->n_nonglobal = 0;
    note_flush_kind(c, FLUSHED_ALL);
}

void tlb_drop_nonglobal(Cpu *c) {
    for (unsigned i = 0; i < c->n_nonglobal; i++) {
        TlbEntry *e = entry_at(c, c->nonglobal[i]);
        e->meta &= ~(u64)TLBM_LISTED;
        if (!(e->meta & TLBM_GLOBAL)) entry_clear(c, e);
    }
    c->n_nonglobal = 0;
    note_flush_kind(c, FLUSHED_NONGLOBAL);
}

void tlb_flush_nonglobal(Cpu *c) {
    pcid_flush(c, cpu_pcid(c));
    tlb_drop_nonglobal(c);
    c->n_tlb_flush++;
}

void tlb_flush_pcid(Cpu *c, unsigned pcid) {
    pcid_flush(c, pcid);
    if (pcid == cpu_pcid(c)) tlb_drop_nonglobal(c);
}

void tlb_flush_all_nonglobal(Cpu *c) {
    for (unsigned i = 0; i < PCID_SLOTS; i++) pcid_flush(c, i);
    tlb_drop_nonglobal(c);
}

static void l2_drop(Cpu *c, u64 lin, unsigned pcid) {
    u64 page = lin & PAGE_MASK;
    L2Entry *e = &c->l2[l2_slot(page >> PAGE_BITS, pcid)];
    if (e->key == (page | pcid)) e->gen = 0;
}

static void drop_page(Cpu *c, u64 lin) {
    u64 page = lin & PAGE_MASK;
    for (unsigned m = 0; m < MMU_MODES; m++) {
        TlbEntry *e = tlb_slot(c->tlbs[m], lin);
        if (e->rtag == -page || e->wtag == -page) entry_clear(c, e);
    }
    l2_drop(c, lin, cpu_pcid(c));
    l2_drop(c, lin, 0);
}

void tlb_flush_page(Cpu *c, u64 lin) {
    if (unlikely(huge_maybe(c, lin))) {
        tlb_flush_all(c);
        return;
    }
    drop_page(c, lin);
    note_flush(c, lin & PAGE_MASK, PAGE_SIZE);
    /* 4 MiB pages: both halves; a 2 MiB neighbour dropped with them only costs a refill. */
    u64 region = lin & ~(u64)(4 * 1024 * 1024 - 1);
    for (u64 half = region; half < region + 4 * 1024 * 1024; half += 2 * 1024 * 1024)
        if (large_maybe(c, half)) {
            for (u64 p = 0; p < 512; p++) drop_page(c, half + p * PAGE_SIZE);
            note_flush(c, half, 2 * 1024 * 1024);
        }
}

void tlb_flush_page_pcid(Cpu *c, u64 lin, unsigned pcid) {
    if (pcid == cpu_pcid(c)) tlb_flush_page(c, lin);
    else tlb_flush_pcid(c, pcid); /* all of it: whoever keeps addresses of that space looks at its generation alone */
}

void tlb_protect_ram_page(Cpu *c, u64 ram_off) {
    u64 host = (u64)machine_ram_host(c->machine, ram_off & PAGE_MASK);
    for (unsigned i = 0; i < MMU_MODES * TLB_SIZE; i++) {
        TlbEntry *e = entry_at(c, i);
        if ((u64)e->delta - e->wtag != host) continue;
        __atomic_store_n(&e->wtag, tag_none(c, e), __ATOMIC_RELEASE);
        c->map_changes++; /* translated code may rely on having seen the tag: it leaves */
    }
}
