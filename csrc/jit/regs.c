/* Guest r12 to r15 have no host register of their own but a slot, Cpu.r. Between instructions that leave r13 to r15
 * alone these keep the last values, so that a chain of operations does not wait for stores to be forwarded. Writes
 * reach the slots late: before anything that may look at them, which is everything but an operation between registers.
 */
#include "jit/trans.h"

#include <assert.h>

static void flush_host(Trans *t, unsigned i) {
    if (t->late >> i & 1) asm_store(&t->a, slot(t, t->held[i]), R13 + i);
    t->late &= (u8) ~(1u << i);
}

unsigned held_find(const Trans *t, unsigned n) {
    for (unsigned i = 0; i < 3; i++)
        if (t->held[i] == n) return R13 + i;
    return NO_REG;
}

unsigned held_get(Trans *t, unsigned n, bool load, unsigned avoid) {
    unsigned host = held_find(t, n), first = t->group.on ? 1 : 0;
    if (host != NO_REG) return host;
    for (unsigned i = first; i < 3 && host == NO_REG; i++)
        if (t->held[i] == NO_REG && R13 + i != avoid) host = R13 + i;
    while (host == NO_REG) {
        t->victim = (t->victim + 1) % 3;
        if (t->victim >= first && R13 + t->victim != avoid) host = R13 + t->victim;
    }
    flush_host(t, host - R13);
    if (load) asm_load(&t->a, host, slot(t, n));
    t->held[host - R13] = (u8)n;
    return host;
}

void held_wrote(Trans *t, unsigned host) { t->late |= 1u << (host - R13); }

void held_flush(Trans *t) {
    for (unsigned i = 0; i < 3; i++) flush_host(t, i);
}

void held_drop(Trans *t) {
    held_flush(t);
    t->held[0] = t->held[1] = t->held[2] = NO_REG;
}

void held_drop_host(Trans *t, unsigned host) {
    assert(!(t->late >> (host - R13) & 1));
    t->held[host - R13] = NO_REG;
}

void held_forget(Trans *t, unsigned n) {
    for (unsigned i = 0; i < 3; i++)
        if (t->held[i] == n) held_drop_host(t, R13 + i);
}

void held_reload(Trans *t, const u8 held[3]) {
    for (unsigned i = 0; i < 3; i++)
        if (held[i] != NO_REG) asm_load(&t->a, R13 + i, slot(t, held[i]));
}
