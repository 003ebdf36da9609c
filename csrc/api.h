/* The core's interface: a C header and, through build_cffi.py, the cffi declaration of qemupy._core.lib.
 *
 * Locks. Every call through cffi drops the GIL. The order is BQL, then GIL, then the core's own leaf locks. Calls
 * marked [BQL] need the BQL held by the calling thread; calls marked [any] need no lock and may come from any thread.
 * Upcalls arrive on the vCPU's thread with the BQL held. None of the calls here may be made from a signal handler.
 *
 * Numbers that name something: a vCPU's `id` is process-wide unique (what upcalls carry), its `index` counts inside the
 * machine and is its initial APIC id. `ram_off` is an offset in the machine's RAM space, where all RAM and ROM blocks
 * lie; `gpa` is a guest-physical address. Functions that return int give 0 or a negative errno unless they say so. */
#ifndef QPY_API_H
#define QPY_API_H

#include <stddef.h>
#include <stdint.h>

const char *qpy_core_version(void);

/* ---- Log (-d, -D): one mask for the core and for Python ---------------------------------------------------------- */

enum {
    QPY_LOG_INT = 1 << 0,       /* interrupts and exceptions, with state */
    QPY_LOG_EXEC = 1 << 1,      /* every block entered */
    QPY_LOG_CPU = 1 << 2,       /* state before every block */
    QPY_LOG_IN_ASM = 1 << 3,    /* guest code when it is decoded */
    QPY_LOG_CPU_RESET = 1 << 4, /* state at reset */
    QPY_LOG_GUEST_ERRORS = 1 << 5,
    QPY_LOG_MMU = 1 << 6,
    QPY_LOG_UNIMP = 1 << 7,
    QPY_LOG_FPU = 1 << 8,      /* with QPY_LOG_CPU: the FPU's registers too */
    QPY_LOG_OUT_ASM = 1 << 9,  /* translated code */
    QPY_LOG_OP = 1 << 10,      /* what a translator makes of each instruction */
    QPY_LOG_NOCHAIN = 1 << 11, /* every block is entered from the dispatcher, where QPY_LOG_EXEC and _CPU see it */
    QPY_LOG_PCALL = 1 << 12,   /* far calls and returns */
    QPY_LOG_HANDLER = 1 << 13  /* qpy_vcpu_handlers() counts */
};
void qpy_log_set(uint32_t mask, int fd); /* [any] fd: where the text goes; stays the caller's */
uint32_t qpy_log_mask(void);             /* [any] */
/* first, last, first, last...: linear addresses of the code to log; n ranges, 0: everything. Before the first run. */
int qpy_log_set_ranges(const uint64_t *ends, uint32_t n);
void qpy_log_write(const char *text, size_t n); /* [any] one whole message, atomically between threads */

/* ---- Virtual clock ------------------------------------------------------------------------------------------------
 */

typedef struct QpyClock QpyClock;
QpyClock *qpy_clock_new(void);          /* stands at 0 */
void qpy_clock_free(QpyClock *clock);   /* after every machine that uses it */
int64_t qpy_clock_now(QpyClock *clock); /* [any] ns */
/* running: value is the offset to CLOCK_MONOTONIC; else the time it stands at. Deadlines of APIC timers follow. [BQL]
 */
void qpy_clock_sync(QpyClock *clock, int running, int64_t value);

/* -icount: the clock advances by 1 << shift ns for each instruction of its one vCPU; qpy_clock_sync() starts and stops
 * it, and puts the stopped one to a time. sleeps: HLT takes as long as it says, else it jumps to the next deadline;
 * aligned: the guest waits for the host's time; adaptive: shift changes so that it keeps up. Before vCPUs are made. */
enum { QPY_ICOUNT_SLEEPS = 1, QPY_ICOUNT_ALIGNED = 2, QPY_ICOUNT_ADAPTIVE = 4 };
void qpy_clock_count_instructions(QpyClock *clock, uint32_t shift, uint32_t flags);
/* When the `timers` upcall is wanted, on a clock that counts; -1: never. [BQL] */
void qpy_clock_set_deadline(QpyClock *clock, int64_t deadline);
/* How far the guest was behind and ahead of the host at most, and is ahead now, in ns. [any] */
void qpy_clock_drift(QpyClock *clock, int64_t *delay, int64_t *advance, int64_t *now);

