/* The vCPU as driver of a clock that counts instructions. */
#ifndef QPY_VCPU_ICOUNT_H
#define QPY_VCPU_ICOUNT_H

#include "cpu/cpu.h"

u64 icount_of(const void *counter); /* QpyClock.count: instructions retired by the vCPU `counter` */

/* In the dispatcher, at an instruction boundary: fires what is due. Returns the instruction count at which to come back
 * here: the next deadline's, or `stop` if that is sooner. */
u64 icount_boundary(Cpu *c, u64 stop);
bool icount_has_deadline(Cpu *c);
/* HLT: until something is pending or the next deadline has come. */
void icount_sleep(Cpu *c);

#endif
