/* The contended path of Lock: spin a little (critical sections are tens of nanoseconds), then sleep. */
#include "base/futex.h"

void lock_wait(Lock *l) {
    for (int i = 0; i < 100; i++) {
        u32 free = 0;
        if (__atomic_compare_exchange_n(&l->state, &free, 1, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)) return;
        __builtin_ia32_pause();
    }
    while (__atomic_exchange_n(&l->state, 2, __ATOMIC_ACQUIRE) != 0) futex_wait(&l->state, 2, -1);
}
