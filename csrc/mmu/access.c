/* Slow paths of guest memory accesses: TLB misses, page crossings, devices, watched pages, checks.
 *
 * Every access is cut into one or two pieces (pages); all pieces are translated, and may raise, before the first byte
 * moves. Data then moves piecewise to RAM or to the device dispatcher. No libc here: vector registers are the guest's.
 */
#include "mmu/tlb.h"
#include "cpu/debugreg.h"

static u8 void_page[PAGE_SIZE]; /* what a fetch from a device or a hole executes: all ones, hence #UD */

static void copy(void *to, const void *from, unsigned n) {
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n)::"memory");
}

static _Noreturn void raise_noncanonical(Cpu *c, unsigned seg) {
    exc_raise_err(c, seg == SEG_SS ? EXC_SS : EXC_GP, c->exc.delivering);
}

/* A code segment may be read if its R bit says so, a data segment written if W; the limit by direction of growth
 * (SDM vol 3A 5.3). Real and virtual-8086 mode check limits only. */
void seg_check(Cpu *c, unsigned seg, u64 off, unsigned n, bool write) {
    const Segment *s = &c->seg[seg];
    u64 last = off + n - 1;
    unsigned r = s->rights;
    if ((c->cr0 & CR0_PE) && !(c->flags & FL_VM)) {
        if (!(r & SR_P)) goto bad;
        if (write ? (r & SR_CODE) || !(r & SR_RW) : (r & SR_CODE) && !(r & SR_RW)) goto bad;
        if (!(r & SR_CODE) && (r & SR_DC)) {
            u64 top = r & SR_DB ? 0xffffffff : 0xffff;
            if (off <= s->limit || last > top) goto bad;
            return;
        }
    }
    if (likely(last <= s->limit)) return;
    if (s->limit == 0xffffffff && off <= 0xffffffff) return; /* a flat segment wraps at 4 GiB */
bad:
    exc_raise_err(c, seg == SEG_SS ? EXC_SS : EXC_GP, 0);
}

/* Translates one piece; raises #PF. Fills both TLB levels. */
static void translate(Cpu *c, u64 lin, unsigned access, unsigned mmu, Xlat *x) {
    L2Entry *e = l2_find(c, lin);
    u64 val;
    if (e && mmu_allowed(c, e->val, access, mmu) && (access != ACC_WRITE || (e->val & L2_D))) {
        val = e->val;
    } else {
        val = mmu_walk(c, lin, access, mmu);
        l2_insert(c, lin, val);
    }
    x->gpa = ((val & PAGE_MASK) | (lin & ~PAGE_MASK)) & c->a20_mask;
    const MemRange *r = range_of(c, x->gpa);
    x->host = NULL;
    x->slow_write = x->drop = false;
    if (access != ACC_FETCH) tlb_fill(c, lin, val, mmu, r);
    if (access == ACC_WRITE) {
        if (r->write_upcall || r->kind > RANGE_ROM) return;
        x->drop = r->write_off == ~0ull;
        if (x->drop) return;
        x->ram_off = r->write_off + (x->gpa - r->gpa);
        x->slow_write = ram_page_needs_slow_write(c->machine, x->ram_off);
    } else {
        if (r->kind > RANGE_ROM) return;
        x->ram_off = r->ram_off + (x->gpa - r->gpa);
    }
    x->host = machine_ram_host(c->machine, x->ram_off);
}

/* Devices see naturally sized accesses: 8, 4, 2, 1 bytes as they fit. */
static void dev_read(Cpu *c, u64 gpa, u8 *to, unsigned n) {
    while (n) {
        unsigned part = n >= 8 ? 8 : n >= 4 ? 4 : n >= 2 ? 2 : 1;
        u64 v = mmio_read(c, gpa, part);
        copy(to, &v, part);
        gpa += part, to += part, n -= part;
    }
}
static void dev_write(Cpu *c, u64 gpa, const u8 *from, unsigned n) {
    while (n) {
        unsigned part = n >= 8 ? 8 : n >= 4 ? 4 : n >= 2 ? 2 : 1;
        u64 v = 0;
        copy(&v, from, part);
        mmio_write(c, gpa, part, v);
        gpa += part, from += part, n -= part;
    }
}

static void piece_read(Cpu *c, const Xlat *x, void *to, unsigned n) {
    if (x->host) copy(to, x->host, n);
    else dev_read(c, x->gpa, to, n);
}
static COLD void log_store(StoreLog *l, u8 *p, unsigned n) {
    if (l->n == STORE_LOG_MAX || n > STORE_MAX) {
        l->full = true;
        return;
    }
    l->e[l->n].p = p;
    l->e[l->n].n = (u8)n;
    copy(l->e[l->n++].before, p, n);
}

