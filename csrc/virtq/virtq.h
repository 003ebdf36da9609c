/* Virtqueues: split rings in guest RAM (virtio 1.2, 2.7), popped and pushed for devices that are written in Python.
 *
 * Everything in a ring is the guest's word and may change while it is read: indices, addresses and lengths are fetched
 * once and checked, chains are counted. A ring that breaks the rules is broken until it is set up again; `error` says
 * why. All calls with the BQL held, never on behalf of a guest instruction. */
#ifndef QPY_VIRTQ_VIRTQ_H
#define QPY_VIRTQ_VIRTQ_H

#include "memory/state.h"

enum { VIRTQ_MAX_SIZE = 1024, VIRTQ_MAX_PIECES = 2048 };

/* One stretch of a buffer that is contiguous in the RAM space. */
typedef struct VirtqPiece {
    u64 ram_off, size;
} VirtqPiece;

/* A chain the device has: what it may write, so that it can be marked dirty when the chain is given back. */
typedef struct VirtqChain {
    VirtqPiece *writable;
    u32 n_writable, room;
    bool taken;
} VirtqChain;

/* Host address of a ring's part, kept while the flat view stays the same. */
typedef struct VirtqPart {
    u64 gpa, size, ram_off;
    u8 *host;
} VirtqPart;

typedef struct Virtq {
    Machine *m;
    u32 size;
    u32 view_generation;
    VirtqPart desc, avail, used;
    bool event_idx, notify_on_empty;
    bool broken;
    bool located;   /* the parts' host addresses are known and their pages are there */
    bool armed;     /* the guest was told to notify */
    bool signalled; /* since set-up or restore */
    u16 last_avail, used_idx;
    u32 in_use;
    char error[96];
    VirtqChain chain[VIRTQ_MAX_SIZE];
} Virtq;

Virtq *virtq_new(Machine *m);
void virtq_free(Virtq *q);

/* Starts (again) on a ring: addresses as the guest gave them, counters 0. -EINVAL: no possible size. */
int virtq_setup(Virtq *q, u32 size, u64 desc, u64 avail, u64 used, bool event_idx, bool notify_on_empty);
/* Goes on where another queue was, with no chains taken. */
void virtq_restore(Virtq *q, u16 last_avail, u16 used_idx);

/* Takes up to `limit` chains. Of each: head, number of readable and of writable pieces, then ram_off and size of every
 * piece, the readable ones first. The number of words in out; 0: nothing is available and the guest will notify;
 * -EPROTO: broken; -EIO: memory cannot be read now, nothing was taken. The memory of a chain taken is there to stay. */
i64 virtq_pop(Virtq *q, u64 *out, u32 room, u32 limit);
/* Takes the chain with this head, which an earlier pop of another queue object took already. */
i64 virtq_retake(Virtq *q, u32 head, u64 *out, u32 room);
/* Gives a chain back with the number of bytes written from its start. 1: the guest wants an interrupt; 0; -EPROTO;
 * -EIO: memory cannot be read now, the chain is still taken. */
int virtq_push(Virtq *q, u32 head, u32 written);
/* The heads of all chains taken. */
u32 virtq_taken(const Virtq *q, u16 *heads, u32 room);

#endif
