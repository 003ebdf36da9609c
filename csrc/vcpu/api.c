/* api.h, function by function: argument conversion and nothing else. */
#include "api.h"
#include "apic/apic.h"
#include "base/bql.h"
#include "base/iov.h"
#include "base/log.h"
#include "base/prd.h"
#include "cpu/model.h"
#include "jit/lockstep.h"
#include "memory/pagein.h"
#include "memory/ram_map.h"
#include "memory/safepoint.h"
#include "mmu/mmu.h"
#include "vcpu/vcpu.h"
#include "virtq/virtq.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

_Static_assert(sizeof(QpyUpcalls) == sizeof(Upcalls), "same layout");
_Static_assert(sizeof(QpyMemRange) == sizeof(MemRange), "same layout");
_Static_assert(offsetof(QpyMemRange, write_upcall) == offsetof(MemRange, write_upcall), "same layout");
_Static_assert(sizeof(QpyRamExtent) == sizeof(RamExtent), "same layout");
_Static_assert((int)QPY_EXIT_PAGEIN == (int)EXIT_PAGEIN, "same numbers");
_Static_assert((int)QPY_VIRTQ_MAX_SIZE == (int)VIRTQ_MAX_SIZE && (int)QPY_VIRTQ_ROOM >= 5 + 2 * (int)VIRTQ_MAX_PIECES,
               "room for the longest chain");
_Static_assert(sizeof(QpyBqlStats) == sizeof(BqlStats), "same layout");
_Static_assert((int)QPY_LOG_PCALL == (int)LOG_PCALL && (int)QPY_LOG_OUT_ASM == (int)LOG_OUT_ASM, "same numbers");
_Static_assert((int)QPY_ACCEL_DBT == (int)ACCEL_DBT, "same numbers");
_Static_assert((int)QPY_LOG_FPU == (int)LOG_FPU && (int)QPY_EXIT_HALT == (int)EXIT_HALT, "same numbers");

void qpy_log_set(uint32_t mask, int fd) { log_set(mask, fd); }
uint32_t qpy_log_mask(void) { return log_mask; }
int qpy_log_set_ranges(const uint64_t *ends, uint32_t n) { return log_set_ranges((const LogRange *)ends, n); }
void qpy_log_write(const char *text, size_t n) { log_text(text, n); }

QpyClock *qpy_clock_new(void) {
    QpyClock *clock = calloc(1, sizeof *clock);
    if (clock) clock_init(clock);
    return clock;
}
void qpy_clock_free(QpyClock *clock) { free(clock); }
int64_t qpy_clock_now(QpyClock *clock) { return clock_now(clock); }
void qpy_clock_sync(QpyClock *clock, int running, int64_t value) {
    clock_sync(clock, running != 0, value);
    apic_timers_clock_changed(clock);
}

void qpy_clock_count_instructions(QpyClock *clock, uint32_t shift, uint32_t flags) {
    clock->counted = true;
    clock->shift = (u8)shift;
    clock->sleeps = flags & QPY_ICOUNT_SLEEPS;
    clock->aligned = flags & QPY_ICOUNT_ALIGNED;
    clock->adaptive = flags & QPY_ICOUNT_ADAPTIVE;
    clock->deadline = -1;
}

/* On the vCPU's own thread this happens in an upcall, behind which the dispatcher looks anyway. */
void qpy_clock_set_deadline(QpyClock *clock, int64_t deadline) {
    clock->deadline = deadline;
    Cpu *c = clock->counter;
    if (clock->count && c != current_cpu) cpu_notify(c, PEND_KICK);
}

void qpy_clock_drift(QpyClock *clock, int64_t *delay, int64_t *advance, int64_t *now) {
    *delay = clock->max_delay;
    *advance = clock->max_advance;
    *now = clock_now(clock) - clock->start - (host_ns() - clock->host_start);
}

void qpy_bql_lock(void) { bql_lock(); }
void qpy_bql_unlock(void) { bql_unlock(); }
int qpy_bql_held(void) { return bql_held(); }
void qpy_bql_stats(QpyBqlStats *out, int reset) { bql_stats((BqlStats *)out, reset != 0); }

