/* FNSTENV, FLDENV, FNSAVE, FRSTOR: the x87 environment in its four layouts (Intel SDM vol 1, figures 8-9 to 8-12). */
#include "interp/fpu_ops.h"

enum { ENV_MAX = 28, REGS_BYTES = 80 };

static unsigned env_bytes(const Insn *in) { return in->osz == 2 ? 14 : 28; }

static bool real_layout(const Cpu *c) { return !(c->cr0 & CR0_PE) || c->flags & FL_VM; }

static void put16(u8 *p, unsigned slot, bool wide, u32 v) {
    if (wide) *(u32 *)(p + 4 * slot) = v;
    else *(u16 *)(p + 2 * slot) = (u16)v;
}

static u32 get16(const u8 *p, unsigned slot, bool wide) {
    return wide ? *(const u32 *)(p + 4 * slot) : *(const u16 *)(p + 2 * slot);
}

/* Slots: control, status, tag, instruction pointer, its selector (and opcode), operand pointer, its selector. */
static void env_build(Cpu *c, const Insn *in, u8 *p) {
    const FpuState *f = &c->fpu;
    bool wide = in->osz != 2;
    u32 ones = wide ? 0xffff0000u : 0;
    put16(p, 0, wide, *fpu_u16(c, FX_FCW) | ones);
    put16(p, 1, wide, *fpu_u16(c, FX_FSW) | ones);
    put16(p, 2, wide, fpu_full_tag(c) | ones);
    if (real_layout(c)) {
        u32 ip = (u32)f->fip + ((u32)f->fcs << 4), dp = (u32)f->fdp + ((u32)f->fds << 4);
        put16(p, 3, wide, (ip & 0xffff) | ones);
        put16(p, 4, wide, (ip >> 16 << 12) | (f->fop & 0x7ff));
        put16(p, 5, wide, (dp & 0xffff) | ones);
        put16(p, 6, wide, dp >> 16 << 12);
        return;
    }
    put16(p, 3, wide, (u32)f->fip);
    put16(p, 4, wide, f->fcs | (wide ? (u32)f->fop << 16 : 0));
    put16(p, 5, wide, (u32)f->fdp);
    put16(p, 6, wide, f->fds | ones);
}

static void env_load(Cpu *c, const Insn *in, const u8 *p) {
    FpuState *f = &c->fpu;
    bool wide = in->osz != 2;
    *fpu_u16(c, FX_FCW) = (u16)((get16(p, 0, wide) & 0x1f7f) | 0x40);
    *fpu_u16(c, FX_FSW) = (u16)get16(p, 1, wide);
    fpu_set_full_tag(c, (u16)get16(p, 2, wide));
    u32 ip = get16(p, 3, wide), ip_high = get16(p, 4, wide), dp = get16(p, 5, wide), dp_high = get16(p, 6, wide);
    if (real_layout(c)) {
        f->fip = (ip & 0xffff) | (ip_high & 0x0ffff000) << 4;
        f->fdp = (dp & 0xffff) | (dp_high & 0x0ffff000) << 4;
        f->fop = ip_high & 0x7ff;
        f->fcs = f->fds = 0;
    } else {
        f->fip = ip;
        f->fdp = dp;
        f->fcs = (u16)ip_high;
        f->fds = (u16)dp_high;
        if (wide) f->fop = ip_high >> 16 & 0x7ff;
    }
    fpu_settle(c);
}

void op_fnstenv(Cpu *c, const Insn *in) {
    u8 buf[ENV_MAX];
    u64 off = insn_ea(c, in);
    u8 *p = st_wide_begin(c, in->seg, off, env_bytes(in), buf);
    fpu_park(c);
    env_build(c, in, p);
    *fpu_u16(c, FX_FCW) |= FCW_MASKS;
    fpu_settle(c);
    st_wide_end(c, in->seg, off, env_bytes(in), buf, p);
}

void op_fldenv(Cpu *c, const Insn *in) {
    u8 buf[ENV_MAX];
    x87_wait(c);
    const u8 *p = ld_wide(c, in->seg, insn_ea(c, in), env_bytes(in), buf);
    fpu_park(c);
    /* The registers keep their physical places while TOP changes; the area holds them relative to TOP. */
    u8 regs[128];
    unsigned old_top = *fpu_u16(c, FX_FSW) >> 11 & 7;
    fpu_copy(regs, c->fpu.area + FX_ST, sizeof regs);
    env_load(c, in, p);
    unsigned new_top = *fpu_u16(c, FX_FSW) >> 11 & 7;
    for (unsigned i = 0; i < 8; i++)
        fpu_copy(c->fpu.area + FX_ST + 16 * i, regs + 16 * ((i + new_top - old_top) & 7), 16);
}

void op_fnsave(Cpu *c, const Insn *in) {
    u8 buf[ENV_MAX + REGS_BYTES];
    u64 off = insn_ea(c, in);
    unsigned n = env_bytes(in) + REGS_BYTES;
    u8 *p = st_wide_begin(c, in->seg, off, n, buf);
    fpu_park(c);
    env_build(c, in, p);
    for (unsigned i = 0; i < 8; i++) fpu_copy(p + env_bytes(in) + 10 * i, c->fpu.area + FX_ST + 16 * i, 10);
    fpu_fninit(c);
    st_wide_end(c, in->seg, off, n, buf, p);
}

void op_frstor(Cpu *c, const Insn *in) {
    u8 buf[ENV_MAX + REGS_BYTES];
    x87_wait(c);
    const u8 *p = ld_wide(c, in->seg, insn_ea(c, in), env_bytes(in) + REGS_BYTES, buf);
    fpu_park(c);
    env_load(c, in, p);
    for (unsigned i = 0; i < 8; i++) {
        fpu_zero(c->fpu.area + FX_ST + 16 * i, 16);
        fpu_copy(c->fpu.area + FX_ST + 16 * i, p + env_bytes(in) + 10 * i, 10);
    }
}
