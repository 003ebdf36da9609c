/* Interrupts on their way: destinations, arbitration, acceptance, priority, IPIs, local lines (SDM vol 3A 10.5-10.8).
 */
#include "apic/apic.h"

#include "memory/safepoint.h"
#include "memory/state.h"

#define DEST_ALL 0xffffffffu

int apic_highest(const u32 *bits) {
    for (int i = 7; i >= 0; i--)
        if (bits[i]) return i * 32 + 31 - __builtin_clz(bits[i]);
    return -1;
}

/* Processor priority (SDM 10.8.3.1). */
unsigned apic_ppr(const Apic *a) {
    int isr = apic_highest(a->isr);
    unsigned in_service = isr < 0 ? 0 : (unsigned)isr & 0xf0;
    return (a->tpr & 0xf0) >= in_service ? a->tpr : in_service;
}

static bool enabled(const Apic *a) { return (a->base & APIC_BASE_ENABLE) && (a->svr & SVR_ENABLED); }

/* The vector that may interrupt now, or -1. */
static int deliverable(const Apic *a) {
    int irr = enabled(a) ? apic_highest(a->irr) : -1;
    return irr >= 0 && (unsigned)irr >> 4 > apic_ppr(a) >> 4 ? irr : -1;
}

void apic_update(Apic *a) {
    if (deliverable(a) >= 0) cpu_notify(a->cpu, PEND_APIC);
    else cpu_unpend(a->cpu, PEND_APIC);
}

int apic_take_interrupt(Apic *a) {
    lock_take(&a->lock);
    int vector = deliverable(a);
    if (vector >= 0) {
        a->irr[vector / 32] &= ~(1u << vector % 32);
        a->isr[vector / 32] |= 1u << vector % 32;
    }
    apic_update(a);
    lock_release(&a->lock);
    return vector;
}

void apic_error(Apic *a, u32 esr_bit) {
    a->esr_new |= esr_bit;
    unsigned vector = a->lvt[LVT_ERROR] & 0xff;
    if (!(a->lvt[LVT_ERROR] & LVT_MASKED) && vector >= 16) apic_raise_vector(a, vector, false);
}

void apic_raise_vector(Apic *a, unsigned vector, bool level) {
    if (vector < 16) {
        apic_error(a, ESR_RECEIVE_ILLEGAL);
        return;
    }
    u32 bit = 1u << vector % 32;
    a->irr[vector / 32] |= bit;
    a->tmr[vector / 32] = level ? a->tmr[vector / 32] | bit : a->tmr[vector / 32] & ~bit;
    apic_update(a);
}

/* A message has reached this APIC. SMI is not modelled: SMM is the chipset's to emulate. */
static void accept(Apic *a, unsigned mode, unsigned vector, bool level) {
    lock_take(&a->lock);
    switch (mode) {
    case DM_FIXED:
    case DM_LOWEST:
        if (enabled(a)) apic_raise_vector(a, vector, level);
        break;
    case DM_NMI: cpu_notify(a->cpu, PEND_NMI); break;
    case DM_INIT: cpu_notify(a->cpu, PEND_INIT); break;
    case DM_SIPI:
        if (a->wait_sipi || (a->cpu->pending & PEND_INIT)) {
            a->sipi_vector = (u8)vector;
            cpu_notify(a->cpu, PEND_SIPI);
        }
        break;
    case DM_EXTINT: cpu_notify(a->cpu, PEND_EXTINT); break;
    default: break;
    }
    lock_release(&a->lock);
}

/* Message destination address against LDR and DFR (SDM 10.6.2.2, 10.12.10.2). */
static bool logical_match(const Apic *a, u32 dest) {
    if (a->base & APIC_BASE_X2) return dest >> 16 == a->id >> 4 && (dest & 0xffff & 1u << (a->id & 15));
    u32 ldr = a->ldr >> 24;
    if (a->dfr >> 28 == 0xf) return (dest & ldr) != 0;
    return (dest >> 4 == 0xf || dest >> 4 == ldr >> 4) && (dest & ldr & 0xf);
}

static bool matches(const Apic *a, u32 dest, bool logical) {
    if (!(a->base & APIC_BASE_ENABLE)) return false;
    if (dest == DEST_ALL) return true;
    if (logical) return logical_match(a, dest);
    return dest == (a->base & APIC_BASE_X2 ? a->id : a->xapic_id);
}

/* Lowest priority: the matching APIC with the lowest processor priority; the first of equals. */
static Apic *arbitrate(Machine *m, u32 dest, bool logical) {
    Apic *best = NULL;
    for (u32 i = 0; i < m->n_cpus; i++) {
        Apic *a = m->cpu[i]->apic;
        if (matches(a, dest, logical) && enabled(a) && (!best || apic_ppr(a) < apic_ppr(best))) best = a;
    }
    return best;
}

