/* Runs one instruction on the host: SIGUSR1's handler replaces the interrupted context by the wanted one, and the trap
 * behind the instruction (INT3, the trap flag, or the instruction's own fault) delivers the result. */
#include "harness.h"

#include <asm/ldt.h>
#include <asm/prctl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

static const int greg_of[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
enum { SW_RESERVED = 464, LEGACY_END = 512, USER32_CS = 0x23, USER_DS = 0x2b, LDT_CODE = 0x7, LDT_DATA = 0xf };

static u8 *const code_page = (u8 *)CODE_VA, *const data_pages = (u8 *)DATA_VA;
static const Code *cur_code;
static const State *cur_in;
static State *cur_out;
static gregset_t saved_regs;
static u8 saved_fp[FP_BYTES] __attribute__((aligned(64)));
static volatile bool inside;
static struct sigaction old_action[NSIG];

static void fp_copy_in(u8 *frame, const u8 *fp) {
    memcpy(frame, fp, SW_RESERVED);
    memcpy(frame + FP_YMMH, fp + FP_YMMH, 256);
    *(u64 *)(frame + LEGACY_END) |= 7;
}

/* Components in their initial state may be absent from the frame. */
static void fp_copy_out(u8 *fp, const u8 *frame) {
    u64 bv = *(const u64 *)(frame + LEGACY_END);
    memset(fp, 0, FP_BYTES);
    memcpy(fp, frame, 416);
    if (!(bv & 1)) {
        memset(fp, 0, 24);
        memset(fp + 32, 0, 128);
        *(u16 *)fp = 0x37f;
    }
    if (!(bv & 2)) memset(fp + 160, 0, 256);
    if (bv & 4) memcpy(fp + FP_YMMH, frame + FP_YMMH, 256);
}

static void enter(ucontext_t *u) {
    greg_t *g = u->uc_mcontext.gregs;
    u8 *frame = (u8 *)u->uc_mcontext.fpregs;
    memcpy(saved_regs, g, sizeof saved_regs);
    memcpy(saved_fp, frame, FP_BYTES);
    for (unsigned i = 0; i < 16; i++) g[greg_of[i]] = (greg_t)cur_in->gpr[i];
    g[REG_RIP] = (greg_t)cur_in->rip;
    g[REG_EFL] = (greg_t)(cur_in->flags | FL_IF | 2 | (cur_code->branch ? FL_TF : 0));
    u64 cs = cur_code->bits == 64 ? (u64)g[REG_CSGSFS] & 0xffff : cur_code->bits == 32 ? USER32_CS : LDT_CODE;
    u64 ss = cur_code->bits == 16 ? LDT_DATA : USER_DS;
    g[REG_CSGSFS] = (greg_t)(((u64)g[REG_CSGSFS] & 0xffffffff0000) | cs | ss << 48);
    fp_copy_in(frame, cur_in->fp);
    inside = true;
}

static void leave(ucontext_t *u, int sig, siginfo_t *info) {
    greg_t *g = u->uc_mcontext.gregs;
    u8 *frame = (u8 *)u->uc_mcontext.fpregs;
    State *out = cur_out;
    for (unsigned i = 0; i < 16; i++) out->gpr[i] = (u64)g[greg_of[i]];
    out->rip = (u64)g[REG_RIP];
    out->flags = (u64)g[REG_EFL];
    out->trap = (u32)g[REG_TRAPNO];
    out->error = (u32)g[REG_ERR];
    out->fault_addr = out->trap == EXC_PF ? (u64)g[REG_CR2] : 0;
    if (sig == SIGTRAP && out->trap == EXC_BP && out->rip == cur_in->rip + cur_code->len + 1)
        out->rip--, out->trap = NO_TRAP;
    if (sig == SIGTRAP && out->trap == EXC_DB && cur_code->branch) out->trap = NO_TRAP;
    fp_copy_out(out->fp, frame);
    memcpy(g, saved_regs, sizeof saved_regs);
    memcpy(frame, saved_fp, FP_BYTES);
    inside = false;
}

/* The instruction's RFLAGS.AC is still set, and libc does not mind alignment. */
static void handler(int sig, siginfo_t *info, void *context) {
    __asm__ volatile("pushfq\n\tandl $~0x40000, (%%rsp)\n\tpopfq" ::: "cc", "memory");
    if (sig == SIGUSR1) {
        enter(context);
    } else if (inside) {
        leave(context, sig, info);
    } else if (old_action[sig].sa_flags & SA_SIGINFO) {
        old_action[sig].sa_sigaction(sig, info, context); /* the core's own: a fault inside a native stub */
    } else {
        signal(sig, SIG_DFL);
    }
}

/* A signal frame does not carry DS and ES. 64-bit code ignores them. */
static void set_data_segments(unsigned bits) {
    static unsigned now;
    if (bits == now) return;
    __asm__ volatile("mov %0, %%ds\n\tmov %0, %%es" : : "r"(bits == 16 ? LDT_DATA : USER_DS));
    now = bits;
}

static void make_segment(unsigned n, u64 base, u32 limit, bool code) {
    struct user_desc d = {
        .entry_number = n, .base_addr = (u32)base, .limit = limit, .contents = code ? 2 : 0, .useable = 1};
    if (syscall(SYS_modify_ldt, 0x11, &d, sizeof d)) perror("modify_ldt"), exit(2);
}

void host_run(const Code *code, const State *in, State *out) {
    cur_code = code;
    cur_in = in;
    cur_out = out;
    set_data_segments(code->bits);
    u8 *at = code_page + (in->rip & (PAGE_SIZE - 1));
    memcpy(at, code->bytes, code->len);
    memset(at + code->len, 0xcc, 2);
    memcpy(data_pages, in->mem, DATA_BYTES);
    syscall(SYS_tgkill, getpid(), (int)syscall(SYS_gettid), SIGUSR1);
    memcpy(out->mem, data_pages, DATA_BYTES);
}

static void map_at(u64 va, u64 size, int prot) {
    void *p = mmap((void *)va, size, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (p != (void *)va) perror("mmap"), exit(2);
}

void host_init(void) {
    map_at(CODE_VA, PAGE_SIZE, PROT_READ | PROT_WRITE | PROT_EXEC);
    map_at(DATA_VA, DATA_BYTES, PROT_READ | PROT_WRITE);
    memset(code_page, 0xcc, PAGE_SIZE);
    stack_t alt = {.ss_sp = malloc(1 << 16), .ss_size = 1 << 16};
    sigaltstack(&alt, NULL);
    struct sigaction act = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    static const int sigs[] = {SIGUSR1, SIGTRAP, SIGSEGV, SIGBUS, SIGILL, SIGFPE};
    for (unsigned i = 0; i < ARRAY_LEN(sigs); i++) sigaction(sigs[i], &act, &old_action[sigs[i]]);
    syscall(SYS_arch_prctl, ARCH_SET_GS, GS_BASE);
    make_segment(LDT_CODE / 8, CODE_VA, CODE16_LIMIT, true);
    make_segment(LDT_DATA / 8, DATA_VA, DATA16_LIMIT, false);
}
