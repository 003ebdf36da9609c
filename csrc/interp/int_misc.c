/* Flag instructions, BOUND, hints, fences, cache-line instructions, RDRAND (SDM vol 2). */
#include "interp/int.h"

#include "memory/feed.h"

void op_nop(Cpu *c, const Insn *in) {}
static void op_clc(Cpu *c, const Insn *in) { c->cc &= ~(u64)FL_CF; }
static void op_stc(Cpu *c, const Insn *in) { c->cc |= FL_CF; }
static void op_cmc(Cpu *c, const Insn *in) { c->cc ^= FL_CF; }
static void op_cld(Cpu *c, const Insn *in) { c->flags &= ~(u64)FL_DF; }
static void op_std(Cpu *c, const Insn *in) { c->flags |= FL_DF; }
static void op_lahf(Cpu *c, const Insn *in) { REG8(c, ROFF(R_RAX) + 1) = (u8)(c->cc | 2); }
static void op_sahf(Cpu *c, const Insn *in) {
    u64 low = FL_CC & 0xff;
    c->cc = (c->cc & ~low) | (REG8(c, ROFF(R_RAX) + 1) & low);
}
static void op_salc(Cpu *c, const Insn *in) { REG8(c, ROFF(R_RAX)) = c->cc & FL_CF ? 0xff : 0; }

/* reg must lie within the pair of signed bounds in memory. */
static void op_bound(Cpu *c, const Insn *in) {
    unsigned n = in->osz;
    u64 ea = insn_ea(c, in), next = in->asz == 4 ? (u32)(ea + n) : (u16)(ea + n);
    u64 lo = ld_n(c, in->seg, ea, n), hi = ld_n(c, in->seg, next, n), v = get_n(c, in->reg, n);
    bool out = n == 4 ? (i32)v < (i32)lo || (i32)v > (i32)hi : (i16)v < (i16)lo || (i16)v > (i16)hi;
    if (out) exc_raise(c, EXC_BR);
}

static void op_pause(Cpu *c, const Insn *in) { __builtin_ia32_pause(); }
static void op_fence(Cpu *c, const Insn *in) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
/* Cache-line instructions fault like a one-byte load and do nothing: guest caches are coherent with everything. */
static void op_cache_line(Cpu *c, const Insn *in) { mem_probe(c, in->seg, insn_ea(c, in), 1, ACC_READ); }

/* CF says that a number was ready; the other flags are cleared. */
static void op_rdrand(Cpu *c, const Insn *in) {
    u64 v = 0;
    bool ok = true;
    if (!feed_take(c->feed, FEED_RANDOM, 0, 8, &v)) {
        fpu_park(c);
        ok = machine_random(c->machine, &v);
        if (ok) feed_put(c->feed, FEED_RANDOM, 0, 8, v);
    }
    set_n(c, in->rm, ok ? v : 0, in->osz);
    c->cc = ok ? FL_CF : 0;
}

static OpFn resolve_flag(const Insn *in) {
    switch (in->op) {
    case ZYDIS_MNEMONIC_CLC: return op_clc;
    case ZYDIS_MNEMONIC_STC: return op_stc;
    case ZYDIS_MNEMONIC_CMC: return op_cmc;
    case ZYDIS_MNEMONIC_CLD: return op_cld;
    case ZYDIS_MNEMONIC_STD: return op_std;
    case ZYDIS_MNEMONIC_LAHF: return op_lahf;
    case ZYDIS_MNEMONIC_SAHF: return op_sahf;
    case ZYDIS_MNEMONIC_SALC: return op_salc;
    default: return NULL;
    }
}

static OpFn resolve_ud(Insn *in) {
    in->flags |= INF_END;
    return op_ud;
}

OpFn int_misc_resolve(Insn *in, u32 mode) {
    switch (in->op) {
    case ZYDIS_MNEMONIC_NOP:
    case ZYDIS_MNEMONIC_ENDBR32:
    case ZYDIS_MNEMONIC_ENDBR64:
    case ZYDIS_MNEMONIC_PREFETCH:
    case ZYDIS_MNEMONIC_PREFETCHNTA:
    case ZYDIS_MNEMONIC_PREFETCHT0:
    case ZYDIS_MNEMONIC_PREFETCHT1:
    case ZYDIS_MNEMONIC_PREFETCHT2:
    case ZYDIS_MNEMONIC_PREFETCHW:
    case ZYDIS_MNEMONIC_PREFETCHWT1: return op_nop;
    case ZYDIS_MNEMONIC_PAUSE: return op_pause;
    case ZYDIS_MNEMONIC_SERIALIZE:
    case ZYDIS_MNEMONIC_MFENCE:
    case ZYDIS_MNEMONIC_LFENCE:
    case ZYDIS_MNEMONIC_SFENCE: return op_fence;
    case ZYDIS_MNEMONIC_CLFLUSH:
    case ZYDIS_MNEMONIC_CLFLUSHOPT:
    case ZYDIS_MNEMONIC_CLWB: return op_cache_line;
    case ZYDIS_MNEMONIC_RDRAND:
    case ZYDIS_MNEMONIC_RDSEED: return op_rdrand;
    case ZYDIS_MNEMONIC_BOUND: return op_bound;
    case ZYDIS_MNEMONIC_UD0:
    case ZYDIS_MNEMONIC_UD1:
    case ZYDIS_MNEMONIC_UD2: return resolve_ud(in);
    default: return resolve_flag(in);
    }
}

OpFn ops_integer_resolve(Insn *in, u32 mode) {
    static OpFn (*const groups[])(Insn *, u32) = {
        int_mov_resolve,   int_alu_resolve,    int_branch_resolve, int_stack_resolve,
        int_unary_resolve, int_shift_resolve,  int_muldiv_resolve, int_xchg_resolve,
        int_bit_resolve,   int_string_resolve, int_misc_resolve,
    };
    for (unsigned i = 0; i < ARRAY_LEN(groups); i++) {
        OpFn fn = groups[i](in, mode);
        if (fn) return fn;
    }
    return NULL;
}
