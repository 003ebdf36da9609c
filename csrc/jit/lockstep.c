/* Lock-step: every block by the interpreter first, then by its translation from the same state, and both results
 * compared (CORE 17). For tests (`-accel dbt,lockstep=on`): slow, and a difference ends the program with both sides
 * printed.
 *
 * The interpreter runs with a TLB that never hits, so that all its stores come through the MMU, which logs what they
 * overwrite. What reaches a device or reads a clock cannot be done twice: then the interpreter's result stands. */
#include "jit/lockstep.h"

#include "cpu/fpu.h"
#include "interp/int.h"
#include "interp/trace.h"

#include <stdlib.h>

#include <Zydis/Mnemonic.h>

enum { ALWAYS = 16, SOMETIMES = 255, NONE = 0xffff };

/* What a block may change besides memory. */
typedef struct Outcome {
    u64 r[R_RIP + 1], cc, flags, fip, fdp, cr2;
    u32 vector, error;
    u16 fop;
    bool unmasked;
    u64 kernel_gs_base, ea_base[6];
    Segment seg[SEG_COUNT];
    u8 fpu[XSAVE_BYTES];
} Outcome;

static void take(Cpu *c, Outcome *o, u32 vector) {
    fpu_ensure_live(c); /* through the host's registers once, as the other side's */
    fpu_park(c);
    fpu_copy(o->r, c->r, sizeof o->r);
    o->cc = c->cc, o->flags = c->flags;
    o->fip = c->fpu.fip, o->fdp = c->fpu.fdp, o->fop = c->fpu.fop;
    o->unmasked = c->fpu.x87_unmasked;
    o->vector = vector;
    o->error = vector == NONE || !c->exc.has_error ? 0 : c->exc.error;
    o->cr2 = vector == EXC_PF ? c->exc.addr : 0;
    o->kernel_gs_base = c->kernel_gs_base;
    fpu_copy(o->ea_base, c->ea_base, sizeof o->ea_base);
    fpu_copy(o->seg, c->seg, sizeof o->seg);
    fpu_copy(o->fpu, c->fpu.area, XSAVE_BYTES);
}

static void give(Cpu *c, const Outcome *o) {
    fpu_park(c);
    fpu_copy(c->r, o->r, sizeof o->r);
    c->cc = o->cc, c->flags = o->flags;
    c->fpu.fip = o->fip, c->fpu.fdp = o->fdp, c->fpu.fop = o->fop;
    c->fpu.x87_unmasked = o->unmasked;
    c->kernel_gs_base = o->kernel_gs_base;
    fpu_copy(c->ea_base, o->ea_base, sizeof o->ea_base);
    fpu_copy(c->seg, o->seg, sizeof o->seg);
    fpu_copy(c->fpu.area, o->fpu, XSAVE_BYTES);
}

/* Exchanges what lies at the logged places with what the log holds: undoes, or does again. */
static void swap_stores(StoreLog *l, bool undo) {
    for (u32 k = 0; k < l->n; k++) {
        u32 i = undo ? l->n - 1 - k : k;
        for (unsigned b = 0; b < l->e[i].n; b++) {
            u8 t = l->e[i].p[b];
            l->e[i].p[b] = l->e[i].bytes[b];
            l->e[i].bytes[b] = t;
        }
    }
}

/* Every place written holds the same as after the interpreter's turn: the last entry of a place has it. */
static bool same_stores(const StoreLog *l) {
    for (u32 i = l->n; i--;)
        for (unsigned b = 0; b < l->e[i].n; b++) {
            const u8 *p = l->e[i].p + b;
            bool later = false;
            for (u32 k = i + 1; k < l->n && !later; k++) later = p >= l->e[k].p && p < l->e[k].p + l->e[k].n;
            if (!later && *p != l->e[i].bytes[b]) return false;
        }
    return true;
}

static bool repeatable(const Block *b) {
    if (b->system || b->checked || !b->code) return false;
    for (unsigned i = 0; i < b->n; i++) switch (b->insn[i].op) {
        case ZYDIS_MNEMONIC_RDTSC:
        case ZYDIS_MNEMONIC_RDTSCP:
        case ZYDIS_MNEMONIC_RDRAND:
        case ZYDIS_MNEMONIC_RDSEED:
        case ZYDIS_MNEMONIC_RDMSR: return false;
        default: break;
        }
    return true;
}

/* Runs one side; the vector of the exception it raised, or NONE. */
static NOINLINE u32 run_side(Cpu *c, Block *b, void (*side)(Cpu *c, Block *b)) {
    void *jmp[5];
    u32 vector = NONE;
    for (unsigned i = 0; i < 5; i++) jmp[i] = c->jmp[i];
    if (__builtin_setjmp(c->jmp)) vector = c->exc.vector;
    else side(c, b);
    for (unsigned i = 0; i < 5; i++) c->jmp[i] = jmp[i];
    interp_begin(c);
    return vector;
}

