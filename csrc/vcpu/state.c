/* The architectural state as one flat structure (api.h: QpyCpuState), for snapshots, the monitor and tests. */
#include "api.h"
#include "apic/apic.h"
#include "cpu/fpu.h"
#include "mmu/mmu.h"
#include "vcpu/vcpu.h"

#include <errno.h>
#include <string.h>

_Static_assert(sizeof(QpySegment) == sizeof(Segment), "same layout");
_Static_assert(sizeof(((QpyCpuState *)0)->fpu) == XSAVE_BYTES, "same layout");

/* Fields of the same name and shape on both sides. */
/* clang-format off */
#define PLAIN_FIELDS(X) \
    X(pkru) X(cr0) X(cr2) X(cr3) X(cr4) X(efer) X(xcr0) X(star) X(lstar) X(cstar) X(sfmask) X(kernel_gs_base) \
    X(tsc_aux) X(sysenter_cs) X(sysenter_esp) X(sysenter_eip) X(pat) X(misc_enable) X(tsc_adjust) X(tsc_deadline) \
    X(spec_ctrl) X(tsc_offset) X(mtrr_def) X(mcg_cap) X(mcg_status) X(mcg_ctl) X(smbase) X(feature_control) \
    X(icount) X(halted) X(nmi_masked) X(cpl)
#define ARRAY_FIELDS(X) X(dr) X(pdpte) X(mtrr_fixed) X(mtrr_phys) X(mc_banks) X(seg)
#define FPU_FIELDS(X) X(fop) X(fcs) X(fds) X(fip) X(fdp)
#define APIC_FIELDS(X) \
    X(base) X(tpr) X(ldr) X(dfr) X(svr) X(esr) X(icr_low) X(icr_high) X(timer_initial) X(timer_divide) \
    X(timer_start) X(intr_line) X(wait_sipi) X(sipi_vector)
#define APIC_ARRAYS(X) X(isr) X(tmr) X(irr)
/* clang-format on */

static void get_apic(const Apic *a, QpyApicState *s) {
#define X(f) s->f = a->f;
    APIC_FIELDS(X)
#undef X
#define X(f) memcpy(s->f, a->f, sizeof s->f);
    APIC_ARRAYS(X)
#undef X
    s->id = a->base & APIC_BASE_X2 ? a->id : a->xapic_id;
    s->version = APIC_VERSION;
    s->esr_new = a->esr_new;
    memcpy(&s->lvt_timer, a->lvt, sizeof a->lvt);
    s->init_pending = (a->cpu->pending & PEND_INIT) != 0;
    s->sipi_pending = (a->cpu->pending & PEND_SIPI) != 0;
}

static void set_apic(Apic *a, const QpyApicState *s) {
#define X(f) a->f = s->f;
    APIC_FIELDS(X)
#undef X
#define X(f) memcpy(a->f, s->f, sizeof s->f);
    APIC_ARRAYS(X)
#undef X
    if (!(a->base & APIC_BASE_X2)) a->xapic_id = (u8)s->id;
    a->esr_new = s->esr_new;
    memcpy(a->lvt, &s->lvt_timer, sizeof a->lvt);
    apic_restored(a);
}

void qpy_vcpu_get_state(QpyVcpu *c, QpyCpuState *s) {
    memset(s, 0, sizeof *s);
    memcpy(s->gpr, c->r, sizeof s->gpr);
    s->rip = c->r[R_RIP];
    s->rflags = cpu_rflags(c);
#define X(f) s->f = c->f;
    PLAIN_FIELDS(X)
#undef X
#define X(f) memcpy(s->f, c->f, sizeof s->f);
    ARRAY_FIELDS(X)
#undef X
    s->gdt_base = c->gdt.base;
    s->gdt_limit = c->gdt.limit;
    s->idt_base = c->idt.base;
    s->idt_limit = c->idt.limit;
    s->cr8 = apic_get_cr8(c);
    s->nmi_pending = (c->pending & PEND_NMI) != 0;
    s->shadow = (c->pending & PEND_SHADOW) != 0;
    memcpy(s->fpu, fpu_area(c), sizeof s->fpu);
#define X(f) s->fpu_##f = c->fpu.f;
    FPU_FIELDS(X)
#undef X
    get_apic(c->apic, &s->apic);
}

/* What no sequence of instructions could have produced and the core relies on. */
static bool plausible(const QpyCpuState *s) {
    bool pe = s->cr0 & CR0_PE, pg = s->cr0 & CR0_PG, lma = s->efer & EFER_LMA;
    if ((pg && !pe) || s->cr0 >> 32 || s->cpl > 3 || s->cr8 > 15) return false;
    if (lma != (pg && (s->efer & EFER_LME)) || (lma && !(s->cr4 & CR4_PAE))) return false;
    if (!(s->xcr0 & 1) || s->xcr0 & ~(u64)(XCR0_X87 | XCR0_SSE | XCR0_AVX | XCR0_PKRU)) return false;
    return s->apic.timer_start >= -1;
}

int qpy_cpu_state_check(const QpyCpuState *s) { return plausible(s) ? 0 : -EINVAL; }

int qpy_vcpu_set_state(QpyVcpu *c, const QpyCpuState *s) {
    if (!plausible(s)) return -EINVAL;
    memcpy(c->r, s->gpr, sizeof s->gpr);
    c->r[R_RIP] = s->rip;
    c->r[R_ZERO] = 0;
    cpu_set_rflags_raw(c, s->rflags);
#define X(f) c->f = s->f;
    PLAIN_FIELDS(X)
#undef X
#define X(f) memcpy(c->f, s->f, sizeof s->f);
    ARRAY_FIELDS(X)
#undef X
    c->gdt = (DescTable){.base = s->gdt_base, .limit = s->gdt_limit};
    c->idt = (DescTable){.base = s->idt_base, .limit = s->idt_limit};
    c->exc = (ExcState){0};
    cpu_unpend(c, ~(u32)PEND_KICK);
    cpu_pend(c, (s->nmi_pending ? PEND_NMI : 0) | (s->shadow ? PEND_SHADOW : 0) |
                    (s->apic.init_pending ? PEND_INIT : 0) | (s->apic.sipi_pending ? PEND_SIPI : 0));
    fpu_set_area(c, s->fpu);
#define X(f) c->fpu.f = s->fpu_##f;
    FPU_FIELDS(X)
#undef X
    set_apic(c->apic, &s->apic);
    apic_set_cr8(c, s->cr8);
    tlb_flush_all(c);
    cpu_update_mode(c);
    return 0;
}