QpyMachine *qpy_machine_new(QpyClock *clock, uint64_t max_ram) { return machine_new(clock, max_ram); }
void qpy_machine_free(QpyMachine *m) {
    pagein_unwatch(m);
    machine_free(m);
}
void qpy_machine_set_upcalls(QpyMachine *m, const QpyUpcalls *up) { memcpy(&m->up, up, sizeof m->up); }
void qpy_machine_set_seed(QpyMachine *m, uint64_t seed) {
    m->random = seed;
    m->seeded = true;
}
void qpy_machine_set_tsc_hz(QpyMachine *m, uint64_t hz) { machine_set_tsc_hz(m, hz); }
int64_t qpy_ram_alloc(QpyMachine *m, uint64_t size) { return machine_ram_alloc(m, size); }
void *qpy_ram_host(QpyMachine *m, uint64_t ram_off) { return machine_ram_host(m, ram_off); }

static int ram_in_bounds(const Machine *m, u64 ram_off, u64 n) {
    return ram_off <= m->ram_used && n <= m->ram_used - ram_off;
}

int qpy_ram_store(QpyMachine *m, uint64_t ram_off, const void *buf, uint64_t n) {
    if (!ram_in_bounds(m, ram_off, n)) return -EFAULT;
    if (pagein_claim(m, ram_off, n, true)) return -EIO;
    memcpy(machine_ram_host(m, ram_off), buf, n);
    ram_changed(m, ram_off, n);
    return 0;
}
void qpy_ram_changed(QpyMachine *m, const uint64_t *ranges, uint64_t count) {
    for (; count; count--, ranges += 2)
        if (ram_in_bounds(m, ranges[0], ranges[1])) ram_changed(m, ranges[0], ranges[1]);
}

int qpy_machine_set_view(QpyMachine *m, const QpyMemRange *ranges, uint32_t n) {
    return machine_set_view(m, (const MemRange *)ranges, n);
}
void qpy_machine_set_a20(QpyMachine *m, int enabled) { machine_set_a20(m, enabled != 0); }

int qpy_dma_read(QpyMachine *m, uint64_t gpa, void *buf, uint64_t n) { return dma_read(m, gpa, buf, n); }
int qpy_dma_write(QpyMachine *m, uint64_t gpa, const void *buf, uint64_t n) { return dma_write(m, gpa, buf, n); }
void *qpy_dma_map(QpyMachine *m, uint64_t gpa, uint64_t *n, int write) { return dma_map(m, gpa, n, write != 0); }
void qpy_dma_written(QpyMachine *m, uint64_t gpa, uint64_t n) { dma_written(m, gpa, n); }
int64_t qpy_dma_scatter(QpyMachine *m, const uint64_t *pairs, uint32_t count, int write, uint64_t *out) {
    return dma_scatter(m, pairs, count, write != 0, out, out + 1);
}
void qpy_iov_landed(QpyMachine *m, const uint64_t *iov, uint32_t count) {
    for (; count; count--, iov += 2) {
        uint64_t ram_off = iov[0] - (uint64_t)m->ram_base;
        if (ram_in_bounds(m, ram_off, iov[1])) ram_changed(m, ram_off, iov[1]);
    }
}

uint32_t qpy_iov_cut(const uint64_t *iov, uint32_t count, uint64_t start, uint64_t size, uint64_t *out) {
    return iov_cut((const struct iovec *)iov, count, start, size, (struct iovec *)out);
}
int qpy_iov_read(int fd, uint64_t offset, const uint64_t *iov, uint32_t count) {
    return iov_read(fd, offset, (const struct iovec *)iov, count);
}
int qpy_iov_write(int fd, uint64_t offset, const uint64_t *iov, uint32_t count) {
    return iov_write(fd, offset, (const struct iovec *)iov, count);
}
uint64_t qpy_iov_read_cached(int fd, uint64_t offset, const uint64_t *iov, uint32_t count) {
    return iov_read_cached(fd, offset, (const struct iovec *)iov, count);
}
void qpy_file_begin_writeback(int fd) { iov_begin_writeback(fd); }
void qpy_prd_pairs(const uint64_t *prd, uint32_t count, uint64_t wanted, uint64_t *out) {
    bool ended;
    out[0] = prd_pairs(prd, count, wanted, out + 3, &out[1], &ended);
    out[2] = ended;
}

