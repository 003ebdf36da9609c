/* What -d in_asm, exec and cpu write, in QEMU's formats (its docs: "-d help"). Off the hot path; libc, so the guest's
 * FPU is parked. */
#include "interp/trace.h"
#include "cpu/fpu.h"
#include "decode/disasm.h"

#include <stdio.h>

void trace_decoded(Cpu *c, const Block *b, const u8 *bytes) {
    unsigned bits = c->mode & MODE_CS64 ? 64 : c->mode & MODE_CS32 ? 32 : 16;
    u64 rip = b->rip;
    fpu_park(c);
    log_printf("----------------\nIN: \n");
    for (unsigned i = 0, pos = 0; i < b->n; i++) {
        unsigned len = b->insn[i].len;
        char text[96], hex[3 * 15 + 1] = "";
        for (unsigned k = 0; k < len && pos + k < b->size; k++) sprintf(hex + 3 * k, "%02x ", bytes[pos + k]);
        disasm(bits, rip, bytes + pos, len, text, sizeof text);
        log_printf("0x%08llx:  %-24s %s\n", (unsigned long long)((c->ea_base[SEG_CS] + rip) & c->lin_mask), hex, text);
        rip += len;
        pos += len;
    }
    log_printf("\n");
}

static void trace_segments(const Cpu *c) {
    static const char names[SEG_COUNT][4] = {"ES ", "CS ", "SS ", "DS ", "FS ", "GS ", "LDT", "TR "};
    for (unsigned i = 0; i < SEG_COUNT; i++) {
        const Segment *s = &c->seg[i];
        log_printf("%s=%04x %016llx %08x %08x\n", names[i], s->sel, (unsigned long long)s->base, s->limit,
                   (unsigned)s->rights << 8);
    }
}

static void trace_registers(const Cpu *c) {
    static const char names[16][4] = {"RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI",
                                      "R8 ", "R9 ", "R10", "R11", "R12", "R13", "R14", "R15"};
    static const u8 order[16] = {R_RAX, R_RBX, R_RCX, R_RDX, R_RSI, R_RDI, R_RBP, R_RSP, 8, 9, 10, 11, 12, 13, 14, 15};
    char text[1024];
    int n = 0;
    for (unsigned i = 0; i < 16; i++)
        n += sprintf(text + n, "%s=%016llx%c", names[order[i]], (unsigned long long)c->r[order[i]],
                     i % 4 == 3 ? '\n' : ' ');
    log_printf("%sRIP=%016llx RFL=%08llx CPL=%u II=%u A20=%u HLT=%u\n", text, (unsigned long long)c->r[R_RIP],
               (unsigned long long)cpu_rflags(c), c->cpl, !!(c->pending & PEND_SHADOW),
               (unsigned)(c->a20_mask >> 20 & 1), c->halted);
    trace_segments(c);
    log_printf("CR0=%08llx CR2=%016llx CR3=%016llx CR4=%08llx EFER=%016llx\n", (unsigned long long)c->cr0,
               (unsigned long long)c->cr2, (unsigned long long)c->cr3, (unsigned long long)c->cr4,
               (unsigned long long)c->efer);
}

/* -d fpu. */
static void trace_fpu(const Cpu *c) {
    const u8 *a = c->fpu.area;
    unsigned fsw = *(const u16 *)(a + FX_FSW), top = fsw >> 11 & 7, n = c->mode & MODE_CS64 ? 16 : 8;
    log_printf("FCW=%04x FSW=%04x [ST=%u] FTW=%02x MXCSR=%08x\n", *(const u16 *)(a + FX_FCW), fsw & ~0x3800u, top,
               a[FX_FTW], *(const u32 *)(a + FX_MXCSR));
    for (unsigned i = 0; i < 8; i++) {
        const u8 *st = a + FX_ST + 16 * ((i - top) & 7);
        log_printf("FPR%u=%016llx %04x%c", i, (unsigned long long)*(const u64 *)st, *(const u16 *)(st + 8),
                   i & 1 ? '\n' : ' ');
    }
    for (unsigned i = 0; i < n; i++) {
        const u64 *x = (const u64 *)(a + FX_XMM + 16 * i);
        log_printf("XMM%02u=%016llx %016llx%c", i, (unsigned long long)x[1], (unsigned long long)x[0],
                   i & 1 ? '\n' : ' ');
    }
}

void trace_entered(Cpu *c, const Block *b) {
    if (!log_wants(block_lin(c, b))) return;
    fpu_park(c);
    if (log_on(LOG_EXEC))
        log_printf("Trace %u: %p [%08llx/%016llx/%08x]\n", c->index, (const void *)b,
                   (unsigned long long)c->seg[SEG_CS].base, (unsigned long long)b->rip, b->mode);
    if (log_on(LOG_CPU)) trace_registers(c);
    if (log_on(LOG_CPU) && log_on(LOG_FPU)) trace_fpu(c);
}

/* -d int: one line in QEMU's form and the state the event found. i: 1 for INT n, 2 for an interrupt from outside. */
void trace_event(Cpu *c, unsigned vector, u32 error, unsigned i) {
    static u32 count;
    fpu_park(c);
    u64 lin = (c->ea_base[SEG_CS] + c->r[R_RIP]) & c->lin_mask;
    log_printf("%6u: v=%02x e=%04x i=%u cpl=%u IP=%04x:%016llx pc=%016llx SP=%04x:%016llx %s=%016llx\n", count++,
               vector, error, i, c->cpl, c->seg[SEG_CS].sel, (unsigned long long)c->r[R_RIP], (unsigned long long)lin,
               c->seg[SEG_SS].sel, (unsigned long long)c->r[R_RSP], vector == EXC_PF ? "CR2" : "RAX",
               (unsigned long long)(vector == EXC_PF ? c->cr2 : c->r[R_RAX]));
    trace_registers(c);
}

void trace_far(Cpu *c, const char *what, unsigned sel, u64 off) {
    fpu_park(c);
    log_printf("%s %04x:%016llx cpl=%u from %04x:%016llx\n", what, sel, (unsigned long long)off, c->cpl,
               c->seg[SEG_CS].sel, (unsigned long long)c->r[R_RIP]);
    trace_registers(c);
}

/* -d cpu_reset: what is lost. */
void trace_reset(Cpu *c, const char *why) {
    fpu_park(c);
    log_printf("%s (CPU %u)\n", why, c->index);
    trace_registers(c);
}
