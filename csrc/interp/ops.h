/* Handlers: one C function per instruction form, op_xxx(Cpu *, const Insn *). Tables map Zydis mnemonics to them; the
 * block builder (block.c) picks Insn.fn once, when an instruction is decoded. */
#ifndef QPY_INTERP_OPS_H
#define QPY_INTERP_OPS_H

#include "decode/insn.h"
#include "mmu/mmu.h"
#include "memory/machine.h"

/* Each group resolves what it implements and returns NULL for the rest; asked in this order. An unresolved or
 * feature-less instruction becomes op_ud. Also sets INF_END on instructions that must end a block (CORE 6). */
OpFn ops_integer_resolve(Insn *in, u32 mode); /* interp/int_*.c: arithmetic, moves, strings, near branches, BMI */
OpFn ops_system_resolve(Insn *in, u32 mode);  /* interp/sys_*.c: segments, far control, CR/DR/MSR, I/O, flags, CPUID */
OpFn ops_fpu_resolve(Insn *in, u32 mode,
                     const u8 *bytes); /* interp/fpu_*.c: x87, MMX, SSE, AVX, XSAVE, CRC32, AES, SHA */
void op_nop(Cpu *c, const Insn *in);
void op_ud(Cpu *c, const Insn *in);

/* Event delivery (interp/sys_event.c). All may raise again (then #DF, triple fault). */
void exc_dispatch(Cpu *c);                     /* delivers c->exc after exc_raise*() jumped to the run loop */
void event_interrupt(Cpu *c, unsigned vector); /* external interrupt or NMI */
void event_soft_int(Cpu *c, unsigned vector, bool int3_or_into); /* INT n, INT3, INTO from a handler; checks DPL */

/* Single-step and breakpoints (interp/sys_debug.c). */
bool debug_wants_step(Cpu *c);  /* must the next instruction be executed singly, between the next two? */
void debug_before_insn(Cpu *c); /* instruction breakpoints: raises #DB fault unless RF */
void debug_after_insn(Cpu *c);  /* TF and data breakpoints: raises #DB trap; clears RF */

/* Run until something is pending, the vCPU halts or interp_set_stop()'s instruction count is reached (interp/run.c).
 * Exceptions leave by longjmp to c->jmp, which the caller (vcpu/run.c) set. */
void interp_run(Cpu *c);
void interp_set_stop(Cpu *c, u64 icount); /* ~0: never (the default) */
u64 interp_icount(const Cpu *c);          /* exact, also in the middle of a block */
void interp_settle(Cpu *c);               /* outside of any block: Cpu.icount becomes exact */
struct Interp *interp_new(void);
void interp_free(struct Interp *it);
void interp_flush_all(Cpu *c); /* drop every block */
void interp_ask_flush(Cpu *c); /* the same soon, on its own thread; any thread */

/* Guest FPU state (cpu/fpu.c): live = in host registers. Park before anything that may touch vector registers. */
void fpu_make_live(Cpu *c);
void fpu_park(Cpu *c);
u64 fpu_xinuse(Cpu *c); /* XGETBV with ECX = 1 */

#endif
