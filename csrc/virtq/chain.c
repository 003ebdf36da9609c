/* A descriptor chain to pieces of RAM (virtio 1.2, 2.7.5). */
#include "virtq/chain.h"

#include "memory/pagein.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { F_NEXT = 1, F_WRITE = 2, F_INDIRECT = 4 };

typedef struct Desc {
    u64 addr;
    u32 len;
    u16 flags, next;
} Desc;

/* A table of descriptors: the ring's own or an indirect one. */
typedef struct Table {
    const u8 *host; /* NULL: read piecewise from gpa */
    u64 gpa;
    u32 count;
} Table;

int virtq_break(Virtq *q, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(q->error, sizeof q->error, format, arguments);
    va_end(arguments);
    q->broken = true;
    return -EPROTO;
}

static int fetch(Virtq *q, const Table *t, u32 index, Desc *d) {
    if (t->host) memcpy(d, t->host + index * sizeof *d, sizeof *d);
    else {
        int result = dma_read(q->m, t->gpa + index * sizeof *d, d, sizeof *d);
        if (result) return result == -EIO ? result : virtq_break(q, "Cannot read descriptor");
    }
    return 0;
}

static int add_piece(Virtq *q, Pieces *p, u64 ram_off, u64 size) {
    VirtqPiece *last = p->n > p->first_writable ? &p->at[p->n - 1] : NULL;
    if (last && last->ram_off + last->size == ram_off) {
        last->size += size;
        return 0;
    }
    if (p->n == VIRTQ_MAX_PIECES) return virtq_break(q, "Too many pieces in a descriptor chain");
    p->at[p->n++] = (VirtqPiece){.ram_off = ram_off, .size = size};
    return 0;
}

static int add_buffer(Virtq *q, Pieces *p, const Desc *d) {
    u64 gpa = d->addr, left = d->len;
    if (!left) return virtq_break(q, "zero sized buffers are not allowed");
    if (d->flags & F_WRITE && !p->writing) p->writing = true, p->first_writable = p->n;
    if (p->writing != ((d->flags & F_WRITE) != 0)) return virtq_break(q, "Incorrect order for descriptors");
    p->total += left;
    if (p->total > UINT32_MAX) return virtq_break(q, "Descriptor chain of more than 4 GiB");
    while (left) {
        u64 part = left;
        u8 *host = dma_map(q->m, gpa, &part, p->writing);
        if (!host) return virtq_break(q, "bogus descriptor or out of resources");
        u64 ram_off = (u64)(host - q->m->ram_base);
        int result = pagein_claim(q->m, ram_off, part, true);
        if (!result) result = add_piece(q, p, ram_off, part);
        if (result) return result;
        gpa += part;
        left -= part;
    }
    return 0;
}

static int indirect_table(Virtq *q, const Desc *d, Table *t) {
    if (!d->len || d->len % sizeof(Desc)) return virtq_break(q, "Invalid size for indirect buffer table");
    u64 part = d->len;
    *t = (Table){.gpa = d->addr, .count = d->len / sizeof(Desc)};
    t->host = dma_map(q->m, d->addr, &part, false);
    if (part < d->len) t->host = NULL;
    return t->host ? pagein_claim(q->m, (u64)(t->host - q->m->ram_base), part, true) : 0;
}

int virtq_walk(Virtq *q, u32 head, Pieces *p) {
    Table t = {.host = q->desc.host, .gpa = q->desc.gpa, .count = q->size};
    Desc d;
    u32 index = head, seen = 0;
    bool indirect = false;
    for (;;) {
        int result = fetch(q, &t, index, &d);
        if (result) return result;
        if (d.flags & F_INDIRECT) {
            if (indirect || seen || d.flags & F_NEXT) return virtq_break(q, "Misplaced indirect descriptor");
            if ((result = indirect_table(q, &d, &t))) return result;
            indirect = true;
            index = 0;
            continue;
        }
        if (++seen > t.count || seen > VIRTQ_MAX_SIZE) return virtq_break(q, "Looped descriptor");
        if ((result = add_buffer(q, p, &d))) return result;
        if (!(d.flags & F_NEXT)) return 0;
        if (d.next >= t.count) return virtq_break(q, "Desc next is %u", d.next);
        index = d.next;
    }
}
