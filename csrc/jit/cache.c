/* Memory of the translator: the code cache, mapped twice (writable and executable), its bookkeeping, and the stubs
 * that all translations share. */
#include "jit/lockstep.h"
#include "jit/trans.h"

#include <cpuid.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cpu/fpu.h"
#include "memory/state.h"

#ifndef MFD_EXEC
#define MFD_EXEC 0x10u
#endif
enum { CODE_MIN = 1 << 20, CODE_DEFAULT = 128 << 20, CODE_MAX = 512 << 20 };
enum { RESERVE_CODE = 64 << 10, RESERVE_ARENA = 256 << 10, MAX_CODES = 1 << 19 };
enum { REGION_HEAT = 2000, EAGER_HEAT = 3 };

const char *jit_unsupported(void) {
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & bit_BMI2)) return "the host CPU has no BMI2";
    if (!__get_cpuid(0x80000001, &a, &b, &c, &d) || !(c & bit_LAHF_LM))
        return "the host CPU has no LAHF in 64-bit mode";
    return NULL;
}

/* AMD's processors do LOOP in one operation, Intel's in seven (Agner Fog, instruction tables). */
static bool loop_is_fast(void) {
    unsigned a, b, c, d;
    return __get_cpuid(0, &a, &b, &c, &d) && b == signature_AMD_ebx;
}

