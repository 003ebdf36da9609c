/* The big lock (bql.h). A ticket is drawn from `next`; its holder runs while `serving` equals it. Waiters sleep on one
 * of a few words chosen by their ticket, so that an unlock wakes the next in line and not everybody. */
#include "base/bql.h"
#include "base/clock.h"
#include "base/futex.h"

enum { SLOTS = 16 };

static volatile u32 next_ticket, serving;
static struct {
    volatile u32 turn;     /* the last ticket of this slot that was served */
    volatile u32 sleepers; /* threads that are, or are about to be, asleep on it */
} __attribute__((aligned(64))) slots[SLOTS];

static __thread bool held_here;
static i64 held_since; /* these two: written by the holder */
static BqlStats stats;

static void wait_turn(u32 ticket) {
    for (int i = 0; i < 200; i++) {
        if (__atomic_load_n(&serving, __ATOMIC_ACQUIRE) == ticket) return;
        __builtin_ia32_pause();
    }
    unsigned s = ticket % SLOTS;
    __atomic_fetch_add(&slots[s].sleepers, 1, __ATOMIC_SEQ_CST);
    for (;;) {
        u32 turn = __atomic_load_n(&slots[s].turn, __ATOMIC_SEQ_CST);
        if (__atomic_load_n(&serving, __ATOMIC_SEQ_CST) == ticket) break;
        futex_wait(&slots[s].turn, turn, -1);
    }
    __atomic_fetch_sub(&slots[s].sleepers, 1, __ATOMIC_SEQ_CST);
}

i64 bql_lock(void) {
    u32 ticket = __atomic_fetch_add(&next_ticket, 1, __ATOMIC_SEQ_CST);
    i64 asked = host_ns(), got = asked;
    if (__atomic_load_n(&serving, __ATOMIC_ACQUIRE) != ticket) {
        wait_turn(ticket);
        got = host_ns();
        stats.contended++;
        stats.wait_ns += (u64)(got - asked);
        if ((u64)(got - asked) > stats.max_wait_ns) stats.max_wait_ns = (u64)(got - asked);
    }
    stats.acquired++;
    held_since = got;
    held_here = true;
    return asked;
}

i64 bql_unlock(void) {
    i64 now = host_ns();
    u64 held = (u64)(now - held_since);
    stats.hold_ns += held;
    if (held > stats.max_hold_ns) stats.max_hold_ns = held;
    held_here = false;
    u32 ticket = serving + 1;
    unsigned s = ticket % SLOTS;
    __atomic_store_n(&serving, ticket, __ATOMIC_SEQ_CST);
    __atomic_store_n(&slots[s].turn, ticket, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&slots[s].sleepers, __ATOMIC_SEQ_CST)) futex_wake(&slots[s].turn, INT32_MAX);
    return now;
}

bool bql_held(void) { return held_here; }

void bql_stats(BqlStats *out, bool reset) {
    *out = stats;
    if (reset) stats = (BqlStats){0};
}
