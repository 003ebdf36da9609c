/* What walk.c, tlb.c and access.c share: second-level entries, translation results. */
#ifndef QPY_MMU_TLB_H
#define QPY_MMU_TLB_H

#include "mmu/mmu.h"
#include "memory/machine.h"

/* Low bits of L2Entry.val: the rights all levels of the page tables agree on. */
enum {
    L2_W = 1,
    L2_U = 2,
    L2_NX = 4,
    L2_G = 8,
    L2_D = 16,
    L2_LARGE = 32,
    L2_HUGE = 64,
    L2_KEY_SHIFT = 7 /* bits 7-10: protection key */
};
#define LOW_HALF (1ull << 47) /* linear addresses of user code; a kernel's global pages are elsewhere */

/* Low bits of TlbEntry.meta. */
enum { TLBM_GLOBAL = 1, TLBM_LISTED = 2 };

/* Where an access goes. host: guest RAM or ROM, NULL for devices and holes. */
typedef struct Xlat {
    u64 gpa;
    u8 *host;
    u64 ram_off;
    bool slow_write; /* a store must be announced (code, dirty logging), or is dropped or sent to the device */
    bool drop;       /* ROM: writes vanish */
} Xlat;

/* Walks the page tables for one access; returns L2Entry.val or raises #PF. */
u64 mmu_walk(Cpu *c, u64 lin, unsigned access, unsigned mmu);
bool mmu_allowed(const Cpu *c, u64 val, unsigned access, unsigned mmu);

L2Entry *l2_find(Cpu *c, u64 lin);
void l2_insert(Cpu *c, u64 lin, u64 val);
/* Fills the first-level entry from a translation. */
void tlb_fill(Cpu *c, u64 lin, u64 val, unsigned mmu, const MemRange *r);

/* machine_range() with a memory; a changed view flushes every TLB, and this with it. */
INLINE const MemRange *range_of(Cpu *c, u64 gpa) {
    const MemRange *r = c->last_range;
    if (unlikely(!r) || gpa - r->gpa >= r->size) c->last_range = r = machine_range(c->machine, gpa);
    return r;
}

INLINE unsigned cpu_pcid(const Cpu *c) { return c->cr4 & CR4_PCIDE ? c->cr3 & 0xfff : 0; }

#endif