void qpy_dirty_log(QpyMachine *m, int client, uint64_t ram_off, uint64_t size, int on) {
    if (ram_in_bounds(m, ram_off, size)) dirty_log(m, client, ram_off, size, on != 0);
}
int64_t qpy_dirty_fetch(QpyMachine *m, int client, uint64_t ram_off, uint64_t size, uint8_t *out) {
    return ram_in_bounds(m, ram_off, size) ? dirty_fetch(m, client, ram_off, size, out) : -EFAULT;
}

int qpy_ram_load(QpyMachine *m, const QpyRamExtent *extents, uint32_t n, int map) {
    return ram_load(m, (const RamExtent *)extents, n, map != 0);
}
int64_t qpy_ram_restore(QpyMachine *m, int client, const QpyRamExtent *extents, uint32_t n, uint64_t limit) {
    return ram_restore(m, client, (const RamExtent *)extents, n, limit);
}
int qpy_ram_nonzero(QpyMachine *m, uint64_t ram_off, uint64_t size, uint64_t granule, uint8_t *out) {
    if (!ram_in_bounds(m, ram_off, size) || (ram_off | size | granule) & ~PAGE_MASK || !granule) return -EINVAL;
    return ram_nonzero(m, ram_off, size, granule, out);
}
int qpy_ram_detach(QpyMachine *m, uint64_t ram_off, uint64_t size) { return ram_detach(m, ram_off, size); }
int qpy_ram_claim(QpyMachine *m, uint64_t ram_off, uint64_t size, int keep) {
    return ram_in_bounds(m, ram_off, size) ? pagein_claim(m, ram_off, size, keep != 0) : -EFAULT;
}
void qpy_pagein_watch(QpyMachine *m, int fd) { pagein_watch(m, fd); }
void qpy_upcall_again(void) {
    if (current_cpu) current_cpu->upcall_again = true;
}
uint32_t qpy_pagein_failures(QpyMachine *m, uint32_t *lost) { return pagein_failures(m, lost); }

static Doorbell doorbell(int mmio, u64 addr, u32 size, int match, u64 value, int fd) {
    return (Doorbell){.addr = addr, .value = value, .fd = fd, .size = (u8)size, .mmio = mmio != 0, .match = match != 0};
}
int qpy_doorbell_add(QpyMachine *m, int mmio, uint64_t addr, uint32_t size, int match, uint64_t value, int fd) {
    Doorbell bell = doorbell(mmio, addr, size, match, value, fd);
    return doorbell_add(m, &bell);
}
int qpy_doorbell_remove(QpyMachine *m, int mmio, uint64_t addr, uint32_t size, int match, uint64_t value) {
    Doorbell bell = doorbell(mmio, addr, size, match, value, -1);
    return doorbell_remove(m, &bell);
}

QpyVirtq *qpy_virtq_new(QpyMachine *m) { return virtq_new(m); }
void qpy_virtq_free(QpyVirtq *q) { virtq_free(q); }
int qpy_virtq_setup(QpyVirtq *q, uint32_t size, uint64_t desc, uint64_t avail, uint64_t used, uint32_t flags) {
    return virtq_setup(q, size, desc, avail, used, flags & QPY_VIRTQ_EVENT_IDX, flags & QPY_VIRTQ_NOTIFY_ON_EMPTY);
}
void qpy_virtq_restore(QpyVirtq *q, uint16_t last_avail, uint16_t used_idx) { virtq_restore(q, last_avail, used_idx); }
void qpy_virtq_indices(QpyVirtq *q, uint16_t *last_avail, uint16_t *used_idx) {
    *last_avail = q->last_avail;
    *used_idx = q->used_idx;
}
int64_t qpy_virtq_pop(QpyVirtq *q, uint64_t *out, uint32_t limit) { return virtq_pop(q, out, QPY_VIRTQ_ROOM, limit); }
int64_t qpy_virtq_retake(QpyVirtq *q, uint32_t head, uint64_t *out) {
    return virtq_retake(q, head, out, QPY_VIRTQ_ROOM);
}
int qpy_virtq_push(QpyVirtq *q, uint32_t head, uint32_t written) { return virtq_push(q, head, written); }
uint32_t qpy_virtq_taken(QpyVirtq *q, uint16_t *heads, uint32_t room) { return virtq_taken(q, heads, room); }
const char *qpy_virtq_error(QpyVirtq *q) { return q->error; }

