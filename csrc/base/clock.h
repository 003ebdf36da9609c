/* The virtual clock: CLOCK_MONOTONIC plus an offset while the machine runs, a constant while it is stopped. Every guest
 * time source (TSC, local APIC timers here; PIT, HPET, PM timer in Python) is computed from it. Readers take no lock.
 *
 * Where the host's TSC can carry it, the running clock is made of straight pieces: base + ticks * mult, good for
 * CLOCK_PIECE_TICKS ticks of the host's TSC. Whoever reads it later than that makes the next piece, beginning at
 * CLOCK_MONOTONIC's time or, if the last piece has run ahead of that, at the last piece's end, and then slower by as
 * much as makes them meet at the new piece's end. So the clock never goes back, on any thread, and whoever has a copy
 * of a piece (Cpu.tsc, which translated code reads) reads the clock.
 *
 * A *counted* clock (-icount) is driven by instructions instead: it shows bias + (instructions << shift), and moves by
 * itself only where the vCPU sleeps (vcpu/icount.c). */
#ifndef QPY_BASE_CLOCK_H
#define QPY_BASE_CLOCK_H

#include "base/futex.h"

/* 2^28 ticks are about 0.1 s. `mult` is in ns of 1 / 2^61, applied as the high half of (8 * ticks) * mult. */
enum { CLOCK_PIECE_BITS = 28, CLOCK_TICK_SHIFT = 3 };
#define CLOCK_PIECE_TICKS (1ull << CLOCK_PIECE_BITS)

typedef struct ClockPiece {
    u64 from; /* the host's TSC where it begins */
    u64 mult; /* 0: there is none */
    i64 base; /* what the clock shows there */
} ClockPiece;

typedef struct QpyClock {
    volatile u32 seq; /* odd while being changed */
    bool running;
    i64 value; /* running: offset to CLOCK_MONOTONIC; else the time it stands at */
    ClockPiece piece;

    Lock making; /* whoever makes a piece, starts or stops the clock */
    bool by_tsc;
    u64 last_tsc, rate; /* of the last reading of both; mult as measured between two of them, 0: not yet known */
    i64 last_ns;
    u32 odd_rates; /* in a row */

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
void clock_init(QpyClock *k);
i64 clock_now(QpyClock *k);
/* The piece that holds now; false: the clock stands, or is not made of pieces. */
bool clock_piece(const QpyClock *k, ClockPiece *piece);
/* The CLOCK_MONOTONIC time at which the clock will show `when`, -1 while it stands. */
i64 clock_host_deadline(const QpyClock *k, i64 when);
void clock_sync(QpyClock *k, bool running, i64 value);

INLINE u64 clock_scale(u64 ticks, u64 mult) {
    return (u64)((unsigned __int128)(ticks << CLOCK_TICK_SHIFT) * mult >> 64);
}

#endif
