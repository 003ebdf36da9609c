/* struct Machine, for memory/, apic/ and vcpu/; everybody else uses machine.h. */
#ifndef QPY_MEMORY_STATE_H
#define QPY_MEMORY_STATE_H

#include "base/clock.h"
#include "base/futex.h"
#include "memory/machine.h"

#define MAX_VCPUS 255
#define GPA_END   BIT(52)
enum { RETIRED_VIEWS = 8, MAX_DOORBELLS = 256 };

/* The guest-physical space without holes: ranges cover 0 to GPA_END. */
typedef struct View {
    u32 n;
    MemRange r[];
} View;

typedef struct Doorbell {
    u64 addr, value;
    i32 fd;
    u8 size; /* 0: any */
    bool mmio, match;
} Doorbell;

typedef struct Machine {
    Upcalls up;
    QpyClock *clock;
    u64 tsc_hz, tsc_mul; /* tsc_mul: ticks per ns, 32.32 */
    u64 code_cache;      /* bytes for each vCPU's translator, 0: its choice */
    bool one_insn, perfmap, eager;
    u8 lockstep; /* 0: off; LOCKSTEP_* (jit/lockstep.h) */
    u64 random;  /* state of the seeded sequence */
    bool seeded;

    u8 *ram_base;
    u64 ram_reserved, ram_used;
    u64 *code_map; /* per page: bit g = bytes of granule g (64 bytes) are in a decoded block */
    u8 *log;       /* per page: bit per client that logs writes */
    u8 *dirty;     /* per page: bit per client, written since its last fetch */

    View *volatile view;
    View *retired[RETIRED_VIEWS]; /* kept a while for readers without a lock (DMA) */
    u32 retire_next;
    u32 view_generation; /* counts replacements of the view */

    Doorbell doorbells[MAX_DOORBELLS];
    volatile u32 n_doorbells;

    Cpu *cpu[MAX_VCPUS];
    volatile u32 n_cpus;
    u64 a20_mask;

    Lock excl_lock;
    volatile u32 excl;  /* an exclusive section is on or asked for */
    volatile u32 pause; /* how many want the vCPUs parked */

    volatile u32 pagein_failed, pagein_lost; /* memory/pagein.c */
    bool mapped;                             /* parts of RAM may lie in a file */
    i32 pagein_fd;

    /* Set by apic/: tried before the upcall. */
    bool (*local_mmio)(Cpu *c, u64 gpa, unsigned n, u64 *v, bool write);
    struct ApicTimers *timers;
} Machine;

Machine *machine_new(QpyClock *clock, u64 max_ram);
void machine_free(Machine *m);
i64 machine_ram_alloc(Machine *m, u64 size);
int machine_set_view(Machine *m, const MemRange *ranges, u32 n);
void machine_set_tsc_hz(Machine *m, u64 hz);
void machine_set_a20(Machine *m, bool enabled);

void dirty_log(Machine *m, int client, u64 ram_off, u64 size, bool on);
i64 dirty_fetch(Machine *m, int client, u64 ram_off, u64 size, u8 *out);

int dma_read(Machine *m, u64 gpa, void *buf, u64 n);
int dma_write(Machine *m, u64 gpa, const void *buf, u64 n);
void *dma_map(Machine *m, u64 gpa, u64 *n, bool write);
void dma_written(Machine *m, u64 gpa, u64 n);
i64 dma_scatter(Machine *m, const u64 *pairs, u32 count, bool write, u64 *size, u64 *out); /* see qpy_dma_scatter */
/* Bytes of the RAM space were written by somebody else than a vCPU. */
void ram_changed(Machine *m, u64 ram_off, u64 n);

int doorbell_add(Machine *m, const Doorbell *bell);
int doorbell_remove(Machine *m, const Doorbell *bell);

#endif