static void piece_write(Cpu *c, const Xlat *x, const void *from, unsigned n) {
    if (x->drop) return;
    if (!x->host) {
        dev_write(c, x->gpa, from, n);
        return;
    }
    if (unlikely(c->stores)) log_store(c->stores, x->host, n);
    if (x->slow_write) ram_store_before(c->machine, c, x->ram_off, n);
    /* Aligned stores stay one store: other vCPUs and the guest's devices look. */
    if (n == 8) *(u64 *)x->host = *(const u64 *)from;
    else if (n == 4) *(u32 *)x->host = *(const u32 *)from;
    else if (n == 2) *(u16 *)x->host = *(const u16 *)from;
    else copy(x->host, from, n);
    if (x->slow_write) ram_store_after(c->machine, c, x->ram_off, n);
}

/* DR7 data breakpoints: R/W 1 writes, 3 any data access (SDM vol 3B 17.2.5). Raised as a trap behind the instruction,
 * which therefore has to be executed singly; what an event's delivery touches is only noted. */
static COLD void note_watch(Cpu *c, u64 lin, unsigned n, bool write) {
    for (unsigned i = 0; i < 4; i++) {
        bool kind = dr_kind(c, i) == DR_ACCESS || (dr_kind(c, i) == DR_WRITE && write);
        if (!dr_armed(c, i) || !kind || !dr_meets(c, i, lin, n)) continue;
        if (!(c->mode & MODE_STEP) && !c->exc.delivering) exc_restart_singly(c);
        c->dbg_hits |= 1u << i;
    }
}

/* SDM vol 3A table 6-7. An 80-bit real counts as 8 bytes, vectors as at most 16, saved FPU
 * states as their parts. */
static void check_alignment(Cpu *c, u64 lin, unsigned n) {
    if (!(c->flags & FL_AC) || !(c->cr0 & CR0_AM) || c->cpl != 3) return;
    unsigned align = n == 10 ? 8 : n == 32 ? 16 : n & -n;
    if (align <= 16 && lin & (align - 1)) exc_raise_err(c, EXC_AC, 0);
}

/* The pages of one access. */
typedef struct Access {
    Xlat x[2];
    unsigned first; /* bytes in x[0] */
} Access;

static void access_begin(Cpu *c, Access *a, u64 lin, unsigned n, unsigned access, unsigned seg, unsigned mmu) {
    u64 room = PAGE_SIZE - (lin & ~PAGE_MASK), next = (lin + room) & sys_mask(c);
    a->first = n <= room ? n : (unsigned)room;
    if ((c->efer & EFER_LMA) && (!lin_canonical(c, lin) || (a->first < n && !lin_canonical(c, next))))
        raise_noncanonical(c, seg);
    if (c->tlb == tlb_never && mmu == MMU_USER) check_alignment(c, lin, n); /* before any page fault */
    translate(c, lin, access, mmu, &a->x[0]);
    if (a->first < n) translate(c, next, access, mmu, &a->x[1]);
    if (unlikely(c->dbg_data)) note_watch(c, lin, n, access == ACC_WRITE);
}
static void access_read(Cpu *c, Access *a, void *to, unsigned n) {
    piece_read(c, &a->x[0], to, a->first);
    if (a->first < n) piece_read(c, &a->x[1], (u8 *)to + a->first, n - a->first);
}
static void access_write(Cpu *c, Access *a, const void *from, unsigned n) {
    piece_write(c, &a->x[0], from, a->first);
    if (a->first < n) piece_write(c, &a->x[1], (const u8 *)from + a->first, n - a->first);
}

u64 mem_slow_read(Cpu *c, u64 lin, unsigned n, unsigned seg, unsigned mmu) {
    Access a;
    u64 v = 0;
    access_begin(c, &a, lin, n, ACC_READ, seg, mmu);
    access_read(c, &a, &v, n);
    return v;
}

void mem_slow_write(Cpu *c, u64 lin, unsigned n, u64 v, unsigned seg, unsigned mmu) {
    Access a;
    access_begin(c, &a, lin, n, ACC_WRITE, seg, mmu);
    access_write(c, &a, &v, n);
}

/* In RAM the pointer is the guest's byte itself, so that LOCKed handlers stay atomic; only crossings, ROM and devices
 * are bounced. The translation is kept in Cpu: rmw_slow_end must not walk again, it could fault. */
void rmw_slow_begin(Cpu *c, Rmw *m) {
    Access a;
    access_begin(c, &a, m->lin, m->n, ACC_WRITE, m->seg, c->mmu_mode);
    m->slow = true;
    if (a.x[0].host && a.first == m->n) {
        if (unlikely(c->stores)) log_store(c->stores, a.x[0].host, m->n);
        if (a.x[0].slow_write) ram_store_before(c->machine, c, a.x[0].ram_off, m->n);
        m->slow = a.x[0].slow_write;
        m->p = a.x[0].host;
        m->bounce = a.x[0].ram_off;
        return;
    }
    Access r;
    access_begin(c, &r, m->lin, m->n, ACC_READ, m->seg, c->mmu_mode);
    m->bounce = 0;
    access_read(c, &r, &m->bounce, m->n);
    m->p = &m->bounce;
    c->rmw_gpa[0] = a.x[0].gpa;
    c->rmw_gpa[1] = a.first < m->n ? a.x[1].gpa : 0;
}

