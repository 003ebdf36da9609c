/* Safe points: how other threads stop vCPUs (docs/threads.md).
 *
 * Two levels. *Exclusive*: no vCPU is between guest_enter() and guest_leave(), so nobody holds a host pointer into
 * guest RAM, a TLB entry or a decoded block; short, for map changes and code marking. A vCPU waiting for the BQL in an
 * upcall, sleeping in HLT or outside vcpu_run is at a safe point, so whoever holds the BQL may wait here. *Pause*:
 * every vCPU is at an instruction boundary, for stop, snapshots and reset; a vCPU inside an upcall is not, hence the
 * BQL is dropped while waiting. Lock order: BQL, exclusive, then leaf locks; inside an exclusive section nobody takes
 * the BQL. */
#ifndef QPY_MEMORY_SAFEPOINT_H
#define QPY_MEMORY_SAFEPOINT_H

#include "memory/machine.h"

void guest_enter(Cpu *c);
void guest_leave(Cpu *c);

/* Sets PEND_* bits from any thread and wakes the vCPU if it sleeps in HLT. */
void cpu_notify(Cpu *c, u32 bits);

/* self: the calling thread's vCPU if it is one, else NULL. */
void exclusive_begin(struct Machine *m, Cpu *self);
void exclusive_end(struct Machine *m, Cpu *self);

/* The vCPU whose vcpu_run the calling thread is in, or NULL. */
extern __thread Cpu *current_cpu;

int machine_pause(struct Machine *m); /* 0, or -EDEADLK on a vCPU's own thread */
void machine_resume(struct Machine *m);
/* The vCPU's side: before the first and between instructions. False: a kick asks to leave instead. */
bool pause_point_enter(Cpu *c);
void pause_point_leave(Cpu *c);

#endif