int qpy_machine_pause(QpyMachine *m) { return machine_pause(m); }
void qpy_machine_resume(QpyMachine *m) { machine_resume(m); }

void qpy_apic_deliver(QpyMachine *m, uint32_t dest, int logical, uint32_t mode, uint32_t vector, int level) {
    apic_deliver(m, dest, logical != 0, mode & 7, vector & 0xff, level != 0);
}
void qpy_apic_msi(QpyMachine *m, uint64_t address, uint32_t data) { apic_msi(m, address, data); }

QpyVcpu *qpy_vcpu_new(QpyMachine *m, const char *model, char *err, size_t err_size) {
    return vcpu_new(m, model, err, err_size);
}
void qpy_vcpu_free(QpyVcpu *v) { vcpu_free(v); }
void qpy_machine_set_translator(QpyMachine *m, uint64_t code_cache, uint32_t flags) {
    m->code_cache = code_cache;
    m->one_insn = flags & QPY_DBT_ONE_INSN;
    m->perfmap = flags & QPY_DBT_PERFMAP;
    m->eager = flags & QPY_DBT_EAGER;
    m->lockstep = flags & QPY_DBT_LOCKSTEP_CHAIN ? LOCKSTEP_CHAIN : flags & QPY_DBT_LOCKSTEP ? LOCKSTEP_BLOCK : 0;
}
void qpy_machine_set_one_insn(QpyMachine *m, int on) {
    m->one_insn = on;
    for (u32 i = 0; i < m->n_cpus; i++) interp_ask_flush(m->cpu[i]);
}
int qpy_vcpu_set_accel(QpyVcpu *v, int accel) {
    if (accel != ACCEL_INTERP && (accel != ACCEL_DBT || jit_unsupported())) return -ENOSYS;
    v->accel = (u8)accel;
    return 0;
}
uint32_t qpy_vcpu_id(QpyVcpu *v) { return v->id; }
uint32_t qpy_vcpu_index(QpyVcpu *v) { return v->index; }
const char *qpy_cpu_model_name(int i) { return model_name(i); }
const char *qpy_cpu_model_brand(int i) { return model_at((unsigned)i)->brand; }
const char *qpy_cpu_feature_name(int i) { return i + 1 < FEAT_COUNT ? feature_names[i + 1].name : NULL; }

int qpy_vcpu_missing_feature(QpyVcpu *v, int i, char *out, size_t size) {
    for (unsigned f = 1; f < FEAT_COUNT; f++) {
        if (!(v->feat_missing[f >> 6] >> (f & 63) & 1) || i-- > 0) continue;
        model_feature_text(f, out, size);
        return 1;
    }
    return 0;
}

int qpy_vcpu_has_feature(QpyVcpu *v, int i) { return i + 1 < FEAT_COUNT && cpu_has(v, (unsigned)i + 1); }

int qpy_vcpu_run(QpyVcpu *v) { return vcpu_run(v, ~0ull); }
int qpy_vcpu_run_n(QpyVcpu *v, uint64_t n) {
    return vcpu_run(v, n > ~0ull - 1 - v->icount ? ~0ull - 1 : v->icount + n);
}
void qpy_vcpu_kick(QpyVcpu *v) { vcpu_kick(v); }
void qpy_vcpu_reset(QpyVcpu *v) { vcpu_reset(v); }
void qpy_vcpu_ignne(QpyVcpu *v) { v->fpu.ignne = true; }
void qpy_vcpu_set_intr(QpyVcpu *v, int level) { apic_set_intr(v->apic, level != 0); }
void qpy_vcpu_nmi(QpyVcpu *v) { apic_nmi(v->apic); }

