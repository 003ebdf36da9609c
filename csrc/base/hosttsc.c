/* May the host's time-stamp counter carry a clock? See hosttsc.h. */
#include "base/hosttsc.h"

#include <cpuid.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define CLOCKSOURCE "/sys/devices/system/clocksource/clocksource0/current_clocksource"

static bool is_invariant(void) {
    unsigned a, b, c, d;
    return __get_cpuid(0x80000007, &a, &b, &c, &d) && d & BIT(8);
}

/* Under KVM the kernel's clock is the same counter, scaled by the hypervisor. */
static bool kernel_trusts_it(void) {
    char name[32] = "";
    int fd = open(CLOCKSOURCE, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return false;
    ssize_t n = read(fd, name, sizeof name - 1);
    close(fd);
    return n > 0 && (!strcmp(name, "tsc\n") || !strcmp(name, "kvm-clock\n"));
}

bool host_tsc_usable(void) {
    static int known; /* 0: not yet asked */
    if (!known) known = is_invariant() && kernel_trusts_it() ? 1 : -1;
    return known > 0;
}
