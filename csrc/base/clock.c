/* The virtual clock (clock.h): two numbers behind a sequence lock. Writers hold the BQL. */
#include "base/clock.h"

#include <time.h>

i64 host_ns(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1000000000ll + ts.tv_nsec;
}

static QpyClock snapshot(const QpyClock *k) {
    QpyClock copy;
    u32 seq;
    do {
        seq = __atomic_load_n(&k->seq, __ATOMIC_ACQUIRE);
        copy.running = k->running;
        copy.value = k->value;
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
    } while (seq & 1 || seq != k->seq);
    return copy;
}

i64 clock_now(const QpyClock *k) {
    QpyClock s = snapshot(k);
    return s.running ? host_ns() + s.value : s.value;
}

i64 clock_host_deadline(const QpyClock *k, i64 when) {
    QpyClock s = snapshot(k);
    if (!s.running) return -1;
    i64 host = when - s.value;
    return host > 0 ? host : 0;
}

void clock_sync(QpyClock *k, bool running, i64 value) {
    __atomic_store_n(&k->seq, k->seq + 1, __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_RELEASE);
    k->running = running;
    k->value = value;
    __atomic_store_n(&k->seq, k->seq + 1, __ATOMIC_RELEASE);
}
