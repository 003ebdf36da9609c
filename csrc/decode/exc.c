/* Raising exceptions: note what happened, rewind to the faulting instruction, leave to the run loop, which delivers. */
#include "decode/insn.h"

static _Noreturn void leave(Cpu *c) { __builtin_longjmp(c->jmp, 1); }

/* Nothing is rewound while an event is being delivered: RIP is already what the frame must show. */
static void rewind_rip(Cpu *c) {
    if (c->exc.delivering || c->exc.keep_rip) return;
    c->r[R_RIP] -= c->cur->len;
    if (!(c->mode & MODE_CS64)) c->r[R_RIP] &= 0xffffffff;
}

void exc_raise(Cpu *c, unsigned vector) {
    rewind_rip(c);
    c->exc.vector = vector;
    c->exc.error = 0;
    c->exc.has_error = c->exc.trap = false;
    leave(c);
}

void exc_raise_err(Cpu *c, unsigned vector, u32 error) {
    rewind_rip(c);
    c->exc.vector = vector;
    c->exc.error = error;
    c->exc.has_error = true;
    c->exc.trap = false;
    leave(c);
}

void exc_raise_pf(Cpu *c, u64 lin, u32 error) {
    c->exc.addr = lin;
    exc_raise_err(c, EXC_PF, error);
}

void exc_raise_trap(Cpu *c, unsigned vector) {
    c->exc.vector = vector;
    c->exc.error = 0;
    c->exc.has_error = false;
    c->exc.trap = true;
    leave(c);
}

void exc_restart(Cpu *c) {
    rewind_rip(c);
    c->exc.vector = EXC_RESTART;
    leave(c);
}

_Noreturn void exc_restart_singly(Cpu *c) {
    c->dbg_step = true;
    cpu_update_mode(c);
    exc_restart(c);
}
