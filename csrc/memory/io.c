/* Port and device-memory accesses of guest instructions. In order: doorbells (a write adds 1 to an eventfd and the
 * guest runs on), the local APIC's page, then Python: guest FPU parked, BQL taken, upcall, BQL released. For the length
 * of the upcall the vCPU counts as being at a safe point. */
#include "base/bql.h"
#include "memory/feed.h"
#include "memory/safepoint.h"
#include "memory/state.h"

#include <errno.h>

void fpu_park(Cpu *c); /* cpu/fpu.h */

static void upcall_begin(Cpu *c) {
    fpu_park(c);
    c->upcall_again = false;
    guest_leave(c);
    c->device_ns -= bql_lock();
}

/* With a counted clock what a device does is noticed at the end of the instruction, in every tier alike. */
static void end_block(Cpu *c) {
    if (unlikely(c->machine->clock->counted)) c->leave_block = true;
}

static void upcall_end(Cpu *c) {
    c->device_ns += bql_unlock();
    guest_enter(c);
    end_block(c);
}

/* The end of an instruction's own access. A device that met memory that cannot be read has done nothing yet. */
static void access_end(Cpu *c) {
    upcall_end(c);
    if (likely(!c->upcall_again)) return;
    c->upcall_again = false;
    c->exit_reason = EXIT_PAGEIN;
    cpu_pend(c, PEND_EXIT);
    exc_restart(c);
}

INLINE u64 ones(unsigned n) { return n >= 8 ? ~0ull : BIT(8 * n) - 1; }

static bool bell_matches(const Doorbell *b, bool mmio, u64 addr, unsigned n, u64 v) {
    return b->mmio == mmio && b->addr == addr && (!b->size || b->size == n) && (!b->match || b->value == (v & ones(n)));
}

static bool ring_doorbell(Cpu *c, bool mmio, u64 addr, unsigned n, u64 v) {
    Machine *m = c->machine;
    if (unlikely(m->clock->counted)) return false; /* nothing may depend on when another thread looks */
    for (u32 i = 0; i < m->n_doorbells; i++) {
        if (!bell_matches(&m->doorbells[i], mmio, addr, n, v)) continue;
        u64 one = 1;
        return syscall(SYS_write, m->doorbells[i].fd, &one, sizeof one) == sizeof one;
    }
    return false;
}

static bool same_bell(const Doorbell *a, const Doorbell *b) {
    return a->mmio == b->mmio && a->addr == b->addr && a->size == b->size && a->match == b->match &&
           (!a->match || a->value == b->value);
}

int doorbell_add(Machine *m, const Doorbell *bell) {
    if (m->n_doorbells == MAX_DOORBELLS) return -ENOSPC;
    exclusive_begin(m, NULL);
    m->doorbells[m->n_doorbells++] = *bell;
    exclusive_end(m, NULL);
    return 0;
}

int doorbell_remove(Machine *m, const Doorbell *bell) {
    for (u32 i = 0; i < m->n_doorbells; i++) {
        if (!same_bell(&m->doorbells[i], bell)) continue;
        exclusive_begin(m, NULL);
        m->doorbells[i] = m->doorbells[--m->n_doorbells];
        exclusive_end(m, NULL);
        return 0;
    }
    return -ENOENT;
}

u32 io_in(Cpu *c, u32 port, unsigned n) {
    c->n_pio++;
    if (!c->machine->up.pio_read) return (u32)ones(n);
    upcall_begin(c);
    u32 v = c->machine->up.pio_read(c->id, port, n);
    access_end(c);
    return v & (u32)ones(n);
}

void io_out(Cpu *c, u32 port, unsigned n, u32 v) {
    c->n_pio++;
    if (ring_doorbell(c, false, port, n, v) || !c->machine->up.pio_write) return;
    upcall_begin(c);
    c->machine->up.pio_write(c->id, port, n, v & (u32)ones(n));
    access_end(c);
}

void io_in_string(Cpu *c, u32 port, unsigned n, unsigned count, void *buf) {
    c->n_pio++;
    if (!c->machine->up.pio_read_string) {
        for (unsigned i = 0; i < n * count; i++) ((volatile u8 *)buf)[i] = 0xff;
        return;
    }
    upcall_begin(c);
    c->machine->up.pio_read_string(c->id, port, n, count, buf);
    access_end(c);
}

void io_out_string(Cpu *c, u32 port, unsigned n, unsigned count, const void *buf) {
    c->n_pio++;
    if (!c->machine->up.pio_write_string) return;
    upcall_begin(c);
    c->machine->up.pio_write_string(c->id, port, n, count, buf);
    access_end(c);
}

int io_intack(Cpu *c) {
    if (!c->machine->up.intack) return -1;
    upcall_begin(c);
    int vector = c->machine->up.intack(c->id);
    upcall_end(c);
    return vector < 0 ? -1 : vector & 0xff;
}

bool io_ferr(Cpu *c) {
    if (!c->machine->up.ferr) return false;
    upcall_begin(c);
    c->machine->up.ferr(c->id);
    upcall_end(c);
    return true;
}

void io_apic_eoi(Cpu *c, unsigned vector) {
    if (!c->machine->up.apic_eoi) return;
    upcall_begin(c);
    c->machine->up.apic_eoi(c->id, vector);
    upcall_end(c);
}

void io_timers(Cpu *c) {
    if (!c->machine->up.timers) return;
    upcall_begin(c);
    c->machine->up.timers(c->id);
    upcall_end(c);
}

static bool local_access(Cpu *c, u64 gpa, unsigned n, u64 *v, bool write) {
    Machine *m = c->machine;
    if (!m->local_mmio || !m->local_mmio(c, gpa, n, v, write)) return false;
    end_block(c);
    return true;
}

static bool unmapped(Machine *m, u64 gpa) { return machine_range(m, gpa)->kind == RANGE_UNMAPPED; }

static u64 device_read(Cpu *c, u64 gpa, unsigned n) {
    Machine *m = c->machine;
    u64 v;
    c->n_mmio++;
    if (local_access(c, gpa, n, &v, false)) return v & ones(n);
    if (!m->up.mmio_read || unmapped(m, gpa)) return ones(n);
    upcall_begin(c);
    v = m->up.mmio_read(c->id, gpa, n);
    access_end(c);
    return v & ones(n);
}

u64 mmio_read(Cpu *c, u64 gpa, unsigned n) {
    u64 v = 0;
    if (feed_take(c->feed, FEED_READ, gpa, n, &v)) return v;
    v = device_read(c, gpa, n);
    feed_put(c->feed, FEED_READ, gpa, n, v);
    return v;
}

void mmio_write(Cpu *c, u64 gpa, unsigned n, u64 v) {
    Machine *m = c->machine;
    v &= ones(n);
    if (feed_take(c->feed, FEED_WRITE, gpa, n, &v)) return;
    feed_put(c->feed, FEED_WRITE, gpa, n, v);
    c->n_mmio++;
    if (local_access(c, gpa, n, &v, true)) return;
    if (ring_doorbell(c, true, gpa, n, v) || !m->up.mmio_write || unmapped(m, gpa)) return;
    upcall_begin(c);
    m->up.mmio_write(c->id, gpa, n, v);
    access_end(c);
}
