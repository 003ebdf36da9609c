/* Stopping vCPUs (safepoint.h). Each flag pair is a store by one side and a load by the other with full ordering: a
 * vCPU sets in_guest and then looks at excl, a stopper sets excl and then looks at in_guest, so at least one sees the
 * other. */
#include "memory/safepoint.h"

#include "base/bql.h"
#include "memory/state.h"

#include <errno.h>
#include <limits.h>

__thread Cpu *current_cpu;

INLINE u32 load(volatile u32 *p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
INLINE void store(volatile u32 *p, u32 v) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }

static void wait_zero(volatile u32 *word) {
    for (u32 v; (v = load(word)) != 0;) futex_wait(word, v, -1);
}

void guest_leave(Cpu *c) {
    store(&c->in_guest, 0);
    if (unlikely(load(&c->machine->excl))) futex_wake(&c->in_guest, INT_MAX);
}

void guest_enter(Cpu *c) {
    for (;;) {
        store(&c->in_guest, 1);
        if (likely(!load(&c->machine->excl))) return;
        guest_leave(c);
        wait_zero(&c->machine->excl);
    }
}

void cpu_notify(Cpu *c, u32 bits) {
    cpu_pend(c, bits);
    if (load(&c->waiting)) futex_wake(&c->pending, INT_MAX);
}

void exclusive_begin(Machine *m, Cpu *self) {
    if (self) guest_leave(self);
    lock_take(&m->excl_lock);
    store(&m->excl, 1);
    for (u32 i = 0; i < m->n_cpus; i++)
        if (load(&m->cpu[i]->in_guest)) cpu_pend(m->cpu[i], PEND_KICK);
    for (u32 i = 0; i < m->n_cpus; i++) wait_zero(&m->cpu[i]->in_guest);
}

void exclusive_end(Machine *m, Cpu *self) {
    store(&m->excl, 0);
    futex_wake(&m->excl, INT_MAX);
    lock_release(&m->excl_lock);
    if (self) guest_enter(self);
}

int machine_pause(Machine *m) {
    if (current_cpu && current_cpu->machine == m) return -EDEADLK;
    bool held = bql_held();
    if (held) bql_unlock();
    __atomic_fetch_add(&m->pause, 1, __ATOMIC_SEQ_CST);
    for (u32 i = 0; i < m->n_cpus; i++) cpu_notify(m->cpu[i], PEND_KICK);
    for (u32 i = 0; i < m->n_cpus; i++) wait_zero(&m->cpu[i]->active);
    if (held) bql_lock();
    return 0;
}

void machine_resume(Machine *m) {
    if (__atomic_sub_fetch(&m->pause, 1, __ATOMIC_SEQ_CST) == 0) futex_wake(&m->pause, INT_MAX);
}

bool pause_point_enter(Cpu *c) {
    Machine *m = c->machine;
    cpu_tsc_forget(c); /* the clock may be started and stopped meanwhile */
    for (;;) {
        store(&c->active, 1);
        u32 pause = load(&m->pause);
        if (likely(!pause)) return true;
        pause_point_leave(c);
        if (load(&c->exit_request)) return false;
        futex_wait(&m->pause, pause, -1);
    }
}

void pause_point_leave(Cpu *c) {
    store(&c->active, 0);
    futex_wake(&c->active, INT_MAX);
}
