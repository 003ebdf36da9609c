/* Which pages stores must be announced for, and what happens then: pages with decoded code, marked by granules of 64
 * bytes, and pages whose writes somebody logs (VGA, snapshots, migration). */
#include "memory/safepoint.h"
#include "memory/state.h"
#include "mmu/mmu.h"

void (*code_invalidate_hook)(Cpu *c, u64 ram_off, unsigned n);

INLINE u64 granules(u64 ram_off, u64 n) {
    unsigned first = (unsigned)(ram_off % PAGE_SIZE / 64), last = (unsigned)((ram_off + n - 1) % PAGE_SIZE / 64);
    return (~0ull >> (63 - (last - first))) << first;
}

bool ram_page_needs_slow_write(Machine *m, u64 ram_off) {
    u64 page = ram_off / PAGE_SIZE;
    return __atomic_load_n(&m->code_map[page], __ATOMIC_RELAXED) != 0 || (m->log[page] & ~m->dirty[page]);
}

/* Nothing is copied before a write yet; the MMU announces stores all the same, so that it can be. */
void ram_store_before(Machine *m, Cpu *c, u64 ram_off, unsigned n) {}

static void page_stored(Machine *m, Cpu *c, u64 ram_off, unsigned n) {
    u64 page = ram_off / PAGE_SIZE;
    if (m->log[page] & ~m->dirty[page]) __atomic_fetch_or(&m->dirty[page], m->log[page], __ATOMIC_SEQ_CST);
    u64 hit = __atomic_load_n(&m->code_map[page], __ATOMIC_SEQ_CST) & granules(ram_off, n);
    if (hit && code_invalidate_hook) code_invalidate_hook(c, ram_off, n);
}

void ram_store_after(Machine *m, Cpu *c, u64 ram_off, unsigned n) {
    while (n) {
        unsigned room = (unsigned)(PAGE_SIZE - ram_off % PAGE_SIZE), part = n < room ? n : room;
        page_stored(m, c, ram_off, part);
        ram_off += part;
        n -= part;
    }
}

void ram_changed(Machine *m, u64 ram_off, u64 n) {
    __atomic_thread_fence(__ATOMIC_SEQ_CST); /* the bytes are there before the marks are looked at */
    for (u64 part; n; ram_off += part, n -= part) {
        part = PAGE_SIZE - ram_off % PAGE_SIZE < n ? PAGE_SIZE - ram_off % PAGE_SIZE : n;
        page_stored(m, NULL, ram_off, (unsigned)part);
    }
}

static void protect_everywhere(Machine *m, u64 ram_off) {
    for (u32 i = 0; i < m->n_cpus; i++) tlb_protect_ram_page(m->cpu[i], ram_off);
}

void ram_mark_code(Machine *m, Cpu *c, u64 ram_off, unsigned n) {
    u64 *map = &m->code_map[ram_off / PAGE_SIZE];
    bool first = *map == 0; /* else nobody has a write tag for it any more */
    bool others = first && m->n_cpus > 1;
    if (others) exclusive_begin(m, c);
    __atomic_fetch_or(map, granules(ram_off, n), __ATOMIC_SEQ_CST);
    if (first) protect_everywhere(m, ram_off);
    if (others) exclusive_end(m, c);
}

void ram_unmark_code(Machine *m, u64 ram_page_off) {
    __atomic_store_n(&m->code_map[ram_page_off / PAGE_SIZE], 0, __ATOMIC_SEQ_CST);
}
