/* What the translator tells: -d out_asm (host code), -d op (how each guest instruction came out, the checks that were
 * shared, the flags that live), and Linux perf's map of JIT code. FPU parked. */
#include "jit/trans.h"

#include <stdio.h>
#include <unistd.h>

#include "base/log.h"
#include "decode/disasm.h"
#include "memory/state.h"

static u64 linear(const Trans *t, u64 rip) { return (t->c->ea_base[SEG_CS] + rip) & t->c->lin_mask; }

static void print_host(const Trans *t, const u8 *from, const u8 *to) {
    while (from < to) {
        char text[96];
        u64 rip = (u64)from + (u64)t->a.rx;
        int len = disasm(64, rip, from, (unsigned)(to - from), text, sizeof text);
        if (len <= 0) len = 1;
        log_printf("0x%08llx:  %s\n", (unsigned long long)rip, text);
        from += len;
    }
}

static void print_out_asm(const Trans *t) {
    const u8 *begin = t->jit->rw + (t->code->entry - t->jit->rx), *end = t->a.p;
    log_printf("OUT: [size=%u]\n", (unsigned)(end - begin));
    const JitPoint *point = t->code->points;
    u32 n = t->code->n_points;
    for (u32 i = 0; i < n; i++) {
        const u8 *at = t->jit->rw + point[i].at, *to = t->jit->rw + (i + 1 < n ? point[i + 1].at : t->code->end);
        if (i == 0 && at > begin) print_host(t, begin, at);
        log_printf("  -- guest addr 0x%016llx\n", (unsigned long long)guest_rip(&t->guest[point[i].insn]));
        print_host(t, at, to);
    }
    log_printf("  -- slow paths and exits\n");
    print_host(t, t->jit->rw + t->code->end, end);
    log_printf("\n");
}

static void flag_names(u16 flags, char *out) {
    static const struct {
        u16 bit;
        char name;
    } names[] = {{FL_OF, 'O'}, {FL_SF, 'S'}, {FL_ZF, 'Z'}, {FL_AF, 'A'}, {FL_PF, 'P'}, {FL_CF, 'C'}};
    for (unsigned i = 0; i < ARRAY_LEN(names); i++)
        if (flags & names[i].bit) *out++ = names[i].name;
    *out = 0;
}

static void print_op(const Trans *t) {
    log_printf("OP:\n");
    for (unsigned i = 0; i < t->n; i++) {
        const Guest *g = &t->guest[i];
        char text[96], flags[8];
        u64 rip = guest_rip(g);
        disasm(t->wide ? 64 : 32, rip, g->bytes, g->in->len, text, sizeof text);
        flag_names(g->live, flags);
        log_printf(" ---- 0x%016llx  %-40s live %-6s", (unsigned long long)rip, text, *flags ? flags : "-");
        for (unsigned k = 0; k < t->n_access; k++)
            if (t->access[k].insn == i)
                log_printf(t->access[k].barrier ? " helper" : " %s[%d,%u]", t->access[k].write ? "w" : "r",
                           t->access[k].off, t->access[k].n);
        log_printf("\n");
    }
    log_printf("\n");
}

/* /tmp/perf-PID.map: one line a translation, as tools/perf/Documentation/jit-interface.txt has it. */
static void write_perf_map(const Trans *t) {
    static FILE *map;
    static bool tried;
    if (!tried) {
        char name[64];
        snprintf(name, sizeof name, "/tmp/perf-%d.map", (int)getpid());
        map = fopen(name, "w");
        tried = true;
    }
    if (!map) return;
    u64 size = (u64)(t->a.p - t->jit->rw) - (u64)(t->code->entry - t->jit->rx);
    fprintf(map, "%llx %llx guest-%c-0x%llx\n", (unsigned long long)(u64)t->code->entry, (unsigned long long)size,
            t->b->mode & MODE_CPL3 ? 'u' : 'k', (unsigned long long)t->b->rip);
    fflush(map);
}

void tally_name(u32 what, char *out, size_t size) {
    const char *name = ZydisMnemonicGetString((ZydisMnemonic)(what & 0xffff));
    static const char *const maps[] = {"", "0f ", "0f 38 ", "0f 3a "};
    snprintf(out, size, "%s%s%s%s (%s%02x)", what & TALLY_LOCK ? "lock " : "", what & TALLY_REP ? "rep " : "",
             name ? name : "(bad)", what & TALLY_MEM ? " mem" : "", maps[what >> 27 & 3], what >> 19 & 0xff);
}

void jit_trace(Trans *t) {
    if (t->c->machine->perfmap) write_perf_map(t);
    if (!log_on(LOG_OUT_ASM | LOG_OP) || !log_wants(linear(t, t->b->rip))) return;
    if (log_on(LOG_OP)) print_op(t);
    if (log_on(LOG_OUT_ASM)) print_out_asm(t);
}
