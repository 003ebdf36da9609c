/* In the guest: read or write a disk from its begin, past the page cache, one request at a time.
 *
 *     seqio read|write DISK BLOCK_KIB MIB
 *
 * Prints nanoseconds of the transfer and of the flush after it. The buffer is filled once, so that what is measured is
 * the disk and not the making of data. Its pages are touched in an order that leaves no two neighbours side by side in
 * the guest's memory, as in a page cache that has been used for a while: how requests are cut depends on that. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, STRIDE = 97 };

static long long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

int main(int argc, char **argv) {
    if (argc != 5) return 2;
    int writing = !strcmp(argv[1], "write");
    int fd = open(argv[2], (writing ? O_WRONLY : O_RDONLY) | O_DIRECT);
    size_t block = strtoul(argv[3], NULL, 10) << 10;
    long long left = strtoll(argv[4], NULL, 10) << 20;
    char *buffer = mmap(NULL, block, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (fd < 0 || buffer == MAP_FAILED) return perror(argv[2]), 1;
    size_t pages = block / PAGE;
    for (size_t i = 0; i < pages; i++) buffer[i * STRIDE % pages * PAGE] = 1;
    memset(buffer, 0x5a, block);
    long long begin = now();
    for (; left > 0; left -= block) {
        ssize_t done = writing ? write(fd, buffer, block) : read(fd, buffer, block);
        if (done != (ssize_t)block) return perror(argv[1]), 1;
    }
    long long end = now();
    if (writing && fsync(fd)) return perror("fsync"), 1;
    printf("%lld %lld\n", end - begin, now() - end);
    return 0;
}
