/* What all vCPUs of one machine share: RAM, the flat view of the guest-physical space, upcalls, clock, BQL. */
#ifndef QPY_MEMORY_MACHINE_H
#define QPY_MEMORY_MACHINE_H

#include "base/common.h"
#include "cpu/cpu.h"

/* RAM space: all RAM and ROM blocks in one offset space ("ram_off", page-granular), one host reservation: host =
 * ram_base + ram_off. */
enum { RANGE_RAM = 1, RANGE_ROM = 2, RANGE_MMIO = 3, RANGE_UNMAPPED = 4 };
typedef struct MemRange {
    u64 gpa, size; /* page aligned */
    u64 ram_off;   /* RANGE_RAM / RANGE_ROM: reads come from here */
    u64 write_off; /* where writes go: == ram_off for RAM; ~0: dropped (ROM) or, with MMIO bit, an upcall */
    u8 kind;
    bool write_upcall; /* writes (only) go to the MMIO dispatcher: ROM devices, PAM write-only windows */
} MemRange;

/* Calls into Python; `vcpu` is Cpu.id. Same layout as QpyUpcalls (api.h). Called with the BQL held and the guest FPU
 * parked; they never raise or longjmp. */
typedef struct Upcalls {
    u32 (*pio_read)(u32 vcpu, u32 port, u32 size);
    void (*pio_write)(u32 vcpu, u32 port, u32 size, u32 value);
    void (*pio_read_string)(u32 vcpu, u32 port, u32 size, u32 count, void *buf);
    void (*pio_write_string)(u32 vcpu, u32 port, u32 size, u32 count, const void *buf);
    u64 (*mmio_read)(u32 vcpu, u64 gpa, u32 size);
    void (*mmio_write)(u32 vcpu, u64 gpa, u32 size, u64 value);
    i32 (*intack)(u32 vcpu);                /* the 8259's vector, or -1 if INTR went away */
    void (*apic_eoi)(u32 vcpu, u32 vector); /* EOI of a level-triggered vector, for the IOAPIC */
    void (*ferr)(u32 vcpu);                 /* FERR#: an x87 exception to be reported by IRQ 13 */
    void (*timers)(u32 vcpu);               /* a counted clock has come to its deadline */
} Upcalls;

/* I/O from instructions (memory/io.c): parks the FPU, takes the BQL, upcalls. The short cuts of DESIGN 3 (doorbells,
 * local APIC page) are tried first. */
u32 io_in(Cpu *c, u32 port, unsigned n);
void io_out(Cpu *c, u32 port, unsigned n, u32 v);
void io_in_string(Cpu *c, u32 port, unsigned n, unsigned count, void *buf);
void io_out_string(Cpu *c, u32 port, unsigned n, unsigned count, const void *buf);
int io_intack(Cpu *c); /* the 8259's vector, or -1 */
bool io_ferr(Cpu *c);  /* false: nobody listens */
void io_apic_eoi(Cpu *c, unsigned vector);
void io_timers(Cpu *c);
u64 mmio_read(Cpu *c, u64 gpa, unsigned n);
void mmio_write(Cpu *c, u64 gpa, unsigned n, u64 v);

/* The range that holds gpa (A20 already applied); never NULL: holes are RANGE_UNMAPPED, read as all ones. */
const MemRange *machine_range(struct Machine *m, u64 gpa);
u8 *machine_ram_host(struct Machine *m, u64 ram_off);

/* Per-page flags of the RAM space that make stores take the slow path. */
bool ram_page_needs_slow_write(struct Machine *m, u64 ram_off);
/* A store of n bytes to RAM at ram_off is about to happen / has landed (marks dirty, invalidates decoded blocks of
 * every vCPU). c: the storing vCPU or NULL (DMA). */
void ram_store_before(struct Machine *m, Cpu *c, u64 ram_off, unsigned n);
void ram_store_after(struct Machine *m, Cpu *c, u64 ram_off, unsigned n);
/* The block cache takes code from bytes [off, off+n) of one page: granules are marked, write tags of every vCPU
 * dropped. Mark before reading the bytes, so that no store between the two goes unnoticed. With other vCPUs around this
 * is a safe point. */
void ram_mark_code(struct Machine *m, Cpu *c, u64 ram_off, unsigned n);
void ram_unmark_code(struct Machine *m, u64 ram_page_off);
/* Set by interp/: called by ram_store_after when code granules were hit. */
extern void (*code_invalidate_hook)(Cpu *c, u64 ram_off, unsigned n);

/* Guest TSC and virtual clock, ns (base/clock.h beneath). */
i64 machine_clock_ns(struct Machine *m);
u64 cpu_read_tsc(Cpu *c);
void cpu_tsc_follow(Cpu *c); /* its own vCPU's thread: Cpu.tsc is good for a while, if it can be */
/* Whether the clock counts instructions: every access that leaves the core then ends its block. */
bool machine_counts(const struct Machine *m);
bool machine_one_insn(const struct Machine *m); /* blocks are of one instruction */
/* RDRAND and RDSEED: the seeded sequence, or the host's. False: none at the moment. */
bool machine_random(struct Machine *m, u64 *v);

#endif
