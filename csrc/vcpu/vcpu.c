/* Making, resetting, starting and stopping a vCPU. */
#include "vcpu/vcpu.h"

#include "apic/apic.h"
#include "base/log.h"
#include "cpu/fpu.h"
#include "cpu/model.h"
#include "interp/ops.h"
#include "jit/jit.h"
#include "memory/safepoint.h"
#include "vcpu/icount.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

static u32 next_id;

/* Below 2 GiB, so that translated code can address it absolutely. */
static Cpu *cpu_alloc(void) {
    void *p = mmap(NULL, sizeof(Cpu), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

Cpu *vcpu_new(Machine *m, const char *model, char *err, size_t err_size) {
    u32 most = m->clock->counted ? 1 : MAX_VCPUS;
    if (m->n_cpus >= most) {
        snprintf(err, err_size, "at most %u vCPU%s", most, most == 1 ? " with -icount" : "s");
        return NULL;
    }
    Cpu *c = cpu_alloc();
    if (!c) {
        snprintf(err, err_size, "no memory for a vCPU");
        return NULL;
    }
    c->machine = m;
    c->id = __atomic_fetch_add(&next_id, 1, __ATOMIC_SEQ_CST);
    c->index = m->n_cpus;
    c->a20_mask = m->a20_mask;
    if (!model_setup(c, model, err, err_size)) {
        munmap(c, sizeof *c);
        return NULL;
    }
    c->interp = interp_new();
    c->apic = apic_new(c);
    m->cpu[c->index] = c;
    if (m->clock->counted) {
        m->clock->counter = c;
        m->clock->count = icount_of;
    }
    vcpu_reset(c);
    m->n_cpus++;
    if (apic_timers_start(m) < 0) {
        snprintf(err, err_size, "cannot start the timer thread");
        vcpu_free(c);
        return NULL;
    }
    return c;
}

/* The last one made goes first: indices stay dense. */
void vcpu_free(Cpu *c) {
    Machine *m = c->machine;
    if (m->n_cpus == 1) apic_timers_stop(m);
    m->cpu[c->index] = m->cpu[m->n_cpus - 1];
    m->n_cpus--;
    if (m->clock->counter == c) m->clock->count = NULL;
    apic_free(c->apic);
    jit_free(c->jit);
    interp_free(c->interp);
    munmap(c, sizeof *c);
}

void vcpu_reset(Cpu *c) {
    u64 a20 = c->a20_mask;
    cpu_unpend(c, ~(u32)PEND_KICK);
    cpu_reset(c, false);
    c->a20_mask = a20; /* the gate belongs to the chipset */
    c->tsc_offset = 0;
    apic_reset(c->apic, false);
    c->apic->wait_sipi = c->halted = c->index != 0;
}

void vcpu_kick(Cpu *c) {
    __atomic_store_n(&c->exit_request, 1, __ATOMIC_SEQ_CST);
    cpu_notify(c, PEND_KICK);
    futex_wake(&c->machine->pause, INT32_MAX);
}

/* Made when first needed: address space below 2 GiB is scarce. */
static void need_translator(Cpu *c) {
    if (c->jit || c->accel != ACCEL_DBT) return;
    const char *why;
    if (jit_new(c, &why)) return;
    c->accel = ACCEL_INTERP;
    log_printf("vCPU %u is interpreted: %s\n", c->index, why);
}

int vcpu_run(Cpu *c, u64 stop) {
    int reason = EXIT_KICK;
    current_cpu = c;
    if (!c->exit_request && pause_point_enter(c)) {
        guest_enter(c);
        interp_set_stop(c, stop);
        need_translator(c);
        if (c->jit) jit_pairs_thread(c);
        reason = vcpu_run_guest(c, stop);
        interp_settle(c);
        fpu_park(c);
        guest_leave(c);
        pause_point_leave(c);
    }
    current_cpu = NULL;
    if (reason == EXIT_KICK) __atomic_store_n(&c->exit_request, 0, __ATOMIC_SEQ_CST);
    return reason;
}