/* ---- Big lock ------------------------------------------------------------------------------------------------------
 */

typedef struct QpyBqlStats {
    uint64_t acquired, contended; /* how often taken, how often after a wait */
    uint64_t wait_ns, max_wait_ns, hold_ns, max_hold_ns;
} QpyBqlStats;
void qpy_bql_lock(void); /* not recursive; never while waiting for anything else */
void qpy_bql_unlock(void);
int qpy_bql_held(void); /* by the calling thread */
void qpy_bql_stats(QpyBqlStats *out, int reset);

/* ---- Machine: RAM, flat view, upcalls
 * -------------------------------------------------------------------------------- */

typedef struct Machine QpyMachine;
typedef struct Cpu QpyVcpu;

/* Calls into Python, one table per machine. `vcpu` is a vCPU's id. They must not raise (use onerror of def_extern).
 * NULL entries: reads give all ones, writes are dropped. */
typedef struct QpyUpcalls {
    uint32_t (*pio_read)(uint32_t vcpu, uint32_t port, uint32_t size);
    void (*pio_write)(uint32_t vcpu, uint32_t port, uint32_t size, uint32_t value);
    void (*pio_read_string)(uint32_t vcpu, uint32_t port, uint32_t size, uint32_t count, void *buf);
    void (*pio_write_string)(uint32_t vcpu, uint32_t port, uint32_t size, uint32_t count, const void *buf);
    uint64_t (*mmio_read)(uint32_t vcpu, uint64_t gpa, uint32_t size);
    void (*mmio_write)(uint32_t vcpu, uint64_t gpa, uint32_t size, uint64_t value);
    int32_t (*intack)(uint32_t vcpu);                 /* the 8259's vector, or -1 if INTR went away */
    void (*apic_eoi)(uint32_t vcpu, uint32_t vector); /* EOI of a level-triggered vector, for the IOAPIC */
    void (*ferr)(uint32_t vcpu);                      /* FERR#: an x87 exception to be reported by IRQ 13 */
    void (*timers)(uint32_t vcpu);                    /* a counted clock has come to its deadline: set a later one */
} QpyUpcalls;

#ifdef QPY_CFFI
/* The Python side: def_extern these, put lib.qpy_up_* into a QpyUpcalls. */
extern "Python" {
uint32_t qpy_up_pio_read(uint32_t vcpu, uint32_t port, uint32_t size);
void qpy_up_pio_write(uint32_t vcpu, uint32_t port, uint32_t size, uint32_t value);
void qpy_up_pio_read_string(uint32_t vcpu, uint32_t port, uint32_t size, uint32_t count, void *buf);
void qpy_up_pio_write_string(uint32_t vcpu, uint32_t port, uint32_t size, uint32_t count, const void *buf);
uint64_t qpy_up_mmio_read(uint32_t vcpu, uint64_t gpa, uint32_t size);
void qpy_up_mmio_write(uint32_t vcpu, uint64_t gpa, uint32_t size, uint64_t value);
int32_t qpy_up_intack(uint32_t vcpu);
void qpy_up_apic_eoi(uint32_t vcpu, uint32_t vector);
void qpy_up_ferr(uint32_t vcpu);
void qpy_up_timers(uint32_t vcpu);
}
#endif

enum { QPY_RANGE_RAM = 1, QPY_RANGE_ROM = 2, QPY_RANGE_MMIO = 3 };
#define QPY_WRITE_DROPPED 0xffffffffffffffff

typedef struct QpyMemRange {
    uint64_t gpa, size;   /* page aligned */
    uint64_t ram_off;     /* RAM, ROM: where reads come from */
    uint64_t write_off;   /* RAM, ROM: where writes go: ram_off for plain RAM, QPY_WRITE_DROPPED for ROM */
    uint8_t kind;         /* QPY_RANGE_* */
    uint8_t write_upcall; /* ROM: writes are mmio_write upcalls (ROM devices) */
} QpyMemRange;

