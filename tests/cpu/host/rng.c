/* Random numbers and start states. Edge values matter more than uniform ones. */
#include "harness.h"

#include <string.h>

u64 rng_state = 1;

u64 rnd(void) { /* splitmix64 */
    u64 z = rng_state += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

static u64 rnd_int(void) {
    static const u64 edges[] = {0,
                                1,
                                2,
                                0x7f,
                                0x80,
                                0xff,
                                0x7fff,
                                0x8000,
                                0xffff,
                                0x7fffffff,
                                0x80000000u,
                                0xffffffffu,
                                0x7fffffffffffffffull,
                                0x8000000000000000ull,
                                ~0ull,
                                0xaaaaaaaaaaaaaaaaull};
    u64 v = rnd();
    switch (below(4)) {
    case 0: return edges[below(ARRAY_LEN(edges))];
    case 1: return v >> below(64);
    case 2: return edges[below(ARRAY_LEN(edges))] + (v & 3) - 1;
    default: return v;
    }
}

static u32 rnd_f32(void) {
    static const u32 edges[] = {0,          0x80000000, 0x3f800000, 0xbf800000, 0x7f800000, 0xff800000,
                                0x7fc00000, 0x7f800001, 0xffa00000, 1,          0x807fffff, 0x00800000,
                                0x7f7fffff, 0x4f000000, 0xcf000000, 0x5f000000};
    if (chance(50)) return edges[below(ARRAY_LEN(edges))];
    return chance(50) ? (u32)rnd() : (u32)(rnd() & 0x807fffff) | (120 + below(16)) << 23;
}

static u64 rnd_f64(void) {
    static const u64 edges[] = {0,
                                1ull << 63,
                                0x3ff0000000000000,
                                0xbff0000000000000,
                                0x7ff0000000000000,
                                0xfff0000000000000,
                                0x7ff8000000000000,
                                0x7ff0000000000001,
                                0xfff4000000000000,
                                1,
                                0x800fffffffffffff,
                                0x0010000000000000,
                                0x7fefffffffffffff,
                                0x41dfffffffc00000,
                                0xc1e0000000000000,
                                0x43e0000000000000};
    if (chance(50)) return edges[below(ARRAY_LEN(edges))];
    return chance(50) ? rnd() : (rnd() & 0x800fffffffffffff) | (u64)(1015 + below(16)) << 52;
}

static void put_f80(u8 *p) {
    static const u16 exps[] = {0, 1, 0x3ffe, 0x3fff, 0x4000, 0x403e, 0x7ffe, 0x7fff};
    u64 mant = chance(30) ? 1ull << 63 : chance(30) ? 0 : rnd();
    u16 exp = chance(70) ? exps[below(ARRAY_LEN(exps))] : (u16)(rnd() & 0x7fff);
    if (exp && chance(85)) mant |= 1ull << 63;
    memcpy(p, &mant, 8);
    exp |= (u16)(rnd() & 0x8000);
    memcpy(p + 8, &exp, 2);
}

/* n bytes of one flavour: integers, single or double values. */
static void fill(u8 *p, unsigned n) {
    unsigned flavour = below(3);
    for (unsigned i = 0; i < n; i += 8) {
        u64 v = flavour == 0 ? rnd_int() : flavour == 1 ? rnd_f64() : rnd_f32() | (u64)rnd_f32() << 32;
        memcpy(p + i, &v, 8);
    }
}

static void fp_random(u8 *fp) {
    memset(fp, 0, FP_BYTES);
    u16 fcw = 0x40 | (chance(90) ? 0x3f : (u16)(rnd() & 0x3f)) | (u16)(below(4) << 8) | (u16)(below(4) << 10);
    u16 fsw = (u16)(rnd() & 0x4700) | (u16)(below(8) << 11) | (chance(50) ? 0 : (u16)(rnd() & 0x7f));
    if (fsw & ~fcw & 0x3f && chance(70)) fsw &= (u16)~0x3f; /* seldom with an exception pending */
    if (fsw & ~fcw & 0x3f) fsw |= 0x8080;
    *(u16 *)fp = fcw;
    *(u16 *)(fp + 2) = fsw;
    fp[4] = chance(50) ? 0xff : (u8)rnd();
    *(u32 *)(fp + 24) = (chance(90) ? 0x1f80 : (u32)(rnd() & 0x1f80)) | (chance(50) ? 0 : (u32)(rnd() & 0xe07f));
    *(u32 *)(fp + 28) = 0xffff;
    for (unsigned i = 0; i < 8; i++) put_f80(fp + 32 + 16 * i);
    for (unsigned i = 0; i < 16; i++) fill(fp + 160 + 16 * i, 16);
    for (unsigned i = 0; i < 16; i++) fill(fp + FP_YMMH + 16 * i, 16);
    *(u64 *)(fp + 512) = 7;
}

void state_random(State *st) {
    for (unsigned i = 0; i < 16; i++) st->gpr[i] = rnd_int();
    st->flags = (rnd() & FL_CC) | 2 | (chance(8) ? FL_AC : 0);
    for (unsigned i = 0; i < DATA_BYTES; i += 64) fill(st->mem + i, 64);
    for (unsigned i = 0; i < 16; i++) put_f80(st->mem + below(DATA_BYTES - 16));
    fp_random(st->fp);
    st->rip = CODE_VA + 512;
    st->trap = NO_TRAP;
    st->error = 0;
    st->fault_addr = 0;
}
