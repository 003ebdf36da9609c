/* Text of guest code, for -d in_asm and the monitor's x/i. */
#ifndef QPY_DECODE_DISASM_H
#define QPY_DECODE_DISASM_H

#include "base/common.h"

/* One instruction at rip in AT&T syntax (as QEMU prints it) into out; bits: 16, 32 or 64. Returns its length, or 0 if
 * the n bytes do not hold a valid instruction ("(bad)" is written then). Uses libc: park the guest's FPU first. */
int disasm(unsigned bits, u64 rip, const u8 *bytes, unsigned n, char *out, size_t size);

#endif
