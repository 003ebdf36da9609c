/* Registers of the local APIC (apic.h): xAPIC page, x2APIC MSRs, IA32_APIC_BASE (SDM vol 3A 10.4, 10.12). */
#include "apic/apic.h"

#include "cpu/model.h"
#include "memory/state.h"

#include <stdlib.h>

/* Register numbers: xAPIC offset / 16, x2APIC MSR - 800h. */
enum {
    REG_ID = 0x02,
    REG_VERSION = 0x03,
    REG_TPR = 0x08,
    REG_APR = 0x09,
    REG_PPR = 0x0a,
    REG_EOI = 0x0b,
    REG_RRD = 0x0c,
    REG_LDR = 0x0d,
    REG_DFR = 0x0e,
    REG_SVR = 0x0f,
    REG_ISR = 0x10,
    REG_TMR = 0x18,
    REG_IRR = 0x20,
    REG_ESR = 0x28,
    REG_ICR_LOW = 0x30,
    REG_ICR_HIGH = 0x31,
    REG_LVT = 0x32,
    REG_INITIAL = 0x38,
    REG_CURRENT = 0x39,
    REG_DIVIDE = 0x3e,
    REG_SELF_IPI = 0x3f,
};
enum { MSR_APIC_BASE = 0x1b, MSR_TSC_DEADLINE = 0x6e0, MSR_X2APIC = 0x800 };
#define ICR_WRITABLE 0x000ccfffu

static const u32 lvt_writable[LVT_COUNT] = {
    [LVT_TIMER] = 0x700ff, [LVT_THERMAL] = 0x107ff, [LVT_PERF] = 0x107ff,
    [LVT_LINT0] = 0x1a7ff, [LVT_LINT1] = 0x1a7ff,   [LVT_ERROR] = 0x100ff,
};

static bool is_x2(const Apic *a) { return a->base & APIC_BASE_X2; }
static u32 x2_ldr(const Apic *a) { return (a->id >> 4) << 16 | 1u << (a->id & 15); }

static u32 read_register(const Apic *a, unsigned reg) {
    switch (reg) {
    case REG_ID: return is_x2(a) ? a->id : (u32)a->xapic_id << 24;
    case REG_VERSION: return APIC_VERSION;
    case REG_TPR: return a->tpr;
    case REG_APR:
    case REG_PPR: return apic_ppr(a);
    case REG_LDR: return is_x2(a) ? x2_ldr(a) : a->ldr;
    case REG_DFR: return a->dfr;
    case REG_SVR: return a->svr;
    case REG_ISR ... REG_ISR + 7: return a->isr[reg - REG_ISR];
    case REG_TMR ... REG_TMR + 7: return a->tmr[reg - REG_TMR];
    case REG_IRR ... REG_IRR + 7: return a->irr[reg - REG_IRR];
    case REG_ESR: return a->esr;
    case REG_ICR_LOW: return a->icr_low;
    case REG_ICR_HIGH: return a->icr_high;
    case REG_LVT ... REG_LVT + LVT_COUNT - 1: return a->lvt[reg - REG_LVT];
    case REG_INITIAL: return a->timer_initial;
    case REG_CURRENT: return apic_timer_current(a);
    case REG_DIVIDE: return a->timer_divide;
    default: return 0;
    }
}

static void write_svr(Apic *a, u32 v) {
    a->svr = v & 0x1ff;
    if (!(a->svr & SVR_ENABLED))
        for (unsigned i = 0; i < LVT_COUNT; i++) a->lvt[i] |= LVT_MASKED;
    apic_update_lint0(a);
    apic_update(a);
}

static void write_lvt(Apic *a, unsigned lvt, u32 v) {
    v &= lvt_writable[lvt];
    if (!(a->svr & SVR_ENABLED)) v |= LVT_MASKED;
    if (lvt == LVT_TIMER) apic_timer_set_lvt(a, v);
    else a->lvt[lvt] = v;
    if (lvt == LVT_LINT0) apic_update_lint0(a);
}

