/* The log behind -d and -D: a mask tested with one load, and a descriptor that gets whole messages. The bits are those
 * of QPY_LOG_* in api.h. Formatting uses libc: park the guest's FPU first (log_on() itself touches nothing). */
#ifndef QPY_BASE_LOG_H
#define QPY_BASE_LOG_H

#include "base/common.h"

enum {
    LOG_INT = 1 << 0,
    LOG_EXEC = 1 << 1,
    LOG_CPU = 1 << 2,
    LOG_IN_ASM = 1 << 3,
    LOG_CPU_RESET = 1 << 4,
    LOG_GUEST_ERRORS = 1 << 5,
    LOG_MMU = 1 << 6,
    LOG_UNIMP = 1 << 7,
    LOG_FPU = 1 << 8,
    LOG_OUT_ASM = 1 << 9,
    LOG_OP = 1 << 10,
    LOG_NOCHAIN = 1 << 11,
    LOG_PCALL = 1 << 12,
    LOG_HANDLER = 1 << 13,
};

extern u32 log_mask;
#define log_on(bits) unlikely(log_mask &(bits))

void log_set(u32 mask, int fd);
/* -dfilter: with ranges set, only code at linear addresses inside one of them is logged. */
typedef struct LogRange {
    u64 first, last;
} LogRange;
enum { LOG_RANGES_MAX = 64 };
int log_set_ranges(const LogRange *ranges, u32 n);
bool log_wants(u64 lin);
void log_text(const char *text, size_t n);
void log_printf(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
