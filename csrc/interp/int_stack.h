/* Pushing and popping (SDM vol 1, 6.2): the pointer is SP, ESP or RSP by Insn.ssz and only moves once the access has
 * succeeded. */
#ifndef QPY_INTERP_INT_STACK_H
#define QPY_INTERP_INT_STACK_H

#include "interp/int.h"

INLINE u64 sp_mask(const Insn *in, u64 sp) { return in->ssz == 8 ? sp : in->ssz == 4 ? (u32)sp : (u16)sp; }
INLINE void sp_set(Cpu *c, const Insn *in, u64 sp) { set_n(c, ROFF(R_RSP), sp, in->ssz); }
INLINE void sp_add(Cpu *c, const Insn *in, u64 n) { sp_set(c, in, c->r[R_RSP] + n); }

/* n bytes at stack offset off from the stack pointer. */
INLINE u64 stack_read(Cpu *c, const Insn *in, i64 off, unsigned n) {
    return ld_n(c, SEG_SS, sp_mask(in, c->r[R_RSP] + (u64)off), n);
}
INLINE void stack_write(Cpu *c, const Insn *in, i64 off, u64 v, unsigned n) {
    st_n(c, SEG_SS, sp_mask(in, c->r[R_RSP] + (u64)off), v, n);
}
INLINE void push_n(Cpu *c, const Insn *in, u64 v, unsigned n) {
    stack_write(c, in, -(i64)n, v, n);
    sp_add(c, in, -(u64)n);
}
INLINE u64 pop_n(Cpu *c, const Insn *in, unsigned n) {
    u64 v = stack_read(c, in, 0, n);
    sp_add(c, in, n);
    return v;
}

/* Flat stacks: 64-bit mode's, and a 32-bit one (F). */
INLINE bool stack_flat32(const Insn *in, u32 mode) {
    return (mode & (MODE_FLAT | MODE_CS64)) == MODE_FLAT && in->ssz == 4 && in->osz == 4;
}
INLINE void push32(Cpu *c, u32 v) {
    u32 sp = (u32)c->r[R_RSP] - 4;
    stl32(c, SEG_SS, sp, v);
    c->r[R_RSP] = sp;
}
INLINE void push64(Cpu *c, u64 v) {
    u64 sp = c->r[R_RSP] - 8;
    stl64(c, SEG_SS, sp, v);
    c->r[R_RSP] = sp;
}

#endif