/* Registers without effect outside the APIC; lock held. */
static void write_register(Apic *a, unsigned reg, u32 v) {
    switch (reg) {
    case REG_ID: a->xapic_id = (u8)(v >> 24); break;
    case REG_TPR:
        a->tpr = v & 0xff;
        apic_update(a);
        break;
    case REG_LDR: a->ldr = v & 0xff000000; break;
    case REG_DFR: a->dfr = v | 0x0fffffff; break;
    case REG_SVR: write_svr(a, v); break;
    case REG_ESR: /* a write latches what was collected (SDM 10.5.3) */
        a->esr = a->esr_new;
        a->esr_new = 0;
        break;
    case REG_ICR_HIGH: a->icr_high = v; break;
    case REG_LVT ... REG_LVT + LVT_COUNT - 1: write_lvt(a, reg - REG_LVT, v); break;
    case REG_INITIAL: apic_timer_set_initial(a, v); break;
    case REG_DIVIDE: apic_timer_set_divide(a, v & 0xb); break;
    default: break;
    }
}

/* EOI: the highest vector in service is done; a level-triggered one is broadcast to the IOAPICs (SDM 10.8.5). */
static void end_of_interrupt(Apic *a) {
    lock_take(&a->lock);
    int vector = apic_highest(a->isr);
    bool level = false;
    if (vector >= 0) {
        a->isr[vector / 32] &= ~(1u << vector % 32);
        level = a->tmr[vector / 32] >> vector % 32 & 1;
        apic_update(a);
    }
    lock_release(&a->lock);
    if (level) io_apic_eoi(a->cpu, (unsigned)vector);
}

static void write_icr(Apic *a, u32 low, u32 high) {
    bool x2 = is_x2(a);
    a->icr_low = low & ICR_WRITABLE;
    a->icr_high = high;
    apic_send_ipi(a, a->icr_low, x2 ? high : high >> 24, x2);
}

static void write_any(Apic *a, unsigned reg, u32 v) {
    if (reg == REG_EOI) end_of_interrupt(a);
    else if (reg == REG_ICR_LOW) write_icr(a, v, a->icr_high);
    else {
        lock_take(&a->lock);
        write_register(a, reg, v);
        lock_release(&a->lock);
    }
}

/* The 4 KiB page: 32-bit registers at multiples of 16; other offsets and smaller writes are undefined and do nothing.
 */
static bool apic_mmio(Cpu *c, u64 gpa, unsigned n, u64 *v, bool write) {
    Apic *a = c->apic;
    if ((gpa & PAGE_MASK) != (a->base & PAGE_MASK) || !(a->base & APIC_BASE_ENABLE) || is_x2(a)) return false;
    unsigned reg = BITS(gpa, 11, 4), at = gpa & 15;
    if (write) {
        if (at == 0 && n >= 4 && reg != REG_SELF_IPI) write_any(a, reg, (u32)*v);
        return true;
    }
    lock_take(&a->lock);
    *v = at < 4 ? (u64)read_register(a, reg) >> (8 * at) : 0;
    lock_release(&a->lock);
    return true;
}

static bool x2_readable(unsigned reg) {
    switch (reg) {
    case REG_ID:
    case REG_VERSION:
    case REG_TPR:
    case REG_PPR:
    case REG_LDR:
    case REG_SVR:
    case REG_ISR ... REG_ESR:
    case REG_ICR_LOW:
    case REG_LVT ... REG_CURRENT:
    case REG_DIVIDE: return true;
    default: return false;
    }
}

/* Reserved bits of x2APIC registers fault (SDM 10.12.1.2); ~0: not writable. */
static u32 x2_reserved(unsigned reg) {
    switch (reg) {
    case REG_TPR: return 0xffffff00;
    case REG_SVR: return 0xfffffe00;
    case REG_EOI:
    case REG_ESR: return 0xffffffff;
    case REG_LVT ... REG_LVT + LVT_COUNT - 1: return ~(lvt_writable[reg - REG_LVT] | 0x5000);
    case REG_INITIAL: return 0;
    case REG_DIVIDE: return 0xfffffff4;
    case REG_SELF_IPI: return 0xffffff00;
    default: return 0xffffffff;
    }
}

static bool x2_writable(unsigned reg) { return reg == REG_EOI || reg == REG_ESR || x2_reserved(reg) != 0xffffffff; }

static bool x2_write(Apic *a, unsigned reg, u64 v) {
    if (reg == REG_ICR_LOW) {
        if ((u32)v & ~(ICR_WRITABLE | 0x1000)) return false;
        write_icr(a, (u32)v, (u32)(v >> 32));
        return true;
    }
    if (!x2_writable(reg) || v >> 32 || (u32)v & x2_reserved(reg)) return false;
    if (reg == REG_SELF_IPI) apic_send_ipi(a, ((u32)v & 0xff) | 1 << 18, 0, true);
    else write_any(a, reg, (u32)v);
    return true;
}

