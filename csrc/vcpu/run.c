/* The vCPU's loop: deliver the exception that was raised, look at what is pending, sleep in HLT, else run guest code.
 *
 * Exceptions arrive here by longjmp while the guest's FPU state may be live in host registers; so this file is built
 * without vector registers and calls libc only for futex waits. Priorities follow Intel SDM vol 3A table 6-2. */
#include "apic/apic.h"
#include "cpu/fpu.h"
#include "base/log.h"
#include "interp/ops.h"
#include "jit/jit.h"
#include "memory/safepoint.h"
#include "vcpu/icount.h"
#include "vcpu/vcpu.h"

/* INIT and SIPI (SDM vol 3A 8.4, 10.6.1): INIT resets; all but the boot processor then wait for SIPI, which gives the
 * page they start at. */
static void take_init(Cpu *c) {
    cpu_unpend(c, PEND_INIT | PEND_NMI);
    cpu_reset(c, true);
    apic_reset(c->apic, true);
    bool boot = c->apic->base & APIC_BASE_BSP;
    c->apic->wait_sipi = !boot;
    c->halted = !boot;
}

static void take_sipi(Cpu *c) {
    cpu_unpend(c, PEND_SIPI);
    if (!c->apic->wait_sipi) return;
    c->apic->wait_sipi = false;
    c->halted = false;
    u32 vector = c->apic->sipi_vector;
    c->seg[SEG_CS].sel = (u16)(vector << 8);
    c->seg[SEG_CS].base = (u64)vector << 12;
    c->r[R_RIP] = 0;
    cpu_update_mode(c);
}

/* The vector of the interrupt to take now, or -1. The APIC's own vectors come before the 8259's. */
static int interrupt_vector(Cpu *c) {
    u32 pending = c->pending;
    if (pending & PEND_APIC) {
        int vector = apic_take_interrupt(c->apic);
        if (vector >= 0) return vector;
    }
    if (!(pending & PEND_EXTINT)) return -1;
    int vector = io_intack(c);
    if (vector < 0) cpu_unpend(c, PEND_EXTINT); /* withdrawn meanwhile */
    return vector;
}

static void take_event(Cpu *c, unsigned vector) {
    c->halted = false;
    c->n_irq++;
    event_interrupt(c, vector);
}

/* Something is pending. Returns an exit reason, or 0 to go on. */
static int look_at_pending(Cpu *c) {
    u32 pending = c->pending;
    if (pending & PEND_EXIT) {
        cpu_unpend(c, PEND_EXIT);
        return c->exit_reason;
    }
    if (pending & PEND_KICK) {
        cpu_unpend(c, PEND_KICK);
        guest_leave(c);
        pause_point_leave(c);
        if (c->exit_request || !pause_point_enter(c)) return EXIT_KICK;
        guest_enter(c);
    }
    if (pending & PEND_INIT) take_init(c);
    if (c->pending & PEND_SIPI) take_sipi(c);
    if (c->apic->wait_sipi) {
        cpu_unpend(c, PEND_NMI);
        return 0;
    }
    if (pending & PEND_SHADOW) return 0; /* one instruction first */
    if (pending & PEND_NMI && !c->nmi_masked) {
        cpu_unpend(c, PEND_NMI);
        c->nmi_masked = true;
        take_event(c, EXC_NMI);
    } else if (c->flags & FL_IF && pending & (PEND_APIC | PEND_EXTINT)) {
        int vector = interrupt_vector(c);
        if (vector >= 0) take_event(c, (unsigned)vector);
    }
    return 0;
}

/* HLT: sleeps until something is pending or the own APIC timer fires. */
static void sleep_halted(Cpu *c) {
    Machine *m = c->machine;
    guest_leave(c);
    i64 due = apic_fire_due(c->apic);
    i64 deadline = due < 0 ? -1 : clock_host_deadline(m->clock, due);
    __atomic_store_n(&c->waiting, 1, __ATOMIC_SEQ_CST);
    u32 pending = __atomic_load_n(&c->pending, __ATOMIC_SEQ_CST);
    if (!cpu_attention(c)) futex_wait(&c->pending, pending, deadline);
    __atomic_store_n(&c->waiting, 0, __ATOMIC_SEQ_CST);
    apic_fire_due(c->apic);
    guest_enter(c);
}

/* Traces want every instruction seen: those are interpreted. Lock-step counts in its own way. */
static bool translates(const Cpu *c, u64 stop) {
    if (c->accel != ACCEL_DBT || log_on(LOG_EXEC | LOG_CPU)) return false;
    return !c->machine->lockstep || (stop == ~0ull && !machine_counts(c->machine));
}

int vcpu_run_guest(Cpu *c, u64 stop) {
    if (__builtin_setjmp(c->jmp)) exc_dispatch(c); /* may come back here again: double and triple faults */
    for (;;) {
        if (unlikely(c->machine->clock->counted)) interp_set_stop(c, icount_boundary(c, stop));
        if (unlikely(cpu_attention(c))) {
            int reason = look_at_pending(c);
            if (reason) return reason;
        }
        if (unlikely(interp_icount(c) >= stop)) return EXIT_KICK;
        if (c->halted) {
            if (cpu_attention(c)) continue;
            bool counted = c->machine->clock->counted;
            if (stop != ~0ull && !(counted && icount_has_deadline(c))) return EXIT_HALT;
            if (counted) icount_sleep(c);
            else sleep_halted(c);
            continue;
        }
        if (!translates(c, stop)) interp_run(c);
        else if (unlikely(c->machine->lockstep)) jit_run_lockstep(c);
        else jit_run(c);
    }
}
