/* Lock-step (jit/lockstep.c): what came from outside while one tier ran, for the other to be fed with. A run that is
 * fed must ask for the same things in the same order. */
#ifndef QPY_MEMORY_FEED_H
#define QPY_MEMORY_FEED_H

#include "cpu/cpu.h"

enum { FEED_READ, FEED_WRITE, FEED_TSC, FEED_RANDOM, FEED_MAX = 256 };

typedef struct Feed {
    u32 n, at;
    bool replay;
    bool full;      /* something was not recorded */
    bool different; /* the fed run asked for something else */
    struct {
        u64 addr, v;
        u8 kind, size;
    } e[FEED_MAX];
} Feed;

/* True: nobody is to be asked, *v is the answer. For FEED_WRITE *v is what is written. */
INLINE bool feed_take(Feed *f, u8 kind, u64 addr, unsigned size, u64 *v) {
    if (likely(!f) || !f->replay) return false;
    bool same = f->at < f->n && f->e[f->at].kind == kind && f->e[f->at].addr == addr && f->e[f->at].size == size &&
                (kind != FEED_WRITE || f->e[f->at].v == *v);
    if (!same) f->different = true;
    else *v = f->e[f->at++].v;
    return true;
}

INLINE void feed_put(Feed *f, u8 kind, u64 addr, unsigned size, u64 v) {
    if (likely(!f)) return;
    if (f->n == FEED_MAX) {
        f->full = true;
        return;
    }
    f->e[f->n].kind = kind;
    f->e[f->n].size = (u8)size;
    f->e[f->n].addr = addr;
    f->e[f->n++].v = v;
}

#endif
