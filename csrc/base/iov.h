/* Memory in pieces (scatter-gather lists) as host I/O takes it: struct iovec is an address and a size, two words. */
#ifndef QPY_BASE_IOV_H
#define QPY_BASE_IOV_H

#include "base/common.h"

#include <sys/uio.h>

/* The part of a list from byte `start` on, `size` bytes long at most; out has room for n pieces. How many it became. */
u32 iov_cut(const struct iovec *iov, u32 n, u64 start, u64 size, struct iovec *out);
/* All of the list; what lies beyond the end of the file reads as zeros. 0, or a negative errno. */
int iov_read(int fd, u64 offset, const struct iovec *iov, u32 n);
int iov_write(int fd, u64 offset, const struct iovec *iov, u32 n);
/* Bytes read without waiting for a disk, perhaps less than all; 0 too where the host cannot say. */
u64 iov_read_cached(int fd, u64 offset, const struct iovec *iov, u32 n);
/* Have what was written to a file on its way to the disk without waiting for it, so that a flush has less to wait for.
 * A hint: where it fails the flush tells. */
void iov_begin_writeback(int fd);

#endif
