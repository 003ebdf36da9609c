/* What the files that implement x87 and vector instructions share. */
#ifndef QPY_INTERP_FPU_OPS_H
#define QPY_INTERP_FPU_OPS_H

#include <Zydis/Zydis.h>

#include "cpu/fpu.h"
#include "interp/ops.h"

/* What re-encoding and the choice of a handler need to know of the operands. */
typedef struct NativeForm {
    bool rm_gpr, reg_gpr; /* that ModRM field names a general register */
    bool gpr_written;
    bool is4; /* the immediate names a vector register */
    bool mem_written;
    bool xmm, mmx; /* has such an operand */
    u8 mem_bytes;  /* 0: no memory operand */
    u8 gpr;        /* byte offset of the general register in Cpu.r */
    bool indexed;  /* the new memory operand has these */
    u8 index, scale;
} NativeForm;

/* Memory operand of native instructions, packed by the resolver: in->osz = bytes, in->imm8b = bits of the linear
 * address that must be zero, in->reg = the general register. */

/* interp/fpu_native.c */
void op_native_reg(Cpu *c, const Insn *in);
void op_native_load(Cpu *c, const Insn *in);
void op_native_store(Cpu *c, const Insn *in);
void op_native_gpr_in(Cpu *c, const Insn *in);
void op_native_gpr_out(Cpu *c, const Insn *in);
void op_native_load_gpr_out(Cpu *c, const Insn *in);
void op_native_flags(Cpu *c, const Insn *in);
void op_native_load_flags(Cpu *c, const Insn *in);
void op_native_pcmpstr(Cpu *c, const Insn *in);
void op_vzero_low(Cpu *c, const Insn *in);
void op_movnti(Cpu *c, const Insn *in);

/* interp/fpu_x87.c: like the above, and track the instruction and operand pointers. */
void op_x87_reg(Cpu *c, const Insn *in);
void op_x87_load(Cpu *c, const Insn *in);
void op_x87_store(Cpu *c, const Insn *in);
void op_x87_flags(Cpu *c, const Insn *in);
void op_x87_cmov(Cpu *c, const Insn *in);
/* MMX instructions wait for pending x87 exceptions too. */
void op_mmx_load(Cpu *c, const Insn *in);
void op_mmx_store(Cpu *c, const Insn *in);
/* Control instructions, which leave the pointers alone. */
void op_fldcw(Cpu *c, const Insn *in);
void op_fninit(Cpu *c, const Insn *in);
void op_fnclex(Cpu *c, const Insn *in);
void op_fnstsw_ax(Cpu *c, const Insn *in);
/* Raises #MF (or FERR#) if an unmasked x87 exception is pending: for waiting instructions not executed natively. */
void x87_wait(Cpu *c);

/* interp/fpu_env.c */
void op_fnstenv(Cpu *c, const Insn *in);
void op_fldenv(Cpu *c, const Insn *in);
void op_fnsave(Cpu *c, const Insn *in);
void op_frstor(Cpu *c, const Insn *in);

/* interp/fpu_xsave.c; osz is 8 for the REX.W forms */
void op_fxsave(Cpu *c, const Insn *in);
void op_fxrstor(Cpu *c, const Insn *in);
void op_xsave(Cpu *c, const Insn *in);
void op_xsaveopt(Cpu *c, const Insn *in);
void op_xsavec(Cpu *c, const Insn *in);
void op_xrstor(Cpu *c, const Insn *in);
void op_ldmxcsr(Cpu *c, const Insn *in);
void op_stmxcsr(Cpu *c, const Insn *in);

/* interp/fpu_masked.c */
void op_vmaskmov_load(Cpu *c, const Insn *in);  /* osz: element bytes; reg = destination, reg2 = mask */
void op_vmaskmov_store(Cpu *c, const Insn *in); /* reg = source, reg2 = mask */
void op_maskmovdqu(Cpu *c, const Insn *in);     /* reg = source, rm = mask */
void op_maskmovq(Cpu *c, const Insn *in);
void op_gather(Cpu *c, const Insn *in);

void op_nm(Cpu *c, const Insn *in);

/* A host exception hit a stub that ran for c: deliver the guest's. Entered from the signal handler's return. */
_Noreturn void fpu_host_fault(Cpu *c, unsigned trap);
#endif
