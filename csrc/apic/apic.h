/* The local APIC (Intel SDM vol 3A chapter 10): registers in xAPIC (MMIO) and x2APIC (MSR) form, interrupt acceptance
 * and priority, IPIs, LVT, timer. One per vCPU.
 *
 * Its lock guards every register: interrupts arrive from other vCPUs, the timer thread and the main loop. Nothing is
 * called with the lock held except cpu_notify(). What the vCPU must do ends up in Cpu.pending: PEND_APIC (a vector
 * above the processor priority is requested), PEND_EXTINT, PEND_NMI, PEND_INIT, PEND_SIPI. */
#ifndef QPY_APIC_APIC_H
#define QPY_APIC_APIC_H

#include "base/clock.h"
#include "base/futex.h"
#include "memory/machine.h"

#include <pthread.h>

#define APIC_VERSION      0x00050014u /* integrated APIC, six LVT entries */
#define APIC_DEFAULT_BASE 0xfee00000ull
enum { APIC_BASE_BSP = 1 << 8, APIC_BASE_X2 = 1 << 10, APIC_BASE_ENABLE = 1 << 11 };

enum { LVT_TIMER, LVT_THERMAL, LVT_PERF, LVT_LINT0, LVT_LINT1, LVT_ERROR, LVT_COUNT };
enum { DM_FIXED, DM_LOWEST, DM_SMI, DM_RESERVED, DM_NMI, DM_INIT, DM_SIPI, DM_EXTINT };

typedef struct Apic {
    Lock lock;
    Cpu *cpu;
    u64 base;                             /* IA32_APIC_BASE */
    u32 id;                               /* x2APIC id, fixed */
    u8 xapic_id;                          /* what xAPIC mode shows, writable */
    u32 tpr, ldr, dfr, svr, esr, esr_new; /* esr: as last latched by a write; esr_new: since then */
    u32 isr[8], tmr[8], irr[8];
    u32 icr_low, icr_high;
    u32 lvt[LVT_COUNT];
    u32 timer_initial, timer_divide;
    i64 timer_start; /* virtual clock when the count began; -1: not running */
    i64 timer_due;   /* virtual clock of the next expiry; -1: none */
    bool intr_line;  /* the 8259's INTR */
    bool wait_sipi;  /* after INIT: only SIPI is heard */
    u8 sipi_vector;
} Apic;

Apic *apic_new(Cpu *c);
void apic_free(Apic *a);
void apic_reset(Apic *a, bool init); /* INIT keeps the ids and IA32_APIC_BASE */

/* MSRs 1Bh, 6E0h, 800h-8FFh. False: #GP(0). */
bool apic_msr_read(Cpu *c, u32 msr, u64 *v);
bool apic_msr_write(Cpu *c, u32 msr, u64 v);
u64 apic_get_cr8(Cpu *c);
void apic_set_cr8(Cpu *c, u64 v); /* 0-15 */

/* The vector to deliver now (moved from IRR to ISR), or -1: none above the priority. Called when IF is set. */
int apic_take_interrupt(Apic *a);
/* Whether the 8259 may interrupt this vCPU: LINT0 in ExtINT mode, or the APIC off. */
bool apic_accepts_pic(Apic *a);

/* From anywhere. */
void apic_deliver(struct Machine *m, u32 dest, bool logical, unsigned mode, unsigned vector, bool level);
void apic_msi(struct Machine *m, u64 address, u32 data);
void apic_set_intr(Apic *a, bool level);
void apic_nmi(Apic *a); /* edge on LINT1 */

/* apic/timer_thread.c: a thread per machine that fires what is due while vCPUs run; vCPUs in HLT wait for their own. */
typedef struct ApicTimers {
    struct Machine *machine;
    struct ApicTimers *next_machine;
    pthread_t thread;
    volatile u32 changes;        /* futex word: bumped when the sleep must be computed anew */
    volatile i64 sleeping_until; /* virtual clock; 0: awake; INT64_MAX: for ever */
    volatile bool quit;
} ApicTimers;
void apic_timers_poke(ApicTimers *t);
int apic_timers_start(struct Machine *m);
void apic_timers_stop(struct Machine *m);
void apic_timers_wake(struct Machine *m, i64 due);     /* a deadline was set */
i64 apic_fire_due(Apic *a);                            /* fires if due; the next deadline (virtual clock) or -1 */
void apic_write_deadline(Cpu *c, u64 tsc);             /* IA32_TSC_DEADLINE */
void apic_timer_rearm(Apic *a);                        /* after the TSC offset, the clock or the state changed */
void apic_timers_clock_changed(const QpyClock *clock); /* of every machine that uses it */
void apic_restored(Apic *a);                           /* registers were set from outside */

/* Inside apic/, lock held. */
enum {
    LVT_MASKED = 1 << 16,
    SVR_ENABLED = 1 << 8,
    ESR_SEND_ILLEGAL = 1 << 5,
    ESR_RECEIVE_ILLEGAL = 1 << 6,
    ESR_REGISTER = 1 << 7
};
unsigned apic_ppr(const Apic *a);
int apic_highest(const u32 *bits); /* of a 256-bit register; -1: none */
void apic_update(Apic *a);         /* after a change of IRR, ISR, TPR, SVR: sets or clears PEND_APIC */
void apic_update_lint0(Apic *a);   /* after a change of INTR, LINT0, IA32_APIC_BASE: PEND_EXTINT */
void apic_raise_vector(Apic *a, unsigned vector, bool level);
void apic_lvt_fire(Apic *a, unsigned lvt);
void apic_error(Apic *a, u32 esr_bit);
void apic_timer_set_lvt(Apic *a, u32 v);
void apic_timer_set_initial(Apic *a, u32 v);
void apic_timer_set_divide(Apic *a, u32 v);
u32 apic_timer_current(const Apic *a);
void apic_timer_stop(Apic *a);
/* The ICR was written; lock not held. */
void apic_send_ipi(Apic *a, u32 low, u32 dest, bool x2);

#endif
