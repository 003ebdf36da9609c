/* The local APIC timer (SDM vol 3A 10.5.4): one-shot, periodic and TSC-deadline mode on the virtual clock. The timer's
 * bus clock is 1 GHz, so that a tick is a nanosecond times the divisor.
 * Ticks of a periodic timer that were missed are coalesced into one. */
#include "apic/apic.h"

#include "memory/safepoint.h"
#include "memory/state.h"

#include <limits.h>

enum { MODE_ONE_SHOT, MODE_PERIODIC, MODE_DEADLINE };
#define MIN_PERIOD_NS 20000 /* a shorter period would leave the guest no time between ticks */

static unsigned mode_of(const Apic *a) { return BITS(a->lvt[LVT_TIMER], 18, 17); }

/* Divide configuration: bits 0, 1 and 3; 111b divides by 1 (figure 10-10). */
static unsigned shift_of(const Apic *a) {
    unsigned code = (a->timer_divide & 3) | (a->timer_divide >> 1 & 4);
    return (code + 1) & 7;
}

static i64 period_of(const Apic *a) { return (i64)a->timer_initial << shift_of(a); }
static i64 now_of(const Apic *a) { return machine_clock_ns(a->cpu->machine); }

u32 apic_timer_current(const Apic *a) {
    if (a->timer_start < 0 || !a->timer_initial || mode_of(a) == MODE_DEADLINE) return 0;
    u64 ticks = (u64)(now_of(a) - a->timer_start) >> shift_of(a);
    if (mode_of(a) == MODE_PERIODIC) return a->timer_initial - (u32)(ticks % a->timer_initial);
    return ticks < a->timer_initial ? a->timer_initial - (u32)ticks : 0;
}

/* Virtual time at which the guest's TSC reaches the deadline. */
static i64 deadline_ns(const Apic *a) {
    Cpu *c = a->cpu;
    i64 ticks = (i64)(c->tsc_deadline - (u64)c->tsc_offset);
    if (ticks <= 0) return 0;
    unsigned __int128 ns = (((unsigned __int128)(u64)ticks << 32) + c->machine->tsc_mul - 1) / c->machine->tsc_mul;
    return ns >> 62 ? INT64_MAX / 2 : (i64)ns;
}

static void set_due(Apic *a, i64 due) {
    a->timer_due = due;
    if (due < 0) return;
    if (machine_counts(a->cpu->machine)) a->cpu->leave_block = true; /* the dispatcher fires it */
    else apic_timers_wake(a->cpu->machine, due);
}

/* The next expiry after `now`, from the registers alone; a one-shot that is over has none. */
static void schedule(Apic *a, i64 now) {
    if (mode_of(a) == MODE_DEADLINE) {
        set_due(a, a->cpu->tsc_deadline ? deadline_ns(a) : -1);
        return;
    }
    i64 period = period_of(a);
    if (a->timer_start < 0 || !period) {
        a->timer_due = -1;
    } else if (mode_of(a) == MODE_PERIODIC) {
        if (period < MIN_PERIOD_NS) period *= (MIN_PERIOD_NS + period - 1) / period;
        set_due(a, a->timer_start + ((now - a->timer_start) / period + 1) * period);
    } else {
        set_due(a, now < a->timer_start + period ? a->timer_start + period : -1);
    }
}

static i64 fire_due(Apic *a, i64 now) {
    if (a->timer_due < 0 || a->timer_due > now) return a->timer_due;
    if (mode_of(a) == MODE_DEADLINE) a->cpu->tsc_deadline = 0;
    apic_lvt_fire(a, LVT_TIMER);
    schedule(a, now);
    return a->timer_due;
}

i64 apic_fire_due(Apic *a) {
    if (__atomic_load_n(&a->timer_due, __ATOMIC_RELAXED) < 0) return -1;
    lock_take(&a->lock);
    i64 due = fire_due(a, now_of(a));
    lock_release(&a->lock);
    return due;
}

void apic_timer_stop(Apic *a) { a->timer_start = a->timer_due = -1; }

void apic_timer_set_lvt(Apic *a, u32 v) {
    i64 now = now_of(a);
    unsigned before = mode_of(a);
    fire_due(a, now);
    a->lvt[LVT_TIMER] = v;
    if ((before == MODE_DEADLINE) != (mode_of(a) == MODE_DEADLINE)) {
        a->cpu->tsc_deadline = 0; /* changing to or from this mode disarms */
        apic_timer_stop(a);
    }
    schedule(a, now);
}

void apic_timer_set_initial(Apic *a, u32 v) {
    if (mode_of(a) == MODE_DEADLINE) return;
    i64 now = now_of(a);
    a->timer_initial = v;
    a->timer_start = v ? now : -1;
    schedule(a, now);
}

/* The running count goes on at the new speed from where it stands. */
void apic_timer_set_divide(Apic *a, u32 v) {
    i64 now = now_of(a);
    u32 current = apic_timer_current(a);
    a->timer_divide = v;
    if (a->timer_start >= 0 && current) a->timer_start = now - ((i64)(a->timer_initial - current) << shift_of(a));
    schedule(a, now);
}

void apic_write_deadline(Cpu *c, u64 tsc) {
    Apic *a = c->apic;
    lock_take(&a->lock);
    if (mode_of(a) == MODE_DEADLINE) {
        c->tsc_deadline = tsc;
        i64 now = now_of(a);
        schedule(a, now);
        fire_due(a, now);
    }
    lock_release(&a->lock);
}

void apic_timer_rearm(Apic *a) {
    lock_take(&a->lock);
    schedule(a, now_of(a));
    lock_release(&a->lock);
}

void apic_timers_poke(ApicTimers *t) {
    __atomic_fetch_add(&t->changes, 1, __ATOMIC_SEQ_CST);
    futex_wake(&t->changes, INT_MAX);
}

void apic_timers_wake(Machine *m, i64 due) {
    ApicTimers *t = m->timers;
    if (!t) return;
    i64 until = __atomic_load_n(&t->sleeping_until, __ATOMIC_SEQ_CST);
    if (!until) __atomic_fetch_add(&t->changes, 1, __ATOMIC_SEQ_CST); /* it is awake, or about to sleep: not yet then */
    else if (due < until) apic_timers_poke(t);
}
