/* What the system-architecture handlers (sys_*.c) share: descriptors, stacks, far transfers, task switches. */
#ifndef QPY_INTERP_SYS_H
#define QPY_INTERP_SYS_H

#include "interp/ops.h"
#include "cpu/model.h"

/* A segment or gate descriptor as it lies in GDT, LDT or IDT (SDM vol 3A 3.4.5, 3.5, 6.11). */
typedef struct Desc {
    u32 lo, hi;
    u32 hi2; /* third dword of the 16-byte forms */
    u64 lin; /* where it was read */
} Desc;
enum {
    DT_TSS16 = 1,
    DT_LDT = 2,
    DT_TSS16_BUSY = 3,
    DT_CALL16 = 4,
    DT_TASK_GATE = 5,
    DT_INT16 = 6,
    DT_TRAP16 = 7,
    DT_TSS32 = 9,
    DT_TSS32_BUSY = 11,
    DT_CALL32 = 12,
    DT_INT32 = 14,
    DT_TRAP32 = 15
};
INLINE unsigned desc_rights(const Desc *d) { return d->hi >> 8 & 0xf0ff; }
INLINE unsigned desc_type(const Desc *d) { return d->hi >> 8 & 0xf; }
INLINE unsigned desc_dpl(const Desc *d) { return d->hi >> 13 & 3; }
INLINE bool desc_present(const Desc *d) { return d->hi >> 15 & 1; }
INLINE bool desc_is_seg(const Desc *d) { return d->hi >> 12 & 1; }
INLINE bool desc_is_code(const Desc *d) { return (d->hi >> 11 & 3) == 3; }
INLINE bool desc_conforming(const Desc *d) { return d->hi >> 10 & 1; }
INLINE bool desc_writable(const Desc *d) { return (d->hi >> 9 & 0xd) == 9; }
INLINE u64 desc_base(const Desc *d) { return d->lo >> 16 | (d->hi & 0xff) << 16 | (d->hi & 0xff000000); }
INLINE u32 desc_limit(const Desc *d) {
    u32 limit = (d->lo & 0xffff) | (d->hi & 0xf0000);
    return d->hi >> 23 & 1 ? limit << 12 | 0xfff : limit;
}
INLINE unsigned gate_sel(const Desc *d) { return d->lo >> 16; }
INLINE u64 gate_off32(const Desc *d) { return (d->lo & 0xffff) | (d->hi & 0xffff0000); }

INLINE bool cpu_protected(const Cpu *c) { return (c->cr0 & CR0_PE) && !(c->flags & FL_VM); }
INLINE bool cpu_lma(const Cpu *c) { return c->efer & EFER_LMA; }
INLINE bool cpu_code64(const Cpu *c) { return c->mode & MODE_CS64; }
INLINE unsigned cpu_iopl(const Cpu *c) { return c->flags >> 12 & 3; }
/* Error code that names a selector; EXT is set while an external event or exception is delivered. */
INLINE u32 sel_error(const Cpu *c, unsigned sel) { return (sel & 0xfffc) | c->exc.delivering; }
INLINE u64 size_mask(unsigned n) { return n == 8 ? ~0ull : n == 4 ? 0xffffffff : 0xffff; }
INLINE void require_cpl0(Cpu *c) {
    if (unlikely(c->cpl != 0)) exc_gp0(c);
}

/* sys_desc.c */
bool desc_read(Cpu *c, unsigned sel, Desc *d);   /* false: selector outside its table */
bool desc_read16(Cpu *c, unsigned sel, Desc *d); /* the 16-byte system forms of long mode */
_Noreturn void desc_fault(Cpu *c, unsigned vector, unsigned sel);
void desc_read_or_fault(Cpu *c, unsigned sel, Desc *d, unsigned vector);
void desc_mark_accessed(Cpu *c, const Desc *d);
Segment desc_segment(const Desc *d, unsigned sel);
void seg_load(Cpu *c, unsigned seg, unsigned sel); /* MOV/POP/LxS in the current mode */
void seg_set_real(Cpu *c, unsigned seg, unsigned sel);
void seg_set_v86(Cpu *c, unsigned seg, unsigned sel);
void seg_set_null(Cpu *c, unsigned seg, unsigned sel);
void seg_drop_privileged(Cpu *c); /* after a return outwards: data segments the new CPL may not use become null */
void code_check_target(Cpu *c, const Desc *d, unsigned sel, bool by_gate);
void code_check_limit(Cpu *c, const Desc *d, u64 off);
void code_load(Cpu *c, const Desc *d, unsigned sel, unsigned cpl, u64 rip);
/* Reads SS for privilege level dpl as a gate or interrupt does; faults with #TS and #SS. */
Segment stack_segment_inner(Cpu *c, unsigned sel, unsigned dpl, Desc *d);

/* A stack being pushed to or popped from; nothing is committed before stack_commit(). */
typedef struct Stack {
    Segment ss;
    u64 sp;
    u8 size; /* 2, 4 or 8: the width of SP */
    u8 mmu;
    u32 error; /* error code of #SS on a limit violation */
} Stack;
Stack stack_current(Cpu *c);
Stack stack_make(Cpu *c, Segment ss, u64 sp, unsigned cpl, u32 error);
void stack_push(Cpu *c, Stack *s, u64 v, unsigned n);
u64 stack_pop(Cpu *c, Stack *s, unsigned n);
void stack_commit_sp(Cpu *c, const Stack *s);

/* sys_task.c (SDM vol 3A chapter 7) */
enum { TASK_JMP, TASK_CALL, TASK_IRET, TASK_EVENT };
void task_switch(Cpu *c, unsigned tss_sel, const Desc *d, unsigned how, bool has_error, u32 error);
void task_check_gate(Cpu *c, unsigned gate_tss, Desc *d);
void tss_stack(Cpu *c, unsigned dpl, unsigned *ss, u64 *sp);
void io_permission(Cpu *c, unsigned port, unsigned n);

void op_iret(Cpu *c, const Insn *in); /* sys_iret.c */

/* sys_debug.c */
void debug_recheck_tf(Cpu *c);
void debug_note_io(Cpu *c, unsigned port, unsigned n);
void debug_check_gd(Cpu *c);

/* sys_cr.c */
void cr0_write(Cpu *c, u64 v);
void cr3_write(Cpu *c, u64 v);
void cr4_write(Cpu *c, u64 v);
void pdptes_load(Cpu *c, u64 cr3, u64 cr0, u64 cr4);
void efer_write(Cpu *c, u64 v);

/* sys_msr.c; false: #GP(0) */
bool msr_read(Cpu *c, u32 msr, u64 *v);
bool msr_write(Cpu *c, u32 msr, u64 v);

/* Resolve functions of the files, asked by ops_system_resolve(). */
OpFn sys_resolve_segment(Insn *in, u32 mode);
OpFn sys_resolve_far(Insn *in, u32 mode);
OpFn sys_resolve_control(Insn *in, u32 mode);
OpFn sys_resolve_io(Insn *in, u32 mode);
OpFn sys_resolve_flags(Insn *in, u32 mode);
OpFn sys_resolve_fast(Insn *in, u32 mode);
OpFn sys_resolve_ident(Insn *in, u32 mode);

#endif
