/* Base vocabulary of the core: integer types, hints, bit helpers. Includes nothing of ours. */
#ifndef QPY_BASE_COMMON_H
#define QPY_BASE_COMMON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int8_t i8;
typedef int16_t i16;
typedef int32_t i32;
typedef int64_t i64;

#define likely(x)    __builtin_expect(!!(x), 1)
#define unlikely(x)  __builtin_expect(!!(x), 0)
#define COLD         __attribute__((noinline, cold))
#define NOINLINE     __attribute__((noinline))
#define INLINE       static inline __attribute__((always_inline))
#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))
#define BIT(n)       (1ull << (n))

/* Bits hi..lo of x, right-aligned. */
#define BITS(x, hi, lo) (((x) >> (lo)) & (BIT((hi) - (lo) + 1) - 1))

#define PAGE_SIZE 4096ull
#define PAGE_MASK (~(PAGE_SIZE - 1))
#define PAGE_BITS 12

#define CACHE_LINE 64u

#endif
