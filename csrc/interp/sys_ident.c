/* What the processor tells and is told outside the control registers: CPUID, RDMSR and WRMSR, time-stamp counter, XCR0,
 * PKRU (Intel SDM vol 2). */
#include "interp/sys.h"
#include "apic/apic.h"
#include "base/hosttsc.h"
#include "memory/feed.h"

#include <Zydis/Zydis.h>

static void op_cpuid(Cpu *c, const Insn *in) {
    u32 r[4];
    u32 leaf = (u32)c->r[R_RAX];
    cpuid_query(c, leaf, (u32)c->r[R_RCX], r);
    if (leaf == 1 && !(c->apic->base & APIC_BASE_ENABLE)) r[3] &= ~(1u << 9); /* SDM vol 3A 10.4.3 */
    c->r[R_RAX] = r[0];
    c->r[R_RBX] = r[1];
    c->r[R_RCX] = r[2];
    c->r[R_RDX] = r[3];
}

static void set_edx_eax(Cpu *c, u64 v) {
    c->r[R_RAX] = (u32)v;
    c->r[R_RDX] = v >> 32;
}
static u64 edx_eax(const Cpu *c) { return (u32)c->r[R_RAX] | c->r[R_RDX] << 32; }

static void op_rdmsr(Cpu *c, const Insn *in) {
    u64 v;
    require_cpl0(c);
    if (!msr_read(c, (u32)c->r[R_RCX], &v)) exc_gp0(c);
    set_edx_eax(c, v);
}
static void op_wrmsr(Cpu *c, const Insn *in) {
    require_cpl0(c);
    if (!msr_write(c, (u32)c->r[R_RCX], edx_eax(c))) exc_gp0(c);
}

static void check_tsd(Cpu *c) {
    if ((c->cr4 & CR4_TSD) && c->cpl != 0 && (c->cr0 & CR0_PE)) exc_gp0(c);
}
static u64 tsc_now(Cpu *c) {
    u64 v = 0;
    if (feed_take(c->feed, FEED_TSC, 0, 8, &v)) return v;
    v = cpu_read_tsc(c);
    if (c->jit) cpu_tsc_follow(c);
    feed_put(c->feed, FEED_TSC, 0, 8, v);
    return v;
}
static void op_rdtsc(Cpu *c, const Insn *in) {
    check_tsd(c);
    set_edx_eax(c, tsc_now(c));
}
static void op_rdtscp(Cpu *c, const Insn *in) {
    check_tsd(c);
    host_fence();
    set_edx_eax(c, tsc_now(c));
    c->r[R_RCX] = (u32)c->tsc_aux;
}
static void op_rdpid(Cpu *c, const Insn *in) { REG64(c, in->rm) = (u32)c->tsc_aux; }
static void op_rdpmc(Cpu *c, const Insn *in) { exc_gp0(c); } /* no counter exists */

static void check_osxsave(Cpu *c) {
    if (!(c->cr4 & CR4_OSXSAVE)) exc_ud(c);
}
static void op_xgetbv(Cpu *c, const Insn *in) {
    check_osxsave(c);
    u32 index = (u32)c->r[R_RCX];
    if (index > 1 || (index == 1 && !cpu_has(c, FEAT_XGETBV1))) exc_gp0(c);
    set_edx_eax(c, index ? fpu_xinuse(c) : c->xcr0);
}
static void op_xsetbv(Cpu *c, const Insn *in) {
    check_osxsave(c);
    require_cpl0(c);
    u64 v = edx_eax(c), allowed = 3 | (cpu_has(c, FEAT_AVX) ? 4 : 0) | (cpu_has(c, FEAT_PKU) ? 1 << 9 : 0);
    if ((u32)c->r[R_RCX] || !(v & 1) || (v & ~allowed) || (v & 6) == 4) exc_gp0(c);
    c->xcr0 = v;
    cpu_update_mode(c);
}

static void op_rdpkru(Cpu *c, const Insn *in) {
    if (!(c->cr4 & CR4_PKE)) exc_ud(c);
    if ((u32)c->r[R_RCX]) exc_gp0(c);
    set_edx_eax(c, c->pkru);
}
static void op_wrpkru(Cpu *c, const Insn *in) {
    if (!(c->cr4 & CR4_PKE)) exc_ud(c);
    if ((u32)c->r[R_RCX] || (u32)c->r[R_RDX]) exc_gp0(c);
    if (c->pkru == (u32)c->r[R_RAX]) return;
    c->pkru = (u32)c->r[R_RAX];
    tlb_drop_first_level(c);
}

static OpFn resolve_group7_reg(Insn *in) {
    switch (in->modrm) {
    case 0xd0: return op_xgetbv;
    case 0xd1: in->flags |= INF_END; return op_xsetbv;
    case 0xee: return op_rdpkru;
    case 0xef: return op_wrpkru;
    case 0xf9: return op_rdtscp;
    }
    return NULL;
}

OpFn sys_resolve_ident(Insn *in, u32 mode) {
    if (in->map != 1 || in->flags & INF_VEX) return NULL;
    switch (in->opcode) {
    case 0x01: return resolve_group7_reg(in);
    case 0x30: in->flags |= INF_END; return op_wrmsr;
    case 0x31: return op_rdtsc;
    case 0x32: return op_rdmsr;
    case 0x33: return op_rdpmc;
    case 0xa2: return op_cpuid;
    case 0xc7: return in->op == ZYDIS_MNEMONIC_RDPID ? op_rdpid : NULL;
    }
    return NULL;
}

OpFn ops_system_resolve(Insn *in, u32 mode) {
    OpFn (*const groups[])(Insn *, u32) = {sys_resolve_segment, sys_resolve_far,  sys_resolve_control, sys_resolve_io,
                                           sys_resolve_flags,   sys_resolve_fast, sys_resolve_ident};
    for (unsigned i = 0; i < ARRAY_LEN(groups); i++) {
        OpFn fn = groups[i](in, mode);
        if (fn) return fn;
    }
    return NULL;
}
