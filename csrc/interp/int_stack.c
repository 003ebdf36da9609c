/* PUSH POP PUSHA POPA ENTER LEAVE of general registers, memory and immediates (SDM vol 2). */
#include "interp/int_stack.h"

/* 64-bit mode, 64-bit operand: nearly all of them. */
static void op_push_r64(Cpu *c, const Insn *in) { push64(c, REG64(c, in->rm)); }
static void op_push_i64(Cpu *c, const Insn *in) { push64(c, in->imm); }
static void op_pop_r64(Cpu *c, const Insn *in) {
    u64 sp = c->r[R_RSP], v = ldl64(c, SEG_SS, sp);
    c->r[R_RSP] = sp + 8;
    REG64(c, in->rm) = v; /* after the pointer: POP RSP loads what was on the stack */
}

static void op_push_r32(Cpu *c, const Insn *in) { push32(c, REG32(c, in->rm)); }
static void op_push_i32(Cpu *c, const Insn *in) { push32(c, (u32)in->imm); }
static void op_pop_r32(Cpu *c, const Insn *in) {
    u32 sp = (u32)c->r[R_RSP], v = ldl32(c, SEG_SS, sp);
    c->r[R_RSP] = sp + 4;
    set32(c, in->rm, v);
}

static void op_push_r(Cpu *c, const Insn *in) { push_n(c, in, get_n(c, in->rm, in->osz), in->osz); }
static void op_push_i(Cpu *c, const Insn *in) { push_n(c, in, in->imm, in->osz); }
static void op_push_m(Cpu *c, const Insn *in) { push_n(c, in, rm_read(c, in, in->osz), in->osz); }
static void op_pop_r(Cpu *c, const Insn *in) { set_n(c, in->rm, pop_n(c, in, in->osz), in->osz); }

/* The address of a POP to memory is formed with the stack pointer already moved, which a fault must take back. */
static void op_pop_m(Cpu *c, const Insn *in) {
    u64 v = stack_read(c, in, 0, in->osz), old = c->r[R_RSP];
    sp_add(c, in, in->osz);
    u64 ea = insn_ea(c, in), moved = c->r[R_RSP];
    c->r[R_RSP] = old;
    st_n(c, in->seg, ea, v, in->osz);
    c->r[R_RSP] = moved;
}

static const u8 pusha_order[8] = {R_RAX, R_RCX, R_RDX, R_RBX, R_RSP, R_RBP, R_RSI, R_RDI};

/* All eight stores are proved possible before the first; the frame may wrap within the stack segment. */
static void op_pusha(Cpu *c, const Insn *in) {
    unsigned n = in->osz;
    for (unsigned i = 0; i < 8; i++) mem_probe(c, SEG_SS, sp_mask(in, c->r[R_RSP] - (i + 1) * n), n, ACC_WRITE);
    for (unsigned i = 0; i < 8; i++) stack_write(c, in, -(i64)((i + 1) * n), c->r[pusha_order[i]], n);
    sp_add(c, in, -(u64)(8 * n));
}

static void op_popa(Cpu *c, const Insn *in) {
    unsigned n = in->osz;
    u64 v[8];
    for (unsigned i = 0; i < 8; i++) v[i] = stack_read(c, in, i * n, n);
    sp_add(c, in, 8 * n);
    for (unsigned i = 0; i < 8; i++)
        if (pusha_order[7 - i] != R_RSP) set_n(c, ROFF(pusha_order[7 - i]), v[i], n);
}

/* ENTER: the frame pointers of the enclosing procedures are copied from the old frame to the new one, one by one: the
 * frames may overlap. Everything is proven accessible first. */
static void op_enter(Cpu *c, const Insn *in) {
    unsigned n = in->osz, level = in->imm >> 16 & 31, size = (u16)in->imm;
    u64 frame = c->r[R_RSP] - n, sp = frame - level * n - size;
    for (unsigned i = 1; i < level; i++) mem_probe(c, SEG_SS, sp_mask(in, c->r[R_RBP] - i * n), n, ACC_READ);
    for (unsigned i = 0; i <= level; i++) mem_probe(c, SEG_SS, sp_mask(in, frame - i * n), n, ACC_WRITE);
    mem_probe(c, SEG_SS, sp_mask(in, sp), n, ACC_WRITE);
    stack_write(c, in, -(i64)n, c->r[R_RBP], n);
    for (unsigned i = 1; i < level; i++) {
        u64 link = ld_n(c, SEG_SS, sp_mask(in, c->r[R_RBP] - i * n), n);
        st_n(c, SEG_SS, sp_mask(in, frame - i * n), link, n);
    }
    if (level) st_n(c, SEG_SS, sp_mask(in, frame - level * n), frame, n);
    set_n(c, ROFF(R_RBP), frame, n);
    sp_set(c, in, sp);
}

static void op_leave(Cpu *c, const Insn *in) {
    u64 bp = sp_mask(in, c->r[R_RBP]), v = ld_n(c, SEG_SS, bp, in->osz);
    sp_set(c, in, bp + in->osz);
    set_n(c, ROFF(R_RBP), v, in->osz);
}
static void op_leave32(Cpu *c, const Insn *in) {
    u32 bp = (u32)c->r[R_RBP], v = ldl32(c, SEG_SS, bp);
    c->r[R_RSP] = bp + 4;
    c->r[R_RBP] = v;
}
static void op_leave64(Cpu *c, const Insn *in) {
    u64 bp = c->r[R_RBP], v = ldl64(c, SEG_SS, bp);
    c->r[R_RSP] = bp + 8;
    c->r[R_RBP] = v;
}

static bool segment_form(const Insn *in) { /* PUSH/POP ES CS SS DS FS GS */
    if (in->map == 1) return true;
    return in->opcode < 0x20;
}

static OpFn resolve_push(const Insn *in, bool wide, bool flat32) {
    if (segment_form(in)) return NULL;
    if (flat32 && !(in->flags & INF_MEM)) return in->flags & INF_IMM ? op_push_i32 : op_push_r32;
    if (in->flags & INF_IMM) return wide ? op_push_i64 : op_push_i;
    if (in->flags & INF_MEM) return op_push_m;
    return wide ? op_push_r64 : op_push_r;
}

static OpFn resolve_pop(const Insn *in, bool wide, bool flat32) {
    if (segment_form(in)) return NULL;
    if (in->flags & INF_MEM) return op_pop_m;
    if (flat32) return op_pop_r32;
    return wide ? op_pop_r64 : op_pop_r;
}

OpFn int_stack_resolve(Insn *in, u32 mode) {
    bool wide = in->ssz == 8 && in->osz == 8, flat32 = stack_flat32(in, mode);
    switch (in->op) {
    case ZYDIS_MNEMONIC_PUSH: return resolve_push(in, wide, flat32);
    case ZYDIS_MNEMONIC_POP: return resolve_pop(in, wide, flat32);
    case ZYDIS_MNEMONIC_PUSHA:
    case ZYDIS_MNEMONIC_PUSHAD: return op_pusha;
    case ZYDIS_MNEMONIC_POPA:
    case ZYDIS_MNEMONIC_POPAD: return op_popa;
    case ZYDIS_MNEMONIC_ENTER: return op_enter;
    case ZYDIS_MNEMONIC_LEAVE: return wide ? op_leave64 : flat32 ? op_leave32 : op_leave;
    default: return NULL;
    }
}
