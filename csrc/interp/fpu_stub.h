/* Native stubs: tiny functions in executable memory, each holding one guest x87 or vector instruction re-encoded for
 * the host. Its memory operand is [rdi], its general-register operand rcx; the guest's FPU state is live when one runs.
 * Identical stubs are shared. Host faults inside a stub are guest exceptions (CORE 4). */
#ifndef QPY_INTERP_FPU_STUB_H
#define QPY_INTERP_FPU_STUB_H

#include "interp/fpu_ops.h"

/* rax: EAX for PCMPESTRx, or guest flags << 8 for FCMOVcc; cpu: whom a host fault belongs to. What it returns depends
 * on the stub's tail. */
typedef u64 (*StubFn)(void *mem, u64 rax, u64 rdx, u64 rcx, Cpu *c);
#define STUB(in) ((StubFn)(in)->stub)

/* What a stub hands back in rax. */
enum {
    TAIL_NONE,
    TAIL_RAX,   /* as the instruction left it (FNSTSW AX) */
    TAIL_GPR,   /* rcx */
    TAIL_FLAGS, /* RFLAGS */
    TAIL_BOTH,  /* RFLAGS << 32 | ecx (PCMPxSTRI) */
};
/* What happens before the instruction. */
enum { HEAD_NONE, HEAD_RAX /* rax = second argument */, HEAD_SAHF /* and AH to the flags */ };

/* The stub for these instruction bytes; NULL only when code memory cannot be had or is used up. */
void *stub_get(const u8 *insn, unsigned len, unsigned head, unsigned tail);

/* Re-encodes the guest instruction as above; returns the length. */
unsigned stub_encode(const ZydisDecodedInstruction *zi, const u8 *bytes, const NativeForm *form, u8 *out);
/* The same with [rm + disp], or form's index too, for its memory operand (rm not rsp or r12), host registers rm and reg
 * for general ones. */
unsigned stub_encode_to(const ZydisDecodedInstruction *zi, const u8 *bytes, const NativeForm *form, unsigned rm,
                        i32 disp, unsigned reg, u8 *out);

/* Host registers <-> memory for one vector register; n bytes = 16 or 32 (low part; a 16-byte load keeps the rest). */
void stub_vec_store(Cpu *c, unsigned reg, void *to, unsigned n);
void stub_vec_load(Cpu *c, unsigned reg, const void *from, unsigned n);

#endif
