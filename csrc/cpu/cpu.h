/* The state of one vCPU, shared by interpreter, translator, MMU and local APIC.
 *
 * Architectural names follow the Intel SDM. Only the vCPU's own thread touches a Cpu, except for the fields marked
 * "any thread". Handlers see `rip` already pointing at the next instruction (as the hardware does for relative
 * branches and calls); a raise rewinds it by cur->len. */
#ifndef QPY_CPU_CPU_H
#define QPY_CPU_CPU_H

#include "base/common.h"

/* Names in rows and comments in columns: laid out by hand. */
/* clang-format off */

typedef struct Cpu Cpu;
typedef struct Insn Insn;

/* General registers; two pseudo registers make every address form base + index * scale + disp. */
enum {
    R_RAX, R_RCX, R_RDX, R_RBX, R_RSP, R_RBP, R_RSI, R_RDI, R_R8, R_R9, R_R10, R_R11, R_R12, R_R13, R_R14, R_R15,
    R_RIP,  /* the next instruction */
    R_ZERO, /* always 0: "no base", "no index" */
    R_COUNT
};

enum { SEG_ES, SEG_CS, SEG_SS, SEG_DS, SEG_FS, SEG_GS, SEG_LDTR, SEG_TR, SEG_COUNT };

/* RFLAGS (SDM vol 1, 3.4.3). The six arithmetic flags live in Cpu.cc, all others in Cpu.flags. */
enum {
    FL_CF = 1 << 0, FL_PF = 1 << 2, FL_AF = 1 << 4, FL_ZF = 1 << 6, FL_SF = 1 << 7, FL_TF = 1 << 8, FL_IF = 1 << 9,
    FL_DF = 1 << 10, FL_OF = 1 << 11, FL_IOPL = 3 << 12, FL_NT = 1 << 14, FL_RF = 1 << 16, FL_VM = 1 << 17,
    FL_AC = 1 << 18, FL_VIF = 1 << 19, FL_VIP = 1 << 20, FL_ID = 1 << 21,
    FL_CC = FL_CF | FL_PF | FL_AF | FL_ZF | FL_SF | FL_OF,
};

enum {
    CR0_PE = 1 << 0, CR0_MP = 1 << 1, CR0_EM = 1 << 2, CR0_TS = 1 << 3, CR0_ET = 1 << 4, CR0_NE = 1 << 5,
    CR0_WP = 1 << 16, CR0_AM = 1 << 18, CR0_NW = 1 << 29, CR0_CD = 1 << 30,
};
#define CR0_PG 0x80000000u
enum {
    CR4_VME = 1 << 0, CR4_PVI = 1 << 1, CR4_TSD = 1 << 2, CR4_DE = 1 << 3, CR4_PSE = 1 << 4, CR4_PAE = 1 << 5,
    CR4_MCE = 1 << 6, CR4_PGE = 1 << 7, CR4_PCE = 1 << 8, CR4_OSFXSR = 1 << 9, CR4_OSXMMEXCPT = 1 << 10,
    CR4_UMIP = 1 << 11, CR4_LA57 = 1 << 12, CR4_FSGSBASE = 1 << 16, CR4_PCIDE = 1 << 17, CR4_OSXSAVE = 1 << 18,
    CR4_SMEP = 1 << 20, CR4_SMAP = 1 << 21, CR4_PKE = 1 << 22,
};
enum { EFER_SCE = 1 << 0, EFER_LME = 1 << 8, EFER_LMA = 1 << 10, EFER_NXE = 1 << 11 };

enum {
    EXC_DE = 0, EXC_DB = 1, EXC_NMI = 2, EXC_BP = 3, EXC_OF = 4, EXC_BR = 5, EXC_UD = 6, EXC_NM = 7, EXC_DF = 8,
    EXC_TS = 10, EXC_NP = 11, EXC_SS = 12, EXC_GP = 13, EXC_PF = 14, EXC_MF = 16, EXC_AC = 17, EXC_MC = 18, EXC_XM = 19,
};

