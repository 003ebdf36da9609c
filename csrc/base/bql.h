/* The big lock: a fair ticket mutex over all device, wire, timer and memory-map state. One per process. Waiters come
 * through in the order in which they asked, so neither the main loop nor a vCPU can starve the other. */
#ifndef QPY_BASE_BQL_H
#define QPY_BASE_BQL_H

#include "base/common.h"

typedef struct BqlStats {
    u64 acquired, contended;
    u64 wait_ns, max_wait_ns, hold_ns, max_hold_ns;
} BqlStats;

/* Both answer the time, host_ns(), when they were called: who counts it need not ask again. */
i64 bql_lock(void);
i64 bql_unlock(void);
bool bql_held(void); /* by the calling thread */
void bql_stats(BqlStats *out, bool reset);

#endif
