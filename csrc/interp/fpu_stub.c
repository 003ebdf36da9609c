/* Executable memory for native stubs, found again by content, and the signal handlers that turn a host fault inside
 * one into the guest's exception.
 *
 * Everything, the hash included, lies in one shared mapping, mapped twice (writable and executable), so that a forked
 * process goes on using it consistently with its parent. */
#include "interp/fpu_stub.h"

#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include "cpu/fpu.h"
#include "interp/fpu_ops.h"

enum { SLOT = 16, SLOTS = 4 << 20, BUCKETS = 1 << 16, STUB_MAX = 48 };

/* The shared mapping; memory is only committed where it is used. Slot 0 is never handed out: 0 ends a chain. */
typedef struct StubPool {
    u32 lock, used;
    u32 bucket[BUCKETS];
    u32 next[SLOTS];
    u8 slot[SLOTS][SLOT] __attribute__((aligned(4096)));
} StubPool;

static StubPool *pool;      /* writable view */
static const u8 *exec_slot; /* executable view of pool->slot */
static struct sigaction old_action[NSIG];

#ifndef MFD_EXEC
#define MFD_EXEC 0x10u
#endif

static bool map_pool(void) {
    size_t size = sizeof(StubPool);
    int fd = (int)syscall(SYS_memfd_create, "stubs", MFD_CLOEXEC | MFD_EXEC);
    if (fd < 0) fd = (int)syscall(SYS_memfd_create, "stubs", MFD_CLOEXEC); /* a kernel before 6.3 */
    if (fd >= 0 && ftruncate(fd, (off_t)size) == 0) {
        void *w = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
        void *x = mmap(NULL, size, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_NORESERVE, fd, 0);
        close(fd);
        if (w != MAP_FAILED && x != MAP_FAILED) {
            pool = w;
            exec_slot = (const u8 *)x + offsetof(StubPool, slot);
            return true;
        }
    } else if (fd >= 0) {
        close(fd);
    }
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return false;
    pool = p;
    exec_slot = &pool->slot[0][0];
    return true;
}

static bool in_stub(u64 pc) { return exec_slot && pc - (u64)exec_slot < (u64)SLOTS * SLOT; }

/* Makes the interrupted stub "call" fpu_host_fault(c, trap) instead of returning to its handler. */
static void on_fault(int sig, siginfo_t *info, void *context) {
    greg_t *g = ((ucontext_t *)context)->uc_mcontext.gregs;
    bool ours =
        g[REG_TRAPNO] == EXC_UD || g[REG_TRAPNO] == EXC_GP || g[REG_TRAPNO] == EXC_MF || g[REG_TRAPNO] == EXC_XM;
    if (ours && in_stub((u64)g[REG_RIP])) {
        g[REG_RDI] = g[REG_R8];
        g[REG_RSI] = g[REG_TRAPNO];
        g[REG_RIP] = (greg_t)fpu_host_fault;
        return;
    }
    const struct sigaction *old = &old_action[sig];
    if (old->sa_flags & SA_SIGINFO) {
        old->sa_sigaction(sig, info, context);
    } else if (old->sa_handler == SIG_DFL || old->sa_handler == SIG_IGN) {
        signal(sig, SIG_DFL); /* returning executes the instruction again, and dies of it */
    } else {
        old->sa_handler(sig);
    }
}

