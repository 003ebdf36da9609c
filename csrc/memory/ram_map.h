/* The whole RAM space out of a file: mapped copy-on-write, read, or put back to what it was (ram_map.c). */
#ifndef QPY_MEMORY_RAM_MAP_H
#define QPY_MEMORY_RAM_MAP_H

#include "memory/state.h"

/* Bytes of the RAM space that lie in a file; all page aligned (same layout as QpyRamExtent). What no extent covers is
 * zero. Tables of them are sorted by ram_off and do not overlap. */
typedef struct RamExtent {
    u64 ram_off, size, file_off;
    i32 fd;
} RamExtent;

int ram_load(Machine *m, const RamExtent *extents, u32 n, bool map);
i64 ram_restore(Machine *m, int client, const RamExtent *extents, u32 n, u64 limit);
/* One byte for each granule (page aligned): whether it holds anything but zeros. -EIO: a page cannot be read. */
int ram_nonzero(Machine *m, u64 ram_off, u64 size, u64 granule, u8 *out);
int ram_detach(Machine *m, u64 ram_off, u64 size);

#endif
