/* The rings: taking chains from the available ring and giving them back by the used ring (virtio 1.2, 2.7.6-2.7.10). */
#include "virtq/virtq.h"
#include "memory/pagein.h"
#include "virtq/chain.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum {
    AVAIL_FLAGS = 0,
    AVAIL_IDX = 2,
    AVAIL_RING = 4,
    USED_FLAGS = 0,
    USED_IDX = 2,
    USED_RING = 4,
    NO_INTERRUPT = 1, /* of avail flags */
    NO_NOTIFY = 1,    /* of used flags */
    HEAD_WORDS = 5,   /* what qpy_virtq_pop says of a chain before its pieces */
};

Virtq *virtq_new(Machine *m) {
    Virtq *q = calloc(1, sizeof *q);
    if (q) q->m = m;
    return q;
}

static void forget_chains(Virtq *q) {
    for (u32 i = 0; i < VIRTQ_MAX_SIZE; i++) q->chain[i].taken = false;
    q->in_use = 0;
}

void virtq_free(Virtq *q) {
    for (u32 i = 0; i < VIRTQ_MAX_SIZE; i++) free(q->chain[i].writable);
    free(q);
}

int virtq_setup(Virtq *q, u32 size, u64 desc, u64 avail, u64 used, bool event_idx, bool notify_on_empty) {
    if (!size || size > VIRTQ_MAX_SIZE || size & (size - 1)) return -EINVAL;
    q->size = size;
    q->event_idx = event_idx;
    q->notify_on_empty = notify_on_empty;
    q->desc = (VirtqPart){.gpa = desc, .size = 16 * size};
    q->avail = (VirtqPart){.gpa = avail, .size = 4 + 2 * size + 2 * event_idx};
    q->used = (VirtqPart){.gpa = used, .size = 4 + 8 * size + 2 * event_idx};
    q->broken = false;
    q->error[0] = 0;
    virtq_restore(q, 0, 0);
    return 0;
}

void virtq_restore(Virtq *q, u16 last_avail, u16 used_idx) {
    q->last_avail = last_avail;
    q->used_idx = used_idx;
    q->located = false;   /* memory may have been replaced */
    q->signalled = false; /* better one interrupt too many */
    q->armed = true;
    forget_chains(q);
}

static bool locate(Machine *m, VirtqPart *p, bool write) {
    u64 part = p->size;
    p->host = dma_map(m, p->gpa, &part, write);
    if (!p->host || part < p->size) return p->host = NULL, false;
    p->ram_off = (u64)(p->host - m->ram_base);
    return true;
}

static int claim(Virtq *q, const VirtqPart *p) { return pagein_claim(q->m, p->ram_off, p->size, true); }

/* The host addresses of the ring's parts are good. -EPROTO; -EIO: memory cannot be read now. */
static int ready(Virtq *q) {
    if (q->broken) return -EPROTO;
    if (!q->size) return virtq_break(q, "The queue is not set up");
    if (q->desc.gpa & 15 || q->avail.gpa & 1 || q->used.gpa & 3) return virtq_break(q, "Misaligned ring");
    if (q->view_generation == q->m->view_generation && q->located) return 0;
    q->located = false;
    if (!locate(q->m, &q->desc, false)) return virtq_break(q, "Cannot map desc");
    if (!locate(q->m, &q->avail, false)) return virtq_break(q, "Cannot map avail");
    if (!locate(q->m, &q->used, true)) return virtq_break(q, "Cannot map used");
    if (claim(q, &q->desc) || claim(q, &q->avail) || claim(q, &q->used)) return -EIO;
    q->view_generation = q->m->view_generation;
    q->located = true;
    return 0;
}

static u16 load16(const VirtqPart *p, u32 at) { return __atomic_load_n((u16 *)(p->host + at), __ATOMIC_ACQUIRE); }

static void store16(Virtq *q, u32 at, u16 value) {
    __atomic_store_n((u16 *)(q->used.host + at), value, __ATOMIC_RELEASE);
    ram_changed(q->m, q->used.ram_off + at, 2);
}

/* Tell the guest whether to notify; with the event index a stale one keeps it quiet. */
static void arm(Virtq *q, bool on) {
    if (q->event_idx) {
        if (on) store16(q, USED_RING + 8 * q->size, q->last_avail);
    } else if (on != q->armed) {
        store16(q, USED_FLAGS, on ? 0 : NO_NOTIFY);
    }
    q->armed = on;
    if (on) __atomic_thread_fence(__ATOMIC_SEQ_CST); /* before the index is looked at once more */
}

/* Chains available, or -EPROTO. */
static i64 available(Virtq *q) {
    u16 n = (u16)(load16(&q->avail, AVAIL_IDX) - q->last_avail);
    if (n > q->size)
        return virtq_break(q, "Guest moved used index from %u to %u", q->last_avail, (u16)(q->last_avail + n));
    return n;
}

