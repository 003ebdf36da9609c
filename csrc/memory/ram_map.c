/* The RAM space out of a snapshot file.
 *
 * Loading maps the file's pages over guest RAM, private and copy-on-write: the cost is one mmap for each run of
 * clusters, and pages come in when they are touched. Where that cannot be, they are read into fresh memory which then
 * takes the place of the old, so that a failing read changes nothing. Restoring copies back the pages written since.
 * Detaching makes mapped pages plain memory, before somebody overwrites or cuts the file.
 *
 * All of it with every vCPU at a safe point; only libc's own copying, so vector registers may be used here. */
#include "memory/ram_map.h"

#include "memory/pagein.h"
#include "memory/safepoint.h"
#include "mmu/mmu.h"

#include <errno.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { DETACH_BYTES = 4 << 20 };

static void *fresh(void *at, u64 size) {
    int fixed = at ? MAP_FIXED : 0;
    void *p = mmap(at, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | fixed, -1, 0);
    if (p == MAP_FAILED) return NULL;
    madvise(p, size, MADV_HUGEPAGE);
    return p;
}

static bool valid_extents(const Machine *m, const RamExtent *e, u32 n) {
    u64 end = 0;
    for (u32 i = 0; i < n; i++) {
        if ((e[i].ram_off | e[i].size | e[i].file_off) & ~PAGE_MASK || !e[i].size) return false;
        if (e[i].ram_off < end || e[i].ram_off > m->ram_used || e[i].size > m->ram_used - e[i].ram_off) return false;
        end = e[i].ram_off + e[i].size;
    }
    return true;
}

static int read_whole(int fd, u8 *to, u64 size, u64 at) {
    while (size) {
        ssize_t got = pread(fd, to, size, (off_t)at);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return got < 0 ? -errno : -EIO;
        to += got;
        at += (u64)got;
        size -= (u64)got;
    }
    return 0;
}

/* Everything was replaced: whoever logs writes sees every page written, decoded code goes, TLBs forget. */
static void all_changed(Machine *m) {
    for (u64 page = 0; page < m->ram_used / PAGE_SIZE; page++) {
        m->dirty[page] |= m->log[page];
        if (m->code_map[page] && code_invalidate_hook) code_invalidate_hook(NULL, page * PAGE_SIZE, PAGE_SIZE);
    }
    for (u32 i = 0; i < m->n_cpus; i++) tlb_flush_all(m->cpu[i]);
}

static int load_by_reading(Machine *m, const RamExtent *e, u32 n) {
    u8 *staged = fresh(NULL, m->ram_used);
    if (!staged) return -ENOMEM;
    int result = 0;
    for (u32 i = 0; i < n && !result; i++)
        result = read_whole(e[i].fd, staged + e[i].ram_off, e[i].size, e[i].file_off);
    if (!result && mremap(staged, m->ram_used, m->ram_used, MREMAP_MAYMOVE | MREMAP_FIXED, m->ram_base) == MAP_FAILED)
        result = -errno;
    if (result) munmap(staged, m->ram_used);
    return result;
}

static int load_by_mapping(Machine *m, const RamExtent *e, u32 n) {
    if (!fresh(m->ram_base, m->ram_used)) return -ENOMEM;
    for (u32 i = 0; i < n; i++) {
        u8 *at = m->ram_base + e[i].ram_off;
        int flags = MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE;
        if (mmap(at, e[i].size, PROT_READ | PROT_WRITE, flags, e[i].fd, (off_t)e[i].file_off) == MAP_FAILED)
            return load_by_reading(m, e, n); /* too many mappings, or a file that has none */
    }
    return 0;
}

int ram_load(Machine *m, const RamExtent *extents, u32 n, bool map) {
    if (!valid_extents(m, extents, n)) return -EINVAL;
    exclusive_begin(m, NULL);
    int result = map ? load_by_mapping(m, extents, n) : load_by_reading(m, extents, n);
    m->mapped = map && n;
    if (!result) all_changed(m);
    exclusive_end(m, NULL);
    return result;
}

/* Pages of the RAM space that `client` saw written, in order; the number of them. */
static u64 dirty_count(const Machine *m, u8 bit) {
    u64 count = 0;
    for (u64 page = 0; page < m->ram_used / PAGE_SIZE; page++) count += (m->dirty[page] & bit) != 0;
    return count;
}

