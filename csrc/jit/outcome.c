/* Registers, flags, segments, FPU state and exception of one tier, see outcome.h. */
#include "jit/outcome.h"

#include "base/log.h"

void outcome_take(Cpu *c, Outcome *o, u32 vector) {
    fpu_ensure_live(c); /* through the host's registers once, as the other tier's */
    fpu_park(c);
    fpu_copy(o->r, c->r, sizeof o->r);
    o->cc = c->cc, o->flags = c->flags;
    o->fip = c->fpu.fip, o->fdp = c->fpu.fdp, o->fop = c->fpu.fop;
    o->unmasked = c->fpu.x87_unmasked;
    o->vector = vector;
    o->error = vector == NO_VECTOR || !c->exc.has_error ? 0 : c->exc.error;
    o->cr2 = vector == EXC_PF ? c->exc.addr : 0;
    o->kernel_gs_base = c->kernel_gs_base;
    o->seg_rok = c->seg_rok, o->seg_wok = c->seg_wok;
    fpu_copy(o->ea_base, c->ea_base, sizeof o->ea_base);
    fpu_copy(o->seg, c->seg, sizeof o->seg);
    fpu_copy(o->fpu, c->fpu.area, XSAVE_BYTES);
}

void outcome_give(Cpu *c, const Outcome *o) {
    fpu_park(c);
    fpu_copy(c->r, o->r, sizeof o->r);
    c->cc = o->cc, c->flags = o->flags;
    c->fpu.fip = o->fip, c->fpu.fdp = o->fdp, c->fpu.fop = o->fop;
    c->fpu.x87_unmasked = o->unmasked;
    c->kernel_gs_base = o->kernel_gs_base;
    c->seg_rok = o->seg_rok, c->seg_wok = o->seg_wok;
    fpu_copy(c->ea_base, o->ea_base, sizeof o->ea_base);
    fpu_copy(c->seg, o->seg, sizeof o->seg);
    fpu_copy(c->fpu.area, o->fpu, XSAVE_BYTES);
}

const char *outcome_difference(const Outcome *a, const Outcome *b) {
    if (a->vector != b->vector || a->error != b->error || a->cr2 != b->cr2) return "exception";
    for (unsigned i = 0; i <= R_RIP; i++)
        if (a->r[i] != b->r[i]) return "register";
    if (a->flags != b->flags || a->cc != b->cc) return "flags";
    for (unsigned i = 0; i < SEG_COUNT; i++)
        if (a->seg[i].base != b->seg[i].base || a->seg[i].sel != b->seg[i].sel) return "segment register";
    if (a->kernel_gs_base != b->kernel_gs_base) return "GS base";
    if (a->fop != b->fop || a->fip != b->fip || a->fdp != b->fdp) return "x87 pointers";
    for (unsigned i = 0; i < XSAVE_BYTES; i++) {
        bool hosts = i >= FX_FOP && i < FX_MXCSR; /* the host's pointers */
        if (!hosts && a->fpu[i] != b->fpu[i]) return "FPU state";
    }
    return NULL;
}

static void print_fpu(const Outcome *o) {
    for (unsigned i = 0; i < XS_YMMH + 256; i++)
        if (i < FX_FOP || (i >= FX_MXCSR && i < FX_XMM + 256) || i >= XS_BV)
            log_printf("%s%02x%s", i % 32 ? "" : "  ", o->fpu[i], i % 32 == 31 ? "\n" : "");
    log_printf("\n");
}

void outcome_print(const char *who, const Outcome *o) {
    log_printf("%s: exception %x error %x cr2 %lx flags %lx cc %lx\n", who, o->vector, o->error, (unsigned long)o->cr2,
               (unsigned long)o->flags, (unsigned long)o->cc);
    for (unsigned i = 0; i <= R_RIP; i++) log_printf(" %016lx%s", (unsigned long)o->r[i], i % 4 == 3 ? "\n" : "");
    log_printf("\n  x87: opcode %x instruction %lx operand %lx\n", o->fop, (unsigned long)o->fip,
               (unsigned long)o->fdp);
    print_fpu(o);
}
