/* Runs one instruction in the interpreter: our decoder, resolvers and handlers, over real page tables that map the same
 * linear addresses as the host side, at CPL 3. */
#include "harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "cpu/fpu.h"
#include "cpu/model.h"
#include "interp/block.h"
#include "interp/fpu_ops.h"
#include "jit/jit.h"
#include "memory/safepoint.h"
#include "memory/state.h"

enum { RAM_PAGES = 16, PTE_P = 1, PTE_W = 2, PTE_U = 4, PAGE_PML4 = 0, PAGE_CODE = 8, PAGE_DATA = 9, MAX_STEPS = 1000 };

static Cpu *c;
static u8 *ram;

static void map_page(u64 va, unsigned page) {
    static unsigned next_table = 1;
    u64 *table = (u64 *)ram;
    for (unsigned shift = 39; shift > 12; shift -= 9) {
        u64 *e = &table[va >> shift & 511];
        if (!*e) *e = (u64)next_table++ << PAGE_BITS | PTE_P | PTE_W | PTE_U;
        table = (u64 *)(ram + (*e & PAGE_MASK));
    }
    table[va >> 12 & 511] = (u64)page << PAGE_BITS | PTE_P | PTE_W | PTE_U;
}

static void set_features(void) {
#define F(id, name, word, bit, kind)                                                                                   \
    if (FK_##kind != FK_NONE) c->feat[FEAT_##id >> 6] |= BIT(FEAT_##id & 63);
#include "cpu/features.h"
#undef F
}

static void set_segments(unsigned bits) {
    static unsigned now;
    if (now == bits) return;
    now = bits;
    u16 data = 3 | SR_S | SR_DPL | SR_P, code = 0xb | SR_S | SR_DPL | SR_P;
    for (unsigned i = 0; i < 6; i++) {
        c->seg[i] = (Segment){.limit = 0xffffffff, .sel = 0x2b, .rights = data | SR_DB | SR_G};
        if (bits == 16) c->seg[i] = (Segment){.base = DATA_VA, .limit = DATA16_LIMIT, .sel = 0x2b, .rights = data};
    }
    c->seg[SEG_CS] = (Segment){.limit = 0xffffffff, .sel = 0x33, .rights = code | SR_G | (bits == 64 ? SR_L : SR_DB)};
    if (bits == 16) c->seg[SEG_CS] = (Segment){.base = CODE_VA, .limit = CODE16_LIMIT, .sel = 0x33, .rights = code};
    c->seg[SEG_FS].base = c->seg[SEG_GS].base = bits == 64 ? GS_BASE : 0;
    cpu_update_mode(c);
}

/* A machine with a little RAM and one vCPU that is never run by the vCPU floor. */
void guest_init(void) {
    static QpyClock clock;
    Machine *m = machine_new(&clock, 1 << 24);
    c = mmap(NULL, sizeof *c, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    if (!m || c == MAP_FAILED) abort();
    i64 off = machine_ram_alloc(m, RAM_PAGES * PAGE_SIZE);
    MemRange range = {.size = RAM_PAGES * PAGE_SIZE, .ram_off = (u64)off, .write_off = (u64)off, .kind = RANGE_RAM};
    if (off < 0 || machine_set_view(m, &range, 1)) abort();
    ram = machine_ram_host(m, (u64)off);
    c->machine = m;
    c->interp = interp_new();
    c->a20_mask = ~0ull;
    fpu_reset(c);
    set_features();
    map_page(CODE_VA, PAGE_CODE);
    for (unsigned i = 0; i < DATA_BYTES / PAGE_SIZE; i++) map_page(DATA_VA + i * PAGE_SIZE, PAGE_DATA + i);
    c->cr0 = CR0_PE | CR0_PG | CR0_MP | CR0_NE | CR0_ET | CR0_WP | CR0_AM;
    c->cr3 = PAGE_PML4;
    c->cr4 = CR4_PAE | CR4_PGE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE;
    c->efer = EFER_LME | EFER_LMA | EFER_SCE | EFER_NXE;
    c->xcr0 = 7;
    c->cpl = 3;
    c->flags = 2 | FL_IF;
    c->halted = false;
    set_segments(64);
    tlb_flush_all(c);
}

static void load(const State *in) {
    memcpy(c->r, in->gpr, sizeof in->gpr);
    c->r[R_RIP] = in->rip;
    cpu_set_rflags_raw(c, in->flags | FL_IF | 2);
    u8 area[XSAVE_BYTES] = {0};
    memcpy(area, in->fp, FP_BYTES);
    fpu_set_area(c, area);
    cpu_update_mode(c);
    memcpy(ram + PAGE_DATA * PAGE_SIZE, in->mem, DATA_BYTES);
}

static void store(State *out) {
    memcpy(out->gpr, c->r, sizeof out->gpr);
    out->rip = c->r[R_RIP];
    out->flags = cpu_rflags(c);
    memcpy(out->fp, fpu_area(c), FP_BYTES);
    memcpy(out->mem, ram + PAGE_DATA * PAGE_SIZE, DATA_BYTES);
}

static OpFn resolve(Insn *insn, const u8 *bytes, bool *native) {
    OpFn fn = ops_integer_resolve(insn, c->mode);
    if (!fn) fn = ops_system_resolve(insn, c->mode);
    *native = !fn;
    return fn ? fn : ops_fpu_resolve(insn, c->mode, bytes);
}

static void clear_trap(State *out) {
    out->trap = NO_TRAP;
    out->error = 0;
    out->fault_addr = 0;
}

static void note_exception(State *out) {
    out->trap = c->exc.vector;
    out->error = c->exc.has_error ? c->exc.error : 0;
    out->fault_addr = c->exc.vector == EXC_PF ? c->exc.addr : 0;
}

/* True: finished; false: to be restarted at c->r[R_RIP]. Exceptions come back through c->jmp. */
static bool step(State *out, Insn *insn) {
    c->cur = insn;
    if (__builtin_setjmp(c->jmp)) {
        fpu_park(c);
        if (c->exc.vector == EXC_RESTART) return false;
        note_exception(out);
        return true;
    }
    c->r[R_RIP] += insn->len;
    insn->fn(c, insn);
    fpu_park(c);
    return true;
}

bool guest_translates;

/* The same by the translator: the instruction and an UD2 behind it make a block. */
static bool run_translated(const Code *code, const State *in, State *out) {
    static const u8 ud2[2] = {0x0f, 0x0b};
    u8 *at = ram + PAGE_CODE * PAGE_SIZE + (in->rip & ~PAGE_MASK);
    const char *why;
    if (!c->jit && !jit_new(c, &why)) abort();
    current_cpu = c;
    memcpy(at, code->bytes, code->len);
    memcpy(at + code->len, ud2, sizeof ud2);
    if (code->fs_at) at[code->fs_at - 1] = 0x64;
    interp_flush_all(c);
    for (unsigned i = 0; i < MAX_STEPS; i++) {
        if (__builtin_setjmp(c->jmp)) {
            fpu_park(c);
            if (c->exc.vector == EXC_RESTART) continue;
            note_exception(out);
            break;
        }
        if (i && c->r[R_RIP] != in->rip) break; /* not a REP that goes on */
        jit_run_block(c);
        fpu_park(c);
    }
    bool done = out->trap == EXC_UD && c->r[R_RIP] == in->rip + code->len;
    if (done) clear_trap(out);
    store(out);
    return true;
}

bool guest_run(const Code *code, const State *in, State *out, bool *native) {
    Insn insn;
    u8 bytes[32] = {0};
    memcpy(bytes, code->bytes, code->len);
    if (code->fs_at) bytes[code->fs_at - 1] = 0x64;
    set_segments(code->bits);
    load(in);
    clear_trap(out);
    int len = decode_insn(c->mode, c->feat, in->rip, bytes, code->len, &insn);
    if (len <= 0) {
        out->trap = EXC_UD;
    } else {
        insn.fn = resolve(&insn, bytes, native);
        if (!insn.fn) return false;
        if (guest_translates && code->bits != 16) return run_translated(code, in, out);
        for (unsigned i = 0; i < MAX_STEPS && !step(out, &insn); i++) {}
    }
    store(out);
    return true;
}

/* One entry of the run loop. True: done, or an exception. */
static bool run_loop(State *out, u64 stop) {
    if (__builtin_setjmp(c->jmp)) {
        fpu_park(c);
        if (c->exc.vector == EXC_RESTART) return false;
        note_exception(out);
        return true;
    }
    interp_run(c);
    fpu_park(c);
    return interp_icount(c) >= stop;
}

void guest_run_sequence(const Code *code, unsigned n, const State *in, State *out) {
    set_segments(code->bits);
    load(in);
    clear_trap(out);
    if (guest_translates && code->bits != 16) {
        run_translated(code, in, out);
        return;
    }
    memcpy(ram + PAGE_CODE * PAGE_SIZE + (in->rip & ~PAGE_MASK), code->bytes, code->len);
    interp_flush_all(c);
    u64 stop = interp_icount(c) + n; /* the last exception may have left a block half counted */
    interp_set_stop(c, stop);
    for (unsigned i = 0; i < MAX_STEPS && !run_loop(out, stop); i++) {}
    store(out);
}
