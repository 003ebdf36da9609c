/* State after power-on, RESET and INIT (Intel SDM vol 3A, table 10-1). */
#include "cpu/fpu.h"
#include "cpu/model.h"

static void reset_segments(Cpu *c) {
    for (unsigned i = 0; i < SEG_COUNT; i++) c->seg[i] = (Segment){.limit = 0xffff, .rights = SR_P | SR_S | SR_RW | 1};
    c->seg[SEG_CS] = (Segment){.base = 0xffff0000, .limit = 0xffff, .sel = 0xf000, .rights = 0x9b};
    c->seg[SEG_LDTR].rights = 0x82;
    c->seg[SEG_TR].rights = 0x8b;
    c->gdt = c->idt = (DescTable){.limit = 0xffff};
}

/* What INIT keeps: MSRs, FPU, caches, the time-stamp counter. */
static void reset_msrs(Cpu *c) {
    c->star = c->lstar = c->cstar = c->sfmask = c->kernel_gs_base = c->tsc_aux = 0;
    c->sysenter_cs = c->sysenter_esp = c->sysenter_eip = 0;
    c->pat = 0x0007040600070406;
    c->misc_enable = 1; /* fast strings */
    cpu_tsc_forget(c);
    c->tsc_adjust = c->tsc_deadline = c->spec_ctrl = 0;
    c->mtrr_def = 0;
    for (unsigned i = 0; i < ARRAY_LEN(c->mtrr_fixed); i++) c->mtrr_fixed[i] = 0;
    for (unsigned i = 0; i < ARRAY_LEN(c->mtrr_phys); i++) c->mtrr_phys[i] = 0;
    c->mcg_cap = 10 | 1 << 8; /* ten banks, MCG_CTL present */
    c->mcg_status = 0;
    c->mcg_ctl = ~0ull;
    for (unsigned i = 0; i < ARRAY_LEN(c->mc_banks); i++) c->mc_banks[i] = i % 4 ? 0 : ~0ull;
    c->smbase = 0x30000;
    c->feature_control = 0;
    c->pkru = 0;
    c->xcr0 = 1;
}

void cpu_reset(Cpu *c, bool init) {
    for (unsigned i = 0; i < R_COUNT; i++) c->r[i] = 0;
    c->r[R_RDX] = model_signature(c);
    c->r[R_RIP] = 0xfff0;
    c->cc = 0;
    c->flags = 2;
    reset_segments(c);
    c->cr0 = (init ? c->cr0 & (CR0_CD | CR0_NW) : (u32)CR0_CD | CR0_NW) | CR0_ET;
    c->cr2 = c->cr3 = c->cr4 = c->efer = 0;
    for (unsigned i = 0; i < 4; i++) c->dr[i] = c->pdpte[i] = 0;
    c->dr[6] = 0xffff0ff0;
    c->dr[7] = 0x400;
    c->cpl = 0;
    c->exc = (ExcState){0};
    c->nmi_masked = c->ss_shadow = c->dbg_tf = c->dbg_step = false;
    c->dbg_hits = 0;
    c->halted = false;
    if (!init) {
        reset_msrs(c);
        fpu_reset(c);
        c->a20_mask = ~0ull;
    }
    cpu_unpend(c, PEND_SHADOW | PEND_DEBUG);
    cpu_flush_hook(c);
    cpu_update_mode(c);
}
