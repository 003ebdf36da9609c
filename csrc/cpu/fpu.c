/* Loading, saving and initialising the guest's FPU state (Intel SDM vol 1, chapters 8, 10.5 and 13). */
#include "cpu/fpu.h"

#include <cpuid.h>

static u32 host_components; /* XSAVE components of the guest that this host has; 0: FXSAVE only */

__attribute__((constructor)) static void fpu_host_init(void) {
    unsigned a, b, ecx = 0, d, lo, hi;
    __get_cpuid(1, &a, &b, &ecx, &d);
    if (!(ecx & bit_OSXSAVE)) return;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    host_components = lo & (XCR0_X87 | XCR0_SSE | XCR0_AVX);
}

void fpu_poke(Cpu *c) {
    const FpuState *f = &c->fpu;
    if (!f->live) return;
    if (likely(host_components))
        __asm__ volatile("xrstor64 %0" : : "m"(f->area), "a"(host_components), "d"(0) : "memory");
    else __asm__ volatile("fxrstor64 %0" : : "m"(f->area) : "memory");
}

void fpu_peek(Cpu *c) {
    FpuState *f = &c->fpu;
    if (!f->live) return;
    if (likely(host_components)) {
        __asm__ volatile("xsave64 %0" : "+m"(f->area) : "a"(host_components), "d"(0) : "memory");
        *fpu_u64(c, XS_BV) = host_components; /* XSAVE has written components in their initial state too */
    } else {
        __asm__ volatile("fxsave64 %0" : "=m"(f->area) : : "memory");
    }
}

void fpu_make_live(Cpu *c) {
    FpuState *f = &c->fpu;
    if (f->live) return;
    __asm__ volatile("stmxcsr %0\n\tfnstcw %1" : "=m"(f->host_mxcsr), "=m"(f->host_fcw));
    f->live = true;
    fpu_poke(c);
}

void fpu_park(Cpu *c) {
    FpuState *f = &c->fpu;
    if (!f->live) return;
    fpu_peek(c);
    if (host_components & XCR0_AVX) __asm__ volatile(".byte 0xc5, 0xf8, 0x77"); /* vzeroupper */
    __asm__ volatile("fninit\n\tfldcw %1\n\tldmxcsr %0" : : "m"(f->host_mxcsr), "m"(f->host_fcw));
    f->live = false;
}

void fpu_fninit(Cpu *c) {
    *fpu_u16(c, FX_FCW) = FPU_FCW_INIT;
    *fpu_u16(c, FX_FSW) = 0;
    *fpu_u16(c, FX_FTW) = 0;
    c->fpu.fop = c->fpu.fcs = c->fpu.fds = 0;
    c->fpu.fip = c->fpu.fdp = 0;
    c->fpu.x87_unmasked = false;
    fpu_ferr_clear(c);
}

void fpu_reset(Cpu *c) {
    if (c->fpu.live) fpu_park(c);
    fpu_zero(c->fpu.area, XSAVE_BYTES);
    fpu_fninit(c);
    *fpu_u16(c, FX_FCW) = FPU_FCW_RESET;
    *fpu_u16(c, FX_FTW) = 0xff; /* every register is a valid zero: full tag word 5555h */
    *fpu_u32(c, FX_MXCSR) = FPU_MXCSR_INIT;
    *fpu_u32(c, FX_MXCSR_MASK) = FPU_MXCSR_MASK;
    *fpu_u64(c, XS_BV) = host_components;
    fpu_settle(c);
}

void fpu_settle(Cpu *c) {
    u16 fcw = *fpu_u16(c, FX_FCW), fsw = *fpu_u16(c, FX_FSW) & (u16) ~(FSW_ES | FSW_B);
    c->fpu.x87_unmasked = (fcw & FCW_MASKS) != FCW_MASKS;
    bool pending = fsw & FSW_EXC & ~fcw;
    *fpu_u16(c, FX_FSW) = pending ? fsw | FSW_ES | FSW_B : fsw;
    if (!pending) fpu_ferr_clear(c);
}

/* Tag of one value: 0 valid, 1 zero, 2 special (NaN, infinity, denormal, unsupported). */
static unsigned tag_of(const u8 *st) {
    u64 mant = *(const u64 *)st;
    unsigned exp = *(const u16 *)(st + 8) & 0x7fff;
    if (exp == 0) return mant ? 2 : 1;
    return exp != 0x7fff && mant >> 63 ? 0 : 2;
}

u16 fpu_full_tag(Cpu *c) {
    unsigned abridged = *fpu_u16(c, FX_FTW), top = *fpu_u16(c, FX_FSW) >> 11 & 7;
    u16 full = 0;
    for (unsigned phys = 0; phys < 8; phys++) {
        unsigned st = (phys - top) & 7;
        unsigned tag = abridged >> phys & 1 ? tag_of(c->fpu.area + FX_ST + 16 * st) : 3;
        full |= tag << (2 * phys);
    }
    return full;
}

void fpu_set_full_tag(Cpu *c, u16 tag) {
    u16 abridged = 0;
    for (unsigned phys = 0; phys < 8; phys++)
        if ((tag >> (2 * phys) & 3) != 3) abridged |= 1 << phys;
    *fpu_u16(c, FX_FTW) = abridged;
}

void fpu_set_area(Cpu *c, const u8 *area) {
    u8 *a = fpu_area(c);
    fpu_copy(a, area, XSAVE_BYTES);
    *fpu_u16(c, FX_FCW) = (*fpu_u16(c, FX_FCW) & 0x1f7f) | 0x40;
    *fpu_u16(c, FX_FTW) &= 0xff;
    *fpu_u32(c, FX_MXCSR) &= FPU_MXCSR_MASK;
    fpu_zero(a + XS_BV, XS_HEADER_BYTES);
    *fpu_u64(c, XS_BV) = host_components;
    fpu_settle(c);
}