/* A segment register with its hidden part. rights = bits 8-15 and 20-23 of the descriptor's high dword, shifted right
 * by 8: type 0-3, S 4, DPL 5-6, P 7, AVL 12, L 13, D/B 14, G 15. limit is in bytes, granularity applied. */
typedef struct Segment {
    u64 base;
    u32 limit;
    u16 sel;
    u16 rights;
} Segment;
enum { SR_TYPE = 0xf, SR_ACCESSED = 1, SR_RW = 2, SR_DC = 4, SR_CODE = 8, SR_S = 1 << 4, SR_DPL = 3 << 5, SR_P = 1 << 7,
       SR_L = 1 << 13, SR_DB = 1 << 14, SR_G = 1 << 15 };
#define SR_GET_DPL(r) (((r) >> 5) & 3)

typedef struct DescTable {
    u64 base;
    u16 limit;
} DescTable;

/* One software-TLB entry: an access of n bytes at lin hits when lin + tag <= 4096 - n (unsigned), and then lies at host
 * address lin + delta: a tag is minus the page's address. An unfilled one means a page of the set farthest away, which
 * no access that begins in this set can match, however its end is rounded. */
typedef struct TlbEntry {
    u64 rtag, wtag;
    i64 delta;
    u64 meta; /* gpa page | TLBM_*: what the MMU needs to flush or refill this entry */
} TlbEntry;
#define TLB_BITS 12
#define TLB_SIZE (1u << TLB_BITS)
enum { MMU_KERNEL, MMU_USER, MMU_KERNEL_AC, MMU_MODES }; /* KERNEL_AC: supervisor with SMAP suspended by RFLAGS.AC */

/* What decides how bytes decode and which checks a block needs; part of a block's key (CORE 1). */
enum {
    MODE_CS64 = 1 << 0,   /* 64-bit code */
    MODE_CS32 = 1 << 1,   /* 32-bit default operand and address size (D=1); neither bit: 16-bit */
    MODE_SS32 = 1 << 2,   /* stack size 32 (B=1); 64-bit code implies 64 */
    MODE_CPL3 = 1 << 3,   /* CPL is 3 */
    MODE_CPL0 = 1 << 4,   /* CPL is 0 (neither: 1 or 2) */
    MODE_FLAT = 1 << 5,   /* CS DS ES SS flat: base 0, limit 4 GiB or 64-bit */
    MODE_PE = 1 << 6,     /* protected mode */
    MODE_VM = 1 << 7,     /* virtual-8086 */
    MODE_LMA = 1 << 8,    /* long mode active (with !CS64: compatibility) */
    MODE_EM = 1 << 9, MODE_MP = 1 << 10, MODE_TS = 1 << 11,
    MODE_OSFXSR = 1 << 12, MODE_OSXSAVE = 1 << 13, MODE_AVX = 1 << 14, /* XCR0 enables AVX */
    MODE_FPUNMASK = 1 << 15, MODE_SSEUNMASK = 1 << 16, /* an FP exception of that class is unmasked */
    MODE_SMAP_AC = 1 << 17,
    MODE_SMAP = 1 << 19,  /* CR4.SMAP: STAC and CLAC change MODE_SMAP_AC */
    MODE_STEP = 1 << 18,  /* TF, RF, or Cpu.dbg_step: one instruction at a time */
};

/* Cpu.pending, set by any thread, looked at by the run loop between blocks (one load). */
enum {
    PEND_KICK = 1 << 0,   /* leave the run loop: safe-point work or a run-state request waits */
    PEND_EXTINT = 1 << 1, /* the 8259's INTR line is high (and let through by LINT0) */
    PEND_APIC = 1 << 2,   /* the local APIC has a deliverable interrupt, or its timer must be looked at */
    PEND_NMI = 1 << 3,
    PEND_INIT = 1 << 4,
    PEND_SIPI = 1 << 5,
    PEND_EXIT = 1 << 6,   /* exit_reason is set: return to Python at the end of this instruction */
    PEND_DEBUG = 1 << 7,  /* a debug trap is due at the instruction boundary (see debug.h) */
    PEND_SHADOW = 1 << 8, /* set by the instruction before: STI / MOV SS shadow holds for one instruction */
};

