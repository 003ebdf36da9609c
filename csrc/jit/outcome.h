/* What a run of guest code has changed besides memory, to go back to it and to compare (lockstep.c). */
#ifndef QPY_JIT_OUTCOME_H
#define QPY_JIT_OUTCOME_H

#include "cpu/fpu.h"

enum { NO_VECTOR = 0xffff };

typedef struct Outcome {
    u64 r[R_RIP + 1], cc, flags, fip, fdp, cr2;
    u32 vector, error; /* the exception that ended it, or NO_VECTOR */
    u16 fop;
    bool unmasked;
    u64 kernel_gs_base, ea_base[6];
    u32 seg_rok, seg_wok;
    Segment seg[SEG_COUNT];
    u8 fpu[XSAVE_BYTES];
} Outcome;

void outcome_take(Cpu *c, Outcome *o, u32 vector);
void outcome_give(Cpu *c, const Outcome *o);
/* What differs, in words, or NULL. */
const char *outcome_difference(const Outcome *a, const Outcome *b);
void outcome_print(const char *who, const Outcome *o); /* FPU parked */

#endif
