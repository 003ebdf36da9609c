/* Lock-step of interpreter and translator, see lockstep.c. */
#ifndef QPY_JIT_LOCKSTEP_H
#define QPY_JIT_LOCKSTEP_H

#include "jit/jit.h"
#include "jit/outcome.h"
#include "memory/feed.h"

/* Values of Machine.lockstep, beginning with off. */
enum { LOCKSTEP_BLOCK = 1, LOCKSTEP_CHAIN = 2 };
enum { CHAIN_MAX = 50 }; /* blocks */

/* The state where the interpreter began a block. */
typedef struct ChainPoint {
    const Block *block;
    u32 done; /* instructions so far */
    u64 r[R_RIP + 1], cc;
} ChainPoint;

/* A straight run of instructions: a block, or a part of a region that is entered at its begin alone. */
typedef struct Run {
    const Block *block;
    const Insn *insn;
    u64 rip;
    u32 n;
} Run;

typedef struct Lockstep {
    bool on;      /* a chain is being translated and run */
    bool useless; /* this chain cannot be compared */
    u32 tick, max_blocks;
    u32 done, target;  /* instructions, those of the run included; where the translator is to stop */
    Run running;       /* block NULL: between runs */
    const Block *last; /* the translation that announced itself last */
    u32 entered;       /* runs announced */
    u32 n_points, at;
    const ChainPoint *wrong; /* the first block at whose begin the translator had another state */
    ChainPoint points[CHAIN_MAX];
    u64 wrong_r[R_RIP + 1], wrong_cc;
    Outcome before, want, got, again;
    Feed feed;
    StoreLog stores, stores_again;
} Lockstep;

/* What comes before each run of a translation: a call of lockstep_entered(). */
typedef struct Announcement {
    Insn insn;
    Run run;
} Announcement;
void lockstep_entered(Cpu *c, const Insn *in);

#endif
