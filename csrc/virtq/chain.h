/* Between virtq.c and chain.c. */
#ifndef QPY_VIRTQ_CHAIN_H
#define QPY_VIRTQ_CHAIN_H

#include "virtq/virtq.h"

typedef struct Pieces {
    VirtqPiece *at;
    u32 n, first_writable; /* while `writing` is false, first_writable is 0 */
    bool writing;
    u64 total; /* bytes */
} Pieces;

/* The pieces of the chain at `head`. -EPROTO: the queue is broken now; -EIO: memory cannot be read now. */
int virtq_walk(Virtq *q, u32 head, Pieces *p);
__attribute__((format(printf, 2, 3))) int virtq_break(Virtq *q, const char *format, ...);

#endif
