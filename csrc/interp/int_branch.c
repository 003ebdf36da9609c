/* Near branches: Jcc JMP CALL RET LOOP JCXZ (SDM vol 2; vol 1, 6.4 for the stack). */
#include "interp/int.h"
#include "interp/int_stack.h"

/* Checks a branch target before it becomes rip: canonical in 64-bit code, inside the code segment elsewhere. */
static void check_target(Cpu *c, u64 target) {
    if (c->mode & MODE_CS64) {
        unsigned unused = c->cr4 & CR4_LA57 ? 64 - 57 : 64 - 48;
        if ((u64)((i64)(target << unused) >> unused) != target) exc_gp0(c);
    } else if (target > c->seg[SEG_CS].limit) {
        exc_gp0(c);
    }
}

INLINE u64 truncate(u64 v, unsigned n) { return n == 8 ? v : n == 4 ? (u32)v : (u16)v; }

INLINE u64 relative_target(Cpu *c, const Insn *in) { return truncate(c->r[R_RIP] + in->imm, in->osz); }

/* Relative branches of flat code cannot leave it; W is 64-bit code, F flat 32-bit code, G has limits. */
#define DEF_JCC(cond)                                                                                                  \
    static void op_j##cond##_w(Cpu *c, const Insn *in) {                                                               \
        u64 rip = c->r[R_RIP], target = rip + in->imm;                                                                 \
        c->r[R_RIP] = cond_##cond(c->cc) ? target : rip;                                                               \
    }                                                                                                                  \
    static void op_j##cond##_f(Cpu *c, const Insn *in) {                                                               \
        u64 rip = c->r[R_RIP], target = (u32)(rip + in->imm);                                                          \
        c->r[R_RIP] = cond_##cond(c->cc) ? target : rip;                                                               \
    }                                                                                                                  \
    static void op_j##cond##_g(Cpu *c, const Insn *in) {                                                               \
        if (!cond_##cond(c->cc)) return;                                                                               \
        u64 target = relative_target(c, in);                                                                           \
        check_target(c, target);                                                                                       \
        c->r[R_RIP] = target;                                                                                          \
    }
FOR_CONDS(DEF_JCC)
enum { CODE_G, CODE_F, CODE_W, CODE_KINDS };
#define JCC_ROW(cond) {op_j##cond##_g, op_j##cond##_f, op_j##cond##_w},
static const OpFn jcc_table[16][CODE_KINDS] = {FOR_CONDS(JCC_ROW)};

static void op_jmp_rel_w(Cpu *c, const Insn *in) { c->r[R_RIP] += in->imm; }
static void op_jmp_rel_f(Cpu *c, const Insn *in) { c->r[R_RIP] = (u32)(c->r[R_RIP] + in->imm); }
static void op_jmp_rel_g(Cpu *c, const Insn *in) {
    u64 target = relative_target(c, in);
    check_target(c, target);
    c->r[R_RIP] = target;
}
static void op_jmp_ind(Cpu *c, const Insn *in) {
    u64 target = rm_read(c, in, in->osz);
    check_target(c, target);
    c->r[R_RIP] = target;
}

static void op_call_rel_w(Cpu *c, const Insn *in) {
    u64 rip = c->r[R_RIP];
    push64(c, rip);
    c->r[R_RIP] = rip + in->imm;
}
static void op_call_rel_f(Cpu *c, const Insn *in) {
    u32 rip = (u32)c->r[R_RIP];
    push32(c, rip);
    c->r[R_RIP] = (u32)(rip + in->imm);
}
static void op_call_rel_g(Cpu *c, const Insn *in) {
    u64 target = relative_target(c, in);
    check_target(c, target);
    push_n(c, in, c->r[R_RIP], in->osz);
    c->r[R_RIP] = target;
}
static void op_call_ind(Cpu *c, const Insn *in) {
    u64 target = rm_read(c, in, in->osz);
    check_target(c, target);
    push_n(c, in, c->r[R_RIP], in->osz);
    c->r[R_RIP] = target;
}

