/* Model-specific registers (Intel SDM vol 4). Unknown ones are #GP, as on the hardware whose CPUID we show; a list of
 * harmless ones that firmware and kernels touch without asking reads as zero. */
#include "interp/sys.h"
#include "apic/apic.h"
#include "base/log.h"

enum {
    MSR_TSC = 0x10,
    MSR_APIC_BASE = 0x1b,
    MSR_FEATURE_CONTROL = 0x3a,
    MSR_TSC_ADJUST = 0x3b,
    MSR_SPEC_CTRL = 0x48,
    MSR_PRED_CMD = 0x49,
    MSR_UCODE_WRITE = 0x79,
    MSR_UCODE_REV = 0x8b,
    MSR_FSB_FREQ = 0xcd,
    MSR_MTRR_CAP = 0xfe,
    MSR_ARCH_CAPS = 0x10a,
    MSR_FLUSH_CMD = 0x10b,
    MSR_BBL_CR_CTL3 = 0x11e,
    MSR_SYSENTER_CS = 0x174,
    MSR_SYSENTER_ESP = 0x175,
    MSR_SYSENTER_EIP = 0x176,
    MSR_MCG_CAP = 0x179,
    MSR_MCG_STATUS = 0x17a,
    MSR_MCG_CTL = 0x17b,
    MSR_PERF_STATUS = 0x198,
    MSR_MISC_ENABLE = 0x1a0,
    MSR_MTRR_PHYS = 0x200,
    MSR_PAT = 0x277,
    MSR_MTRR_DEF = 0x2ff,
    MSR_MC0_CTL = 0x400,
    MSR_TSC_DEADLINE = 0x6e0,
    MSR_X2APIC = 0x800,
};
#define MSR_EFER   0xc0000080u
#define MSR_STAR   0xc0000081u
#define MSR_LSTAR  0xc0000082u
#define MSR_CSTAR  0xc0000083u
#define MSR_SFMASK 0xc0000084u
#define MSR_FS     0xc0000100u
#define MSR_GS     0xc0000101u
#define MSR_KGS    0xc0000102u
#define MSR_AUX    0xc0000103u

/* Read as zero, writes are dropped: platform id, power-on configuration, performance control, thermal and energy
 * registers, last-branch records, AMD's north-bridge and cache configuration. */
static bool is_harmless(u32 msr) {
    static const u32 list[] = {
        0x17,       0x2a,       0x33,       0xce,       0xe7,       0xe8,       0x140,      0x199,      0x19a,
        0x19b,      0x19c,      0x1a2,      0x1b0,      0x1c9,      0x1d9,      0x1db,      0x1dc,      0x1dd,
        0x1de,      0x1fc,      0x606,      0x611,      0x619,      0x639,      0x641,      0xc0010010, 0xc0010015,
        0xc001001a, 0xc001001d, 0xc001001f, 0xc0010055, 0xc0010058, 0xc0010112, 0xc0010113, 0xc0010114, 0xc0010117,
        0xc0010140, 0xc0010141, 0xc0011022, 0xc0011023, 0xc0011029, 0xc001102a, 0xc001102c,
    };
    for (unsigned i = 0; i < ARRAY_LEN(list); i++)
        if (list[i] == msr) return true;
    return msr >= 0xc0010000 && msr <= 0xc0010007;
}

static bool is_apic(u32 msr) {
    return msr == MSR_APIC_BASE || msr == MSR_TSC_DEADLINE || (msr >= MSR_X2APIC && msr < MSR_X2APIC + 0x100);
}

static u64 arch_caps(const Cpu *c) {
    u64 v = 0;
    for (unsigned f = 1; f < FEAT_COUNT; f++)
        if (feature_names[f].word == FW_ARCH_CAPS && cpu_has(c, f)) v |= BIT(feature_names[f].bit);
    return v;
}

/* Index of a fixed-range MTRR, or -1: 64K at 250h, 16K at 258h, 4K at 268h. */
static int mtrr_fixed_index(u32 msr) {
    if (msr == 0x250) return 0;
    if (msr == 0x258 || msr == 0x259) return 1 + (int)(msr - 0x258);
    return msr >= 0x268 && msr <= 0x26f ? 3 + (int)(msr - 0x268) : -1;
}

