/* Host exceptions in translated code are the guest's: #DE, #UD, #GP by alignment, #MF, #XM. The handler finds the
 * instruction by its host address and lets the interrupted code go on in the `fault` stub, with all registers as they
 * were. A fault elsewhere goes to the handler that was there before. */
#include "jit/jit.h"
#include "memory/pagein.h"
#include "memory/safepoint.h"

#include <signal.h>
#include <ucontext.h>

static struct sigaction old_action[NSIG];

/* The translation that holds this offset of the code cache; they lie in the order they were made. */
static const JitCode *code_at(const Jit *j, u32 off) {
    u32 lo = 0, hi = j->n_codes;
    while (lo < hi) {
        u32 mid = (lo + hi) / 2;
        if (j->codes[mid]->end <= off) lo = mid + 1;
        else hi = mid;
    }
    if (lo == j->n_codes) return NULL;
    const JitCode *k = j->codes[lo];
    return off >= (u32)(k->entry - j->rx) ? k : NULL;
}

static bool redirect(Cpu *c, greg_t *g, u64 trap) {
    const Jit *j = c->jit;
    u64 off = (u64)g[REG_RIP] - (u64)j->rx;
    const JitCode *k = off < j->used ? code_at(j, (u32)off) : NULL;
    if (!k || !k->block) return false;
    u32 i = 0;
    while (i + 1 < k->n_points && k->points[i + 1].at && k->points[i + 1].at <= off) i++;
    const JitPoint *p = &k->points[i];
    i = p->insn;
    u64 next = k->block->rip;
    for (u32 n = 0; n <= i; n++) next += k->insn[n].len;
    c->jit_tmp[0] = trap;
    g[REG_R15] = (greg_t)&k->insn[i];
    g[REG_R14] = (greg_t)next;
    g[REG_R13] = (greg_t)(j->rx + k->end + p->recover - 1);
    g[REG_RIP] = (greg_t)(p->recover ? j->fault_recover : j->fault);
    return true;
}

/* A call found the stack of return addresses full: it does without the pairs that are there. */
static bool restart_pairs(Cpu *c, greg_t *g, u64 address) {
    if (!jit_pairs_full(c->jit, address)) return false;
    g[REG_RSP] = (greg_t)c->jit_pairs;
    return true;
}

static bool is_guests(unsigned trap) {
    return trap == EXC_DE || trap == EXC_UD || trap == EXC_GP || trap == EXC_MF || trap == EXC_XM;
}

static void on_fault(int sig, siginfo_t *info, void *context) {
    greg_t *g = ((ucontext_t *)context)->uc_mcontext.gregs;
    Cpu *c = current_cpu;
    if (c && c->jit && g[REG_TRAPNO] == EXC_PF && restart_pairs(c, g, (u64)info->si_addr)) return;
    if (c && c->jit && is_guests((unsigned)g[REG_TRAPNO]) && redirect(c, g, (u64)g[REG_TRAPNO])) return;
    const struct sigaction *old = &old_action[sig];
    if (old->sa_flags & SA_SIGINFO) old->sa_sigaction(sig, info, context);
    else if (old->sa_handler == SIG_DFL || old->sa_handler == SIG_IGN) signal(sig, SIG_DFL);
    else old->sa_handler(sig);
}

/* A page of guest RAM could not be read: the instruction starts again when the machine goes on. */
static bool on_pagein(Cpu *c, void *context) {
    return redirect(c, ((ucontext_t *)context)->uc_mcontext.gregs, EXC_RESTART);
}

void jit_faults_init(void) {
    static bool done;
    if (done) return;
    done = true;
    pagein_translated_hook = on_pagein;
    static const int sigs[] = {SIGFPE, SIGSEGV, SIGILL};
    struct sigaction act = {.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    act.sa_sigaction = on_fault;
    for (unsigned i = 0; i < ARRAY_LEN(sigs); i++) sigaction(sigs[i], &act, &old_action[sigs[i]]);
}
