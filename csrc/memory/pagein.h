/* Pages of guest RAM that are mapped from a file and cannot be read when they are touched (SIGBUS). */
#ifndef QPY_MEMORY_PAGEIN_H
#define QPY_MEMORY_PAGEIN_H

#include "memory/state.h"

#include <setjmp.h>

/* Where a copy out of guest RAM goes when a page fails: sigsetjmp(guard.back, 0), then set; NULL takes it back. */
typedef struct PageinGuard {
    sigjmp_buf back;
} PageinGuard;
void pagein_guard_set(PageinGuard *guard);

/* Set by jit/: takes translated code back to the instruction that touched the page; false: it was not translated code.
 */
extern bool (*pagein_translated_hook)(Cpu *c, void *ucontext);

/* Before a device touches this stretch of the RAM space: the pages are there, and, with `keep`, stay there, being the
 * process's own from then on. -EIO: one of them cannot be read; the main loop is told, nothing is lost. */
int pagein_claim(Machine *m, u64 ram_off, u64 size, bool keep);

/* From now on failing pages of m are caught. fd: an eventfd that is told. */
void pagein_watch(Machine *m, int fd);
void pagein_unwatch(Machine *m);
/* Pages that failed since the last call: how many, *lost of them replaced by zeros. */
u32 pagein_failures(Machine *m, u32 *lost);

#endif
