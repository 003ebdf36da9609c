/* What happens when a page of guest RAM that is mapped from a file cannot be read.
 *
 * A guest instruction that touched it is abandoned and starts again when the machine goes on:
 * nothing is lost, and the page is tried again. Devices and the monitor claim pages before they touch them
 * (pagein_claim) and are told if one cannot be read. Whoever did not cannot be taken back: the page becomes zeros and
 * counts as lost. In all cases the main loop is told, which stops the machine.
 *
 * The handler runs first for SIGBUS at an address in guest RAM and passes everything else on. It makes system calls and
 * stores to words of its own, nothing more. */
#include "memory/pagein.h"

#include "memory/safepoint.h"

#include <errno.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

enum { MAX_WATCHED = 64, RED_ZONE = 128 };

static Machine *watched[MAX_WATCHED];
static struct sigaction before;
static bool installed;
static __thread PageinGuard *guard;

void pagein_guard_set(PageinGuard *g) { guard = g; }

static Machine *machine_of(u64 address) {
    for (unsigned i = 0; i < MAX_WATCHED; i++) {
        Machine *m = watched[i];
        if (m && address - (u64)m->ram_base < m->ram_used) return m;
    }
    return NULL;
}

static void tell(Machine *m, bool lost) {
    u64 one = 1;
    __atomic_fetch_add(&m->pagein_failed, 1, __ATOMIC_SEQ_CST);
    if (lost) __atomic_fetch_add(&m->pagein_lost, 1, __ATOMIC_SEQ_CST);
    if (write(m->pagein_fd, &one, sizeof one) < 0) return;
}

bool (*pagein_translated_hook)(Cpu *c, void *ucontext);

/* The thread goes on in exc_restart() with its registers as they were: the guest's vector state is not touched. */
static void divert(ucontext_t *uc, Cpu *c) {
    greg_t *r = uc->uc_mcontext.gregs;
    c->exit_reason = EXIT_PAGEIN;
    cpu_pend(c, PEND_EXIT);
    if (c->jit && pagein_translated_hook(c, uc)) return;
    r[REG_RSP] = ((r[REG_RSP] - RED_ZONE) & ~(greg_t)15) - 8; /* as after a call */
    r[REG_RDI] = (greg_t)c;
    r[REG_RIP] = (greg_t)exc_restart;
}

static void pass_on(int signal, siginfo_t *info, void *context) {
    if (before.sa_flags & SA_SIGINFO) before.sa_sigaction(signal, info, context);
    else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) before.sa_handler(signal);
    else sigaction(signal, &before, NULL); /* the instruction faults again, by default */
}

static void on_sigbus(int signal, siginfo_t *info, void *context) {
    u64 address = (u64)info->si_addr;
    Machine *m = info->si_code == BUS_ADRERR || info->si_code == BUS_OBJERR ? machine_of(address) : NULL;
    if (!m) {
        pass_on(signal, info, context);
        return;
    }
    if (guard) {
        PageinGuard *back = guard;
        guard = NULL;
        sigset_t mask;
        sigemptyset(&mask);
        sigaddset(&mask, SIGBUS);
        sigprocmask(SIG_UNBLOCK, &mask, NULL);
        siglongjmp(back->back, 1);
    }
    Cpu *c = current_cpu;
    bool restart = c && c->machine == m && c->in_guest && !c->exc.delivering;
    if (restart) divert(context, c);
    else
        mmap((void *)(address & PAGE_MASK), PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
             -1, 0);
    tell(m, !restart);
}

/* Or'ing zero gives the process its own copy without hiding a store by somebody else. */
static void touch(u8 *page, bool keep) {
    if (keep) __atomic_fetch_or(page, 0, __ATOMIC_RELAXED);
    else (void)*(volatile u8 *)page;
}

int pagein_claim(Machine *m, u64 ram_off, u64 size, bool keep) {
    if (!m->mapped || !size) return 0;
    PageinGuard here;
    if (sigsetjmp(here.back, 0)) {
        tell(m, false);
        return -EIO;
    }
    u8 *first = m->ram_base + (ram_off & PAGE_MASK), *end = m->ram_base + ram_off + size;
    pagein_guard_set(&here);
    for (u8 *page = first; page < end; page += PAGE_SIZE) touch(page, keep);
    pagein_guard_set(NULL);
    return 0;
}

void pagein_watch(Machine *m, int fd) {
    m->pagein_fd = fd;
    for (unsigned i = 0; i < MAX_WATCHED; i++) {
        if (watched[i] && watched[i] != m) continue;
        watched[i] = m;
        break;
    }
    if (installed) return;
    struct sigaction action = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    installed = sigaction(SIGBUS, &action, &before) == 0;
}

void pagein_unwatch(Machine *m) {
    for (unsigned i = 0; i < MAX_WATCHED; i++)
        if (watched[i] == m) watched[i] = NULL;
}

u32 pagein_failures(Machine *m, u32 *lost) {
    *lost = __atomic_exchange_n(&m->pagein_lost, 0, __ATOMIC_SEQ_CST);
    return __atomic_exchange_n(&m->pagein_failed, 0, __ATOMIC_SEQ_CST);
}
