/* The virtual clock: CLOCK_MONOTONIC plus an offset while the machine runs, a constant while it is stopped. Every guest
 * time source (TSC, local APIC timers here; PIT, HPET, PM timer in Python) is computed from it. Readers take no lock.
 */
#ifndef QPY_BASE_CLOCK_H
#define QPY_BASE_CLOCK_H

#include "base/common.h"

typedef struct QpyClock {
    volatile u32 seq; /* odd while being changed */
    bool running;
    i64 value; /* running: offset to CLOCK_MONOTONIC; else the time it stands at */
} QpyClock;

i64 host_ns(void); /* CLOCK_MONOTONIC */
i64 clock_now(const QpyClock *k);
/* The CLOCK_MONOTONIC time at which the clock will show `when`, -1 while it stands. */
i64 clock_host_deadline(const QpyClock *k, i64 when);
void clock_sync(QpyClock *k, bool running, i64 value);

#endif
