/* The thread that fires local APIC timers while their vCPUs run: it sleeps until the earliest deadline of all vCPUs of
 * its machine. A vCPU in HLT waits for its own deadline too, which saves a thread switch. */
#include "apic/apic.h"

#include "memory/state.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>

static Lock all_lock;
static ApicTimers *all;

static i64 earliest(Machine *m) {
    i64 best = INT64_MAX;
    for (u32 i = 0; i < m->n_cpus; i++) {
        i64 due = apic_fire_due(m->cpu[i]->apic);
        if (due >= 0 && due < best) best = due;
    }
    return best;
}

static void *timer_thread(void *arg) {
    ApicTimers *t = arg;
    prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0);
    prctl(PR_SET_NAME, "apic-timer", 0, 0, 0);
    while (!t->quit) {
        u32 changes = __atomic_load_n(&t->changes, __ATOMIC_SEQ_CST);
        __atomic_store_n(&t->sleeping_until, 0, __ATOMIC_SEQ_CST); /* computing: every change counts */
        i64 until = earliest(t->machine);
        __atomic_store_n(&t->sleeping_until, until, __ATOMIC_SEQ_CST);
        i64 host = until == INT64_MAX ? -1 : clock_host_deadline(t->machine->clock, until);
        futex_wait(&t->changes, changes, host);
    }
    return NULL;
}

void apic_timers_clock_changed(const QpyClock *clock) {
    lock_take(&all_lock);
    for (ApicTimers *t = all; t; t = t->next_machine) {
        if (t->machine->clock != clock) continue;
        apic_timers_poke(t);
        for (u32 i = 0; i < t->machine->n_cpus; i++) futex_wake(&t->machine->cpu[i]->pending, INT_MAX);
    }
    lock_release(&all_lock);
}

/* Signals are Python's main thread's business. */
static int start_thread(ApicTimers *t) {
    sigset_t block, old;
    sigfillset(&block);
    pthread_sigmask(SIG_SETMASK, &block, &old);
    int error = pthread_create(&t->thread, NULL, timer_thread, t);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return -error;
}

int apic_timers_start(Machine *m) {
    if (m->timers || m->clock->counted) return 0; /* counted: the vCPU fires its own timer (vcpu/icount.c) */
    ApicTimers *t = calloc(1, sizeof *t);
    if (!t) return -ENOMEM;
    t->machine = m;
    int error = start_thread(t);
    if (error) {
        free(t);
        return error;
    }
    lock_take(&all_lock);
    t->next_machine = all;
    all = t;
    lock_release(&all_lock);
    m->timers = t;
    return 0;
}

void apic_timers_stop(Machine *m) {
    ApicTimers *t = m->timers;
    if (!t) return;
    t->quit = true;
    apic_timers_poke(t);
    pthread_join(t->thread, NULL);
    lock_take(&all_lock);
    for (ApicTimers **p = &all; *p; p = &(*p)->next_machine)
        if (*p == t) {
            *p = t->next_machine;
            break;
        }
    lock_release(&all_lock);
    m->timers = NULL;
    free(t);
}
