/* The guest's x87, SSE and AVX state: either live in the host's own registers, or parked in FpuState.area in the
 * standard XSAVE format (Intel SDM vol 1, 13.4). Light code (built without vector registers) may run while it is live;
 * everything that may touch vector registers or x87 needs fpu_park() first. */
#ifndef QPY_CPU_FPU_H
#define QPY_CPU_FPU_H

#include "cpu/cpu.h"

/* Offsets in the XSAVE area (SDM vol 1, table 10-2 and 13.4). */
enum {
    FX_FCW = 0,
    FX_FSW = 2,
    FX_FTW = 4,
    FX_FOP = 6,
    FX_FIP = 8,
    FX_FDP = 16,
    FX_MXCSR = 24,
    FX_MXCSR_MASK = 28,
    FX_ST = 32,
    FX_XMM = 160,
    FX_BYTES = 512,
    XS_BV = 512,
    XS_COMP = 520,
    XS_HEADER_BYTES = 64,
    XS_YMMH = 576,
    XS_PKRU = 832, /* where CPUID leaf 0Dh puts the guest's PKRU component */
};
enum { XCR0_X87 = 1, XCR0_SSE = 2, XCR0_AVX = 4, XCR0_PKRU = 1 << 9 };

#define FPU_FCW_INIT   0x037f /* after FNINIT */
#define FPU_FCW_RESET  0x0040 /* after RESET (SDM vol 3A, table 10-1) */
#define FPU_MXCSR_INIT 0x1f80
#define FPU_MXCSR_MASK 0xffffu /* writable bits: with DAZ, without AMD's misaligned mode */
enum { FSW_ES = 1 << 7, FSW_B = 1 << 15, FSW_EXC = 0x3f, FCW_MASKS = 0x3f };

/* Loads / saves the guest state. Parking restores the host's control words and leaves an empty x87 stack. */
void fpu_make_live(Cpu *c);
void fpu_park(Cpu *c);
/* For what only looks at the state, or changes it: it stays where it is. Between the two `area` is right, and nothing
 * may be raised; after a peek that is not followed by a poke `area` is no longer looked at. */
void fpu_peek(Cpu *c);
void fpu_poke(Cpu *c); /* what is live becomes what `area` holds */
INLINE void fpu_ensure_live(Cpu *c) {
    if (unlikely(!c->fpu.live)) fpu_make_live(c);
}

void fpu_reset(Cpu *c);  /* power-on values */
void fpu_fninit(Cpu *c); /* x87 part of FNINIT and FNSAVE; state must be parked */

/* Takes over a saved area (snapshot, debugger, tests), dropping what the hardware would refuse. The pointers in
 * FpuState are set apart. */
void fpu_set_area(Cpu *c, const u8 *area);

/* Parked-state accessors for handlers that work on the area. */
INLINE u8 *fpu_area(Cpu *c) {
    fpu_park(c);
    return c->fpu.area;
}
INLINE u16 *fpu_u16(Cpu *c, unsigned off) { return (u16 *)(c->fpu.area + off); }
INLINE u32 *fpu_u32(Cpu *c, unsigned off) { return (u32 *)(c->fpu.area + off); }
INLINE u64 *fpu_u64(Cpu *c, unsigned off) { return (u64 *)(c->fpu.area + off); }

/* No x87 exception is pending any more: FERR# falls, and with it the chipset's IGNNE#. */
INLINE void fpu_ferr_clear(Cpu *c) { c->fpu.ferr = c->fpu.ignne = false; }
/* Makes FSW.ES/B and the "unmasked" note agree with the flags and masks; call after changing either in the area. */
void fpu_settle(Cpu *c);
/* Tag word in its full form (SDM vol 1, 8.1.7), computed from the abridged one and the register contents. */
u16 fpu_full_tag(Cpu *c);
void fpu_set_full_tag(Cpu *c, u16 tag);

/* Copies without libc, so that vector registers stay untouched. */
INLINE void fpu_copy(void *dst, const void *src, unsigned long n) {
    __asm__ volatile("rep movsb" : "+D"(dst), "+S"(src), "+c"(n) : : "memory");
}
INLINE void fpu_zero(void *dst, unsigned long n) {
    __asm__ volatile("rep stosb" : "+D"(dst), "+c"(n) : "a"(0) : "memory");
}

#endif