/* max_ram: address space to reserve for RAM and ROM blocks; nothing is committed. NULL if the host refuses. */
QpyMachine *qpy_machine_new(QpyClock *clock, uint64_t max_ram);
void qpy_machine_free(QpyMachine *m);                              /* after its vCPUs */
void qpy_machine_set_upcalls(QpyMachine *m, const QpyUpcalls *up); /* copied; before the first run */
void qpy_machine_set_tsc_hz(QpyMachine *m, uint64_t hz);           /* before the first run; default 1 GHz */
void qpy_machine_set_seed(QpyMachine *m, uint64_t seed); /* RDRAND and RDSEED repeat themselves from run to run */

/* Takes a zeroed block of the RAM space (size rounded up to pages); its ram_off, or a negative errno. */
int64_t qpy_ram_alloc(QpyMachine *m, uint64_t size);
void *qpy_ram_host(QpyMachine *m, uint64_t ram_off); /* [any] for ffi.buffer(); writing through it: see below */
/* Stores into the RAM space whatever the flat view says (ROM contents, loadvm): marks dirty, invalidates code. */
int qpy_ram_store(QpyMachine *m, uint64_t ram_off, const void *buf, uint64_t n); /* [BQL] */
/* Call after having written through qpy_ram_host: count pairs of offset and size. */
void qpy_ram_changed(QpyMachine *m, const uint64_t *ranges, uint64_t count); /* [BQL] */

/* Replaces the flat view: n ranges, sorted, not overlapping; holes read as ones. Takes effect on every vCPU before it
 * returns (they are held at a safe point meanwhile); may be called inside an upcall. */
int qpy_machine_set_view(QpyMachine *m, const QpyMemRange *ranges, uint32_t n); /* [BQL] */
void qpy_machine_set_a20(QpyMachine *m, int enabled); /* [BQL] all vCPUs; may be called inside an upcall */

/* DMA by guest-physical address; only RAM and ROM-as-source count. A read gives ones outside of RAM; a write outside is
 * dropped. 0, -EFAULT if some byte was not RAM, or -EIO (qpy_ram_claim). Any thread, but never while a view is being
 * replaced. */
int qpy_dma_read(QpyMachine *m, uint64_t gpa, void *buf, uint64_t n);
int qpy_dma_write(QpyMachine *m, uint64_t gpa, const void *buf, uint64_t n);
/* Host address of up to *n bytes of RAM at gpa, contiguous on the host (*n is cut to what is), or NULL. After writing
 * call qpy_dma_written with the same gpa. Not valid across a change of the flat view. */
void *qpy_dma_map(QpyMachine *m, uint64_t gpa, uint64_t *n, int write);
void qpy_dma_written(QpyMachine *m, uint64_t gpa, uint64_t n);
/* Guest memory as a scatter-gather list, see below: to out the bytes of it and, for these pairs of guest-physical
 * address and size, the list, neighbours joined; out has room for a word and `count` pieces. How many pieces it became,
 * -EFAULT if something is not RAM or lies in two ranges, or -EIO (qpy_ram_claim). After writing call qpy_iov_landed. */
int64_t qpy_dma_scatter(QpyMachine *m, const uint64_t *pairs, uint32_t count, int write, uint64_t *out);
void qpy_iov_landed(QpyMachine *m, const uint64_t *iov, uint32_t count); /* [BQL] of RAM only */

/* ---- Scatter-gather lists: pairs of host address and size, struct iovec (csrc/base/iov.h) [any] --------------------
 */

uint32_t qpy_iov_cut(const uint64_t *iov, uint32_t count, uint64_t start, uint64_t size, uint64_t *out);
int qpy_iov_read(int fd, uint64_t offset, const uint64_t *iov, uint32_t count); /* 0 or a negative errno */
int qpy_iov_write(int fd, uint64_t offset, const uint64_t *iov, uint32_t count);
uint64_t qpy_iov_read_cached(int fd, uint64_t offset, const uint64_t *iov, uint32_t count);
void qpy_file_begin_writeback(int fd);
/* A bus master's descriptor table of `count` entries (csrc/base/prd.h): to out the number of pairs, their bytes and
 * whether there was an end mark, then the pairs; out has room for 3 words and count pairs. */
