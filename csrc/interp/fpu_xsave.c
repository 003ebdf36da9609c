/* FXSAVE, FXRSTOR, XSAVE, XSAVEOPT, XSAVEC, XRSTOR, LDMXCSR, STMXCSR (Intel SDM vol 1, 10.5 and chapter 13). The layout
 * follows the guest's XCR0; the pointers are the guest's. */
#include "cpu/model.h"
#include "interp/fpu_ops.h"

enum { COMPACT = 63, AVX_BYTES = 256, PKRU_BYTES = 8, LEGACY_HEADER = 576, AREA_MAX = 1088 };

static bool is_zero(const u8 *p, unsigned n) {
    for (unsigned i = 0; i < n; i += 8)
        if (*(const u64 *)(p + i)) return false;
    return true;
}

/* How many XMM and YMM registers the current code can name and save. */
static unsigned vector_regs(const Cpu *c) { return c->mode & MODE_CS64 ? 16 : 8; }

/* A destination of n bytes of which only some will be written: a bounce buffer starts as what memory holds. */
static u8 *begin_partial(Cpu *c, const Insn *in, u64 off, unsigned n, u8 *buf) {
    u8 *p = st_wide_begin(c, in->seg, off, n, buf);
    if (p == buf) {
        const u8 *old = ld_wide(c, in->seg, off, n, buf);
        if (old != buf) fpu_copy(buf, old, n);
    }
    return p;
}

static u64 aligned_ea(Cpu *c, const Insn *in, unsigned align, bool write) {
    u64 off = insn_ea(c, in);
    u64 lin = write ? seg_lin_w(c, in->seg, off, align) : seg_lin_r(c, in->seg, off, align);
    if (lin & (align - 1)) exc_gp0(c);
    return off;
}

static void save_x87(Cpu *c, const Insn *in, u8 *p) {
    const FpuState *f = &c->fpu;
    *(u32 *)p = *(const u32 *)f->area;
    *(u16 *)(p + FX_FTW) = f->area[FX_FTW];
    *(u16 *)(p + FX_FOP) = f->fop;
    *(u64 *)(p + FX_FIP) = in->osz == 8 ? f->fip : (u32)f->fip | (u64)f->fcs << 32;
    *(u64 *)(p + FX_FDP) = in->osz == 8 ? f->fdp : (u32)f->fdp | (u64)f->fds << 32;
    fpu_copy(p + FX_ST, f->area + FX_ST, 128);
}

static void save_mxcsr(Cpu *c, u8 *p) {
    *(u32 *)(p + FX_MXCSR) = *fpu_u32(c, FX_MXCSR);
    *(u32 *)(p + FX_MXCSR_MASK) = FPU_MXCSR_MASK;
}

static void load_x87(Cpu *c, const Insn *in, const u8 *p) {
    FpuState *f = &c->fpu;
    *fpu_u16(c, FX_FCW) = (u16)((*(const u16 *)(p + FX_FCW) & 0x1f7f) | 0x40);
    *fpu_u16(c, FX_FSW) = *(const u16 *)(p + FX_FSW);
    *fpu_u16(c, FX_FTW) = p[FX_FTW];
    f->fop = *(const u16 *)(p + FX_FOP) & 0x7ff;
    u64 ip = *(const u64 *)(p + FX_FIP), dp = *(const u64 *)(p + FX_FDP);
    f->fip = in->osz == 8 ? ip : (u32)ip;
    f->fdp = in->osz == 8 ? dp : (u32)dp;
    f->fcs = in->osz == 8 ? 0 : (u16)(ip >> 32);
    f->fds = in->osz == 8 ? 0 : (u16)(dp >> 32);
    for (unsigned i = FX_ST; i < FX_ST + 128; i += 16) {
        *(u64 *)(f->area + i) = *(const u64 *)(p + i);
        *(u16 *)(f->area + i + 8) = *(const u16 *)(p + i + 8);
    }
    fpu_settle(c);
}

void op_fxsave(Cpu *c, const Insn *in) {
    u8 buf[FX_BYTES] __attribute__((aligned(16)));
    u64 off = aligned_ea(c, in, 16, true);
    u8 *p = begin_partial(c, in, off, FX_BYTES, buf);
    fpu_peek(c);
    save_x87(c, in, p);
    save_mxcsr(c, p);
    if (c->cr4 & CR4_OSFXSR) fpu_copy(p + FX_XMM, c->fpu.area + FX_XMM, 16 * vector_regs(c));
    st_wide_end(c, in->seg, off, FX_BYTES, buf, p);
}

