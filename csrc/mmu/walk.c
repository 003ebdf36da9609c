/* Page walks (Intel SDM vol 3A chapter 4): no paging, 32-bit, PAE, 4-level and 5-level paging.
 *
 * Accessed bits are set level by level with a compare-and-swap, as another vCPU or the guest's OS may edit the entry at
 * the same time; the dirty bit only when the access is allowed. A lost race starts the walk again. */
#include "mmu/tlb.h"
#include "cpu/model.h"

enum { PTE_P = 1, PTE_W = 2, PTE_U = 4, PTE_A = 0x20, PTE_D = 0x40, PTE_PS = 0x80, PTE_G = 0x100 };
#define PTE_NX   BIT(63)
#define PTE_ADDR (PHYS_MASK & PAGE_MASK)
enum { PF_P = 1, PF_W = 2, PF_U = 4, PF_RSVD = 8, PF_I = 16, PF_PK = 32 };

typedef struct WalkState {
    Cpu *c;
    u64 lin;
    unsigned access, mmu;
    bool debug; /* no A/D updates */
    bool retry; /* an entry changed under us */
    u32 error;  /* #PF bits P and RSVD, valid when walk_*() returned false */
    u64 val;    /* result: gpa | L2_* */
} WalkState;

/* Protection keys guard data accesses to user pages, by whoever (SDM 4.6.2). */
static bool key_denies(const Cpu *c, u64 val, unsigned access, unsigned mmu) {
    if (!(c->cr4 & CR4_PKE) || !(val & L2_U) || access == ACC_FETCH || !(c->efer & EFER_LMA)) return false;
    unsigned bits = c->pkru >> (2 * (val >> L2_KEY_SHIFT & 15)) & 3;
    return (bits & 1) || ((bits & 2) && access == ACC_WRITE && (mmu == MMU_USER || (c->cr0 & CR0_WP)));
}

bool mmu_allowed(const Cpu *c, u64 val, unsigned access, unsigned mmu) {
    if (unlikely(c->cr4 & CR4_PKE) && key_denies(c, val, access, mmu)) return false;
    if (mmu == MMU_USER) {
        if (!(val & L2_U)) return false;
        return access == ACC_WRITE ? (val & L2_W) != 0 : access != ACC_FETCH || !(val & L2_NX);
    }
    if (access == ACC_FETCH) return !(val & L2_NX) && !((val & L2_U) && (c->cr4 & CR4_SMEP));
    if ((val & L2_U) && mmu == MMU_KERNEL && (c->cr4 & CR4_SMAP)) return false;
    return access != ACC_WRITE || (val & L2_W) || !(c->cr0 & CR0_WP);
}

static u8 *table_host(Cpu *c, u64 gpa, bool write, u64 *ram_off) {
    const MemRange *r = range_of(c, gpa);
    if (r->kind != RANGE_RAM && (write || r->kind != RANGE_ROM)) return NULL;
    if (write && (r->write_off != r->ram_off || r->write_upcall)) return NULL;
    *ram_off = r->ram_off + (gpa - r->gpa);
    return machine_ram_host(c->machine, *ram_off);
}

static u64 entry_read(WalkState *w, u64 gpa, unsigned n) {
    u64 ram_off;
    gpa &= w->c->a20_mask;
    u8 *host = table_host(w->c, gpa, false, &ram_off);
    if (unlikely(!host)) return w->debug ? 0 : mmio_read(w->c, gpa, n);
    return n == 8 ? __atomic_load_n((u64 *)host, __ATOMIC_RELAXED) : __atomic_load_n((u32 *)host, __ATOMIC_RELAXED);
}

/* Sets bits in an entry that still reads `old`; page tables in ROM or devices keep what they hold. */
static void entry_set(WalkState *w, u64 gpa, u64 old, u64 bits, unsigned n) {
    u64 ram_off;
    if (w->debug || (old & bits) == bits) return;
    gpa &= w->c->a20_mask;
    u8 *host = table_host(w->c, gpa, true, &ram_off);
    if (!host) return;
    bool slow = ram_page_needs_slow_write(w->c->machine, ram_off);
    if (slow) ram_store_before(w->c->machine, w->c, ram_off, n);
    u32 old32 = (u32)old;
    bool ok =
        n == 8 ? __atomic_compare_exchange_n((u64 *)host, &old, old | bits, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)
               : __atomic_compare_exchange_n((u32 *)host, &old32, old32 | (u32)bits, false, __ATOMIC_SEQ_CST,
                                             __ATOMIC_RELAXED);
    if (slow) ram_store_after(w->c->machine, w->c, ram_off, n);
    if (!ok) w->retry = true;
}

/* The leaf entry is known: rights, A and D. size: bytes the entry maps; base: its frame. */
static bool walk_leaf(WalkState *w, u64 entry_gpa, u64 entry, unsigned n, u64 rights, u64 base, u64 size) {
    Cpu *c = w->c;
    rights |= (entry & PTE_G) && (c->cr4 & CR4_PGE) ? L2_G : 0;
    rights |= size > PAGE_SIZE ? L2_LARGE : 0;
    rights |= size > 4 * 1024 * 1024 ? L2_HUGE : 0;
    if (c->efer & EFER_LMA) rights |= BITS(entry, 62, 59) << L2_KEY_SHIFT;
    if (!w->debug && !mmu_allowed(c, rights, w->access, w->mmu)) {
        w->error = PF_P | (key_denies(c, rights, w->access, w->mmu) ? PF_PK : 0);
        return false;
    }
    bool dirty = w->access == ACC_WRITE;
    entry_set(w, entry_gpa, entry, PTE_A | (dirty ? PTE_D : 0), n);
    if (dirty || (entry & PTE_D)) rights |= L2_D;
    w->val = (base & ~(size - 1) & PTE_ADDR) | (w->lin & (size - 1) & PAGE_MASK) | rights;
    return true;
}

