/* Lock-step of interpreter and translator, see lockstep.c. */
#ifndef QPY_JIT_LOCKSTEP_H
#define QPY_JIT_LOCKSTEP_H

#include "jit/jit.h"

/* Executes one block; `translated` enters its translation once, without links. May raise. */
void lockstep_block(Cpu *c, Block *b, void (*translated)(Cpu *c, Block *b));

#endif
