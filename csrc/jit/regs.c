/* Guest r12 to r15 have no host register of their own. Every write goes to Cpu.r at once; between instructions that
 * leave r13 to r15 alone these keep the last values, so that a chain of operations does not wait for stores to be
 * forwarded. */
#include "jit/trans.h"

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
    if (load) asm_load(&t->a, host, slot(t, n));
    t->held[host - R13] = (u8)n;
    return host;
}

void held_drop(Trans *t) { t->held[0] = t->held[1] = t->held[2] = NO_REG; }

void held_drop_host(Trans *t, unsigned host) { t->held[host - R13] = NO_REG; }

void held_forget(Trans *t, unsigned n) {
    for (unsigned i = 0; i < 3; i++)
        if (t->held[i] == n) t->held[i] = NO_REG;
}

void held_reload(Trans *t, const u8 held[3]) {
    for (unsigned i = 0; i < 3; i++)
        if (held[i] != NO_REG) asm_load(&t->a, R13 + i, slot(t, held[i]));
}
