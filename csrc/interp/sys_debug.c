/* Debug exceptions (Intel SDM vol 3B 17.2-17.3): single step, instruction, data and I/O breakpoints.
 *
 * With a breakpoint armed only this is slow: instructions in the page of an instruction breakpoint, which are neither
 * looked up as blocks nor translated, and accesses to a page with watched data, which is in no TLB: its slow path
 * (mmu/access.c) sees a hit coming and has the instruction start again, singly, where hits are noted in Cpu.dbg_hits
 * and raised behind it. Whatever knows code or data by linear address forgets all when breakpoints change. */
#include "interp/sys.h"

#include "cpu/debugreg.h"

enum { DR6_BD = 1 << 13, DR6_BS = 1 << 14 };

/* B0-3 tell about this exception only; BD BS BT stay until software clears them. */
static _Noreturn void raise_db(Cpu *c, u64 bits, bool trap) {
    c->dr[6] = (c->dr[6] & ~15ull) | bits;
    c->dbg_hits = 0;
    c->dbg_tf = false;
    if (trap) exc_raise_trap(c, EXC_DB);
    exc_raise(c, EXC_DB);
}

static u64 next_lin(const Cpu *c) { return (c->ea_base[SEG_CS] + c->r[R_RIP]) & c->lin_mask; }

static u64 matching_code_breakpoints(Cpu *c) {
    u64 hits = 0;
    for (unsigned i = 0; i < 4; i++)
        if (dr_armed(c, i) && dr_kind(c, i) == DR_EXECUTE && c->dr[i] == next_lin(c)) hits |= 1u << i;
    return hits;
}

bool debug_wants_step(Cpu *c) {
    return c->mode & MODE_STEP || c->ss_shadow || (c->dbg_code && dr_in_page(c, next_lin(c), true));
}

static void step(Cpu *c, bool on) {
    c->dbg_step = on;
    cpu_update_mode(c);
}

void debug_before_insn(Cpu *c) {
    bool shadow = c->ss_shadow;
    if (!(c->mode & MODE_STEP)) step(c, true);
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
    step(c, false);
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
    if (!c->dbg_data || !(c->cr4 & CR4_DE)) return;
    for (unsigned i = 0; i < 4; i++) {
        if (!dr_armed(c, i) || dr_kind(c, i) != DR_IO || !dr_meets(c, i, port, n)) continue;
        if (!(c->mode & MODE_STEP)) exc_restart_singly(c);
        c->dbg_hits |= 1u << i;
    }
}

/* DR7.GD: any MOV DR faults before it acts. */
void debug_check_gd(Cpu *c) {
    if (!(c->dr[7] >> 13 & 1)) return;
    c->dr[6] |= DR6_BD;
    exc_raise(c, EXC_DB);
}
