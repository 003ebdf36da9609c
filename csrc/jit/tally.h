/* Which instructions translated code leaves to their handlers, and how often: counted only while -d handler is on, by a
 * function that takes run_handler()'s place, so that normal runs pay nothing. */
#ifndef QPY_JIT_TALLY_H
#define QPY_JIT_TALLY_H

#include "decode/insn.h"

enum { TALLY_SIZE = 1024, TALLY_MEM = 1 << 16, TALLY_LOCK = 1 << 17, TALLY_REP = 1 << 18 };
typedef struct TallyEntry {
    u64 calls;
    u32 what; /* mnemonic | TALLY_* | opcode << 19 | map << 27 */
} TallyEntry;
typedef struct Tally {
    u32 n;
    TallyEntry entry[TALLY_SIZE]; /* open addressing; calls == 0: free */
} Tally;

void tally_add(Tally *t, const Insn *in); /* kinds met when the table is full go uncounted */
/* "lock xadd mem (0f c1)" */
void tally_name(u32 what, char *out, size_t size);

#endif