/* MCi_CTL takes all ones or zeros (SDM vol 3B 16.3.2.1); in bank 4 of an AMD CPU Linux leaves out bit 10, the GART
 * error of early models. */
static bool mc_ctl_ok(u32 msr, u64 v) { return !v || v == ~0ull || (msr == MSR_MC0_CTL + 16 && v == ~BIT(10)); }

/* Registers that just hold their value; what may be written is checked by register_ok(). */
static u64 *plain_register(Cpu *c, u32 msr) {
    int fixed = mtrr_fixed_index(msr);
    if (fixed >= 0) return cpu_has(c, FEAT_MTRR) ? &c->mtrr_fixed[fixed] : NULL;
    if (msr >= MSR_MTRR_PHYS && msr < MSR_MTRR_PHYS + 16)
        return cpu_has(c, FEAT_MTRR) ? &c->mtrr_phys[msr - MSR_MTRR_PHYS] : NULL;
    if (msr >= MSR_MC0_CTL && msr < MSR_MC0_CTL + 4 * (u32)(c->mcg_cap & 0xff))
        return cpu_has(c, FEAT_MCA) ? &c->mc_banks[msr - MSR_MC0_CTL] : NULL;
    switch (msr) {
    case MSR_SPEC_CTRL: return cpu_has(c, FEAT_SPEC_CTRL) || cpu_has(c, FEAT_AMD_IBRS) ? &c->spec_ctrl : NULL;
    case MSR_SYSENTER_CS: return &c->sysenter_cs;
    case MSR_SYSENTER_ESP: return &c->sysenter_esp;
    case MSR_SYSENTER_EIP: return &c->sysenter_eip;
    case MSR_MCG_STATUS: return &c->mcg_status;
    case MSR_MCG_CTL: return &c->mcg_ctl;
    case MSR_MISC_ENABLE: return &c->misc_enable;
    case MSR_PAT: return &c->pat;
    case MSR_MTRR_DEF: return cpu_has(c, FEAT_MTRR) ? &c->mtrr_def : NULL;
    case MSR_STAR: return cpu_has(c, FEAT_SYSCALL) ? &c->star : NULL;
    case MSR_LSTAR: return cpu_has(c, FEAT_LM) ? &c->lstar : NULL;
    case MSR_CSTAR: return cpu_has(c, FEAT_LM) ? &c->cstar : NULL;
    case MSR_SFMASK: return cpu_has(c, FEAT_LM) ? &c->sfmask : NULL;
    case MSR_FS: return cpu_has(c, FEAT_LM) ? &c->seg[SEG_FS].base : NULL;
    case MSR_GS: return cpu_has(c, FEAT_LM) ? &c->seg[SEG_GS].base : NULL;
    case MSR_KGS: return cpu_has(c, FEAT_LM) ? &c->kernel_gs_base : NULL;
    case MSR_AUX: return cpu_has(c, FEAT_RDTSCP) || cpu_has(c, FEAT_RDPID) ? &c->tsc_aux : NULL;
    }
    return NULL;
}

static bool memory_type_ok(u64 type, bool pat) { return type <= 1 || (type >= 4 && type <= 6) || (pat && type == 7); }
static bool memory_types_ok(u64 v, bool pat) {
    for (unsigned i = 0; i < 8; i++)
        if (!memory_type_ok(v >> (8 * i) & 0xff, pat)) return false;
    return true;
}