/* Turned off or reset: everything but the ids and the base (SDM 10.4.7, table 10-1). */
static void clear_registers(Apic *a) {
    a->tpr = a->esr = a->esr_new = a->icr_low = a->icr_high = a->ldr = 0;
    a->dfr = 0xffffffff;
    a->svr = 0xff;
    for (unsigned i = 0; i < 8; i++) a->isr[i] = a->tmr[i] = a->irr[i] = 0;
    for (unsigned i = 0; i < LVT_COUNT; i++) a->lvt[i] = LVT_MASKED;
    a->timer_initial = a->timer_divide = 0;
    a->cpu->tsc_deadline = 0;
    apic_timer_stop(a);
    apic_update_lint0(a);
    apic_update(a);
}

static bool write_base(Apic *a, u64 v) {
    bool en = v & APIC_BASE_ENABLE, x2 = v & APIC_BASE_X2;
    bool was_en = a->base & APIC_BASE_ENABLE, was_x2 = is_x2(a);
    if (v & ~(PHYS_MASK & PAGE_MASK) & ~(u64)(APIC_BASE_ENABLE | APIC_BASE_X2 | APIC_BASE_BSP)) return false;
    if (x2 && (!en || !cpu_has(a->cpu, FEAT_X2APIC))) return false;
    if ((was_x2 && en && !x2) || (!was_en && x2)) return false; /* SDM figure 10-27 */
    lock_take(&a->lock);
    a->base = (v & ~(u64)APIC_BASE_BSP) | (a->base & APIC_BASE_BSP);
    if (was_en && !en) clear_registers(a);
    apic_update_lint0(a);
    lock_release(&a->lock);
    return true;
}

bool apic_msr_read(Cpu *c, u32 msr, u64 *v) {
    Apic *a = c->apic;
    if (msr == MSR_APIC_BASE) return *v = a->base, true;
    if (msr == MSR_TSC_DEADLINE) {
        apic_fire_due(a);
        return *v = c->tsc_deadline, cpu_has(c, FEAT_TSC_DEADLINE);
    }
    unsigned reg = msr - MSR_X2APIC;
    if (!is_x2(a) || !x2_readable(reg)) return false;
    lock_take(&a->lock);
    *v = read_register(a, reg);
    if (reg == REG_ICR_LOW) *v |= (u64)a->icr_high << 32;
    lock_release(&a->lock);
    return true;
}

bool apic_msr_write(Cpu *c, u32 msr, u64 v) {
    if (msr == MSR_APIC_BASE) return write_base(c->apic, v);
    if (msr == MSR_TSC_DEADLINE) return cpu_has(c, FEAT_TSC_DEADLINE) && (apic_write_deadline(c, v), true);
    return is_x2(c->apic) && x2_write(c->apic, msr - MSR_X2APIC, v);
}

u64 apic_get_cr8(Cpu *c) { return c->apic->tpr >> 4; }

void apic_set_cr8(Cpu *c, u64 v) {
    Apic *a = c->apic;
    lock_take(&a->lock);
    a->tpr = (u32)(v & 15) << 4;
    apic_update(a);
    lock_release(&a->lock);
}

Apic *apic_new(Cpu *c) {
    Apic *a = calloc(1, sizeof *a);
    if (!a) return NULL;
    a->cpu = c;
    a->id = c->index;
    c->machine->local_mmio = apic_mmio;
    return a;
}

void apic_free(Apic *a) { free(a); }

void apic_reset(Apic *a, bool init) {
    lock_take(&a->lock);
    if (!init) {
        a->base = APIC_DEFAULT_BASE | APIC_BASE_ENABLE | (a->id == 0 ? APIC_BASE_BSP : 0);
        a->xapic_id = (u8)a->id;
        a->wait_sipi = false;
    }
    clear_registers(a);
    /* Virtual wire mode from the start, as firmware would set it up (MultiProcessor Specification 1.4, 3.6.2.2). */
    if (a->id == 0) a->lvt[LVT_LINT0] = DM_EXTINT << 8;
    apic_update_lint0(a);
    lock_release(&a->lock);
}

void apic_restored(Apic *a) {
    lock_take(&a->lock);
    apic_update_lint0(a);
    apic_update(a);
    lock_release(&a->lock);
    apic_timer_rearm(a);
}
