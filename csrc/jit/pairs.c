/* Call/return pairs: a guest CALL is a host call, a guest RET a host ret, so that the host predicts returns (DESIGN
 * "Control flow", CORE 6).
 *
 * While translated code runs, the host's stack pointer is in a stack of its own; C runs on the thread's. CALL pushes
 * the guest's return address, negated, and calls. RET loads the address the guest goes to into r14 and compares; if it
 * is another one all pairs are dropped and the jump cache is asked. A pair is only a guess, so pairs may be dropped at
 * any time: leaving translated code drops all (whatever flushes a translation or drops code leaves), and so does a
 * full stack, which the guard page notices.
 *
 * No poll is needed at a return: an endless run of calls and returns has a backward or an indirect transfer in it. */
#include "jit/trans.h"

#include <signal.h>
#include <sys/mman.h>

enum { PAIRS_BYTES = 64 << 10, SIGNAL_BYTES = 64 << 10, GUARD = 2 * PAGE_SIZE };

bool jit_pairs_init(Cpu *c, Jit *j) {
    size_t size = 2 * GUARD + PAIRS_BYTES + SIGNAL_BYTES;
    char *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return false;
    if (mprotect(p, GUARD, PROT_NONE) || mprotect(p + GUARD + PAIRS_BYTES, GUARD, PROT_NONE)) {
        munmap(p, size);
        return false;
    }
    j->stacks = p;
    c->jit_pairs = (u64)p + GUARD + PAIRS_BYTES - 16;
    return true;
}

/* The stacks whose signal stack this thread uses, and what it used before. Not whose they are: another Jit may come to
 * lie where a freed one was. */
static __thread const char *in_use;
static __thread stack_t before;

void jit_pairs_free(Jit *j) {
    if (!j->stacks) return;
    if (in_use == j->stacks) {
        sigaltstack(&before, NULL);
        in_use = NULL;
    }
    munmap(j->stacks, 2 * GUARD + PAIRS_BYTES + SIGNAL_BYTES);
}

/* Signal handlers need a stack that is never full. */
void jit_pairs_thread(const Cpu *c) {
    char *stacks = c->jit->stacks;
    if (in_use == stacks) return;
    stack_t s = {.ss_sp = stacks + 2 * GUARD + PAIRS_BYTES, .ss_size = SIGNAL_BYTES};
    sigaltstack(&s, in_use ? NULL : &before);
    in_use = stacks;
}

bool jit_pairs_full(const Jit *j, u64 address) { return address - (u64)j->stacks < GUARD; }

void jit_by_cache(Asm *a, Cpu *c, bool call) {
    asm_load(a, R13, rm_abs(&c->jit_cache));
    asm_vex(a, 2, MAP_0F38, 1, 0xf5, R15, R14, rm_abs(&c->jit_mask[MASK_JUMP])); /* pext */
    asm_rm(a, 0, MAP_1, 0xff, call ? 2 : 4, rm_sib(R13, R15, 3, 0));
}

void jit_make_pairs(Asm *a, Cpu *c, Jit *j) {
    u64 *bottom = (u64 *)c->jit_pairs;
    j->covered = (const u8 *)asm_here(a);
    put1(a, 0x90);           /* another address than the next */
    bottom[0] = asm_here(a); /* for a guest that returns to address 0 */
    bottom[1] = 0;
    j->return_missed = (const u8 *)asm_here(a); /* r14 = the guest's address to go to */
    asm_load(a, RSP, rm_abs(&c->jit_pairs));
    jit_by_cache(a, c, false);
    j->target_missed = (const u8 *)asm_here(a);
    asm_store(a, rm_abs(&c->r[R_RIP]), R14);
    asm_jmp(a, (u64)j->leave_now);
}

/* Comparing without RFLAGS, which whoever is found at the other end may read: a difference in rcx, which waits in r13.
 * Where LOOP is fast it goes to `island`, code that nothing falls into, if rcx - 1 is not 0: then the common case takes
 * no branch. Elsewhere JRCXZ jumps over what the island would hold. */
