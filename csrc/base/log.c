/* The log (log.h). A message is built on the stack and written in one go, so that lines of different threads never mix.
 */
#include "base/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

u32 log_mask;
static int log_fd = 2;
static LogRange log_ranges[LOG_RANGES_MAX];
static u32 n_log_ranges;

/* Before the first vCPU runs. */
int log_set_ranges(const LogRange *ranges, u32 n) {
    if (n > LOG_RANGES_MAX) return -E2BIG;
    for (u32 i = 0; i < n; i++) log_ranges[i] = ranges[i];
    n_log_ranges = n;
    return 0;
}

bool log_wants(u64 lin) {
    for (u32 i = 0; i < n_log_ranges; i++)
        if (lin >= log_ranges[i].first && lin <= log_ranges[i].last) return true;
    return !n_log_ranges;
}

void log_set(u32 mask, int fd) {
    log_fd = fd;
    log_mask = mask;
}

void log_text(const char *text, size_t n) {
    while (n) {
        ssize_t done = write(log_fd, text, n);
        if (done <= 0) return; /* a full disk or closed pipe must not stop the guest */
        text += done;
        n -= (size_t)done;
    }
}

void log_printf(const char *format, ...) {
    char text[4096];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (n > 0) log_text(text, (size_t)n < sizeof text ? (size_t)n : sizeof text - 1);
}
