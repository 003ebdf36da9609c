/* Access to guest RAM by guest-physical address, for devices and tools: never on behalf of a guest instruction. */
#include "memory/pagein.h"
#include "memory/state.h"

#include <errno.h>
#include <string.h>

/* The part of [gpa, gpa + n) that lies in one range: its host address, or NULL if devices or nothing are there. */
static u8 *piece(Machine *m, u64 gpa, u64 n, bool write, u64 *part, u64 *ram_off) {
    MemRange r = *machine_range(m, gpa);
    u64 at = gpa - r.gpa;
    *part = r.size - at < n ? r.size - at : n;
    if (r.kind != RANGE_RAM && (write || r.kind != RANGE_ROM)) return NULL;
    if (write && (r.write_upcall || r.write_off == ~0ull)) return NULL;
    *ram_off = (write ? r.write_off : r.ram_off) + at;
    return machine_ram_host(m, *ram_off);
}

int dma_read(Machine *m, u64 gpa, void *buf, u64 n) {
    int result = 0;
    u64 part, ram_off;
    for (u8 *out = buf; n; out += part, gpa += part, n -= part) {
        if (gpa >= GPA_END) return memset(out, 0xff, n), -EFAULT;
        const u8 *host = piece(m, gpa, n, false, &part, &ram_off);
        if (host && pagein_claim(m, ram_off, part, true)) return -EIO;
        if (host) memcpy(out, host, part);
        else memset(out, 0xff, part), result = -EFAULT;
    }
    return result;
}

int dma_write(Machine *m, u64 gpa, const void *buf, u64 n) {
    int result = 0;
    u64 part, ram_off;
    for (const u8 *in = buf; n; in += part, gpa += part, n -= part) {
        if (gpa >= GPA_END) return -EFAULT;
        u8 *host = piece(m, gpa, n, true, &part, &ram_off);
        if (!host) {
            result = -EFAULT;
            continue;
        }
        if (pagein_claim(m, ram_off, part, true)) return -EIO;
        memcpy(host, in, part);
        ram_changed(m, ram_off, part);
    }
    return result;
}

void *dma_map(Machine *m, u64 gpa, u64 *n, bool write) {
    u64 part, ram_off;
    if (gpa >= GPA_END || !*n) return NULL;
    u8 *host = piece(m, gpa, *n, write, &part, &ram_off);
    *n = part;
    return host;
}

void dma_written(Machine *m, u64 gpa, u64 n) {
    for (u64 part, ram_off; n && gpa < GPA_END; gpa += part, n -= part)
        if (piece(m, gpa, n, true, &part, &ram_off)) ram_changed(m, ram_off, part);
}

i64 dma_scatter(Machine *m, const u64 *pairs, u32 count, bool write, u64 *size, u64 *out) {
    u64 *at = out;
    for (*size = 0; count; count--, pairs += 2) {
        u64 part = pairs[1];
        u64 host = (u64)dma_map(m, pairs[0], &part, write);
        if (!host || part < pairs[1]) return -EFAULT;
        if (pagein_claim(m, host - (u64)m->ram_base, part, true)) return -EIO;
        *size += part;
        if (at > out && at[-2] + at[-1] == host) {
            at[-1] += part;
        } else {
            *at++ = host;
            *at++ = part;
        }
    }
    return (at - out) / 2;
}
