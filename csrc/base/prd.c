/* Bus masters' descriptor tables. In C because a request has a descriptor for each of its pages. */
#include "base/prd.h"

static u64 size_of(u64 prd) {
    u64 size = prd >> 32 & 0xfffe;
    return size ? size : 0x10000;
}

u32 prd_pairs(const u64 *prd, u32 n, u64 wanted, u64 *pairs, u64 *room, bool *ended) {
    u32 count = 0;
    *room = 0;
    *ended = false;
    while (count < n && !*ended && *room < wanted) {
        *pairs++ = prd[count] & 0xfffffffe;
        *room += *pairs++ = size_of(prd[count]);
        *ended = prd[count++] >> 63;
    }
    return count;
}
