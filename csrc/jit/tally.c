/* Handler calls by instruction; see tally.h. */
#include "jit/tally.h"

static u32 kind_of(const Insn *in) {
    u32 what = in->op | (u32)in->opcode << 19 | (u32)(in->map & 3) << 27;
    if (in->flags & INF_MEM) what |= TALLY_MEM;
    if (in->flags & INF_LOCK) what |= TALLY_LOCK;
    if (in->flags & (INF_REP | INF_REPNE)) what |= TALLY_REP;
    return what;
}

void tally_add(Tally *t, const Insn *in) {
    u32 what = kind_of(in), i = what * 0x9e3779b1u >> 22;
    for (; t->entry[i].calls; i = (i + 1) & (TALLY_SIZE - 1))
        if (t->entry[i].what == what) {
            t->entry[i].calls++;
            return;
        }
    if (t->n == TALLY_SIZE - 1) return;
    t->n++;
    t->entry[i] = (TallyEntry){1, what};
}
