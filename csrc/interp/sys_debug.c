/* Debug exceptions (Intel SDM vol 3B 17.2-17.3): single step, instruction, data and I/O breakpoints. Data accesses are
 * noted in Cpu.dbg_hits by the memory slow paths, which see all of them while a data breakpoint is armed. */
#include "interp/sys.h"

enum { DR6_BD = 1 << 13, DR6_BS = 1 << 14 };

/* B0-3 tell about this exception only; BD BS BT stay until software clears them. */
static _Noreturn void raise_db(Cpu *c, u64 bits, bool trap) {
    c->dr[6] = (c->dr[6] & ~15ull) | bits;
    c->dbg_hits = 0;
    c->dbg_tf = false;
    if (trap) exc_raise_trap(c, EXC_DB);
    exc_raise(c, EXC_DB);
}

static u64 matching_code_breakpoints(Cpu *c) {
    u64 lin = cpu_code64(c) ? c->r[R_RIP] : (u32)(c->seg[SEG_CS].base + c->r[R_RIP]), hits = 0;
    for (unsigned i = 0; i < 4; i++)
        if ((c->dr[7] >> (2 * i) & 3) && !(c->dr[7] >> (16 + 4 * i) & 3) && c->dr[i] == lin) hits |= 1u << i;
    return hits;
}

void debug_before_insn(Cpu *c) {
    bool shadow = c->ss_shadow;
    c->ss_shadow = false;
    c->dbg_tf = c->flags & FL_TF;
    c->dbg_rf = c->flags & FL_RF;
    if (!shadow) c->dbg_hits = 0; /* what MOV SS met is reported after this instruction */
    if (c->flags & FL_RF || shadow) return;
    u64 hits = matching_code_breakpoints(c);
    if (unlikely(hits)) raise_db(c, hits, false);
}

void debug_after_insn(Cpu *c) {
    if (c->dbg_rf) c->flags &= ~(u64)FL_RF;
    if (c->ss_shadow) return; /* after MOV SS and POP SS the traps wait for the next boundary */
    u64 bits = c->dbg_hits | (c->dbg_tf ? DR6_BS : 0);
    if (unlikely(bits)) raise_db(c, bits, true);
}

/* SYSCALL and SYSRET: TF as it is after the instruction decides (SDM vol 2, SYSRET; the trap is then immediate). */
void debug_recheck_tf(Cpu *c) {
    c->dbg_tf = false;
    if (c->flags & FL_TF) raise_db(c, DR6_BS, true);
}

void debug_note_io(Cpu *c, unsigned port, unsigned n) {
    static const u8 lens[4] = {1, 2, 8, 4};
    if (!c->dbg_data || !(c->cr4 & CR4_DE)) return;
    for (unsigned i = 0; i < 4; i++) {
        unsigned len = lens[c->dr[7] >> (18 + 4 * i) & 3];
        u64 at = c->dr[i] & ~(u64)(len - 1);
        if ((c->dr[7] >> (2 * i) & 3) && (c->dr[7] >> (16 + 4 * i) & 3) == 2 && port < at + len && at < port + n)
            c->dbg_hits |= 1u << i;
    }
}

/* DR7.GD: any MOV DR faults before it acts. */
void debug_check_gd(Cpu *c) {
    if (!(c->dr[7] >> 13 & 1)) return;
    c->dr[6] |= DR6_BD;
    exc_raise(c, EXC_DB);
}
