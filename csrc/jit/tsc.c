/* RDTSC, RDTSCP, RDPID (SDM vol 2). The guest's TSC is computed from the host's as long as the copy of the clock's
 * piece in Cpu holds; that it does not also stands for CR4.TSD and for a clock that stands. RFLAGS stay. */
#include "jit/trans.h"

#include "base/hosttsc.h"
#include "memory/state.h"

#include <cpuid.h>

static bool host_has_rdtscp(void) {
    unsigned a, b, c, d;
    return __get_cpuid(0x80000001, &a, &b, &c, &d) && d & BIT(27);
}

/* Lock-step feeds the second run with what the first one read. */
static bool by_host(const Trans *t) { return host_tsc_usable() && !machine_counts(t->c->machine) && !t->jit->lockstep; }

static void add(Trans *t, unsigned to, unsigned from, Rm what) {
    asm_load(&t->a, to, what);
    asm_lea(&t->a, to, rm_sib(from, to, 0, 0));
}

/* rax = the host's TSC; rcx, rdx have changed */
static void read_host(Trans *t, bool ordered) {
    Asm *a = &t->a;
    if (ordered) put1(a, 0x0f), put1(a, 0x01), put1(a, 0xf9);           /* rdtscp */
    else put1(a, 0x0f), put1(a, 0x31);                                  /* rdtsc */
    asm_vex(a, 3, MAP_0F3A, 1, 0xf0, RDX, 0, rm_reg(RDX)), put1(a, 32); /* rorx rdx, rdx, 32 */
    asm_lea(a, RAX, rm_sib(RAX, RDX, 0, 0));
}

/* edx:eax = rax */
static void split(Trans *t) {
    Asm *a = &t->a;
    asm_vex(a, 3, MAP_0F3A, 1, 0xf0, RDX, 0, rm_reg(RAX)), put1(a, 32); /* rorx rdx, rax, 32 */
    asm_rm(a, 0, MAP_1, 0x8b, RDX, rm_reg(RDX));
    asm_rm(a, 0, MAP_1, 0x8b, RAX, rm_reg(RAX));
}

/* The handler is to find the registers as they were: it may raise. */
static bool emit_read(Trans *t, bool ordered) {
    Asm *a = &t->a;
    Cpu *c = t->c;
    Rm rcx = rm_abs(&c->jit_tmp[2]);
    if (!by_host(t) || (ordered && !host_has_rdtscp())) return false;
    asm_mov(a, R14, RAX);
    asm_mov(a, R15, RDX);
    asm_store(a, rcx, RCX);
    read_host(t, ordered);
    add(t, RDX, RAX, rm_abs(&c->tsc.minus));
    asm_vex(a, 2, MAP_0F38, 1, 0xf5, RCX, RDX, rm_abs(&c->jit_mask[MASK_CLOCK])); /* pext */
    u8 *over = asm_jrcxz(a);
    asm_mov(a, RAX, R14);
    asm_mov(a, RDX, R15);
    asm_load(a, RCX, rcx);
    cold_helper(t, asm_jmp_later(a));
    asm_land(a, over);
    Rm scaled = {.reg = NO_REG, .base = NO_REG, .index = RDX, .scale = CLOCK_TICK_SHIFT};
    asm_lea(a, RDX, scaled);
    asm_vex(a, 3, MAP_0F38, 1, 0xf6, RAX, RAX, rm_abs(&c->tsc.mult)); /* mulx: the high half */
    add(t, RDX, RAX, rm_abs(&c->tsc.base));
    asm_mov(a, RAX, RDX);
    if (ordered) asm_load32(a, RCX, rm_abs(&c->tsc_aux));
    else asm_load(a, RCX, rcx);
    split(t);
    return true;
}

static bool emit_rdpid(Trans *t) {
    unsigned n = t->g->in->rm / 8, to = host_reg(n) == NO_REG ? R15 : host_reg(n);
    asm_load32(&t->a, to, rm_abs(&t->c->tsc_aux));
    if (host_reg(n) == NO_REG) asm_store(&t->a, slot(t, n), R15);
    return true;
}

bool emit_tsc(Trans *t) {
    const Insn *in = t->g->in;
    switch (in->op) {
    case ZYDIS_MNEMONIC_RDTSC: return emit_read(t, false);
    case ZYDIS_MNEMONIC_RDTSCP: return emit_read(t, true);
    case ZYDIS_MNEMONIC_RDPID: return emit_rdpid(t);
    default: return false;
    }
}
