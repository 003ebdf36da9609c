/* Waiting on a 32-bit word (futex(2)), and the small sleeping lock built on it (U. Drepper, "Futexes Are Tricky", mutex
 * 3). Inline and free of libc except for syscall(), so that code running with live guest FPU state may use it. */
#ifndef QPY_BASE_FUTEX_H
#define QPY_BASE_FUTEX_H

#include "base/common.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* Sleeps while *word == value; deadline: CLOCK_MONOTONIC ns, or -1 for none. May wake without cause. */
INLINE void futex_wait(volatile u32 *word, u32 value, i64 deadline) {
    struct timespec ts = {.tv_sec = deadline / 1000000000, .tv_nsec = deadline % 1000000000};
    syscall(SYS_futex, word, FUTEX_WAIT_BITSET_PRIVATE, value, deadline < 0 ? NULL : &ts, NULL, FUTEX_BITSET_MATCH_ANY);
}
INLINE void futex_wake(volatile u32 *word, int n) { syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, n, NULL, NULL, 0); }

typedef struct Lock {
    volatile u32 state; /* 0 free, 1 taken, 2 taken and somebody waits */
} Lock;

void lock_wait(Lock *l);
INLINE void lock_take(Lock *l) {
    u32 free = 0;
    if (unlikely(!__atomic_compare_exchange_n(&l->state, &free, 1, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)))
        lock_wait(l);
}
INLINE void lock_release(Lock *l) {
    if (unlikely(__atomic_exchange_n(&l->state, 0, __ATOMIC_RELEASE) == 2)) futex_wake(&l->state, 1);
}

#endif