void qpy_vcpu_stats(QpyVcpu *v, QpyVcpuStats *out) {
    *out = (QpyVcpuStats){.icount = v->icount,
                          .device_ns = v->device_ns < 0 ? v->device_ns + host_ns() : v->device_ns,
                          .tlb_fill = v->n_tlb_fill,
                          .tlb_flush = v->n_tlb_flush,
                          .pio = v->n_pio,
                          .mmio = v->n_mmio,
                          .exc = v->n_exc,
                          .irq = v->n_irq,
                          .block = v->n_block,
                          .decode = v->n_decode,
                          .smc = v->n_smc};
    if (!v->jit) return;
    const JitStats *j = &v->jit->stats;
    out->jit_blocks = j->translated;
    out->jit_regions = j->regions;
    out->jit_bytes = j->code_bytes;
    out->jit_used = v->jit->used;
    out->jit_entered = j->entered;
    out->jit_helper = j->helper;
    out->jit_poll = j->poll;
    out->jit_linked = j->linked;
    out->jit_unlinked = j->unlinked;
    out->jit_cached = j->cache_fill;
    out->jit_flushes = j->flushes;
    out->jit_faults = j->host_faults;
    out->jit_group_failed = j->group_failed;
    out->jit_compared = j->compared;
    out->jit_strips = v->n_strip;
    out->jit_exit_unlinked = j->exit_unlinked;
    out->jit_exit_handler = j->exit_handler;
    out->jit_exit_missed = j->exit_handled - j->exit_handler;
    out->jit_interpreted = j->interpreted;
    out->jit_translate_ns = (u64)j->translate_ns;
    out->jit_interpret_ns = (u64)j->interpret_ns;
}

uint32_t qpy_vcpu_handlers(QpyVcpu *v, QpyHandlerCount *out, uint32_t max) {
    u32 n = 0;
    for (u32 i = 0; v->jit && i < TALLY_SIZE; i++) {
        const TallyEntry *e = &v->jit->tally.entry[i];
        if (!e->calls) continue;
        if (n < max) {
            out[n].calls = e->calls;
            tally_name(e->what, out[n].name, sizeof out[n].name);
        }
        n++;
    }
    return n;
}

/* A page table that cannot be read in maps nothing. */
static bool translate(Cpu *c, u64 lin, u64 *gpa) {
    PageinGuard guard;
    if (sigsetjmp(guard.back, 0)) return false;
    pagein_guard_set(&guard);
    bool found = mmu_translate_debug(c, lin, gpa);
    pagein_guard_set(NULL);
    return found;
}

int qpy_vcpu_translate(QpyVcpu *v, uint64_t lin, uint64_t *gpa) { return translate(v, lin, gpa) ? 0 : -EFAULT; }

/* Page by page; the number of bytes done before the first page that is not mapped, or not RAM. */
static i64 debug_access(Cpu *c, u64 lin, u8 *buf, u64 n, bool write) {
    u64 done = 0;
    while (done < n) {
        u64 gpa, part = PAGE_SIZE - (lin + done) % PAGE_SIZE;
        if (part > n - done) part = n - done;
        if (!translate(c, lin + done, &gpa)) break;
        if (write ? dma_write(c->machine, gpa, buf + done, part) : dma_read(c->machine, gpa, buf + done, part)) break;
        done += part;
    }
    return (i64)done;
}
int64_t qpy_vcpu_read(QpyVcpu *v, uint64_t lin, void *buf, uint64_t n) { return debug_access(v, lin, buf, n, false); }
int64_t qpy_vcpu_write(QpyVcpu *v, uint64_t lin, const void *buf, uint64_t n) {
    return debug_access(v, lin, (u8 *)buf, n, true);
}