void op_fxrstor(Cpu *c, const Insn *in) {
    u8 buf[FX_BYTES] __attribute__((aligned(16)));
    u64 off = aligned_ea(c, in, 16, false);
    const u8 *p = ld_wide(c, in->seg, off, FX_BYTES, buf);
    u32 mxcsr = *(const u32 *)(p + FX_MXCSR);
    if (c->cr4 & CR4_OSFXSR && mxcsr & ~FPU_MXCSR_MASK) exc_gp0(c);
    fpu_peek(c);
    load_x87(c, in, p);
    if (c->cr4 & CR4_OSFXSR) {
        *fpu_u32(c, FX_MXCSR) = mxcsr;
        fpu_copy(c->fpu.area + FX_XMM, p + FX_XMM, 16 * vector_regs(c));
    }
    fpu_poke(c);
}

/* Requested components: EDX:EAX & XCR0. */
static u64 requested(const Cpu *c) { return ((u64)(u32)c->r[R_RDX] << 32 | (u32)c->r[R_RAX]) & c->xcr0; }

static bool x87_initial(Cpu *c) {
    const u8 *a = c->fpu.area;
    return *fpu_u16(c, FX_FCW) == FPU_FCW_INIT && !*fpu_u16(c, FX_FSW) && !a[FX_FTW] && !c->fpu.fop && !c->fpu.fip &&
           !c->fpu.fdp && is_zero(a + FX_ST, 128);
}

/* XINUSE: the components not in their initial configuration (SDM vol 1, 13.6). */
static u64 in_use(Cpu *c) {
    const u8 *a = c->fpu.area;
    u64 used = 0;
    if (!x87_initial(c)) used |= XCR0_X87;
    if (!is_zero(a + FX_XMM, 256)) used |= XCR0_SSE;
    if (!is_zero(a + XS_YMMH, 256)) used |= XCR0_AVX;
    if (c->pkru) used |= XCR0_PKRU;
    return used;
}

u64 fpu_xinuse(Cpu *c) {
    fpu_peek(c);
    return in_use(c) & c->xcr0;
}

/* Where a component lies: standard offsets, or packed behind the header in the order of their bits. */
static unsigned pkru_offset(u64 xcomp) {
    if (!(xcomp >> COMPACT)) return XS_PKRU;
    return xcomp & XCR0_AVX ? LEGACY_HEADER + AVX_BYTES : LEGACY_HEADER;
}

static unsigned area_bytes(u64 rfbm, u64 xcomp) {
    if (rfbm & XCR0_PKRU) return pkru_offset(xcomp) + PKRU_BYTES;
    return rfbm & XCR0_AVX ? LEGACY_HEADER + AVX_BYTES : LEGACY_HEADER;
}

static void save_components(Cpu *c, const Insn *in, u8 *p, u64 which, u64 xcomp) {
    unsigned n = 16 * vector_regs(c);
    if (which & XCR0_X87) save_x87(c, in, p);
    if (which & XCR0_SSE) fpu_copy(p + FX_XMM, c->fpu.area + FX_XMM, n);
    if (which & XCR0_AVX) fpu_copy(p + XS_YMMH, c->fpu.area + XS_YMMH, n);
    if (which & XCR0_PKRU) *(u64 *)(p + pkru_offset(xcomp)) = c->pkru;
}

static void xsave(Cpu *c, const Insn *in, bool optimised) {
    u8 buf[AREA_MAX] __attribute__((aligned(64)));
    u64 off = aligned_ea(c, in, 64, true), rfbm = requested(c);
    unsigned n = area_bytes(rfbm, 0);
    u8 *p = begin_partial(c, in, off, n, buf);
    fpu_peek(c);
    u64 used = in_use(c), *bv = (u64 *)(p + XS_BV);
    save_components(c, in, p, optimised ? rfbm & used : rfbm, 0);
    if (rfbm & (XCR0_SSE | XCR0_AVX)) save_mxcsr(c, p);
    *bv = (*bv & ~rfbm) | (rfbm & used);
    st_wide_end(c, in->seg, off, n, buf, p);
}

void op_xsave(Cpu *c, const Insn *in) { xsave(c, in, false); }
void op_xsaveopt(Cpu *c, const Insn *in) { xsave(c, in, true); }

