/* -d in_asm, exec, cpu. */
#ifndef QPY_INTERP_TRACE_H
#define QPY_INTERP_TRACE_H

#include "base/log.h"
#include "interp/block.h"

INLINE u64 block_lin(const Cpu *c, const Block *b) { return (c->ea_base[SEG_CS] + b->rip) & c->lin_mask; }
void trace_decoded(Cpu *c, const Block *b, const u8 *bytes);      /* -d in_asm: a block was built */
void trace_entered(Cpu *c, const Block *b);                       /* -d exec, cpu: a block is about to run */
void trace_event(Cpu *c, unsigned vector, u32 error, unsigned i); /* -d int */
void trace_far(Cpu *c, const char *what, unsigned sel, u64 off);  /* -d pcall */
void trace_reset(Cpu *c, const char *why);                        /* -d cpu_reset */

#endif
