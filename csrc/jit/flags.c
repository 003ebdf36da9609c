/* Which arithmetic flags may still be read (Intel SDM vol 1, appendix A). The check in front of a memory access is
 * shorter where it may clobber RFLAGS: that is where whatever comes next writes all live flags before anybody can read
 * them. At a block's end all are live. For who looks at them when it faults see recover.c. */
#include "jit/trans.h"

/* May the count be zero? */
static bool count_may_be_zero(const Guest *g) {
    unsigned mask = g->in->osz == 8 ? 63 : 31;
    if (g->zi.raw.imm[0].size) return !(g->zi.raw.imm[0].value.u & mask);
    bool by_one = g->zi.opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && g->zi.opcode < 0xd2;
    return !by_one; /* by CL */
}

/* Shifts and rotates leave the flags alone when the count is zero. */
static bool is_shift(const Guest *g) {
    const ZydisDecodedInstruction *zi = &g->zi;
    if (zi->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT) return (zi->opcode & 0xfe) == 0xc0 || (zi->opcode & 0xfc) == 0xd0;
    return zi->opcode_map == ZYDIS_OPCODE_MAP_0F && ((zi->opcode & 0xfe) == 0xa4 || (zi->opcode & 0xfe) == 0xac) &&
           zi->encoding != ZYDIS_INSTRUCTION_ENCODING_VEX;
}

/* Hardware leaves some of the undefined flags of these as they were. */
static bool undefined_are_kept(const ZydisDecodedInstruction *zi) {
    switch (zi->mnemonic) {
    case ZYDIS_MNEMONIC_BSF:
    case ZYDIS_MNEMONIC_BSR:
    case ZYDIS_MNEMONIC_BT:
    case ZYDIS_MNEMONIC_BTS:
    case ZYDIS_MNEMONIC_BTR:
    case ZYDIS_MNEMONIC_BTC:
    case ZYDIS_MNEMONIC_DIV:
    case ZYDIS_MNEMONIC_IDIV:
    case ZYDIS_MNEMONIC_SHLD:
    case ZYDIS_MNEMONIC_SHRD:
    case ZYDIS_MNEMONIC_MUL:
    case ZYDIS_MNEMONIC_IMUL: return true;
    default: return zi->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX;
    }
}

u16 flags_killed(const Guest *g) {
    const ZydisAccessedFlags *f = g->zi.cpu_flags;
    if (!f || (is_shift(g) && count_may_be_zero(g))) return 0;
    u32 k = f->modified | f->set_0 | f->set_1;
    if (!undefined_are_kept(&g->zi)) k |= f->undefined;
    else k &= ~f->undefined;
    return k & FL_CC;
}

/* What writes some flags passes the others on. */
static u16 used(const Guest *g) {
    const ZydisAccessedFlags *f = g->zi.cpu_flags;
    if (g->partial == PARTIAL) return FL_CC;
    if (g->in->map == 0 && g->in->opcode == 0x9c) return FL_CC; /* PUSHF */
    if (g->in->flags & INF_END && !direct_branch(g->in)) return FL_CC;
    if (is_shift(g) && count_may_be_zero(g)) return FL_CC;
    return f ? f->tested & FL_CC : 0;
}

static u16 live_at(const Trans *t, unsigned insn) {
    return insn < t->n && !t->guest[insn].kept ? t->guest[insn].live : FL_CC;
}

u16 flags_live_behind(const Trans *t, unsigned i) {
    const Guest *g = &t->guest[i];
    if (!(g->in->flags & INF_END)) return live_at(t, i + 1);
    if (!direct_branch(g->in)) return FL_CC;
    u16 there = live_at(t, g->target);
    return g->in->op == ZYDIS_MNEMONIC_JMP ? there : there | live_at(t, i + 1);
}

/* Until nothing changes any more: loops bring news to what was looked at before. */
void flags_liveness(Trans *t) {
    bool changed = true;
    while (changed) {
        changed = false;
        for (unsigned i = t->n; i--;) {
            Guest *g = &t->guest[i];
            u16 live = (u16)((flags_live_behind(t, i) & ~flags_killed(g)) | used(g));
            changed |= live != g->live;
            g->live = live;
        }
    }
}
