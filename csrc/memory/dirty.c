/* Dirty logs of the RAM space: one byte per page, a bit per client (api.h: QPY_DIRTY_*). */
#include "memory/safepoint.h"
#include "memory/state.h"
#include "mmu/mmu.h"

/* Many pages at once: dropping all translations is cheaper than looking each page up in the TLBs. */
enum { PROTECT_SINGLY = 16 };

static void protect(Machine *m, const u64 *offs, u64 n) {
    for (u32 i = 0; i < m->n_cpus; i++) {
        if (n > PROTECT_SINGLY) tlb_flush_all(m->cpu[i]);
        else
            for (u64 k = 0; k < n; k++) tlb_protect_ram_page(m->cpu[i], offs[k]);
    }
}

void dirty_log(Machine *m, int client, u64 ram_off, u64 size, bool on) {
    u8 bit = (u8)(1 << client);
    exclusive_begin(m, NULL);
    for (u64 page = ram_off / PAGE_SIZE; page < (ram_off + size + PAGE_SIZE - 1) / PAGE_SIZE; page++) {
        m->log[page] = on ? m->log[page] | bit : m->log[page] & ~bit;
        m->dirty[page] &= ~bit;
    }
    if (on) protect(m, NULL, PROTECT_SINGLY + 1);
    exclusive_end(m, NULL);
}

i64 dirty_fetch(Machine *m, int client, u64 ram_off, u64 size, u8 *out) {
    u8 bit = (u8)(1 << client);
    u64 first = ram_off / PAGE_SIZE, n = (size + PAGE_SIZE - 1) / PAGE_SIZE, found = 0, offs[PROTECT_SINGLY];
    exclusive_begin(m, NULL);
    for (u64 i = 0; i < n; i++) {
        out[i] = (m->dirty[first + i] & bit) != 0;
        if (!out[i]) continue;
        m->dirty[first + i] &= ~bit;
        if (found < PROTECT_SINGLY) offs[found] = (first + i) * PAGE_SIZE;
        found++;
    }
    protect(m, offs, found);
    exclusive_end(m, NULL);
    return (i64)found;
}
