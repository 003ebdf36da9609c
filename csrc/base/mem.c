/* Our own memcpy and friends, without vector registers: gcc calls them wherever it likes, also in the light floors,
 * where the vector registers are the guest's (libc's versions use them). Hidden, so that only the core is bound to
 * them. */
#include <stddef.h>

#define OURS __attribute__((visibility("hidden"), used))

OURS void *memcpy(void *restrict to, const void *restrict from, size_t n) {
    void *start = to;
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
    return start;
}

OURS void *memmove(void *to, const void *from, size_t n) {
    if ((size_t)((char *)to - (const char *)from) >= n) return memcpy(to, from, n);
    char *end = (char *)to + n - 1;
    const char *last = (const char *)from + n - 1;
    __asm__ volatile("std; rep movsb; cld" : "+D"(end), "+S"(last), "+c"(n) : : "memory");
    return to;
}

OURS void *memset(void *to, int value, size_t n) {
    void *start = to;
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(n) : "a"(value) : "memory");
    return start;
}

OURS int memcmp(const void *one, const void *other, size_t n) {
    const unsigned char *a = one, *b = other;
    for (size_t i = 0; i < n; i++)
        if (a[i] != b[i]) return a[i] - b[i];
    return 0;
}