static bool register_ok(Cpu *c, u32 msr, u64 v) {
    if (mtrr_fixed_index(msr) >= 0) return memory_types_ok(v, false);
    if (msr >= MSR_MTRR_PHYS && msr < MSR_MTRR_PHYS + 16)
        return !(v & ~PHYS_MASK) && (msr & 1 ? !(v & 0x7ff) : memory_type_ok(v & 0xff, false) && !(v & 0xf00));
    if (msr >= MSR_MC0_CTL && msr < MSR_MC0_CTL + 40) return (msr & 3) > 1 || ((msr & 3) ? !v : mc_ctl_ok(msr, v));
    switch (msr) {
    case MSR_SPEC_CTRL: return !(v & ~(7ull | (cpu_has(c, FEAT_BHI_CTRL) ? BIT(10) : 0))); /* BHI_DIS_S */
    case MSR_PAT: return memory_types_ok(v, true);
    case MSR_MTRR_DEF: return !(v & ~0xcffull) && memory_type_ok(v & 0xff, false);
    case MSR_MCG_CTL: return !v || v == ~0ull;
    case MSR_SYSENTER_ESP:
    case MSR_SYSENTER_EIP:
    case MSR_LSTAR:
    case MSR_CSTAR:
    case MSR_FS:
    case MSR_GS:
    case MSR_KGS: return lin_canonical(c, v);
    case MSR_SFMASK:
    case MSR_AUX: return !(v >> 32);
    }
    return true;
}

static void log_unknown(Cpu *c, const char *what, u32 msr) {
    if (!log_on(LOG_UNIMP)) return;
    fpu_park(c);
    log_printf("unknown MSR %s: %08x at rip %llx\n", what, msr, (unsigned long long)c->r[R_RIP]);
}

bool msr_read(Cpu *c, u32 msr, u64 *v) {
    if (is_apic(msr)) return apic_msr_read(c, msr, v);
    u64 *plain = plain_register(c, msr);
    if (plain) {
        *v = *plain;
        return true;
    }
    switch (msr) {
    case MSR_TSC: *v = cpu_read_tsc(c); return true;
    case MSR_TSC_ADJUST: *v = c->tsc_adjust; return cpu_has(c, FEAT_TSC_ADJUST);
    case MSR_UCODE_REV: *v = 1ull << 32; return true;
    case MSR_FSB_FREQ: *v = 3; return true;
    case MSR_MTRR_CAP: *v = 8 | 1 << 8 | 1 << 10; return cpu_has(c, FEAT_MTRR);
    case MSR_ARCH_CAPS: *v = arch_caps(c); return cpu_has(c, FEAT_ARCH_CAPABILITIES);
    case MSR_BBL_CR_CTL3: *v = 0xbe702111; return true;
    case MSR_MCG_CAP: *v = c->mcg_cap; return true;
    case MSR_PERF_STATUS: *v = 1000 | 4ull << 40; return true;
    case MSR_EFER: *v = c->efer; return cpu_has(c, FEAT_LM) || cpu_has(c, FEAT_SYSCALL) || cpu_has(c, FEAT_NX);
    }
    *v = 0;
    if (is_harmless(msr)) return true;
    log_unknown(c, "read", msr);
    return false;
}

static void tsc_move(Cpu *c, u64 delta) {
    c->tsc_offset += (i64)delta;
    c->tsc_adjust += delta;
    cpu_tsc_forget(c);
    apic_timer_rearm(c->apic);
}

bool msr_write(Cpu *c, u32 msr, u64 v) {
    if (is_apic(msr)) return apic_msr_write(c, msr, v);
    u64 *plain = plain_register(c, msr);
    if (plain) {
        if (!register_ok(c, msr, v)) return false;
        *plain = v;
        if (msr == MSR_FS || msr == MSR_GS) cpu_update_mode(c);
        return true;
    }
    switch (msr) {
    case MSR_TSC: tsc_move(c, v - cpu_read_tsc(c)); return true;
    case MSR_TSC_ADJUST:
        if (!cpu_has(c, FEAT_TSC_ADJUST)) return false;
        tsc_move(c, v - c->tsc_adjust);
        return true;
    case MSR_PRED_CMD: return !(v & ~1ull) && (cpu_has(c, FEAT_SPEC_CTRL) || cpu_has(c, FEAT_IBPB));
    case MSR_FLUSH_CMD: return !(v & ~1ull) && cpu_has(c, FEAT_FLUSH_L1D);
    case MSR_UCODE_WRITE:
    case MSR_UCODE_REV: return true;
    case MSR_EFER:
        if (!cpu_has(c, FEAT_LM) && !cpu_has(c, FEAT_SYSCALL) && !cpu_has(c, FEAT_NX)) return false;
        efer_write(c, v);
        return true;
    }
    if (is_harmless(msr)) return true;
    log_unknown(c, "write", msr);
    return false;
}
