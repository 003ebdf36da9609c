/* SYSCALL, SYSRET, SYSENTER, SYSEXIT, SWAPGS, RDFSBASE and its kin (Intel SDM vol 2; vol 3A 5.8.7, 5.8.8; SYSCALL from
 * compatibility mode: AMD APM vol 3). Segments get fixed contents, no descriptor is read. */
#include "interp/sys.h"

#include <Zydis/Zydis.h>

enum {
    CODE64 = SR_G | SR_L | SR_P | SR_S | 11,
    CODE32 = SR_G | SR_DB | SR_P | SR_S | 11,
    DATA = SR_G | SR_DB | SR_P | SR_S | 3
};

static void set_flat(Cpu *c, unsigned seg, unsigned sel, unsigned rights, unsigned cpl) {
    c->seg[seg] = (Segment){.limit = 0xffffffff, .sel = (u16)sel, .rights = (u16)(rights | cpl << 5)};
}

static void op_syscall(Cpu *c, const Insn *in) {
    bool code64 = cpu_code64(c);
    if (!(c->efer & EFER_SCE) || !(c->cr0 & CR0_PE) || (c->flags & FL_VM)) exc_ud(c);
    if (!code64 && c->model->vendor != VENDOR_AMD) exc_ud(c);
    unsigned sel = (unsigned)(c->star >> 32) & 0xfffc;
    u64 flags = cpu_rflags(c);
    c->r[R_RCX] = cpu_lma(c) ? c->r[R_RIP] : (u32)c->r[R_RIP];
    if (cpu_lma(c)) {
        c->r[R_R11] = flags & ~(u64)FL_RF;
        c->r[R_RIP] = code64 ? c->lstar : c->cstar;
        cpu_set_rflags_raw(c, flags & ~(c->sfmask | FL_RF));
    } else {
        c->r[R_RIP] = (u32)c->star;
        cpu_set_rflags_raw(c, flags & ~(u64)(FL_IF | FL_RF | FL_VM));
    }
    c->cpl = 0;
    set_flat(c, SEG_CS, sel, cpu_lma(c) ? CODE64 : CODE32, 0);
    set_flat(c, SEG_SS, sel + 8, DATA, 0);
    cpu_update_level(c);
    if (unlikely(c->mode & MODE_STEP)) c->dbg_tf = c->flags & FL_TF; /* TF after the instruction decides */
    else c->dbg_tf = false;
}

static void op_sysret(Cpu *c, const Insn *in) {
    if (!(c->efer & EFER_SCE) || !cpu_code64(c)) exc_ud(c);
    require_cpl0(c);
    bool to64 = in->osz == 8;
    if (to64 && !lin_canonical(c, c->r[R_RCX])) exc_gp0(c);
    unsigned sel = (unsigned)(c->star >> 48) & 0xffff;
    c->r[R_RIP] = to64 ? c->r[R_RCX] : (u32)c->r[R_RCX];
    cpu_set_rflags_raw(c, c->r[R_R11] & 0x3c7fd7);
    c->cpl = 3;
    set_flat(c, SEG_CS, (to64 ? sel + 16 : sel) | 3, to64 ? CODE64 : CODE32, 3);
    set_flat(c, SEG_SS, (sel + 8) | 3, DATA, 3);
    cpu_update_level(c);
    if (unlikely(c->flags & FL_TF)) debug_recheck_tf(c);
}

static void op_sysenter(Cpu *c, const Insn *in) {
    unsigned sel = (unsigned)c->sysenter_cs & 0xfffc;
    if (!(c->cr0 & CR0_PE) || !sel) exc_gp0(c);
    bool lma = cpu_lma(c);
    c->flags &= ~(u64)(FL_VM | FL_IF | FL_RF);
    c->r[R_RSP] = lma ? c->sysenter_esp : (u32)c->sysenter_esp;
    c->r[R_RIP] = lma ? c->sysenter_eip : (u32)c->sysenter_eip;
    c->cpl = 0;
    set_flat(c, SEG_CS, sel, lma ? CODE64 : CODE32, 0);
    set_flat(c, SEG_SS, sel + 8, DATA, 0);
    cpu_update_level(c);
}

static void op_sysexit(Cpu *c, const Insn *in) {
    unsigned sel = (unsigned)c->sysenter_cs & 0xfffc;
    bool to64 = in->osz == 8;
    if (!(c->cr0 & CR0_PE) || !sel || c->cpl != 0) exc_gp0(c);
    if (to64 && (!lin_canonical(c, c->r[R_RCX]) || !lin_canonical(c, c->r[R_RDX]))) exc_gp0(c);
    c->r[R_RIP] = to64 ? c->r[R_RDX] : (u32)c->r[R_RDX];
    c->r[R_RSP] = to64 ? c->r[R_RCX] : (u32)c->r[R_RCX];
    c->cpl = 3;
    set_flat(c, SEG_CS, (sel + (to64 ? 32 : 16)) | 3, to64 ? CODE64 : CODE32, 3);
    set_flat(c, SEG_SS, (sel + (to64 ? 40 : 24)) | 3, DATA, 3);
    cpu_update_level(c);
}

static void op_swapgs(Cpu *c, const Insn *in) {
    require_cpl0(c);
    u64 base = c->seg[SEG_GS].base;
    c->seg[SEG_GS].base = c->ea_base[SEG_GS] = c->kernel_gs_base;
    c->kernel_gs_base = base;
}

static void op_fsgsbase(Cpu *c, const Insn *in) {
    unsigned seg = in->modrm & 8 ? SEG_GS : SEG_FS;
    if (!(c->cr4 & CR4_FSGSBASE)) exc_ud(c);
    if (!(in->modrm & 16)) {
        REG64(c, in->rm) = in->osz == 8 ? c->seg[seg].base : (u32)c->seg[seg].base;
        return;
    }
    u64 v = in->osz == 8 ? REG64(c, in->rm) : REG32(c, in->rm);
    if (!lin_canonical(c, v)) exc_gp0(c);
    c->seg[seg].base = c->ea_base[seg] = v;
}

OpFn sys_resolve_fast(Insn *in, u32 mode) {
    OpFn fn = NULL;
    switch (in->op) {
    case ZYDIS_MNEMONIC_RDFSBASE:
    case ZYDIS_MNEMONIC_RDGSBASE:
    case ZYDIS_MNEMONIC_WRFSBASE:
    case ZYDIS_MNEMONIC_WRGSBASE: return op_fsgsbase;
    }
    if (in->map != 1 || in->flags & INF_VEX) return NULL;
    switch (in->opcode) {
    case 0x01: return in->modrm == 0xf8 && (mode & MODE_CS64) ? op_swapgs : NULL;
    case 0x05: fn = op_syscall; break;
    case 0x07: fn = op_sysret; break;
    case 0x34: fn = op_sysenter; break;
    case 0x35: fn = op_sysexit; break;
    }
    if (fn) in->flags |= INF_END;
    return fn;
}
