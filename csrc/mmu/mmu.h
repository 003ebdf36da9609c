/* Guest memory accesses: segmentation, software TLB, page walk (SDM vol 3A, chapters 3 and 4).
 * The inline paths hit RAM through the TLB; everything else (walks, faults, MMIO, page crossing, pages with decoded
 * code, dirty logging) is behind one out-of-line call. All raise through exc_raise*() and have no side effect then. */
#ifndef QPY_MMU_MMU_H
#define QPY_MMU_MMU_H

#include "cpu/cpu.h"

/* Access kinds; values are #PF error-code bits where they have one. */
enum { ACC_READ = 0, ACC_WRITE = 2, ACC_FETCH = 16 };

/* Whether lin is canonical at the current paging depth. */
INLINE bool lin_canonical(const Cpu *c, u64 lin) {
    unsigned shift = c->cr4 & CR4_LA57 ? 7 : 16;
    return (u64)((i64)(lin << shift) >> shift) == lin;
}

/* Raises #GP(0)/#SS(0) unless off..off+n-1 is inside segment seg with the rights the access needs. */
void seg_check(Cpu *c, unsigned seg, u64 off, unsigned n, bool write);

INLINE u64 seg_lin_r(Cpu *c, unsigned seg, u64 off, unsigned n) {
    if (unlikely(!(c->seg_rok >> seg & 1))) seg_check(c, seg, off, n, false);
    return (c->ea_base[seg] + off) & c->lin_mask;
}
INLINE u64 seg_lin_w(Cpu *c, unsigned seg, u64 off, unsigned n) {
    if (unlikely(!(c->seg_wok >> seg & 1))) seg_check(c, seg, off, n, true);
    return (c->ea_base[seg] + off) & c->lin_mask;
}

INLINE TlbEntry *tlb_slot(TlbEntry *tlb, u64 lin) { return &tlb[lin >> PAGE_BITS & (TLB_SIZE - 1)]; }
/* Host address of n <= 4096 readable / writable bytes at lin, or NULL if the slow path must look. */
INLINE void *tlb_hit_r(TlbEntry *tlb, u64 lin, unsigned n) {
    TlbEntry *e = tlb_slot(tlb, lin);
    return likely(lin + e->rtag <= PAGE_SIZE - n) ? (void *)(lin + e->delta) : NULL;
}
INLINE void *tlb_hit_w(TlbEntry *tlb, u64 lin, unsigned n) {
    TlbEntry *e = tlb_slot(tlb, lin);
    return likely(lin + e->wtag <= PAGE_SIZE - n) ? (void *)(lin + e->delta) : NULL;
}

/* Slow paths (mmu/access.c), n = 1..8. mmu: MMU_*; seg only decides #SS against #GP for non-canonical addresses. */
u64 mem_slow_read(Cpu *c, u64 lin, unsigned n, unsigned seg, unsigned mmu);
void mem_slow_write(Cpu *c, u64 lin, unsigned n, u64 v, unsigned seg, unsigned mmu);

#define DEF_ACCESS(bits)                                                                                               \
    INLINE u##bits ld##bits(Cpu *c, unsigned seg, u64 off) {                                                           \
        u64 lin = seg_lin_r(c, seg, off, bits / 8);                                                                    \
        u##bits *p = tlb_hit_r(c->tlb, lin, bits / 8);                                                                 \
        return likely(p != NULL) ? *p : (u##bits)mem_slow_read(c, lin, bits / 8, seg, c->mmu_mode);                    \
    }                                                                                                                  \
    INLINE void st##bits(Cpu *c, unsigned seg, u64 off, u##bits v) {                                                   \
        u64 lin = seg_lin_w(c, seg, off, bits / 8);                                                                    \
        u##bits *p = tlb_hit_w(c->tlb, lin, bits / 8);                                                                 \
        if (likely(p != NULL)) *p = v;                                                                                 \
        else mem_slow_write(c, lin, bits / 8, v, seg, c->mmu_mode);                                                    \
    }
