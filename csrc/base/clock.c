/* The virtual clock (clock.h): what it is made of lies behind a sequence lock. Light: read while the guest's FPU state
 * is in the registers. */
#include "base/clock.h"

#include "base/hosttsc.h"

#include <time.h>

#define CALIBRATE_NS 50000000 /* shortest time between two readings that give a rate, to 1 millionth */
#define ODD_RATE     1024     /* a rate that differs by more than 1 / this is doubted ... */
#define ODD_TIMES    3        /* ... so many times: the host slept, or its TSC jumped */
#define STRAIGHTEN   8        /* a piece is at most 1 / this slower than the host's time */

i64 host_ns(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1000000000ll + ts.tv_nsec;
}

/* Both at one moment: the TSC is read just before, so that pieces tend to be ahead of the host's time, by some 10 ns.
 */
typedef struct HostTime {
    u64 tsc;
    i64 ns;
} HostTime;

static u64 tsc_in_order(void) {
    host_fence();
    u64 tsc = host_tsc();
    host_fence();
    return tsc;
}

/* The best of three: somebody may interrupt. */
static HostTime host_time(void) {
    HostTime best = {0, 0};
    u64 shortest = ~0ull;
    for (unsigned i = 0; i < 3; i++) {
        HostTime t = {.tsc = tsc_in_order()};
        t.ns = host_ns();
        u64 took = tsc_in_order() - t.tsc;
        if (took >= shortest) continue;
        shortest = took;
        best = t;
    }
    return best;
}

static i64 piece_at(const ClockPiece *p, u64 tsc) { return p->base + (i64)clock_scale(tsc - p->from, p->mult); }
static bool piece_holds(const ClockPiece *p, u64 tsc) { return p->mult && tsc - p->from < CLOCK_PIECE_TICKS; }

typedef struct Reading {
    bool running;
    i64 value;
    ClockPiece piece;
} Reading;

static void snapshot(const QpyClock *k, Reading *copy) {
    u32 seq;
    do {
        seq = __atomic_load_n(&k->seq, __ATOMIC_ACQUIRE);
        copy->running = k->running;
        copy->value = k->value;
        copy->piece = k->piece;
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
    } while (seq & 1 || seq != k->seq);
}

static void change_begin(QpyClock *k) {
    __atomic_store_n(&k->seq, k->seq + 1, __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_RELEASE);
}
static void change_end(QpyClock *k) { __atomic_store_n(&k->seq, k->seq + 1, __ATOMIC_RELEASE); }

void clock_init(QpyClock *k) {
    k->by_tsc = host_tsc_usable();
    if (!k->by_tsc) return;
    HostTime t = host_time();
    k->last_tsc = t.tsc;
    k->last_ns = t.ns;
}

/* ns << 61 / ticks; 0: not to be had. */
static u64 rate_of(u64 ticks, i64 ns) {
    if (ns < CALIBRATE_NS || !ticks || ticks >> 62) return 0;
    unsigned __int128 rate = ((unsigned __int128)(u64)ns << (64 - CLOCK_TICK_SHIFT)) / ticks;
    return rate >> 64 ? 0 : (u64)rate;
}

static bool is_odd(u64 rate, u64 before) {
    u64 by = rate > before ? rate - before : before - rate;
    return before && by > before / ODD_RATE;
}

/* The host's TSC against its time since the last reading. */
static void measure(QpyClock *k, HostTime t) {
    u64 rate = rate_of(t.tsc - k->last_tsc, t.ns - k->last_ns);
    if (!rate) return;
    bool odd = is_odd(rate, k->rate) && ++k->odd_rates < ODD_TIMES;
    if (!odd) {
        k->rate = rate;
        k->odd_rates = 0;
    }
    k->last_tsc = t.tsc;
    k->last_ns = t.ns;
}

/* The next piece begins at `from`, at target or at `least`, if that is later. */
static void piece_make(QpyClock *k, u64 from, i64 target, i64 least) {
    i64 ahead = least > target ? least - target : 0;
    u64 length = clock_scale(CLOCK_PIECE_TICKS, k->rate), slower = (u64)ahead;
    if (slower > length / STRAIGHTEN) slower = length / STRAIGHTEN;
    change_begin(k);
    k->piece = (ClockPiece){.from = from, .base = target + ahead, .mult = k->rate - k->rate / length * slower};
    change_end(k);
}

/* The last piece has ended, or there is none yet. */
static NOINLINE i64 next_piece(QpyClock *k) {
    lock_take(&k->making);
    HostTime t = host_time();
    i64 now = k->value;
    if (k->running && piece_holds(&k->piece, t.tsc)) { /* somebody else was faster */
        now = piece_at(&k->piece, t.tsc);
    } else if (k->running) {
        i64 least = k->piece.mult ? k->piece.base + (i64)clock_scale(CLOCK_PIECE_TICKS, k->piece.mult) : 0;
        now += t.ns;
        measure(k, t);
        if (k->rate) {
            piece_make(k, t.tsc, now, least);
            now = k->piece.base;
        }
    }
    lock_release(&k->making);
    return now;
}

static i64 clock_counted_now(const QpyClock *k) {
    if (!k->running || !k->count) return k->value;
    return k->bias + (i64)(k->count(k->counter) << k->shift);
}

i64 clock_now(QpyClock *k) {
    Reading s;
    if (k->counted) return clock_counted_now(k);
    snapshot(k, &s);
    if (!s.running) return s.value;
    if (!k->by_tsc) return host_ns() + s.value;
    u64 tsc = host_tsc();
    return likely(piece_holds(&s.piece, tsc)) ? piece_at(&s.piece, tsc) : next_piece(k);
}

bool clock_piece(const QpyClock *k, ClockPiece *piece) {
    Reading s;
    if (k->counted || !k->by_tsc) return false;
    snapshot(k, &s);
    *piece = s.piece;
    return s.running && s.piece.mult;
}

i64 clock_host_deadline(const QpyClock *k, i64 when) {
    Reading s;
    snapshot(k, &s);
    if (!s.running) return -1;
    i64 host = when - s.value;
    return host > 0 ? host : 0;
}

/* What it has shown while it ran it does not take back: `value` is later by what it is ahead of CLOCK_MONOTONIC. */
static i64 stop_at(const QpyClock *k, i64 value) {
    if (!k->running || !k->piece.mult) return value;
    HostTime t = host_time();
    u64 ticks = t.tsc - k->piece.from;
    i64 shown = piece_at(&k->piece, k->piece.from + (ticks < CLOCK_PIECE_TICKS ? ticks : CLOCK_PIECE_TICKS));
    i64 ahead = shown - (t.ns + k->value);
    return ahead > 0 ? value + ahead : value;
}

static void start_counted(QpyClock *k) {
    u64 count = k->count ? k->count(k->counter) : 0;
    k->bias = k->value - (i64)(count << k->shift);
    k->start = k->look_next = k->value;
    k->host_start = host_ns();
    k->drift = 0;
}

void clock_sync(QpyClock *k, bool running, i64 value) {
    lock_take(&k->making);
    i64 stands = k->running ? 0 : k->value;
    if (!running) value = stop_at(k, value);
    change_begin(k);
    if (!k->counted || !running) k->value = value; /* a counted clock goes on from where it stands */
    k->running = running;
    k->piece.mult = 0;
    if (k->counted && running) start_counted(k);
    change_end(k);
    if (running && k->by_tsc && !k->counted) {
        HostTime t = host_time();
        measure(k, t);
        if (k->rate) piece_make(k, t.tsc, t.ns + value, stands);
    }
    lock_release(&k->making);
}
