/* The virtual clock: CLOCK_MONOTONIC plus an offset while the machine runs, a constant while it is stopped. Every guest
 * time source (TSC, local APIC timers here; PIT, HPET, PM timer in Python) is computed from it. Readers take no lock.
 *
 * A *counted* clock (-icount) is driven by instructions instead: it shows bias + (instructions << shift), and moves by
 * itself only where the vCPU sleeps (vcpu/icount.c). */
#ifndef QPY_BASE_CLOCK_H
#define QPY_BASE_CLOCK_H

#include "base/common.h"

typedef struct QpyClock {
    volatile u32 seq; /* odd while being changed */
    bool running;
    i64 value; /* running: offset to CLOCK_MONOTONIC; else the time it stands at */

    /* counted: written by the vCPU's thread, or while no vCPU runs */
    bool counted, sleeps, aligned, adaptive;
    u8 shift;                          /* an instruction takes 1 << shift ns */
    i64 bias;                          /* what it shows beyond that */
    volatile i64 deadline;             /* of the nearest timer in Python, -1: none */
    u64 (*count)(const void *counter); /* instructions so far */
    void *counter;
    /* aligned, adaptive */
    i64 host_start, start;      /* host and virtual time when it was started */
    i64 look_next;              /* virtual time of the next look at the host's */
    i64 drift;                  /* how far it was ahead of the host at the last look */
    i64 max_delay, max_advance; /* ns by which the guest was behind and ahead of the host */
} QpyClock;

i64 host_ns(void); /* CLOCK_MONOTONIC */
i64 clock_now(const QpyClock *k);
/* The CLOCK_MONOTONIC time at which the clock will show `when`, -1 while it stands. */
i64 clock_host_deadline(const QpyClock *k, i64 when);
void clock_sync(QpyClock *k, bool running, i64 value);

#endif
