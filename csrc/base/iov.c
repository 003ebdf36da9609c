/* Scatter-gather lists: cutting them, and reads and writes that go on until all is done. */
#include "base/iov.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

/* MOST: IOV_MAX, pieces of one system call. CALL: bytes that one writes. Given more, ext4 takes pages of 2 MiB, and
 * these from free memory that, in a virtual machine, the host has taken back meanwhile: four times the cost of the
 * copying. */
enum { MOST = 1024, CALL = 1 << 20, SECTOR = 512 };

/* What is left of a list: `skip` bytes of the first piece are done with. */
typedef struct Rest {
    const struct iovec *iov;
    u32 n;
    u64 skip;
} Rest;

static void advance(Rest *r, u64 done) {
    for (r->skip += done; r->n && r->skip >= r->iov->iov_len; r->iov++, r->n--) r->skip -= r->iov->iov_len;
}

u32 iov_cut(const struct iovec *iov, u32 n, u64 start, u64 size, struct iovec *out) {
    Rest r = {.iov = iov, .n = n};
    u32 count = 0;
    advance(&r, start);
    for (; r.n && size; r.iov++, r.n--, r.skip = 0) {
        u64 left = r.iov->iov_len - r.skip, part = left < size ? left : size;
        out[count++] = (struct iovec){(u8 *)r.iov->iov_base + r.skip, part};
        size -= part;
    }
    return count;
}

/* The pieces for the next call, of `limit` bytes at most: in place, unless one of them is not whole. */
static u32 next_call(const Rest *r, u64 limit, struct iovec *buffer, const struct iovec **pieces) {
    u32 n = 0;
    u64 size = 0;
    while (n < r->n && n < MOST && size < limit) size += r->iov[n++].iov_len;
    *pieces = r->iov;
    if (r->skip || size > limit) *pieces = buffer, n = iov_cut(r->iov, n, r->skip, limit, buffer);
    return n;
}

static void fill_zeros(Rest r) {
    for (; r.n; r.iov++, r.n--, r.skip = 0) memset((u8 *)r.iov->iov_base + r.skip, 0, r.iov->iov_len - r.skip);
}

typedef ssize_t (*Call)(int fd, const struct iovec *iov, int n, off_t offset);

/* One system call's worth; bytes, or a negative errno. */
static i64 transfer(Call call, int fd, u64 *offset, Rest *r, u64 limit) {
    struct iovec buffer[MOST];
    const struct iovec *pieces;
    u32 count = next_call(r, limit, buffer, &pieces);
    ssize_t done;
    do done = call(fd, pieces, (int)count, (off_t)*offset);
    while (done < 0 && errno == EINTR);
    if (done < 0) return -errno;
    advance(r, (u64)done);
    *offset += (u64)done;
    return done;
}

int iov_read(int fd, u64 offset, const struct iovec *iov, u32 n) {
    Rest r = {.iov = iov, .n = n};
    for (advance(&r, 0); r.n;) {
        i64 done = transfer(preadv, fd, &offset, &r, ~0ull);
        if (done < 0) return (int)done;
        if (!done || done % SECTOR) return fill_zeros(r), 0; /* the end; O_DIRECT would refuse to go on from there */
    }
    return 0;
}

int iov_write(int fd, u64 offset, const struct iovec *iov, u32 n) {
    Rest r = {.iov = iov, .n = n};
    for (advance(&r, 0); r.n;) {
        i64 done = transfer(pwritev, fd, &offset, &r, CALL);
        if (done <= 0) return done ? (int)done : -EIO;
    }
    return 0;
}

u64 iov_read_cached(int fd, u64 offset, const struct iovec *iov, u32 n) {
    ssize_t done = n <= MOST ? preadv2(fd, iov, (int)n, (off_t)offset, RWF_NOWAIT) : 0;
    return done < 0 ? 0 : (u64)done;
}

void iov_begin_writeback(int fd) { sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE); }
