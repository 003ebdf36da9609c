/* One vCPU from creation to its run loop: the top floor of the core, beneath api.c only. */
#ifndef QPY_VCPU_VCPU_H
#define QPY_VCPU_VCPU_H

#include "memory/state.h"

/* Values of QPY_EXIT_* (api.h); EXIT_SHUTDOWN is in cpu/cpu.h. */
enum { EXIT_KICK = 1, EXIT_DEBUG = 4, EXIT_ERROR = 5, EXIT_HALT = 6 };

/* Values of QPY_ACCEL_*. */
enum { ACCEL_INTERP, ACCEL_DBT };

Cpu *vcpu_new(Machine *m, const char *model, char *err, size_t err_size);
void vcpu_free(Cpu *c);
void vcpu_reset(Cpu *c);
void vcpu_kick(Cpu *c);

/* stop: leave when that many instructions have retired in all, and instead of sleeping in HLT; ~0: run on. */
int vcpu_run(Cpu *c, u64 stop);
/* The part between safe points, built without vector registers (the guest's may be live): vcpu/run.c. */
int vcpu_run_guest(Cpu *c, u64 stop);

#endif