/* The write side of a page whose translation is known. */
static void resolve_write(Cpu *c, u64 gpa, Xlat *x) {
    const MemRange *r = range_of(c, gpa);
    *x = (Xlat){.gpa = gpa};
    if (r->write_upcall || r->kind > RANGE_ROM) return;
    x->drop = r->write_off == ~0ull;
    if (x->drop) return;
    x->ram_off = r->write_off + (gpa - r->gpa);
    x->slow_write = ram_page_needs_slow_write(c->machine, x->ram_off);
    x->host = machine_ram_host(c->machine, x->ram_off);
}

void rmw_slow_end(Cpu *c, Rmw *m) {
    if (m->p != &m->bounce) {
        ram_store_after(c->machine, c, m->bounce, m->n);
        return;
    }
    Access a;
    u64 room = PAGE_SIZE - (m->lin & ~PAGE_MASK);
    a.first = m->n <= room ? m->n : (unsigned)room;
    resolve_write(c, c->rmw_gpa[0], &a.x[0]);
    if (a.first < m->n) resolve_write(c, c->rmw_gpa[1], &a.x[1]);
    access_write(c, &a, &m->bounce, m->n);
}

const void *ld_wide(Cpu *c, unsigned seg, u64 off, unsigned n, void *buf) {
    u64 lin = seg_lin_r(c, seg, off, n);
    void *p = tlb_hit_r(c->tlb, lin, n);
    if (likely(p != NULL)) return p;
    Access a;
    access_begin(c, &a, lin, n, ACC_READ, seg, c->mmu_mode);
    access_read(c, &a, buf, n);
    return buf;
}

void *st_wide_begin(Cpu *c, unsigned seg, u64 off, unsigned n, void *buf) {
    u64 lin = seg_lin_w(c, seg, off, n);
    void *p = tlb_hit_w(c->tlb, lin, n);
    if (likely(p != NULL)) return p;
    Access a;
    access_begin(c, &a, lin, n, ACC_WRITE, seg, c->mmu_mode);
    if (a.x[0].host && !a.x[0].slow_write && a.first == n) {
        if (unlikely(c->stores)) log_store(c->stores, a.x[0].host, n);
        return a.x[0].host;
    }
    c->rmw_gpa[0] = a.x[0].gpa;
    c->rmw_gpa[1] = a.first < n ? a.x[1].gpa : 0;
    return buf;
}

void st_wide_end(Cpu *c, unsigned seg, u64 off, unsigned n, void *buf, void *where) {
    if (likely(where != buf)) return;
    Access a;
    u64 room = PAGE_SIZE - (c->rmw_gpa[0] & ~PAGE_MASK);
    a.first = n <= room ? n : (unsigned)room;
    resolve_write(c, c->rmw_gpa[0], &a.x[0]);
    if (a.first < n) resolve_write(c, c->rmw_gpa[1], &a.x[1]);
    access_write(c, &a, buf, n);
}

void mem_probe(Cpu *c, unsigned seg, u64 off, unsigned n, unsigned access) {
    bool write = access == ACC_WRITE;
    u64 lin = write ? seg_lin_w(c, seg, off, n) : seg_lin_r(c, seg, off, n);
    if (likely((write ? tlb_hit_w(c->tlb, lin, n) : tlb_hit_r(c->tlb, lin, n)) != NULL)) return;
    u32 hits = c->dbg_hits;
    Access a;
    access_begin(c, &a, lin, n, access, seg, c->mmu_mode);
    c->dbg_hits = hits;
}

u64 sys_read(Cpu *c, u64 lin, unsigned n) {
    lin &= sys_mask(c);
    void *p = tlb_hit_r(c->tlbs[MMU_KERNEL], lin, n);
    u64 v = 0;
    if (unlikely(!p)) return mem_slow_read(c, lin, n, SEG_ES, MMU_KERNEL);
    copy(&v, p, n);
    return v;
}

void sys_write(Cpu *c, u64 lin, unsigned n, u64 v) {
    lin &= sys_mask(c);
    void *p = tlb_hit_w(c->stores ? tlb_never : c->tlbs[MMU_KERNEL], lin, n);
    if (likely(p != NULL)) copy(p, &v, n);
    else mem_slow_write(c, lin, n, v, SEG_ES, MMU_KERNEL);
}

const u8 *mmu_fetch(Cpu *c, u64 lin, u64 *ram_off) {
    unsigned mmu = c->cpl == 3 ? MMU_USER : MMU_KERNEL;
    Xlat x;
    if (c->lin_mask == ~0ull && unlikely(!lin_canonical(c, lin))) raise_noncanonical(c, SEG_CS);
    translate(c, lin & c->lin_mask, ACC_FETCH, mmu, &x);
    if (likely(x.host != NULL)) {
        *ram_off = x.ram_off;
        return x.host;
    }
    *ram_off = ~0ull;
    for (unsigned i = 0; i < PAGE_SIZE; i++) void_page[i] = 0xff;
    return void_page + (lin & ~PAGE_MASK);
}