static int remember(Virtq *q, u32 head, const Pieces *p) {
    VirtqChain *c = &q->chain[head];
    u32 n = p->writing ? p->n - p->first_writable : 0;
    if (n > c->room) {
        VirtqPiece *grown = realloc(c->writable, n * sizeof *grown);
        if (!grown) return virtq_break(q, "Out of memory");
        c->writable = grown;
        c->room = n;
    }
    for (u32 i = 0; i < n; i++) c->writable[i] = p->at[p->first_writable + i];
    c->n_writable = n;
    c->taken = true;
    q->in_use++;
    return 0;
}

/* Words written, 0 if they do not fit, -EPROTO or -EIO. */
static i64 take(Virtq *q, u32 head, u64 *out, u32 room) {
    VirtqPiece pieces[VIRTQ_MAX_PIECES];
    Pieces p = {.at = pieces};
    if (head >= q->size) return virtq_break(q, "Guest says index %u is available", head);
    if (q->chain[head].taken) return virtq_break(q, "Guest gives descriptor %u twice", head);
    int result = virtq_walk(q, head, &p);
    if (result) return result;
    if (HEAD_WORDS + 2 * p.n > room) return 0;
    result = remember(q, head, &p);
    if (result) return result;
    u64 readable = p.writing ? p.first_writable : p.n, readable_bytes = 0;
    for (u32 i = 0; i < p.n; i++) {
        if (i < readable) readable_bytes += pieces[i].size;
        out[HEAD_WORDS + 2 * i] = (u64)(q->m->ram_base + pieces[i].ram_off);
        out[HEAD_WORDS + 2 * i + 1] = pieces[i].size;
    }
    u64 about[HEAD_WORDS] = {head, readable, p.n - readable, readable_bytes, p.total - readable_bytes};
    memcpy(out, about, sizeof about);
    return HEAD_WORDS + 2 * p.n;
}

i64 virtq_pop(Virtq *q, u64 *out, u32 room, u32 limit) {
    i64 result = ready(q), words = 0;
    if (result) return result;
    i64 n = available(q);
    if (!n) {
        arm(q, true);
        n = available(q);
    }
    if (n <= 0) return n;
    if (q->armed) arm(q, false);
    for (i64 i = 0; i < n && i < limit; i++) {
        u32 head = load16(&q->avail, AVAIL_RING + 2 * (q->last_avail & (q->size - 1)));
        result = take(q, head, out + words, room - (u32)words);
        if (result == -EIO && words) break; /* the next call says so */
        if (result < 0) return result;
        if (!result) break;
        words += result;
        q->last_avail++;
    }
    return words;
}

i64 virtq_retake(Virtq *q, u32 head, u64 *out, u32 room) {
    i64 result = ready(q);
    return result ? result : take(q, head, out, room);
}

static void mark_written(Virtq *q, const VirtqChain *c, u64 written) {
    for (u32 i = 0; i < c->n_writable && written; i++) {
        u64 part = c->writable[i].size < written ? c->writable[i].size : written;
        ram_changed(q->m, c->writable[i].ram_off, part);
        written -= part;
    }
}

/* Virtio 1.2, 2.7.7.2: does the guest want to know? The event index names the one element it wants to hear of, and it
 * is asked after each. */
static bool wants_interrupt(Virtq *q) {
    __atomic_thread_fence(__ATOMIC_SEQ_CST); /* the used index is out before its wish is read */
    if (q->notify_on_empty && !q->in_use && load16(&q->avail, AVAIL_IDX) == q->last_avail) return true;
    if (!q->event_idx) return !(load16(&q->avail, AVAIL_FLAGS) & NO_INTERRUPT);
    bool first = !q->signalled;
    q->signalled = true;
    return first || load16(&q->avail, AVAIL_RING + 2 * q->size) == (u16)(q->used_idx - 1);
}

int virtq_push(Virtq *q, u32 head, u32 written) {
    if (head >= q->size || !q->chain[head].taken) return -EINVAL;
    int result = ready(q);
    if (result == -EIO) return result;
    VirtqChain *c = &q->chain[head];
    mark_written(q, c, written);
    c->taken = false;
    q->in_use--;
    if (result) return result;
    u32 at = USED_RING + 8 * (q->used_idx & (q->size - 1)), element[2] = {head, written};
    memcpy(q->used.host + at, element, sizeof element);
    ram_changed(q->m, q->used.ram_off + at, sizeof element);
    q->used_idx++;
    store16(q, USED_IDX, q->used_idx);
    return wants_interrupt(q);
}

u32 virtq_taken(const Virtq *q, u16 *heads, u32 room) {
    u32 n = 0;
    for (u32 i = 0; i < q->size && n < room; i++)
        if (q->chain[i].taken) heads[n++] = (u16)i;
    return n;
}