/* Cpu.exit_reason set by instructions; the values of QPY_EXIT_* (api.h). */
enum { EXIT_SHUTDOWN = 2 /* triple fault */, EXIT_PAGEIN = 7 /* a page of RAM cannot be read in */ };

#define EXC_RESTART 0xffu /* ExcState.vector of exc_restart(): nothing to deliver */

typedef struct ExcState {
    u32 vector, error;
    u64 addr;        /* CR2 for #PF */
    bool has_error;
    bool delivering; /* an event is being delivered: a further fault makes #DF or a triple fault */
    bool keep_rip;   /* a task switch has loaded the new RIP: faults name it, nothing is rewound */
    bool trap;       /* reported after its instruction: RIP is not rewound, RF not set in the frame */
    u8 first;        /* the vector being delivered */
} ExcState;

/* Second-level TLB behind the software TLB: translations tagged with PCID, of all rights (mmu/tlb.c). */
typedef struct L2Entry {
    u64 key; /* linear page | PCID; global translations: linear page | PCID 0 */
    u64 val; /* gpa page | L2_* (mmu/tlb.h) */
    u64 gen; /* valid while equal to the generation of its PCID, or of the global ones */
} L2Entry;
#define L2_BITS 12
#define L2_SIZE (1u << L2_BITS)
#define PCID_SLOTS 64 /* PCIDs that agree in the low bits are flushed together */

#define XSAVE_BYTES 1088 /* legacy area + header + AVX component at the standard offset 576 + 256, rounded up to 64 */

/* The guest's TSC from the host's, until the clock's piece ends (base/clock.h): what translated code computes, as long
 * as host + minus is below CLOCK_PIECE_TICKS. */
typedef struct TscPiece {
    u64 minus, mult, base;
} TscPiece;

/* Of the loop that runs in strips (jit/strip.c). */
typedef struct StripState {
    u64 room; /* iterations that fit behind the first one */
    u64 end;  /* where the register that is counted by will be */
    u32 warm; /* iterations with checks until the next probe */
} StripState;

typedef struct FpuState {
    u8 area[XSAVE_BYTES] __attribute__((aligned(64))); /* XSAVE standard format; valid while !live */
    bool live;          /* guest x87/SSE/AVX registers are in the host's registers now */
    bool x87_unmasked;  /* FCW unmasks something: an x87 instruction may have to raise #MF first */
    bool ferr;          /* FERR# has been reported (CR0.NE clear) and not been taken back */
    bool ignne;         /* IGNNE# is asserted (port F0h): with CR0.NE clear, pending x87 exceptions are ignored */
    u16 host_fcw;       /* the host's control words while live */
    u32 host_mxcsr;
    u16 fop;            /* last x87 opcode, instruction and operand pointers are the guest's, never the host's */
    u16 fcs, fds;
    u64 fip, fdp;
} FpuState;

/* Flushed translations, for whoever keeps addresses of code by linear address (jit/): what the TLB dropped since the
 * log was last emptied. */
enum { FLUSHED_NONGLOBAL = 1, FLUSHED_ALL = 2, FLUSH_LOG_MAX = 16 };
typedef struct FlushRange {
    u64 base, size;
} FlushRange;
typedef struct FlushLog {
    u32 kinds, n;
    FlushRange range[FLUSH_LOG_MAX];
} FlushLog;

