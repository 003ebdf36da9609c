/* Tables of physical region descriptors, by which a bus master is told its memory ("Programming Interface for Bus
 * Master IDE Controller" rev. 1.0, 1.2):
 *
 *     63   62......48   47.......33  32   31.............1   0
 *     end   reserved   bytes, even   0    address, even      0      0 bytes mean 64 KiB
 */
#ifndef QPY_BASE_PRD_H
#define QPY_BASE_PRD_H

#include "base/common.h"

/* Descriptors as pairs of address and size, up to the end mark or until there is room for `wanted` bytes; pairs has
 * room for n of them. How many; *room: their bytes; *ended: there was the end mark. */
u32 prd_pairs(const u64 *prd, u32 n, u64 wanted, u64 *pairs, u64 *room, bool *ended);

#endif