static bool map_code(Jit *j) {
    int fd = (int)syscall(SYS_memfd_create, "jit", MFD_CLOEXEC | MFD_EXEC);
    if (fd < 0) fd = (int)syscall(SYS_memfd_create, "jit", MFD_CLOEXEC); /* a kernel before 6.3 */
    if (fd >= 0 && ftruncate(fd, j->code_max) == 0) {
        j->rw = mmap(NULL, j->code_max, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        j->rx = mmap(NULL, j->code_max, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_32BIT, fd, 0);
        close(fd);
        if (j->rw != MAP_FAILED && j->rx != MAP_FAILED) return true;
        if (j->rw != MAP_FAILED) munmap(j->rw, j->code_max);
        if (j->rx != MAP_FAILED) munmap((void *)j->rx, j->code_max);
    } else if (fd >= 0) {
        close(fd);
    }
    j->rw = mmap(NULL, j->code_max, PROT_READ | PROT_WRITE | PROT_EXEC,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_32BIT, -1, 0);
    j->rx = j->rw;
    return j->rw != MAP_FAILED;
}

static bool map_both(Jit *j, u32 bytes) {
    j->code_max = bytes;
    j->arena_max = bytes + bytes / 2;
    j->arena = mmap(NULL, j->arena_max, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_32BIT,
                    -1, 0);
    if (j->arena == MAP_FAILED) return false;
    if (map_code(j)) return true;
    munmap(j->arena, j->arena_max);
    return false;
}

/* tb-size is for all vCPUs together. */
static u32 wanted_bytes(const Machine *m) {
    u64 bytes = m->code_cache ? m->code_cache / m->n_cpus : CODE_DEFAULT;
    if (bytes < CODE_MIN) return CODE_MIN;
    return bytes > CODE_MAX ? CODE_MAX : (u32)(bytes & PAGE_MASK);
}

/* What is wanted, or half of it again and again: address space below 2 GiB is scarce. */
static bool map_all(Jit *j, const Machine *m) {
    u32 bytes = wanted_bytes(m);
    while (!map_both(j, bytes)) {
        if (bytes < 2 * CODE_MIN) return false;
        bytes = bytes / 2 & (u32)PAGE_MASK;
    }
    j->codes = malloc(MAX_CODES * sizeof *j->codes);
    return j->codes;
}

static u32 region_heat(const struct Machine *m) {
    if (m->lockstep == LOCKSTEP_BLOCK) return 0;
    return m->lockstep || m->eager ? EAGER_HEAT : REGION_HEAT;
}

struct Jit *jit_new(Cpu *c, const char **why) {
    *why = jit_unsupported();
    if (*why) return NULL;
    Jit *j = calloc(1, sizeof *j);
    if (j && c->machine->lockstep) j->lockstep = calloc(1, sizeof *j->lockstep);
    if (!j || !map_all(j, c->machine) || !jit_pairs_init(c, j) || (c->machine->lockstep && !j->lockstep)) {
        *why = "no memory for the code cache";
        free(j);
        return NULL;
    }
    c->jit_mask[MASK_TLB] = (u64)(TLB_SIZE - 1) << PAGE_BITS;
    c->jit_mask[MASK_PAGE] = PAGE_MASK;
    c->jit_mask[MASK_JUMP] = JIT_CACHE_SIZE - 1;
    c->jit_mask[MASK_63] = 63;
    c->jit_mask[MASK_31] = 31;
    c->jit_mask[MASK_CLOCK] = -CLOCK_PIECE_TICKS;
    c->jit_mask[MASK_DF] = FL_DF;
    c->jit_mask[MASK_LONG] = ~0x1fffull;
    block_drop_hook = jit_drop;
    jit_faults_init();
    j->loop_is_fast = loop_is_fast();
    j->heat = region_heat(c->machine);
    c->jit = j;
    jit_bind(c);
    jit_make_common(c, j);
    return j;
}

void jit_free(struct Jit *j) {
    if (!j) return;
    jit_modes_free(j);
    for (unsigned i = 0; i < 2; i++) free(j->filled[i].v);
    free(j->codes);
    jit_pairs_free(j);
    free(j->lockstep);
    munmap(j->arena, j->arena_max);
    if (j->rw != j->rx) munmap((void *)j->rx, j->code_max);
    munmap(j->rw, j->code_max);
    free(j);
}

void *jit_alloc(Jit *j, size_t n) {
    void *p = j->arena + j->arena_used;
    j->arena_used += (u32)((n + 15) & ~(size_t)15);
    memset(p, 0, n);
    return p;
}

bool jit_room(const Jit *j) {
    return j->used + RESERVE_CODE < j->code_max && j->arena_used + RESERVE_ARENA < j->arena_max &&
           j->n_codes < MAX_CODES;
}

void jit_reset(Cpu *c) {
    Jit *j = c->jit;
    j->used = j->common;
    j->arena_used = j->n_codes = 0;
    j->filled[0].n = j->filled[1].n = 0;
    jit_caches_empty(j);
    j->interp_flushes = c->interp->flushes;
    j->stats.flushes++;
}

/* The shared stubs */

static const u8 saved[] = {RBX, RBP, R12, R13, R14, R15};

static void push_pop(Asm *a, unsigned r, bool push) {
    if (r & 8) put1(a, 0x41);
    put1(a, (push ? 0x50 : 0x58) | (r & 7));
}

static void registers(Asm *a, Cpu *c, bool load) {
    for (unsigned n = 0; n < R_R12; n++) {
        if (n == R_RAX) continue;
        if (load) asm_load(a, host_reg(n), rm_abs(&c->r[n]));
        else asm_store(a, rm_abs(&c->r[n]), host_reg(n));
    }
}

void jit_flags_to(Asm *a, Rm to) {
    put1(a, 0x9f);                               /* lahf */
    put1(a, 0x0f), put1(a, 0x90), put1(a, 0xc0); /* seto al */
    asm_rm(a, 0, MAP_1, 0x89, RAX, to);
}

void jit_flags_from(Asm *a, Rm from) {
    asm_load32(a, RAX, from);
    put1(a, 0x04), put1(a, 0x7f); /* add al, 7fh: OF */
    put1(a, 0x9e);                /* sahf */
}

/* RAX carries the flags in between, so it is stored first and loaded last. */
static void spill(Asm *a, Cpu *c) {
    asm_store(a, rm_abs(&c->r[R_RAX]), RAX);
    jit_flags_to(a, rm_abs(&c->jit_ax));
    registers(a, c, false);
}

static void reload(Asm *a, Cpu *c) {
    jit_flags_from(a, rm_abs(&c->jit_ax));
    registers(a, c, true);
    asm_load(a, RAX, rm_abs(&c->r[R_RAX]));
}

/* u64 enter(Cpu *, const u8 *code) */
static void make_enter(Asm *a, Cpu *c) {
    for (unsigned i = 0; i < ARRAY_LEN(saved); i++) push_pop(a, saved[i], true);
    asm_rm(a, E_W, MAP_1, 0x83, 5, rm_reg(RSP)), put1(a, 8); /* sub rsp, 8: aligned to 16 */
    asm_store(a, rm_abs(&c->jit_sp), RSP);
    asm_load(a, RSP, rm_abs(&c->jit_pairs));
    asm_mov(a, R15, RSI);
    reload(a, c);
    asm_rm(a, 0, MAP_1, 0xff, 4, rm_reg(R15));
}

/* Leaves with r15 as enter's result. */
static void make_exit(Asm *a, Cpu *c) {
    asm_load(a, RSP, rm_abs(&c->jit_sp));
    asm_mov(a, RAX, R15);
    asm_rm(a, E_W, MAP_1, 0x83, 0, rm_reg(RSP)), put1(a, 8);
    for (unsigned i = ARRAY_LEN(saved); i--;) push_pop(a, saved[i], false);
    put1(a, 0xc3);
}

static void call_c(Asm *a, Cpu *c, unsigned fn) {
    asm_mov(a, RBX, RSP);
    asm_load(a, RSP, rm_abs(&c->jit_sp));
    asm_rm(a, 0, MAP_1, 0xff, 2, rm_abs(&c->jit_fn[fn]));
    asm_mov(a, RSP, RBX);
}

/* fn(Cpu, r15 = Insn, r14 = rip behind it), with all that the guest has in Cpu. */
static void call_handler(Asm *a, Cpu *c, unsigned fn) {
    spill(a, c);
    asm_imm(a, RDI, (u64)c);
    asm_mov(a, RSI, R15);
    asm_mov(a, RDX, R14);
    call_c(a, c, fn);
}

/* A host fault was the guest's: r15 = Insn, r14 = rip behind it; first r13 recovers the flags. */
static void make_fault(Asm *a, Cpu *c, Jit *j) {
    Rm insn = rm_abs(&c->jit_tmp[1]);
    j->fault_recover = (const u8 *)asm_here(a);
    asm_store(a, insn, R15);
    asm_rm(a, 0, MAP_1, 0xff, 2, rm_reg(R13)); /* call */
    asm_load(a, R15, insn);
    j->fault = (const u8 *)asm_here(a);
    call_handler(a, c, 1);
    put1(a, 0xcc);
}

/* Called with r15 = Insn, r14 = rip behind it: runs its handler, goes on or leaves. */
static void make_helper(Asm *a, Cpu *c, const u8 *exit_tail) {
    call_handler(a, c, 0);
    asm_rm(a, 0, MAP_1, 0x85, RAX, rm_reg(RAX)); /* test eax, eax */
    u8 *go_on = asm_jcc(a, 4, 0);
    asm_rm(a, 0, MAP_1, 0x33, R15, rm_reg(R15));
    asm_jmp(a, (u64)exit_tail);
    asm_patch(a, go_on, asm_here(a));
    reload(a, c);
    put1(a, 0xc3);
}

/* The same at a block's end: also goes on elsewhere, perhaps in another mode; so no pair may be left. */
static void make_system(Asm *a, Cpu *c, const Jit *j, const u8 *exit_tail) {
    call_handler(a, c, 2);
    put1(a, 0x83), put1(a, 0xf8), put1(a, JIT_LEAVE); /* cmp eax, JIT_LEAVE */
    u8 *go_on = asm_jcc(a, 2, 0), *afar = asm_jcc(a, 7, 0);
    asm_rm(a, 0, MAP_1, 0x33, R15, rm_reg(R15));
    asm_jmp(a, (u64)exit_tail);
    asm_patch(a, afar, asm_here(a));
    reload(a, c);
    asm_load(a, R14, rm_abs(&c->r[R_RIP]));
    asm_jmp(a, (u64)j->return_missed);
    asm_patch(a, go_on, asm_here(a));
    reload(a, c);
    put1(a, 0xc3);
}

/* r15 = JitExit of user code: by the jump cache, some times; then it leaves, to be linked. RFLAGS stay. */
static void make_exit_by_cache(Asm *a, Cpu *c, Jit *j) {
    Rm patience = rm_at(R15, offsetof(JitExit, patience));
    asm_mov(a, R13, RCX);
    asm_load32(a, RCX, patience);
    u8 *enough = asm_jrcxz(a);
    asm_lea(a, RCX, rm_at(RCX, -1));
    asm_rm(a, 0, MAP_1, 0x89, RCX, patience);
    asm_mov(a, RCX, R13);
    asm_load(a, R14, rm_at(R15, offsetof(JitExit, rip)));
    jit_by_cache(a, c, false);
    asm_land(a, enough);
    asm_mov(a, RCX, R13);
    asm_jmp(a, (u64)j->exit);
}

void jit_make_common(Cpu *c, Jit *j) {
    Asm a = {.p = j->rw, .rx = (i64)(j->rx - j->rw)};
    j->enter = (const u8 *)asm_here(&a);
    make_enter(&a, c);
    const u8 *tail = (const u8 *)asm_here(&a);
    make_exit(&a, c);
    j->leave_now = (const u8 *)asm_here(&a); /* rip is set */
    asm_imm(&a, R15, 0);
    j->exit = (const u8 *)asm_here(&a); /* r15 = JitExit */
    spill(&a, c);
    asm_jmp(&a, (u64)tail);
    j->helper = (const u8 *)asm_here(&a);
    make_helper(&a, c, tail);
    make_fault(&a, c, j);
    jit_make_pairs(&a, c, j);
    j->system = (const u8 *)asm_here(&a);
    make_system(&a, c, j, tail);
    j->exit_by_cache = (const u8 *)asm_here(&a);
    make_exit_by_cache(&a, c, j);
    j->used = j->common = (u32)(a.p - j->rw + 63) & ~63u;
}
