/* A clock that counts instructions (-icount; CORE 15), seen from the one vCPU that drives it.
 *
 * The clock shows bias + (count << shift). Before it goes on, the dispatcher fires what is due and works out the count
 * at which the next deadline is reached; code runs to exactly that count and comes back (interp/block.h). So timers
 * fire between the same two instructions in every run. In HLT the clock jumps to the deadline, at once or when the
 * host's time has come; only an interrupt from outside (input) makes it stop somewhere before. */
#include "vcpu/icount.h"

#include "apic/apic.h"
#include "cpu/fpu.h"
#include "interp/ops.h"
#include "memory/safepoint.h"
#include "memory/state.h"

#define SHIFT_MAX   10        /* as QEMU: an instruction takes at most 1024 ns */
#define ALIGN_EVERY 10000000  /* ns between two looks at the host's clock */
#define ADAPT_EVERY 100000000 /* ns between two looks at the speed */
#define ADVANCE_MAX 3000000   /* an aligned guest may be so far ahead before it waits, ns */
#define WOBBLE      100000000 /* a drift below this changes no speed, ns */

u64 icount_of(const void *counter) {
    const Cpu *c = counter;
    return c == current_cpu ? interp_icount(c) : __atomic_load_n(&c->icount, __ATOMIC_RELAXED);
}

/* The nearest deadline, -1: none. An APIC timer that is due fires. */
static i64 next_due(Cpu *c) {
    i64 apic = apic_fire_due(c->apic), timers = c->machine->clock->deadline;
    if (apic < 0) return timers;
    return timers < 0 || apic < timers ? apic : timers;
}

bool icount_has_deadline(Cpu *c) { return next_due(c) >= 0; }

/* The first count at which the clock shows `when` or more. */
static u64 count_at(const QpyClock *k, i64 when) {
    i64 left = when - k->bias;
    return left <= 0 ? 0 : ((u64)left + BIT(k->shift) - 1) >> k->shift;
}

/* Sleeps until the host's clock shows `until` (-1: for ever) or something is pending. */
static void sleep_until(Cpu *c, i64 until) {
    guest_leave(c);
    __atomic_store_n(&c->waiting, 1, __ATOMIC_SEQ_CST);
    u32 pending = __atomic_load_n(&c->pending, __ATOMIC_SEQ_CST);
    if (!cpu_attention(c)) futex_wait(&c->pending, pending, until);
    __atomic_store_n(&c->waiting, 0, __ATOMIC_SEQ_CST);
    guest_enter(c);
}

/* A guest that gains on the host gets less time for an instruction, one that falls back gets more. */
static void adapt(Cpu *c, QpyClock *k, i64 now, i64 ahead) {
    if (ahead > 0 && k->drift + WOBBLE < 2 * ahead && k->shift > 0) k->shift--;
    if (ahead < 0 && k->drift - WOBBLE > 2 * ahead && k->shift < SHIFT_MAX) k->shift++;
    k->drift = ahead;
    k->bias = now - (i64)(interp_icount(c) << k->shift);
}

static void follow_host(Cpu *c, QpyClock *k, i64 now) {
    if (now < k->look_next) return;
    k->look_next = now + (k->adaptive ? ADAPT_EVERY : ALIGN_EVERY);
    fpu_park(c);
    i64 host = host_ns(), ahead = now - k->start - (host - k->host_start);
    if (ahead > k->max_advance) k->max_advance = ahead;
    if (-ahead > k->max_delay) k->max_delay = -ahead;
    if (k->adaptive) adapt(c, k, now, ahead);
    if (k->aligned && ahead > ADVANCE_MAX) sleep_until(c, host + ahead);
}

u64 icount_boundary(Cpu *c, u64 stop) {
    QpyClock *k = c->machine->clock;
    c->leave_block = false;
    if (!k->running) return stop;
    i64 now = clock_now(k);
    bool follows = k->aligned || k->adaptive;
    if (follows) follow_host(c, k, now);
    if (k->deadline >= 0 && k->deadline <= now) io_timers(c);
    c->leave_block = false;
    i64 due = next_due(c);
    if (follows && (due < 0 || k->look_next < due)) due = k->look_next;
    if (due < 0) return stop;
    u64 at = count_at(k, due), next = interp_icount(c) + 1;
    if (at < next) at = next; /* a timer that sets itself to the past must not keep the guest from running */
    return at < stop ? at : stop;
}

void icount_sleep(Cpu *c) {
    QpyClock *k = c->machine->clock;
    i64 due = next_due(c), now = clock_now(k);
    if (cpu_attention(c) || (due >= 0 && due <= now)) return;
    if (due >= 0 && k->running && !k->sleeps) {
        k->bias += due - now;
        return;
    }
    fpu_park(c);
    i64 begun = host_ns();
    sleep_until(c, due < 0 || !k->running ? -1 : begun + (due - now));
    i64 slept = host_ns() - begun;
    if (!k->running) return;
    if (due >= 0 && slept >= due - now) k->bias += due - now;
    else if (cpu_attention(c) && c->pending & ~(u32)PEND_KICK) k->bias += slept;
}
