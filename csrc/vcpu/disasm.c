/* Text of instructions for the monitor's x/i. */
#include "api.h"
#include "decode/disasm.h"

int qpy_disassemble(uint64_t rip, int bits, const void *code, size_t n, char *out, size_t out_size) {
    return disasm((unsigned)bits, rip, code, n > 15 ? 15 : (unsigned)n, out, out_size);
}
