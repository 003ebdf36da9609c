/* The host's time-stamp counter, where it can carry a clock. */
#ifndef QPY_BASE_HOSTTSC_H
#define QPY_BASE_HOSTTSC_H

#include "base/common.h"

/* It runs at one speed in every state of the CPU (CPUID 8000_0007h, EDX[8]), and the kernel itself tells the time by
 * it, which it does only while those of all CPUs agree. */
bool host_tsc_usable(void);

/* What comes before it in the program is done (SDM vol 2, LFENCE). */
INLINE void host_fence(void) { asm volatile("lfence" : : : "memory"); }
INLINE u64 host_tsc(void) { return __builtin_ia32_rdtsc(); }

#endif
