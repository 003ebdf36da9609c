/* The machine's RAM space and flat view.
 *
 * RAM and ROM blocks lie one after the other in one anonymous reservation; pages cost memory only once touched. The
 * flat view is a sorted array that covers the whole guest-physical space, replaced as a whole. */
#include "memory/safepoint.h"
#include "memory/state.h"
#include "mmu/mmu.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/random.h>

static void *reserve(u64 size) {
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

static void release(void *p, u64 size) {
    if (p) munmap(p, size);
}

static u64 pages(const Machine *m) { return m->ram_reserved / PAGE_SIZE; }

Machine *machine_new(QpyClock *clock, u64 max_ram) {
    Machine *m = calloc(1, sizeof *m);
    if (!m) return NULL;
    m->clock = clock;
    machine_set_tsc_hz(m, 1000000000);
    m->a20_mask = ~0ull;
    m->ram_reserved = (max_ram + PAGE_SIZE - 1) & PAGE_MASK;
    m->ram_base = reserve(m->ram_reserved);
    m->code_map = reserve(pages(m) * sizeof *m->code_map);
    m->log = reserve(pages(m));
    m->dirty = reserve(pages(m));
    if (!m->ram_base || !m->code_map || !m->log || !m->dirty || machine_set_view(m, NULL, 0) < 0) {
        machine_free(m);
        return NULL;
    }
    madvise(m->ram_base, m->ram_reserved, MADV_HUGEPAGE);
    return m;
}

void machine_free(Machine *m) {
    release(m->ram_base, m->ram_reserved);
    release(m->code_map, pages(m) * sizeof *m->code_map);
    release(m->log, pages(m));
    release(m->dirty, pages(m));
    for (u32 i = 0; i < RETIRED_VIEWS; i++) free(m->retired[i]);
    free(m->view);
    free(m);
}

i64 machine_ram_alloc(Machine *m, u64 size) {
    size = (size + PAGE_SIZE - 1) & PAGE_MASK;
    if (!size || size > m->ram_reserved - m->ram_used) return -ENOMEM;
    u64 off = m->ram_used;
    m->ram_used += size;
    return (i64)off;
}

u8 *machine_ram_host(Machine *m, u64 ram_off) { return m->ram_base + ram_off; }

static bool valid_ranges(const Machine *m, const MemRange *r, u32 n) {
    u64 end = 0;
    for (u32 i = 0; i < n; i++) {
        if ((r[i].gpa | r[i].size) & ~PAGE_MASK || !r[i].size || r[i].gpa < end) return false;
        end = r[i].gpa + r[i].size;
        if (end > GPA_END || end < r[i].gpa) return false;
        if (r[i].kind == RANGE_MMIO) continue;
        if (r[i].kind != RANGE_RAM && r[i].kind != RANGE_ROM) return false;
        if (r[i].ram_off & ~PAGE_MASK || r[i].ram_off > m->ram_used || r[i].size > m->ram_used - r[i].ram_off)
            return false;
        if (r[i].write_off != ~0ull && (r[i].write_off > m->ram_used || r[i].size > m->ram_used - r[i].write_off))
            return false;
    }
    return true;
}

static void add_hole(View *v, u64 from, u64 to) {
    if (from < to)
        v->r[v->n++] = (MemRange){.gpa = from, .size = to - from, .write_off = ~0ull, .kind = RANGE_UNMAPPED};
}

static View *view_build(const MemRange *ranges, u32 n) {
    View *v = malloc(sizeof *v + (2 * (size_t)n + 1) * sizeof v->r[0]);
    if (!v) return NULL;
    u64 end = 0;
    v->n = 0;
    for (u32 i = 0; i < n; i++) {
        add_hole(v, end, ranges[i].gpa);
        v->r[v->n++] = ranges[i];
        end = ranges[i].gpa + ranges[i].size;
    }
    add_hole(v, end, GPA_END);
    return v;
}

/* Mappings changed: every vCPU forgets its translations and leaves the block it is in. In an exclusive section. */
static void flush_all(Machine *m) {
    for (u32 i = 0; i < m->n_cpus; i++) {
        Cpu *c = m->cpu[i];
        c->a20_mask = m->a20_mask;
        c->smc_hit = true;
        tlb_flush_all(c);
    }
}

int machine_set_view(Machine *m, const MemRange *ranges, u32 n) {
    if (!valid_ranges(m, ranges, n)) return -EINVAL;
    View *v = view_build(ranges, n);
    if (!v) return -ENOMEM;
    exclusive_begin(m, NULL);
    View *old = m->view;
    __atomic_store_n(&m->view, v, __ATOMIC_SEQ_CST);
    m->view_generation++;
    flush_all(m);
    exclusive_end(m, NULL);
    free(m->retired[m->retire_next]);
    m->retired[m->retire_next] = old;
    m->retire_next = (m->retire_next + 1) % RETIRED_VIEWS;
    return 0;
}

void machine_set_a20(Machine *m, bool enabled) {
    u64 mask = enabled ? ~0ull : ~(u64)BIT(20);
    if (mask == m->a20_mask) return;
    exclusive_begin(m, NULL);
    m->a20_mask = mask;
    flush_all(m);
    exclusive_end(m, NULL);
}

const MemRange *machine_range(Machine *m, u64 gpa) {
    const View *v = m->view;
    u32 lo = 0, hi = v->n;
    while (hi - lo > 1) {
        u32 mid = (lo + hi) / 2;
        if (v->r[mid].gpa <= gpa) lo = mid;
        else hi = mid;
    }
    return &v->r[lo];
}

i64 machine_clock_ns(Machine *m) { return clock_now(m->clock); }
bool machine_one_insn(const Machine *m) { return m->one_insn; }
bool machine_counts(const Machine *m) { return m->clock->counted; }

/* The seeded sequence is SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014). */
bool machine_random(Machine *m, u64 *v) {
    if (!m->seeded) return getrandom(v, sizeof *v, 0) == sizeof *v;
    u64 z = __atomic_add_fetch(&m->random, 0x9e3779b97f4a7c15ull, __ATOMIC_RELAXED);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    *v = z ^ z >> 31;
    return true;
}

void machine_set_tsc_hz(Machine *m, u64 hz) {
    m->tsc_hz = hz;
    m->tsc_mul = (u64)(((unsigned __int128)hz << 32) / 1000000000);
}

/* Guest TSC (SDM vol 3B 17.17): the virtual clock times the frequency, plus the offset that WRMSR and TSC_ADJUST set.
 */
static u64 tsc_at(const Cpu *c, i64 ns) {
    return (u64)((unsigned __int128)(u64)ns * c->machine->tsc_mul >> 32) + (u64)c->tsc_offset;
}
u64 cpu_read_tsc(Cpu *c) { return tsc_at(c, machine_clock_ns(c->machine)); }

/* At 1 GHz the piece gives exactly what cpu_read_tsc() does; else they differ by what rounding to ns makes, which is
 * less than any two reads are apart. */
void cpu_tsc_follow(Cpu *c) {
    ClockPiece p;
    if (c->cr4 & CR4_TSD || !clock_piece(c->machine->clock, &p)) return;
    unsigned __int128 mult = (unsigned __int128)p.mult * c->machine->tsc_mul >> 32;
    if (mult >> 64) return;
    c->tsc = (TscPiece){.minus = -p.from, .mult = (u64)mult, .base = tsc_at(c, p.base)};
}