/* Reads what `count` pages were into `staged`, runs of neighbours at once. */
static int stage_pages(const Machine *m, u8 bit, const RamExtent *e, u32 n, u8 *staged) {
    u64 pages = m->ram_used / PAGE_SIZE;
    u32 i = 0;
    for (u64 page = 0; page < pages; page++) {
        if (!(m->dirty[page] & bit)) continue;
        u64 off = page * PAGE_SIZE, run = PAGE_SIZE;
        while (i < n && e[i].ram_off + e[i].size <= off) i++;
        bool stored = i < n && e[i].ram_off <= off;
        u64 limit = stored ? e[i].ram_off + e[i].size : i < n ? e[i].ram_off : m->ram_used;
        for (; off + run < limit && m->dirty[page + 1] & bit; page++) run += PAGE_SIZE;
        int error = stored ? read_whole(e[i].fd, staged, run, e[i].file_off + (off - e[i].ram_off)) : 0;
        if (error) return error;
        if (!stored) memset(staged, 0, run);
        staged += run;
    }
    return 0;
}

static void put_back(Machine *m, u8 bit, const u8 *staged) {
    for (u64 page = 0; page < m->ram_used / PAGE_SIZE; page++) {
        if (!(m->dirty[page] & bit)) continue;
        memcpy(m->ram_base + page * PAGE_SIZE, staged, PAGE_SIZE);
        staged += PAGE_SIZE;
        ram_changed(m, page * PAGE_SIZE, PAGE_SIZE);
        m->dirty[page] &= (u8)~bit;
    }
    for (u32 i = 0; i < m->n_cpus; i++) tlb_flush_all(m->cpu[i]);
}

i64 ram_restore(Machine *m, int client, const RamExtent *extents, u32 n, u64 limit) {
    if (!valid_extents(m, extents, n)) return -EINVAL;
    u8 bit = (u8)(1 << client);
    exclusive_begin(m, NULL);
    u64 count = dirty_count(m, bit);
    u8 *staged = count <= limit ? malloc(count * PAGE_SIZE + 1) : NULL;
    i64 result = count > limit ? -E2BIG : !staged ? -ENOMEM : stage_pages(m, bit, extents, n, staged);
    if (!result) {
        put_back(m, bit, staged);
        result = (i64)count;
    }
    exclusive_end(m, NULL);
    free(staged);
    return result;
}

static bool is_zero(const u64 *words, u64 size) {
    for (u64 i = 0; i < size / sizeof *words; i += 8) {
        const u64 *w = words + i;
        if (w[0] | w[1] | w[2] | w[3] | w[4] | w[5] | w[6] | w[7]) return false;
    }
    return true;
}

int ram_nonzero(Machine *m, u64 ram_off, u64 size, u64 granule, u8 *out) {
    for (u64 at = 0; at < size; at += granule) {
        u64 part = size - at < granule ? size - at : granule;
        if (pagein_claim(m, ram_off + at, part, false)) return -EIO;
        *out++ = !is_zero((const u64 *)(const void *)(m->ram_base + ram_off + at), part);
    }
    return 0;
}

/* A page that cannot be read in sends us back to the sigsetjmp; nothing but `to` was written by then. */
static int copy_guarded(u8 *to, const u8 *from, u64 size) {
    PageinGuard guard;
    if (sigsetjmp(guard.back, 0)) return -EIO;
    pagein_guard_set(&guard);
    memcpy(to, from, size);
    pagein_guard_set(NULL);
    return 0;
}

static int detach_piece(Machine *m, u64 ram_off, u64 size) {
    u8 *copy = fresh(NULL, size);
    if (!copy) return -ENOMEM;
    int result = copy_guarded(copy, m->ram_base + ram_off, size);
    int flags = MREMAP_MAYMOVE | MREMAP_FIXED;
    if (!result && mremap(copy, size, size, flags, m->ram_base + ram_off) == MAP_FAILED) result = -errno;
    if (result) munmap(copy, size);
    return result;
}

int ram_detach(Machine *m, u64 ram_off, u64 size) {
    if ((ram_off | size) & ~PAGE_MASK || ram_off > m->ram_used || size > m->ram_used - ram_off) return -EINVAL;
    int result = 0;
    exclusive_begin(m, NULL);
    for (u64 part; size && !result; ram_off += part, size -= part) {
        part = size < DETACH_BYTES ? size : DETACH_BYTES;
        result = detach_piece(m, ram_off, part);
    }
    exclusive_end(m, NULL);
    return result;
}