void qpy_prd_pairs(const uint64_t *prd, uint32_t count, uint64_t wanted, uint64_t *out);

/* Dirty logging by client, pages of the RAM space. */
enum { QPY_DIRTY_VGA = 0, QPY_DIRTY_SNAPSHOT = 1, QPY_DIRTY_MIGRATION = 2, QPY_DIRTY_CLIENTS = 3 };
void qpy_dirty_log(QpyMachine *m, int client, uint64_t ram_off, uint64_t size, int on); /* [BQL] starts clean */
/* Writes one byte per page to out (1: written since the last call) and clears; returns the number of dirty pages. */
int64_t qpy_dirty_fetch(QpyMachine *m, int client, uint64_t ram_off, uint64_t size, uint8_t *out); /* [BQL] */

/* Bytes of the RAM space that lie in a file; all page aligned. Tables are sorted by ram_off, without overlaps; what no
 * extent covers is zero. */
typedef struct QpyRamExtent {
    uint64_t ram_off, size, file_off;
    int32_t fd;
} QpyRamExtent;
/* Replaces all RAM and ROM contents. map: by mapping the files copy-on-write where possible; they must then not change
 * or shrink there until qpy_ram_detach or the next load. Else, and where mapping fails, by reading; an error of a read
 * asked for (map = 0) leaves everything as it was. Every dirty log sees every page written. */
int qpy_ram_load(QpyMachine *m, const QpyRamExtent *extents, uint32_t n, int map); /* [BQL] vCPUs paused */
/* Puts the pages that `client` saw written since its last fetch back to what the extents hold; they count as clean for
 * it afterwards. Returns their number; -E2BIG if there are more than `limit` pages; on any error nothing changed. */
int64_t qpy_ram_restore(QpyMachine *m, int client, const QpyRamExtent *extents, uint32_t n,
                        uint64_t limit); /* [BQL] vCPUs paused */
/* One byte to out for each granule (whole pages) of the stretch: 1 if it holds anything but zeros. -EIO: a page that is
 * mapped cannot be read. */
int qpy_ram_nonzero(QpyMachine *m, uint64_t ram_off, uint64_t size, uint64_t granule, uint8_t *out); /* [any] */
/* Makes mapped pages plain memory with the same content. -EIO: one of them cannot be read; it is as it was. */
int qpy_ram_detach(QpyMachine *m, uint64_t ram_off, uint64_t size); /* [BQL] vCPUs paused, no DMA in flight */
/* Before a device touches guest memory that may be mapped: its pages are there, and with `keep` stay there. -EIO: one
 * cannot be read now. What the core does for devices (qpy_ram_store, qpy_dma_*, virtqueues) claims for itself and
 * answers -EIO in the same way. */
int qpy_ram_claim(QpyMachine *m, uint64_t ram_off, uint64_t size, int keep); /* [any] */
/* Inside an upcall for an instruction's I/O: it could not be served; the vCPU exits with QPY_EXIT_PAGEIN and the
 * instruction starts again when run again. */
void qpy_upcall_again(void); /* the vCPU's thread */
/* A mapped page that cannot be read in adds 1 to the eventfd. A guest instruction that touched it exits with
 * QPY_EXIT_PAGEIN and starts again when run again; who claimed it got -EIO; for anybody else the page has become zeros
 * and counts as lost. Returns the failures since the last call. */
void qpy_pagein_watch(QpyMachine *m, int fd);                /* [BQL] */
uint32_t qpy_pagein_failures(QpyMachine *m, uint32_t *lost); /* [BQL] */

/* Doorbell: a guest write of `size` bytes (0: any) to this address adds 1 to an eventfd instead of an upcall. */
int qpy_doorbell_add(QpyMachine *m, int mmio, uint64_t addr, uint32_t size, int match, uint64_t value,
                     int fd);                                                                              /* [BQL] */
int qpy_doorbell_remove(QpyMachine *m, int mmio, uint64_t addr, uint32_t size, int match, uint64_t value); /* [BQL] */