/* What stores overwrote, while somebody wants to know, and what was there in the end (jit/lockstep.c). */
enum { STORE_LOG_MAX = 4096, STORE_MAX = 32 };
typedef struct StoreLog {
    u32 n;
    bool full; /* something was not logged */
    struct {
        u8 *p, n, before[STORE_MAX], after[STORE_MAX];
    } e[STORE_LOG_MAX];
} StoreLog;

struct Machine; /* memory/machine.h: guest RAM, flat view, upcalls, clock, BQL; shared by all vCPUs */
struct Apic;    /* apic/apic.h */
struct Interp;  /* interp/block.h: decoded-block cache */
struct Jit;     /* jit/jit.h: translated blocks; NULL: everything is interpreted */

struct Cpu {
    u64 r[R_COUNT];
    u64 cc;    /* CF PF AF ZF SF OF in RFLAGS layout, no other bit */
    u64 flags; /* every other RFLAGS bit, bit 1 always set */

    /* The next two are read as one u64: the tag of a decoded block that may be entered without looking. */
    u32 lookup_gen __attribute__((aligned(8))); /* user_gen in user code, else global_gen */
    u32 mode;                 /* MODE_*, kept by cpu_update_mode() */
    volatile u32 pending;     /* PEND_*, any thread (atomic or/and) */
    volatile u32 poll;        /* 1: look at `pending`; translated code leaves for it. Set behind it, by cpu_pend() */
    const Insn *cur;          /* the instruction being executed */
    TlbEntry *tlb;            /* tlbs[current mode] */
    u64 lin_mask;             /* ~0 in 64-bit code, else 4 GiB - 1 */
    u64 ea_base[6];           /* segment bases as addressing uses them: 0 for ES CS SS DS in 64-bit code */
    u32 seg_rok, seg_wok;     /* bit s: a read / write through s needs no limit or rights check */
    u8 cpl;
    u8 mmu_mode;              /* MMU_* of ordinary data accesses */
    bool halted;              /* HLT; also wait-for-SIPI */
    bool smc_hit;             /* a store hit decoded code: leave the block after this instruction */
    bool upcall_again;        /* a device asks for the instruction to start again: memory cannot be read (memory/io.c) */
    bool leave_block;         /* counted clock: return to the dispatcher after this instruction (interp/block.h) */
    u64 icount;               /* instructions retired, and those from `cur` up to run_end */
    const Insn *run_end;      /* NULL: icount is exact */
    void *jmp[5];             /* __builtin_setjmp buffer of the run loop */

    Segment seg[SEG_COUNT];
    DescTable gdt, idt;
    u64 cr0, cr2, cr3, cr4, efer, xcr0;
    u64 dr[8];
    ExcState exc;
    bool nmi_masked;
    bool ss_shadow;           /* MOV SS / POP SS just ran: debug traps wait one instruction */
    bool dbg_tf;              /* TF was set when the current instruction began */
    bool dbg_rf;              /* RF was set when it began: it falls when it ends */
    bool dbg_code, dbg_data;  /* DR7 arms an instruction breakpoint; a data or I/O one */
    bool dbg_step;            /* the next instruction may meet one */
    u32 dbg_hits;             /* DR6.B0-3 met by the current instruction's accesses */
    u8 exit_reason;           /* EXIT_* (vcpu/vcpu.h), valid with PEND_EXIT */
    u64 a20_mask;             /* applied to every guest-physical address */

    /* MSRs (SDM vol 4) */
    u64 star, lstar, cstar, sfmask, kernel_gs_base, tsc_aux;
    u64 sysenter_cs, sysenter_esp, sysenter_eip;
    u64 pat, misc_enable, tsc_adjust, tsc_deadline, spec_ctrl;
    i64 tsc_offset;
    u64 mtrr_def, mtrr_fixed[11], mtrr_phys[2 * 8];
    u64 mcg_cap, mcg_status, mcg_ctl, mc_banks[4 * 10];
    u64 smbase, feature_control;
    u64 pdpte[4];             /* PAE page-directory pointers, loaded with CR3 */
    u32 pkru;

