/* The virtual clock (clock.h): two numbers behind a sequence lock. Writers hold the BQL. */
#include "base/clock.h"

#include <time.h>

i64 host_ns(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1000000000ll + ts.tv_nsec;
}

typedef struct Reading {
    bool running;
    i64 value;
} Reading;

static Reading snapshot(const QpyClock *k) {
    Reading copy;
    u32 seq;
    do {
        seq = __atomic_load_n(&k->seq, __ATOMIC_ACQUIRE);
        copy.running = k->running;
        copy.value = k->value;
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
    } while (seq & 1 || seq != k->seq);
    return copy;
}

static i64 clock_counted_now(const QpyClock *k) {
    if (!k->running || !k->count) return k->value;
    return k->bias + (i64)(k->count(k->counter) << k->shift);
}

i64 clock_now(const QpyClock *k) {
    if (k->counted) return clock_counted_now(k);
    Reading s = snapshot(k);
    return s.running ? host_ns() + s.value : s.value;
}

i64 clock_host_deadline(const QpyClock *k, i64 when) {
    Reading s = snapshot(k);
    if (!s.running) return -1;
    i64 host = when - s.value;
    return host > 0 ? host : 0;
}

void clock_sync(QpyClock *k, bool running, i64 value) {
    __atomic_store_n(&k->seq, k->seq + 1, __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_RELEASE);
    if (!k->counted || !running) k->value = value; /* a counted clock goes on from where it stands */
    k->running = running;
    if (k->counted && running) {
        u64 count = k->count ? k->count(k->counter) : 0;
        k->bias = k->value - (i64)(count << k->shift);
        k->start = k->look_next = k->value;
        k->host_start = host_ns();
        k->drift = 0;
    }
    __atomic_store_n(&k->seq, k->seq + 1, __ATOMIC_RELEASE);
}