/* Holds every vCPU of the machine at an instruction boundary, inside vcpu_run, until resumed; nests. Returns when all
 * are there. Drops the BQL while it waits if the caller holds it. Not from inside an upcall (-EDEADLK): note the wish
 * and do it from the main loop. */
int qpy_machine_pause(QpyMachine *m);
void qpy_machine_resume(QpyMachine *m);

/* ---- Virtqueues: split rings in guest RAM (csrc/virtq/virtq.h says what is checked) --------------------------------
 */

enum { QPY_VIRTQ_MAX_SIZE = 1024, QPY_VIRTQ_ROOM = 8192 };
enum { QPY_VIRTQ_EVENT_IDX = 1, QPY_VIRTQ_NOTIFY_ON_EMPTY = 2 };
typedef struct Virtq QpyVirtq;
QpyVirtq *qpy_virtq_new(QpyMachine *m);
void qpy_virtq_free(QpyVirtq *q);
/* The ring's size and guest-physical addresses; indices start at 0, no chain is taken. -EINVAL: no possible size. All
 * that follow [BQL]. */
int qpy_virtq_setup(QpyVirtq *q, uint32_t size, uint64_t desc, uint64_t avail, uint64_t used, uint32_t flags);
void qpy_virtq_restore(QpyVirtq *q, uint16_t last_avail, uint16_t used_idx);
void qpy_virtq_indices(QpyVirtq *q, uint16_t *last_avail, uint16_t *used_idx);
/* Takes up to `limit` chains that the guest made available. To out, for each: head, number of readable and of writable
 * pieces, bytes of each sort, then the pieces as scatter-gather lists, readable ones first; out has room for
 * QPY_VIRTQ_ROOM words. The number of words; 0: there are none and the guest will notify; -EPROTO: the ring is broken,
 * as qpy_virtq_error says. */
int64_t qpy_virtq_pop(QpyVirtq *q, uint64_t *out, uint32_t limit);
int64_t qpy_virtq_retake(QpyVirtq *q, uint32_t head, uint64_t *out); /* one that was taken before a restore */
/* Gives a chain back, its first `written` writable bytes changed. 1: interrupt the guest; 0: do not; -EPROTO. */
int qpy_virtq_push(QpyVirtq *q, uint32_t head, uint32_t written);
uint32_t qpy_virtq_taken(QpyVirtq *q, uint16_t *heads, uint32_t room); /* heads of the chains not given back */
const char *qpy_virtq_error(QpyVirtq *q);

/* ---- Local APICs ----------------------------------------------------------------------------------------------------
 */

/* An interrupt message from IOAPIC or MSI (SDM vol 3A 11.11): dest is 8 bits, or 32 in x2APIC format. */
void qpy_apic_deliver(QpyMachine *m, uint32_t dest, int logical, uint32_t delivery_mode, uint32_t vector,
                      int level);                                  /* [any] */
void qpy_apic_msi(QpyMachine *m, uint64_t address, uint32_t data); /* [any] a memory write to FEEx_xxxxh */

/* ---- vCPUs
 * ------------------------------------------------------------------------------------------------------------ */

enum {
    QPY_EXIT_KICK = 1,     /* qpy_vcpu_kick, or the instruction budget is used up */
    QPY_EXIT_SHUTDOWN = 2, /* triple fault */
    QPY_EXIT_DEBUG = 4,    /* debugger breakpoint or step */
    QPY_EXIT_ERROR = 5,    /* the core cannot go on; see the log */
    QPY_EXIT_HALT = 6,     /* only with a budget: halted, nothing pending */
    QPY_EXIT_PAGEIN = 7    /* a page of RAM mapped from a file cannot be read; running again tries it again */
};

/* model: "qemu64", "max", ..., optionally followed by ",+feature,-feature". On failure NULL and a message in err. */
QpyVcpu *qpy_vcpu_new(QpyMachine *m, const char *model, char *err, size_t err_size);
enum { QPY_ACCEL_INTERP = 0, QPY_ACCEL_DBT = 1 };
/* How a machine's translator works: bytes of code cache for each vCPU (0: its choice), QPY_DBT_*. Before vCPUs are
 * made.
 */
