/* Call/return pairs: a guest CALL is a host call, a guest RET a host ret, so that the host predicts returns (DESIGN
 * "Control flow", CORE 6).
 *
 * While translated code runs, the host's stack pointer is in a stack of return addresses of its own; C runs on the
 * thread's. RET loads the guest's return address into r14 and executes `ret`. Where it lands, behind some call, r14 is
 * compared with the address that call pushed; if it is another one, find_target looks it up. Below the first pair lies
 * the address of `return_missed`, which does the same. So a pair is only a guess, and may be dropped at any time:
 * leaving translated code drops all (whatever flushes a translation or drops code leaves), and so does a full stack,
 * which the guard page notices.
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

void jit_pairs_free(Jit *j) {
    if (j->stacks) munmap(j->stacks, 2 * GUARD + PAIRS_BYTES + SIGNAL_BYTES);
}

/* Signal handlers need a stack that is never full. */
void jit_pairs_thread(const Cpu *c) {
    static __thread const Jit *known;
    const Jit *j = c->jit;
    if (known == j) return;
    known = j;
    stack_t s = {.ss_sp = j->stacks + 2 * GUARD + PAIRS_BYTES, .ss_size = SIGNAL_BYTES};
    sigaltstack(&s, NULL);
}

bool jit_pairs_full(const Jit *j, u64 address) { return address - (u64)j->stacks < GUARD; }

void jit_make_pairs(Asm *a, Cpu *c, Jit *j) {
    *(u64 *)c->jit_pairs = asm_here(a);       /* return_missed */
    asm_lea(a, RSP, rm_at(RSP, -8));          /* stays the last */
    j->find_target = (const u8 *)asm_here(a); /* r14 = the guest's address to go to; RFLAGS stay */
    asm_load(a, R13, rm_abs(&c->jit_cache));
    asm_vex(a, 2, MAP_0F38, 1, 0xf5, R15, R14, rm_abs(&c->jit_mask[2])); /* pext */
    asm_rm(a, 0, MAP_1, 0xff, 4, rm_sib(R13, R15, 3, 0));
    j->target_missed = (const u8 *)asm_here(a);
    asm_store(a, rm_abs(&c->r[R_RIP]), R14);
    asm_jmp(a, (u64)j->leave_now);
}

/* r14 == rip, or on to `miss`. */
static void compare(Trans *t, u64 rip, const u8 *miss) {
    Asm *a = &t->a;
    if (!t->wide || (i64)rip == (i32)rip) {
        asm_rm(a, t->wide ? E_W : 0, MAP_1, 0x81, 7, rm_reg(R14)), put4(a, rip);
    } else {
        asm_imm(a, R15, rip);
        asm_rm(a, E_W, MAP_1, 0x3b, R14, rm_reg(R15));
    }
    asm_jcc(a, 5, (u64)miss);
}

/* The same without touching RFLAGS, with `poll` also if somebody wants the vCPU. Addresses that meet here are equal or
 * far apart, and the poll word is 0 or 1. */
static void compare_keeping(Trans *t, u64 rip, bool poll, const u8 *miss) {
    Asm *a = &t->a;
    unsigned from = R14;
    asm_mov(a, R13, RCX);
    if (poll) {
        asm_load32(a, RCX, rm_abs(&t->c->poll));
        asm_lea(a, RCX, rm_sib(RCX, R14, 0, 0));
        from = RCX;
    }
    if ((i64)-rip == (i32)-rip) {
        asm_lea(a, RCX, rm_at(from, (i32)-rip));
    } else {
        asm_imm(a, R15, -rip);
        asm_lea(a, RCX, rm_sib(from, R15, 0, 0));
    }
    put1(a, 0xe3), put1(a, 8); /* jrcxz */
    asm_mov(a, RCX, R13);
    asm_jmp(a, (u64)miss);
    asm_mov(a, RCX, R13);
}

void emit_found(Trans *t) {
    t->code->found = (const u8 *)asm_here(&t->a);
    /* RFLAGS must survive even if this block overwrites them: the way may lead on to another that does not. */
    compare_keeping(t, t->b->rip, true, t->jit->target_missed);
}

void emit_return_site(Trans *t, u64 rip, u16 live) {
    const u8 *miss = t->jit->find_target;
    if (live) compare_keeping(t, rip, false, miss);
    else compare(t, rip, miss);
}