static void deliver(Machine *m, u32 dest, bool logical, unsigned mode, unsigned vector, bool level,
                    const Apic *except) {
    if (mode == DM_LOWEST) {
        Apic *a = arbitrate(m, dest, logical);
        if (a) accept(a, mode, vector, level);
        return;
    }
    for (u32 i = 0; i < m->n_cpus; i++) {
        Apic *a = m->cpu[i]->apic;
        if (a != except && matches(a, dest, logical)) accept(a, mode, vector, level);
    }
}

void apic_deliver(Machine *m, u32 dest, bool logical, unsigned mode, unsigned vector, bool level) {
    deliver(m, dest == 0xff ? DEST_ALL : dest, logical, mode, vector, level, NULL);
}

/* Message address and data registers (SDM 10.11.1, 10.11.2). A redirection hint asks for one destination. */
void apic_msi(Machine *m, u64 address, u32 data) {
    bool logical = address & 4, hint = address & 8;
    unsigned mode = BITS(data, 10, 8);
    if (hint && mode == DM_FIXED) mode = DM_LOWEST;
    apic_deliver(m, (u32)BITS(address, 19, 12), logical, mode, data & 0xff, data >> 15 & 1);
}

enum { SHORT_NONE, SHORT_SELF, SHORT_ALL, SHORT_OTHERS };

void apic_send_ipi(Apic *a, u32 low, u32 dest, bool x2) {
    Machine *m = a->cpu->machine;
    unsigned vector = low & 0xff, mode = BITS(low, 10, 8), shorthand = BITS(low, 19, 18);
    bool assert = low >> 14 & 1, level = low >> 15 & 1;
    if (mode == DM_INIT && level && !assert) return; /* INIT level de-assert: nothing since the Pentium 4 */
    if (vector < 16 && (mode == DM_FIXED || mode == DM_LOWEST)) {
        lock_take(&a->lock);
        apic_error(a, ESR_SEND_ILLEGAL);
        lock_release(&a->lock);
        return;
    }
    if (!x2 && dest == 0xff) dest = DEST_ALL;
    switch (shorthand) {
    case SHORT_SELF: accept(a, mode, vector, false); break;
    case SHORT_ALL: deliver(m, DEST_ALL, false, mode, vector, false, NULL); break;
    case SHORT_OTHERS: deliver(m, DEST_ALL, false, mode == DM_LOWEST ? DM_FIXED : mode, vector, false, a); break;
    default: deliver(m, dest, low >> 11 & 1, mode, vector, false, NULL); break;
    }
}

/* Local vector table entry (SDM 10.5.1). */
void apic_lvt_fire(Apic *a, unsigned lvt) {
    u32 entry = a->lvt[lvt];
    if (entry & LVT_MASKED) return;
    switch (lvt == LVT_TIMER || lvt == LVT_ERROR ? DM_FIXED : BITS(entry, 10, 8)) {
    case DM_FIXED: apic_raise_vector(a, entry & 0xff, lvt == LVT_LINT0 && (entry >> 15 & 1)); break;
    case DM_NMI: cpu_notify(a->cpu, PEND_NMI); break;
    case DM_INIT: cpu_notify(a->cpu, PEND_INIT); break;
    default: break;
    }
}

static bool pic_passes(const Apic *a) {
    if (!(a->base & APIC_BASE_ENABLE)) return true;
    u32 lint0 = a->lvt[LVT_LINT0];
    return !(lint0 & LVT_MASKED) && BITS(lint0, 10, 8) == DM_EXTINT;
}

bool apic_accepts_pic(Apic *a) { return pic_passes(a); }

void apic_update_lint0(Apic *a) {
    if (a->intr_line && pic_passes(a)) cpu_notify(a->cpu, PEND_EXTINT);
    else cpu_unpend(a->cpu, PEND_EXTINT);
}

void apic_set_intr(Apic *a, bool level) {
    lock_take(&a->lock);
    bool rose = level && !a->intr_line;
    a->intr_line = level;
    apic_update_lint0(a);
    if (rose && !pic_passes(a)) apic_lvt_fire(a, LVT_LINT0);
    lock_release(&a->lock);
}

void apic_nmi(Apic *a) {
    lock_take(&a->lock);
    if (a->base & APIC_BASE_ENABLE) apic_lvt_fire(a, LVT_LINT1);
    else cpu_notify(a->cpu, PEND_NMI);
    lock_release(&a->lock);
}