enum {
    QPY_DBT_ONE_INSN = 1,       /* blocks of one instruction */
    QPY_DBT_PERFMAP = 2,        /* write /tmp/perf-PID.map */
    QPY_DBT_LOCKSTEP = 4,       /* compare blocks with the interpreter; a difference ends the process */
    QPY_DBT_LOCKSTEP_CHAIN = 8, /* the same with chains of blocks */
    QPY_DBT_EAGER = 16          /* regions of what was entered a few times: for tests */
};
void qpy_machine_set_one_insn(QpyMachine *m, int on); /* for all blocks made from now on; drops those there are */
void qpy_machine_set_translator(QpyMachine *m, uint64_t code_cache, uint32_t flags);
/* What runs the vCPU, before its first run; the same vCPU runs on either. -ENOSYS: the core has none such. */
int qpy_vcpu_set_accel(QpyVcpu *v, int accel);

void qpy_vcpu_free(QpyVcpu *v); /* not running */
uint32_t qpy_vcpu_id(QpyVcpu *v);
uint32_t qpy_vcpu_index(QpyVcpu *v);
const char *qpy_cpu_model_name(int i);       /* NULL after the last */
const char *qpy_cpu_model_brand(int i);      /* what CPUID calls it; "" if nothing */
const char *qpy_cpu_feature_name(int i);     /* names for +feature; NULL after the last */
int qpy_vcpu_has_feature(QpyVcpu *v, int i); /* the feature with that number is offered to the guest */
/* The i-th feature asked for that no guest can have here, "CPUID.01H:ECX.monitor [bit 3]"; 0 after the last, else 1. */
int qpy_vcpu_missing_feature(QpyVcpu *v, int i, char *out, size_t size);

/* Runs guest code on the calling thread, without GIL and BQL, until an exit; returns QPY_EXIT_*. A kick that came while
 * it was not running makes the next call return at once. */
int qpy_vcpu_run(QpyVcpu *v);
/* The same for at most n instructions, for tests and single stepping; returns QPY_EXIT_HALT instead of waiting in HLT.
 */
int qpy_vcpu_run_n(QpyVcpu *v, uint64_t n);
void qpy_vcpu_kick(QpyVcpu *v); /* [any] run returns QPY_EXIT_KICK at the next instruction boundary */
void qpy_vcpu_reset(
    QpyVcpu *v); /* [BQL] power-on state; not running or paused. Index 0 is the BSP, others wait for SIPI */
void qpy_vcpu_ignne(QpyVcpu *v); /* [BQL] port F0h was written: pending x87 exceptions are ignored until cleared */
void qpy_vcpu_set_intr(QpyVcpu *v, int level); /* [any] the 8259's INTR, to LINT0 */
void qpy_vcpu_nmi(QpyVcpu *v);                 /* [any] edge on LINT1 */

/* ---- State: for snapshots, monitor and tests; the vCPU is paused or not running
 * ------------------------------------------ */

typedef struct QpySegment {
    uint64_t base;
    uint32_t limit; /* in bytes */
    uint16_t sel;
    uint16_t rights; /* descriptor bits 8-15 and 20-23, shifted right by 8 */
} QpySegment;

typedef struct QpyApicState {
    uint64_t base;                                          /* IA32_APIC_BASE */
    uint32_t id, version, tpr, ldr, dfr, svr, esr, esr_new; /* id: of the mode it is in */
    uint32_t isr[8], tmr[8], irr[8];
    uint32_t icr_low, icr_high;
    uint32_t lvt_timer, lvt_thermal, lvt_perf, lvt_lint0, lvt_lint1, lvt_error;
    uint32_t timer_initial, timer_divide;
    int64_t timer_start; /* virtual clock when timer_initial was written; -1: not armed */
    uint8_t intr_line, wait_sipi, sipi_vector, init_pending, sipi_pending;
} QpyApicState;

enum { QPY_SEG_ES, QPY_SEG_CS, QPY_SEG_SS, QPY_SEG_DS, QPY_SEG_FS, QPY_SEG_GS, QPY_SEG_LDTR, QPY_SEG_TR };