static void by_interpreter(Cpu *c, Block *b) { block_exec(c, b); }

static const char *difference(const Outcome *a, const Outcome *b) {
    if (a->vector != b->vector || a->error != b->error || a->cr2 != b->cr2) return "exception";
    for (unsigned i = 0; i <= R_RIP; i++)
        if (a->r[i] != b->r[i]) return "register";
    if (a->flags != b->flags || (a->vector == NONE && a->cc != b->cc)) return "flags";
    for (unsigned i = 0; i < SEG_COUNT; i++)
        if (a->seg[i].base != b->seg[i].base || a->seg[i].sel != b->seg[i].sel) return "segment register";
    if (a->kernel_gs_base != b->kernel_gs_base) return "GS base";
    if (a->fop != b->fop || a->fip != b->fip || a->fdp != b->fdp) return "x87 pointers";
    for (unsigned i = 0; i < XSAVE_BYTES; i++) {
        bool hosts = i >= FX_FOP && i < FX_MXCSR; /* the host's pointers */
        if (!hosts && a->fpu[i] != b->fpu[i]) return "FPU state";
    }
    return NULL;
}

static void print_outcome(const char *who, const Outcome *o) {
    log_printf("%s: exception %x error %x cr2 %lx flags %lx cc %lx\n", who, o->vector, o->error, (unsigned long)o->cr2,
               (unsigned long)o->flags, (unsigned long)o->cc);
    for (unsigned i = 0; i <= R_RIP; i++) log_printf(" %016lx%s", (unsigned long)o->r[i], i % 4 == 3 ? "\n" : "");
    log_printf("\n");
}

static void print_bytes(const char *what, const u8 *p, u64 n) {
    log_printf("%s:", what);
    for (u64 i = 0; i < n; i++) log_printf(" %02x", p[i]);
    log_printf("\n");
}

static _Noreturn void report(Cpu *c, const Block *b, const char *what, const Outcome *before, const Outcome *want,
                             const Outcome *got) {
    const JitCode *k = b->code;
    fpu_park(c);
    log_printf("lockstep: %s differs in the block at %lx, mode %x\n", what, (unsigned long)b->rip, b->mode);
    print_outcome("before", before);
    print_outcome("interpreted", want);
    print_outcome("translated", got);
    print_bytes("guest code", machine_ram_host(c->machine, b->ram_off), b->size);
    if (k) print_bytes("host code", k->entry, k->end - (u64)(k->entry - c->jit->rx));
    abort();
}

/* One side after the other; the interpreter's result stays. True: compared, and equal. */
static u32 both(Cpu *c, Block *b, void (*translated)(Cpu *c, Block *b)) {
    Jit *j = c->jit;
    StoreLog *log = &j->stores;
    Outcome before, want, got;
    TlbEntry *tlb = c->tlb;
    u64 io = c->n_pio + c->n_mmio, count = c->icount;
    u32 gen = c->lookup_gen, mode = c->mode;
    take(c, &before, NONE);
    log->n = 0;
    log->full = false;
    c->tlb = tlb_never;
    c->stores = log;
    u32 vector = run_side(c, b, by_interpreter);
    c->stores = NULL;
    if (c->mode == mode) c->tlb = tlb;
    take(c, &want, vector);
    if (log->full || !b->code || c->n_pio + c->n_mmio != io || c->lookup_gen != gen || c->mode != mode ||
        vector == EXC_RESTART || c->pending)
        return vector;
    u64 counted = c->icount;
    ExcState exc = c->exc;
    swap_stores(log, true);
    give(c, &before);
    c->icount = count;
    vector = run_side(c, b, translated);
    take(c, &got, vector);
    bool comparable = !c->pending && !j->interpret && c->n_pio + c->n_mmio == io;
    if (comparable) {
        const char *what = same_stores(log) ? difference(&want, &got) : "memory";
        if (what) report(c, b, what, &before, &want, &got);
        j->stats.compared++;
    } else {
        swap_stores(log, false);
    }
    j->interpret = false;
    give(c, &want);
    c->icount = counted;
    c->exc = exc;
    return want.vector;
}

void lockstep_block(Cpu *c, Block *b, void (*translated)(Cpu *c, Block *b)) {
    bool look = repeatable(b) && (b->hits < ALWAYS || (++c->jit->lockstep_tick & SOMETIMES) == 0);
    b->hits++;
    if (!look) {
        block_exec(c, b);
        return;
    }
    if (both(c, b, translated) != NONE) __builtin_longjmp(c->jmp, 1);
}
