/* -d in_asm, exec, cpu. */
#ifndef QPY_INTERP_TRACE_H
#define QPY_INTERP_TRACE_H

#include "base/log.h"
#include "interp/block.h"

void trace_decoded(Cpu *c, const Block *b, const u8 *bytes); /* -d in_asm: a block was built */
void trace_entered(Cpu *c, const Block *b);                  /* -d exec, cpu: a block is about to run */

#endif