static void op_ret_w(Cpu *c, const Insn *in) {
    u64 sp = c->r[R_RSP], target = ldl64(c, SEG_SS, sp);
    if (unlikely((u64)((i64)(target << 16) >> 16) != target)) check_target(c, target);
    c->r[R_RIP] = target;
    c->r[R_RSP] = sp + 8;
}
static void op_ret_f(Cpu *c, const Insn *in) {
    u32 sp = (u32)c->r[R_RSP];
    c->r[R_RIP] = ldl32(c, SEG_SS, sp);
    c->r[R_RSP] = sp + 4;
}
static void op_ret_g(Cpu *c, const Insn *in) {
    u64 target = stack_read(c, in, 0, in->osz);
    check_target(c, target);
    sp_add(c, in, in->osz + (in->flags & INF_IMM ? (u16)in->imm : 0));
    c->r[R_RIP] = target;
}

/* LOOP and JCXZ count in the register of the address size. */
INLINE u64 count_reg(const Cpu *c, const Insn *in) { return truncate(c->r[R_RCX], in->asz); }
static void loop_if(Cpu *c, const Insn *in, bool cond) {
    u64 n = truncate(c->r[R_RCX] - 1, in->asz);
    if (n && cond) {
        u64 target = relative_target(c, in);
        check_target(c, target);
        c->r[R_RIP] = target;
    }
    set_n(c, ROFF(R_RCX), n, in->asz);
}
static void op_loop(Cpu *c, const Insn *in) { loop_if(c, in, true); }
static void op_loope(Cpu *c, const Insn *in) { loop_if(c, in, cond_z(c->cc)); }
static void op_loopne(Cpu *c, const Insn *in) { loop_if(c, in, !cond_z(c->cc)); }
static void op_jcxz(Cpu *c, const Insn *in) {
    if (!count_reg(c, in)) op_jmp_rel_g(c, in);
}

static unsigned code_kind(const Insn *in, u32 mode) {
    if (mode & MODE_CS64) return CODE_W;
    return mode & MODE_FLAT && in->osz == 4 ? CODE_F : CODE_G;
}

static OpFn resolve_jmp(const Insn *in, u32 mode) {
    static const OpFn relative[CODE_KINDS] = {op_jmp_rel_g, op_jmp_rel_f, op_jmp_rel_w};
    return in->flags & INF_IMM ? relative[code_kind(in, mode)] : op_jmp_ind;
}

static OpFn resolve_call(const Insn *in, u32 mode) {
    if (!(in->flags & INF_IMM)) return op_call_ind;
    if (mode & MODE_CS64) return op_call_rel_w;
    return stack_flat32(in, mode) ? op_call_rel_f : op_call_rel_g;
}

static OpFn resolve_ret(const Insn *in, u32 mode) {
    if (in->flags & INF_IMM) return op_ret_g;
    if (mode & MODE_CS64) return op_ret_w;
    return stack_flat32(in, mode) ? op_ret_f : op_ret_g;
}

static bool far_form(const Insn *in) {
    if (in->map) return false;
    switch (in->opcode) {
    case 0x9a:
    case 0xea:
    case 0xca:
    case 0xcb: return true;
    case 0xff: return (in->modrm >> 3 & 7) == 3 || (in->modrm >> 3 & 7) == 5;
    default: return false;
    }
}

static OpFn resolve(const Insn *in, u32 mode) {
    if (far_form(in)) return NULL;
    if (in->map == 0 && in->opcode >= 0x70 && in->opcode <= 0x7f)
        return jcc_table[in->opcode & 15][code_kind(in, mode)];
    if (in->map == 1 && in->opcode >= 0x80 && in->opcode <= 0x8f && !(in->flags & INF_VEX))
        return jcc_table[in->opcode & 15][code_kind(in, mode)];
    switch (in->op) {
    case ZYDIS_MNEMONIC_JMP: return resolve_jmp(in, mode);
    case ZYDIS_MNEMONIC_CALL: return resolve_call(in, mode);
    case ZYDIS_MNEMONIC_RET: return resolve_ret(in, mode);
    case ZYDIS_MNEMONIC_LOOP: return op_loop;
    case ZYDIS_MNEMONIC_LOOPE: return op_loope;
    case ZYDIS_MNEMONIC_LOOPNE: return op_loopne;
    case ZYDIS_MNEMONIC_JCXZ:
    case ZYDIS_MNEMONIC_JECXZ:
    case ZYDIS_MNEMONIC_JRCXZ: return op_jcxz;
    default: return NULL;
    }
}

OpFn int_branch_resolve(Insn *in, u32 mode) {
    OpFn fn = resolve(in, mode);
    if (fn) in->flags |= INF_END | INF_PLAIN;
    return fn;
}