typedef struct QpyCpuState {
    uint64_t gpr[16]; /* rax rcx rdx rbx rsp rbp rsi rdi r8-r15 */
    uint64_t rip, rflags;
    QpySegment seg[8]; /* QPY_SEG_* */
    uint64_t gdt_base, idt_base;
    uint16_t gdt_limit, idt_limit;
    uint32_t pkru;
    uint64_t cr0, cr2, cr3, cr4, cr8, efer, xcr0;
    uint64_t dr[8];
    uint64_t pdpte[4];
    uint64_t star, lstar, cstar, sfmask, kernel_gs_base, tsc_aux;
    uint64_t sysenter_cs, sysenter_esp, sysenter_eip;
    uint64_t pat, misc_enable, tsc_adjust, tsc_deadline, spec_ctrl;
    int64_t tsc_offset;
    uint64_t mtrr_def, mtrr_fixed[11], mtrr_phys[16];
    uint64_t mcg_cap, mcg_status, mcg_ctl, mc_banks[40];
    uint64_t smbase, feature_control;
    uint64_t icount;
    uint8_t halted, nmi_masked, nmi_pending,
        shadow; /* shadow: an STI or MOV SS shadow holds for the next instruction */
    uint8_t cpl;
    uint16_t fpu_fop, fpu_fcs, fpu_fds; /* x87 opcode and pointers: not in the area below */
    uint64_t fpu_fip, fpu_fdp;
    uint8_t fpu[1088]; /* XSAVE standard format: legacy area, header, AVX at 576 */
    QpyApicState apic;
} QpyCpuState;

typedef struct QpyVcpuStats {
    /* icount: exact under -icount and in the interpreter, else at least so many. */
    int64_t device_ns; /* ns spent in upcalls, waiting for the big lock included */
    uint64_t icount, tlb_fill, tlb_flush, pio, mmio, exc, irq, block, decode, smc;
    /* The translator's, 0 without one: blocks and bytes of host code made, code cache in use, times entered,
     * instructions left to handlers, polls that left, exits linked and unlinked, jump-cache entries made, flushes of
     * the code cache, host exceptions that were the guest's, group checks that failed, blocks compared in lock-step;
     * regions among the blocks made; left through an exit not linked, because of what a handler did, for a target that
     * no jump cache has; blocks interpreted; ns in translation, and about so many in interpretation;
     * strips of loops run without checks. */
    uint64_t jit_blocks, jit_bytes, jit_used, jit_entered, jit_helper, jit_poll, jit_linked, jit_unlinked, jit_cached,
        jit_flushes, jit_faults, jit_group_failed, jit_compared, jit_regions, jit_exit_unlinked, jit_exit_handler,
        jit_exit_missed, jit_interpreted, jit_translate_ns, jit_interpret_ns, jit_strips;
} QpyVcpuStats;

void qpy_vcpu_get_state(QpyVcpu *v, QpyCpuState *out);
int qpy_cpu_state_check(const QpyCpuState *in);            /* what set_state would answer */
int qpy_vcpu_set_state(QpyVcpu *v, const QpyCpuState *in); /* -EINVAL if it cannot be a CPU's state */
void qpy_vcpu_stats(QpyVcpu *v, QpyVcpuStats *out);

/* Instructions that translated code left to their handlers while QPY_LOG_HANDLER was on, in no order. At most max; how
 * many there are. */
typedef struct QpyHandlerCount {
    char name[40];
    uint64_t calls;
} QpyHandlerCount;
uint32_t qpy_vcpu_handlers(QpyVcpu *v, QpyHandlerCount *out, uint32_t max);

/* Debug view of memory, no side effects. translate: 0 and *gpa, or -EFAULT. read: number of bytes read from the start.
 */
int qpy_vcpu_translate(QpyVcpu *v, uint64_t lin, uint64_t *gpa);
int64_t qpy_vcpu_read(QpyVcpu *v, uint64_t lin, void *buf, uint64_t n);
int64_t qpy_vcpu_write(QpyVcpu *v, uint64_t lin, const void *buf, uint64_t n);
/* Text of the instruction in code[0..n) at address rip; bits: 16, 32 or 64. Its length, or 0 if it is none. */
int qpy_disassemble(uint64_t rip, int bits, const void *code, size_t n, char *out, size_t out_size);

#endif