    u64 feat[4];              /* bit set of FEAT_* (cpu/model.h), what the guest may use */
    const struct CpuModel *model;
    u64 feat_missing[4];      /* FEAT_* asked for by name that no guest can have here */
    u8 accel;                 /* ACCEL_* (vcpu/vcpu.h): what runs it */
    u32 tsc_khz, smp;         /* what CPUID tells of the machine; 0: 1 GHz, one vCPU */
    u32 index;                /* vCPU number; its initial APIC id */

    /* threads (memory/safepoint.h): the words other threads wait on or set */
    u32 id;                   /* process-wide number, what upcalls carry */
    volatile u32 in_guest;    /* 1 while its thread may touch guest RAM, TLB or decoded code; 0: at a safe point */
    volatile u32 active;      /* 1 while its thread is inside an instruction; 0: parked, halted for good or not running */
    volatile u32 waiting;     /* 1 while HLT sleeps on `pending` */
    volatile u32 exit_request; /* a kick asks vcpu_run to return */

    struct Machine *machine;
    struct Apic *apic;
    struct Interp *interp;

    /* Translated code (jit/) addresses these absolutely. */
    struct Jit *jit;
    u64 jit_sp;               /* the C stack's pointer, to leave with and for handlers */
    u64 jit_pairs;            /* where translated code begins on the stack of return addresses */
    const void *jit_cache;    /* jump cache of the mode that runs */
    u64 jit_tmp[3];
    u64 jit_group[4];         /* host addresses of groups (jit/group.c), distances of streams (jit/strip.c) */
    StripState jit_strip;
    u64 jit_mask[8];          /* PEXT masks (jit/jit.h) */
    TscPiece tsc;
    i64 jit_left;             /* while instructions are counted: how many until the budget ends */
    u32 jit_ax;               /* guest flags as LAHF and SETO give them */
    u32 jit_flags, jit_way;   /* the same where RFLAGS may be clobbered; 1 + the instruction that wrote them, or 0 */
    const void *jit_fn[4];    /* C functions it calls */
    FlushLog flush_log;
    StoreLog *stores;         /* NULL: not logged */
    struct Feed *feed;        /* lock-step: what comes from outside is recorded, or taken from there (memory/feed.h) */
    bool hold;                /* lock-step: what is pending waits until both tiers have run */

    /* counters for `info jit` and tests */
    u64 n_strip;
    u64 n_tlb_fill, n_tlb_flush, n_pio, n_mmio, n_exc, n_irq, n_block, n_decode, n_smc;
    i64 device_ns; /* spent in upcalls, waiting for the big lock included; negative while in one */

    const struct MemRange *last_range; /* where the last translation led; NULL after a flush */
    u64 l2_gen, l2_global_gen, l2_pcid_gen[PCID_SLOTS];
    u64 large_seen[64];       /* bit hash(lin / 2 MiB): a piece of a large page may be in a TLB */
    u64 huge_seen[8];         /* 1 GiB pages of which pieces may be in a TLB, by lin / 1 GiB */
    u32 n_huge;               /* how many; more than there is room for: any page may be one */
    u32 n_nonglobal;
    /* Generations of mappings (mmu/tlb.c), all different: what was found through the mappings of now is found the same
     * way while its generation stands. */
    u32 global_gen, user_gen; /* of global pages; of all pages, in the address space that runs */
    u32 last_gen;
    u32 map_changes;          /* flushes of any kind: translated code leaves when it sees one */
    struct {
        u32 pcid, gen;
    } space_gen[PCID_SLOTS];  /* user_gen of other address spaces; 0: changed meanwhile */
    bool low_globals;         /* a translation below LOW_HALF was global since all were dropped */
    u64 rmw_gpa[2];           /* where a bounced read-modify-write or wide store will go */
    u16 nonglobal[MMU_MODES * TLB_SIZE]; /* filled non-global entries, what a CR3 write clears */
    L2Entry l2[L2_SIZE];