DEF_ACCESS(8)
DEF_ACCESS(16)
DEF_ACCESS(32)
DEF_ACCESS(64)

/* Read-modify-write of n = 1..8 bytes: rmw_begin proves the location writable and gives a pointer to the value (guest
 * RAM itself or a bounce buffer); rmw_end stores a bounced value. Nothing between the two may raise. */
typedef struct Rmw {
    void *p;
    u64 lin, bounce;
    u8 n, seg;
    bool slow;
} Rmw;
void rmw_slow_begin(Cpu *c, Rmw *m);
void rmw_slow_end(Cpu *c, Rmw *m);
INLINE void *rmw_begin(Cpu *c, Rmw *m, unsigned seg, u64 off, unsigned n) {
    m->lin = seg_lin_w(c, seg, off, n);
    m->p = tlb_hit_w(c->tlb, m->lin, n);
    m->slow = false;
    if (unlikely(m->p == NULL)) {
        m->n = n;
        m->seg = seg;
        rmw_slow_begin(c, m);
    }
    return m->p;
}
INLINE void rmw_end(Cpu *c, Rmw *m) {
    if (unlikely(m->slow)) rmw_slow_end(c, m);
}

/* Wide operands (n up to 1088). ld_wide: pointer to n readable bytes: guest RAM, or buf filled bytewise. st_wide_begin:
 * proves all n bytes writable and returns where to put them (guest RAM or buf); st_wide_end stores a bounced buf. */
const void *ld_wide(Cpu *c, unsigned seg, u64 off, unsigned n, void *buf);
void *st_wide_begin(Cpu *c, unsigned seg, u64 off, unsigned n, void *buf);
void st_wide_end(Cpu *c, unsigned seg, u64 off, unsigned n, void *buf, void *where);

/* Proves n bytes (at most two pages) readable (ACC_READ) or writable (ACC_WRITE), raising like the access would. */
void mem_probe(Cpu *c, unsigned seg, u64 off, unsigned n, unsigned access);

/* Width of linear addresses: long mode's tables and inner stacks lie above 4 GiB even while 32-bit code runs. */
INLINE u64 sys_mask(const Cpu *c) { return c->efer & EFER_LMA ? ~0ull : 0xffffffff; }
/* Implicit supervisor accesses at linear addresses: descriptor tables, TSS. n = 1, 2, 4, 8. */
u64 sys_read(Cpu *c, u64 lin, unsigned n);
void sys_write(Cpu *c, u64 lin, unsigned n, u64 v);

/* Translates a fetch at lin with the current rights. Returns the host address of the byte and sets *ram_off (offset in
 * the machine's RAM space, the key of decoded blocks; ~0 if not RAM or ROM) or raises #PF. The page stays valid until
 * the next safe point. */
const u8 *mmu_fetch(Cpu *c, u64 lin, u64 *ram_off);

/* Was lin, which has just been translated, so through a global page? */
bool mmu_is_global(Cpu *c, u64 lin);

/* Debug translation without side effects (no A/D bits, no fault): true and *gpa, or false. */
bool mmu_translate_debug(Cpu *c, u64 lin, u64 *gpa);

void tlb_flush_all(Cpu *c);
void tlb_flush_nonglobal(Cpu *c);
void tlb_flush_page(Cpu *c, u64 lin);
void tlb_drop_nonglobal(Cpu *c);   /* CR3 now names another PCID: the first level only */
void tlb_drop_first_level(Cpu *c); /* PKRU changed */
void tlb_flush_pcid(Cpu *c, unsigned pcid);
void tlb_flush_all_nonglobal(Cpu *c);
void tlb_flush_page_pcid(Cpu *c, u64 lin, unsigned pcid);
/* Drops the write tags of every entry that maps this RAM page (it gets decoded code, dirty logging starts). */
void tlb_protect_ram_page(Cpu *c, u64 ram_off);

#endif
