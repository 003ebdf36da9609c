/* The debug registers' breakpoints (Intel SDM vol 3B, 17.2.4, 17.2.5): n = 0 to 3, armed by DR7.L or G. */
#ifndef QPY_CPU_DEBUGREG_H
#define QPY_CPU_DEBUGREG_H

#include "cpu/cpu.h"

enum { DR_EXECUTE, DR_WRITE, DR_IO, DR_ACCESS }; /* DR7.R/W */

INLINE bool dr_armed(const Cpu *c, unsigned n) { return c->dr[7] >> (2 * n) & 3; }
INLINE bool dr_any_armed(const Cpu *c) { return c->dr[7] & 0xff; }
INLINE unsigned dr_kind(const Cpu *c, unsigned n) { return c->dr[7] >> (16 + 4 * n) & 3; }

/* Does it meet the n bytes at this address (port, where it is DR_IO)? The address is taken as aligned to the length. */
INLINE bool dr_meets(const Cpu *c, unsigned i, u64 at, unsigned n) {
    static const u8 lens[4] = {1, 2, 8, 4};
    unsigned len = lens[c->dr[7] >> (18 + 4 * i) & 3];
    u64 begin = c->dr[i] & ~(u64)(len - 1);
    return at < begin + len && begin < at + n;
}

/* Is an instruction (or, if not, data) in the page of lin watched? */
INLINE bool dr_in_page(const Cpu *c, u64 lin, bool instruction) {
    for (unsigned i = 0; i < 4; i++) {
        bool kind = instruction ? dr_kind(c, i) == DR_EXECUTE : dr_kind(c, i) & DR_WRITE;
        if (dr_armed(c, i) && kind && !((c->dr[i] ^ lin) & PAGE_MASK)) return true;
    }
    return false;
}

#endif