static i32 bias(const Trans *t) { return t->jit->loop_is_fast ? 1 : 0; }

static void miss(Asm *a, const u8 *to) {
    asm_mov(a, RCX, R13);
    asm_jmp(a, (u64)to);
}

static u8 *go_on_if_zero(Trans *t, const u8 *missed) {
    Asm *a = &t->a;
    put1(a, t->jit->loop_is_fast ? 0xe2 : 0xe3), put1(a, 0);
    u8 *site = a->p - 1;
    if (!t->jit->loop_is_fast) {
        miss(a, missed);
        *site = (u8)(a->p - (site + 1));
    }
    asm_mov(a, RCX, R13);
    return site;
}

void emit_found(Trans *t) {
    Asm *a = &t->a;
    u64 rip = t->b->rip;
    const u8 *island = a->p, *missed = t->jit->target_missed;
    if (t->jit->loop_is_fast) miss(a, missed);
    t->code->found = (const u8 *)asm_here(a);
    asm_mov(a, R13, RCX);
    asm_load32(a, RCX, rm_abs(&t->c->poll)); /* 0 or 1; addresses that meet here are equal or far apart */
    asm_lea(a, RCX, rm_sib(RCX, R14, 0, bias(t)));
    if ((i64)-rip == (i32)-rip) {
        asm_lea(a, RCX, rm_at(RCX, (i32)-rip));
    } else {
        asm_imm(a, R15, -rip);
        asm_lea(a, RCX, rm_sib(RCX, R15, 0, 0));
    }
    u8 *site = go_on_if_zero(t, missed);
    if (t->jit->loop_is_fast) *site = (u8)(island - (site + 1));
}

void emit_push_pair(Trans *t, u64 rip) {
    Asm *a = &t->a;
    if ((i64)-rip == (i32)-rip) {
        put1(a, 0x68), put4(a, -rip); /* push imm32 */
        return;
    }
    u64 *v = jit_alloc(t->jit, sizeof *v);
    *v = -rip;
    asm_rm(a, 0, MAP_1, 0xff, 6, rm_abs(v));
}

void emit_return(Trans *t) {
    Asm *a = &t->a;
    asm_mov(a, R13, RCX);
    asm_load(a, RCX, rm_at(RSP, 8));
    asm_lea(a, RCX, rm_sib(RCX, R14, 0, bias(t)));
    u8 *site = go_on_if_zero(t, t->jit->return_missed);
    put1(a, 0xc2), put2(a, 8); /* ret 8 */
    if (!t->jit->loop_is_fast) return;
    *site = (u8)(a->p - (site + 1));
    miss(a, t->jit->return_missed);
}

/* Code of one mode must not return into code of another. So a pair is pushed that no return matches (to address 0: it
 * drops them all); if it is on top when the mode is changed back, all is as it was. */
void emit_cover_pairs(Trans *t) {
    put1(&t->a, 0x6a), put1(&t->a, 0); /* push 0 */
    put1(&t->a, 0x68), put4(&t->a, (u64)t->jit->covered);
}

void emit_uncover_pairs(Trans *t) {
    Asm *a = &t->a;
    asm_mov(a, R14, RCX);
    asm_load(a, RCX, rm_at(RSP, 0));
    asm_load(a, R15, rm_at(RSP, 8)); /* not 0 if the stack was full in between */
    asm_lea(a, RCX, rm_sib(RCX, R15, 0, -(i32)(u64)t->jit->covered));
    u8 *top = asm_jrcxz(a);
    asm_load(a, RSP, rm_abs(&t->c->jit_pairs));
    put1(a, 0xeb), put1(a, 0);
    u8 *over = a->p;
    asm_land(a, top);
    asm_lea(a, RSP, rm_at(RSP, 16));
    over[-1] = (u8)(a->p - over);
    asm_mov(a, RCX, R14);
}