__attribute__((constructor)) static void stub_init(void) {
    if (!map_pool()) return;
    static const int sigs[] = {SIGFPE, SIGSEGV, SIGILL};
    struct sigaction act = {.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    act.sa_sigaction = on_fault;
    for (unsigned i = 0; i < ARRAY_LEN(sigs); i++) sigaction(sigs[i], &act, &old_action[sigs[i]]);
}

static unsigned put(u8 *p, u64 bytes, unsigned n) {
    for (unsigned i = 0; i < n; i++) p[i] = (u8)(bytes >> (8 * i));
    return n;
}

/* The whole stub, padded with INT3 to whole slots; returns its length. */
static unsigned build(u8 *p, const u8 *insn, unsigned len, unsigned head, unsigned tail) {
    unsigned n = 0;
    if (head != HEAD_NONE) n += put(p + n, 0xf08948, 3); /* mov rax, rsi */
    if (head == HEAD_SAHF) n += put(p + n, 0x9e, 1);
    fpu_copy(p + n, insn, len);
    n += len;
    if (tail == TAIL_GPR) n += put(p + n, 0xc88948, 3);                      /* mov rax, rcx */
    if (tail == TAIL_FLAGS || tail == TAIL_BOTH) n += put(p + n, 0x589c, 2); /* pushfq; pop rax */
    if (tail == TAIL_BOTH) n += put(p + n, 0x20e0c148, 4) + put(p + n + 4, 0xc989, 2) + put(p + n + 6, 0xc80948, 3);
    n += put(p + n, 0xc3, 1);
    while (n % SLOT) p[n++] = 0xcc;
    return n;
}

static u64 hash_of(const u8 *p, unsigned n) {
    u64 h = n;
    for (unsigned i = 0; i < n; i += 8) h = (h ^ *(const u64 *)(p + i)) * 0x9e3779b97f4a7c15ull, h ^= h >> 29;
    return h;
}

static bool same(const u8 *a, const u8 *b, unsigned n) {
    for (unsigned i = 0; i < n; i += 8)
        if (*(const u64 *)(a + i) != *(const u64 *)(b + i)) return false;
    return true;
}

static u32 find_or_add(const u8 *code, unsigned n) {
    u32 *head = &pool->bucket[hash_of(code, n) & (BUCKETS - 1)];
    for (u32 s = *head; s; s = pool->next[s])
        if (same(pool->slot[s], code, n)) return s;
    u32 s = pool->used ? pool->used : 1;
    if (s + n / SLOT > SLOTS) return 0;
    pool->used = s + n / SLOT;
    fpu_copy(pool->slot[s], code, n);
    pool->next[s] = *head;
    *head = s;
    return s;
}

void *stub_get(const u8 *insn, unsigned len, unsigned head, unsigned tail) {
    u8 code[STUB_MAX] __attribute__((aligned(8)));
    if (!pool) return NULL;
    unsigned n = build(code, insn, len, head, tail);
    while (__atomic_exchange_n(&pool->lock, 1, __ATOMIC_ACQUIRE)) __builtin_ia32_pause();
    u32 s = find_or_add(code, n);
    __atomic_store_n(&pool->lock, 0, __ATOMIC_RELEASE);
    return s ? (void *)(exec_slot + (size_t)s * SLOT) : NULL;
}

/* [V]MOVUPS of every register, made on first use. */
static void *vec_stub(unsigned reg, unsigned n, bool store) {
    static void *cache[2][2][16];
    void **slot = &cache[store][n == 32][reg];
    if (!*slot) {
        u8 vex[4] = {0xc5, (u8)((reg & 8 ? 0x00 : 0x80) | 0x7c), store ? 0x11 : 0x10, (u8)((reg & 7) << 3 | 7)};
        u8 sse[4] = {(u8)(reg & 8 ? 0x44 : 0x40), 0x0f, store ? 0x11 : 0x10, (u8)((reg & 7) << 3 | 7)};
        *slot = stub_get(n == 32 ? vex : sse, 4, HEAD_NONE, TAIL_NONE);
    }
    return *slot;
}

void stub_vec_store(Cpu *c, unsigned reg, void *to, unsigned n) {
    fpu_ensure_live(c);
    ((StubFn)vec_stub(reg, n, true))(to, 0, 0, 0, c);
}

void stub_vec_load(Cpu *c, unsigned reg, const void *from, unsigned n) {
    fpu_ensure_live(c);
    ((StubFn)vec_stub(reg, n, false))((void *)from, 0, 0, 0, c);
}