void op_xsavec(Cpu *c, const Insn *in) {
    u8 buf[AREA_MAX] __attribute__((aligned(64)));
    u64 off = aligned_ea(c, in, 64, true), rfbm = requested(c), xcomp = rfbm | BIT(COMPACT);
    unsigned n = area_bytes(rfbm, xcomp);
    u8 *p = begin_partial(c, in, off, n, buf);
    fpu_peek(c);
    u64 used = in_use(c) & rfbm;
    if (rfbm & XCR0_SSE && *fpu_u32(c, FX_MXCSR) != FPU_MXCSR_INIT) used |= XCR0_SSE;
    save_components(c, in, p, used, xcomp);
    if (used & XCR0_SSE) save_mxcsr(c, p);
    *(u64 *)(p + XS_BV) = used;
    *(u64 *)(p + XS_COMP) = xcomp;
    st_wide_end(c, in->seg, off, n, buf, p);
}

/* SDM vol 1, 13.8.1 and 13.8.2: what a header may not contain. */
static void check_header(Cpu *c, const u8 *p) {
    u64 bv = *(const u64 *)(p + XS_BV), xcomp = *(const u64 *)(p + XS_COMP);
    bool bad;
    if (xcomp >> COMPACT) bad = (xcomp & ~BIT(COMPACT) & ~c->xcr0) || bv & ~xcomp || !is_zero(p + XS_COMP + 8, 48);
    else bad = bv & ~c->xcr0 || xcomp || *(const u64 *)(p + XS_COMP + 8);
    if (bad) exc_gp0(c);
}

static void load_vector_part(Cpu *c, unsigned area_off, const u8 *from) {
    unsigned n = 16 * vector_regs(c);
    if (from) fpu_copy(c->fpu.area + area_off, from, n);
    else fpu_zero(c->fpu.area + area_off, n);
}

static void load_initial_x87(Cpu *c) {
    fpu_fninit(c);
    fpu_zero(c->fpu.area + FX_ST, 128);
}

static void load_pkru(Cpu *c, u32 pkru) {
    if (pkru == c->pkru) return;
    c->pkru = pkru;
    tlb_drop_first_level(c); /* entries hold the rights of the old value */
}

void op_xrstor(Cpu *c, const Insn *in) {
    u8 buf[AREA_MAX] __attribute__((aligned(64)));
    u64 off = aligned_ea(c, in, 64, false), rfbm = requested(c);
    const u8 *p = ld_wide(c, in->seg, off, LEGACY_HEADER, buf);
    u64 xcomp = *(const u64 *)(p + XS_COMP);
    if (xcomp >> COMPACT && !cpu_has(c, FEAT_XSAVEC)) exc_gp0(c);
    check_header(c, p);
    unsigned n = area_bytes(rfbm, xcomp);
    if (n > LEGACY_HEADER) p = ld_wide(c, in->seg, off, n, buf);
    u64 bv = *(const u64 *)(p + XS_BV);
    bool with_mxcsr = xcomp >> COMPACT ? rfbm & bv & XCR0_SSE : rfbm & (XCR0_SSE | XCR0_AVX);
    u32 mxcsr = *(const u32 *)(p + FX_MXCSR);
    if (with_mxcsr && mxcsr & ~FPU_MXCSR_MASK) exc_gp0(c);
    bool all = (rfbm & 7) == 7 && vector_regs(c) == 16;
    if (!all) fpu_peek(c);
    if (with_mxcsr) *fpu_u32(c, FX_MXCSR) = mxcsr;
    else if (xcomp >> COMPACT && rfbm & XCR0_SSE) *fpu_u32(c, FX_MXCSR) = FPU_MXCSR_INIT;
    if (rfbm & bv & XCR0_X87) load_x87(c, in, p);
    else if (rfbm & XCR0_X87) load_initial_x87(c);
    if (rfbm & XCR0_SSE) load_vector_part(c, FX_XMM, bv & XCR0_SSE ? p + FX_XMM : NULL);
    if (rfbm & XCR0_AVX) load_vector_part(c, XS_YMMH, bv & XCR0_AVX ? p + XS_YMMH : NULL);
    fpu_poke(c);
    if (rfbm & XCR0_PKRU) load_pkru(c, bv & XCR0_PKRU ? *(const u32 *)(p + pkru_offset(xcomp)) : 0);
}

void op_ldmxcsr(Cpu *c, const Insn *in) {
    u32 v = ld32(c, in->seg, insn_ea(c, in));
    if (v & ~FPU_MXCSR_MASK) exc_gp0(c);
    fpu_ensure_live(c);
    __asm__ volatile("ldmxcsr %0" : : "m"(v));
}

void op_stmxcsr(Cpu *c, const Insn *in) {
    u32 v;
    fpu_ensure_live(c);
    __asm__ volatile("stmxcsr %0" : "=m"(v));
    st32(c, in->seg, insn_ea(c, in), v);
}