/* Two-level 32-bit paging with 4 MiB pages and PSE-36 (SDM 4.3). */
static bool walk_32(WalkState *w) {
    Cpu *c = w->c;
    u64 gpa = (c->cr3 & 0xfffff000) + (w->lin >> 22 & 0x3ff) * 4;
    u64 pde = entry_read(w, gpa, 4);
    u64 rights = (pde & PTE_W ? L2_W : 0) | (pde & PTE_U ? L2_U : 0);
    w->error = 0;
    if (!(pde & PTE_P)) return false;
    if ((pde & PTE_PS) && (c->cr4 & CR4_PSE)) {
        w->error = PF_P | PF_RSVD;
        if (pde & (cpu_has(c, FEAT_PSE36) ? 0x200000 : 0x3fe000)) return false;
        u64 base = (pde & 0xffc00000) | BITS(pde, 20, 13) << 32;
        return walk_leaf(w, gpa, pde, 4, rights, base, 4 * 1024 * 1024);
    }
    entry_set(w, gpa, pde, PTE_A, 4);
    gpa = (pde & 0xfffff000) + (w->lin >> 12 & 0x3ff) * 4;
    u64 pte = entry_read(w, gpa, 4);
    if (!(pte & PTE_P)) return false;
    rights &= (pte & PTE_W ? L2_W : 0) | (pte & PTE_U ? L2_U : 0);
    return walk_leaf(w, gpa, pte, 4, rights, pte & 0xfffff000, PAGE_SIZE);
}

/* Bits of an 8-byte entry that must be 0 (SDM 4.4.2, 4.5.4). */
static u64 reserved_bits(const Cpu *c, unsigned level, u64 entry) {
    bool lma = c->efer & EFER_LMA;
    u64 rsvd = (lma ? BIT(52) - 1 : BIT(63) - 1) & ~PHYS_MASK;
    if (!(c->efer & EFER_NXE)) rsvd |= PTE_NX;
    if (level == 1 || !(entry & PTE_PS)) return rsvd;
    if (level == 2) return rsvd | 0x1fe000;
    if (level == 3 && cpu_has(c, FEAT_PDPE1GB)) return rsvd | 0x3fffe000;
    return rsvd | PTE_PS;
}

static bool walk_64(WalkState *w) {
    Cpu *c = w->c;
    u64 rights = L2_W | L2_U, table = c->cr3;
    unsigned level = c->cr4 & CR4_LA57 ? 5 : 4;
    w->error = 0;
    if (!(c->efer & EFER_LMA)) {
        table = c->pdpte[w->lin >> 30 & 3];
        level = 2;
        if (!(table & PTE_P)) return false;
    }
    for (;; level--) {
        unsigned shift = 3 + 9 * level;
        u64 gpa = (table & PTE_ADDR) + (w->lin >> shift & 511) * 8;
        u64 entry = entry_read(w, gpa, 8);
        w->error = 0;
        if (!(entry & PTE_P)) return false;
        w->error = PF_P | PF_RSVD;
        if (entry & reserved_bits(c, level, entry)) return false;
        rights &= ~(u64)((entry & PTE_W ? 0 : L2_W) | (entry & PTE_U ? 0 : L2_U));
        rights |= entry & PTE_NX ? L2_NX : 0;
        if (level == 1 || (entry & PTE_PS)) return walk_leaf(w, gpa, entry, 8, rights, entry & PTE_ADDR, BIT(shift));
        entry_set(w, gpa, entry, PTE_A, 8);
        table = entry;
    }
}

static bool walk_once(WalkState *w) {
    if (!(w->c->cr0 & CR0_PG)) {
        w->val = (w->lin & 0xfffff000) | L2_W | L2_U | L2_D | L2_G;
        return true;
    }
    return w->c->cr4 & CR4_PAE ? walk_64(w) : walk_32(w);
}

u64 mmu_walk(Cpu *c, u64 lin, unsigned access, unsigned mmu) {
    WalkState w = {.c = c, .lin = lin, .access = access, .mmu = mmu};
    bool ok;
    do {
        w.retry = false;
        ok = walk_once(&w);
    } while (w.retry);
    if (likely(ok)) return w.val;
    u32 error = w.error | (access == ACC_WRITE ? PF_W : 0) | (mmu == MMU_USER ? PF_U : 0);
    bool has_nx = (c->cr4 & CR4_PAE) && (c->efer & EFER_NXE);
    if (access == ACC_FETCH && (has_nx || (c->cr4 & CR4_SMEP))) error |= PF_I;
    exc_raise_pf(c, lin, error);
}

bool mmu_translate_debug(Cpu *c, u64 lin, u64 *gpa) {
    WalkState w = {.c = c, .lin = lin, .debug = true};
    if (!walk_once(&w)) return false;
    *gpa = ((w.val & PAGE_MASK) | (lin & ~PAGE_MASK)) & c->a20_mask;
    return true;
}