    FpuState fpu;
    TlbEntry tlbs[MMU_MODES][TLB_SIZE] __attribute__((aligned(64)));
};

INLINE u64 cpu_rflags(const Cpu *c) { return c->flags | c->cc; }
INLINE void cpu_set_rflags_raw(Cpu *c, u64 v) {
    c->cc = v & FL_CC;
    c->flags = (v & ~(u64)FL_CC) | 2;
}
INLINE bool cpu_has(const Cpu *c, unsigned feat) { return c->feat[feat >> 6] >> (feat & 63) & 1; }
INLINE void cpu_pend(Cpu *c, u32 bits) {
    __atomic_fetch_or(&c->pending, bits, __ATOMIC_SEQ_CST);
    __atomic_store_n(&c->poll, 1, __ATOMIC_SEQ_CST);
}
INLINE void cpu_unpend(Cpu *c, u32 bits) { __atomic_fetch_and(&c->pending, ~bits, __ATOMIC_SEQ_CST); }

/* Offset, CR4.TSD or the clock's run state changed, or may have: RDTSC is the handler's business. */
INLINE void cpu_tsc_forget(Cpu *c) { c->tsc.minus = BIT(63); }

/* Whether something pending must be looked at before the next instruction. Interrupts wait while IF is clear, an NMI
 * while another is being handled; so a run loop asks this, not `pending`, and is not thrown out again and again. */
INLINE bool cpu_wanted(const Cpu *c) {
    u32 p = c->pending;
    if (likely(!p)) return false;
    if (!(c->flags & FL_IF)) p &= ~(u32)(PEND_EXTINT | PEND_APIC);
    if (c->nmi_masked) p &= ~(u32)PEND_NMI;
    return p != 0;
}
INLINE bool cpu_attention(const Cpu *c) { return unlikely(cpu_wanted(c)) && !c->hold; }

INLINE void cpu_choose_gen(Cpu *c) { c->lookup_gen = c->mode & MODE_CPL3 ? c->user_gen : c->global_gen; }

/* Recomputes mode, tlb, lin_mask, ea_base, seg_rok/wok, mmu_mode from CR0/CR4/EFER/segments/CPL/RFLAGS/XCR0/DR7.
 * Call after any change to one of them (cpu/mode.c). */
void cpu_update_mode(Cpu *c);
/* The same where only CPL, RFLAGS and the contents of flat CS and SS have changed. */
void cpu_update_level(Cpu *c);
/* A table that never hits: Cpu.tlb while alignment checks, data breakpoints or a log must see every access. */
extern TlbEntry tlb_never[TLB_SIZE];
/* Set by mmu/: drops every translation. */
extern void (*cpu_flush_hook)(Cpu *c);
/* Power-on or INIT state (SDM vol 3A table 10-1). INIT keeps FPU, MSRs and caches. */
void cpu_reset(Cpu *c, bool init);

/* Raising (decode/exc.c): rewinds rip to the current instruction and jumps to the run loop, which delivers. */
_Noreturn COLD void exc_raise(Cpu *c, unsigned vector);                /* without error code */
_Noreturn COLD void exc_raise_err(Cpu *c, unsigned vector, u32 error); /* with error code */
_Noreturn COLD void exc_raise_trap(Cpu *c, unsigned vector);           /* after the instruction: rip is kept */
_Noreturn COLD void exc_raise_pf(Cpu *c, u64 lin, u32 error);
/* Abandons the current instruction so that it starts again (a REP that was kicked, a decode that met new bytes). */
_Noreturn COLD void exc_restart(Cpu *c);
/* The same, for an instruction that is about to meet a breakpoint: it is executed singly. */
_Noreturn COLD void exc_restart_singly(Cpu *c);
#define exc_gp0(c) exc_raise_err(c, EXC_GP, 0)
#define exc_ud(c)  exc_raise(c, EXC_UD)

#endif
