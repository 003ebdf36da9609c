/* XCHG XADD CMPXCHG CMPXCHG8B CMPXCHG16B: always the host's atomic instruction on guest memory (SDM vol 3A, 8.1). */
#include "interp/int.h"

#define DEF_XCHG(bits)                                                                                                 \
    static void op_xchg_r##bits(Cpu *c, const Insn *in) {                                                              \
        u##bits a = get##bits(c, in->rm), b = get##bits(c, in->reg);                                                   \
        set##bits(c, in->rm, b);                                                                                       \
        set##bits(c, in->reg, a);                                                                                      \
    }                                                                                                                  \
    static void op_xchg_m##bits(Cpu *c, const Insn *in) {                                                              \
        Rmw m;                                                                                                         \
        u##bits *p = rmw_G(c, &m, in, bits / 8), v = get##bits(c, in->reg);                                            \
        asm volatile("xchg %0, %1" : "+r"(v), "+m"(*p) : : "memory");                                                  \
        rmw_end(c, &m);                                                                                                \
        set##bits(c, in->reg, v);                                                                                      \
    }
DEF_XCHG(8)
DEF_XCHG(16)
DEF_XCHG(32)
DEF_XCHG(64)
static const OpFn xchg_table[2][4] = {SIZES(op_xchg_r), SIZES(op_xchg_m)};

/* The sum goes to rm, the old rm to reg; with both the same register the sum wins. */
#define DEF_XADD(bits)                                                                                                 \
    static void op_xadd_r##bits(Cpu *c, const Insn *in) {                                                              \
        u##bits d = get##bits(c, in->rm), s = get##bits(c, in->reg), old = d;                                          \
        u32 ax = 0;                                                                                                    \
        asm("add %[s], %[d]" FLAGS_TO_AX : "+a"(ax), [d] "+r"(d) : [s] "r"(s) : "cc");                                 \
        c->cc = cc_from_ax(ax);                                                                                        \
        set##bits(c, in->reg, old);                                                                                    \
        set##bits(c, in->rm, d);                                                                                       \
    }                                                                                                                  \
    static void op_xadd_m##bits(Cpu *c, const Insn *in) {                                                              \
        Rmw m;                                                                                                         \
        u##bits *p = rmw_G(c, &m, in, bits / 8), v = get##bits(c, in->reg);                                            \
        u32 ax = 0;                                                                                                    \
        asm volatile("lock xadd %[v], %[p]" FLAGS_TO_AX : "+a"(ax), [v] "+r"(v), [p] "+m"(*p) : : "cc", "memory");     \
        rmw_end(c, &m);                                                                                                \
        c->cc = cc_from_ax(ax);                                                                                        \
        set##bits(c, in->reg, v);                                                                                      \
    }
DEF_XADD(8)
DEF_XADD(16)
DEF_XADD(32)
DEF_XADD(64)
static const OpFn xadd_table[2][4] = {SIZES(op_xadd_r), SIZES(op_xadd_m)};

/* Flags are those of CMP accumulator, rm. The accumulator changes only on failure: a 32-bit success keeps RAX whole. */
#define DEF_CMPXCHG(bits)                                                                                              \
    INLINE void compare##bits(Cpu *c, u##bits a, u##bits b) {                                                          \
        u32 ax = 0;                                                                                                    \
        asm("cmp %[b], %[a]" FLAGS_TO_AX : "+a"(ax) : [a] "r"(a), [b] "r"(b) : "cc");                                  \
        c->cc = cc_from_ax(ax);                                                                                        \
    }                                                                                                                  \
    static void op_cmpxchg_r##bits(Cpu *c, const Insn *in) {                                                           \
        u##bits old = get##bits(c, in->rm), acc = get##bits(c, ROFF(R_RAX));                                           \
        compare##bits(c, acc, old);                                                                                    \
        if (acc == old) set##bits(c, in->rm, get##bits(c, in->reg));                                                   \
        else set##bits(c, ROFF(R_RAX), old);                                                                           \
    }                                                                                                                  \
    static void op_cmpxchg_m##bits(Cpu *c, const Insn *in) {                                                           \
        Rmw m;                                                                                                         \
        u##bits *p = rmw_G(c, &m, in, bits / 8);                                                                       \
        u##bits acc = get##bits(c, ROFF(R_RAX)), old = acc, v = get##bits(c, in->reg);                                 \
        asm volatile("lock cmpxchg %[v], %[p]" : "+a"(old), [p] "+m"(*p) : [v] "r"(v) : "cc", "memory");               \
        rmw_end(c, &m);                                                                                                \
        compare##bits(c, acc, old);                                                                                    \
        if (acc != old) set##bits(c, ROFF(R_RAX), old);                                                                \
    }
DEF_CMPXCHG(8)
DEF_CMPXCHG(16)
DEF_CMPXCHG(32)
DEF_CMPXCHG(64)
static const OpFn cmpxchg_table[2][4] = {SIZES(op_cmpxchg_r), SIZES(op_cmpxchg_m)};

static void set_zf(Cpu *c, bool zf) { c->cc = (c->cc & ~(u64)FL_ZF) | (zf ? FL_ZF : 0); }

static void op_cmpxchg8b(Cpu *c, const Insn *in) {
    Rmw m;
    u64 *p = rmw_G(c, &m, in, 8);
    u64 expect = (u64)REG32(c, ROFF(R_RDX)) << 32 | REG32(c, ROFF(R_RAX)), old = expect;
    u64 v = (u64)REG32(c, ROFF(R_RCX)) << 32 | REG32(c, ROFF(R_RBX));
    asm volatile("lock cmpxchg %[v], %[p]" : "+a"(old), [p] "+m"(*p) : [v] "r"(v) : "cc", "memory");
    rmw_end(c, &m);
    set_zf(c, old == expect);
    if (old == expect) return;
    set32(c, ROFF(R_RAX), (u32)old);
    set32(c, ROFF(R_RDX), (u32)(old >> 32));
}

/* A misaligned operand is #GP, so 16 bytes never cross a page. */
static void op_cmpxchg16b(Cpu *c, const Insn *in) {
    u64 ea = insn_ea(c, in), buf[2] __attribute__((aligned(16)));
    if (seg_lin_w(c, in->seg, ea, 16) & 15) exc_gp0(c);
    void *p = st_wide_begin(c, in->seg, ea, 16, buf);
    if (p == buf) {
        buf[0] = ld64(c, in->seg, ea);
        buf[1] = ld64(c, in->seg, ea + 8);
    }
    u64 lo = c->r[R_RAX], hi = c->r[R_RDX];
    bool zf;
    asm volatile("lock cmpxchg16b %[p]"
                 : "+a"(lo), "+d"(hi), [p] "+m"(*(unsigned __int128 *)p), "=@ccz"(zf)
                 : "b"(c->r[R_RBX]), "c"(c->r[R_RCX])
                 : "memory");
    st_wide_end(c, in->seg, ea, 16, buf, p);
    set_zf(c, zf);
    if (zf) return;
    c->r[R_RAX] = lo;
    c->r[R_RDX] = hi;
}

OpFn int_xchg_resolve(Insn *in, u32 mode) {
    unsigned mem = in->flags & INF_MEM ? 1 : 0;
    switch (in->op) {
    case ZYDIS_MNEMONIC_XCHG: return xchg_table[mem][size_index(in->osz)];
    case ZYDIS_MNEMONIC_XADD: return xadd_table[mem][size_index(in->osz)];
    case ZYDIS_MNEMONIC_CMPXCHG: return cmpxchg_table[mem][size_index(in->osz)];
    case ZYDIS_MNEMONIC_CMPXCHG8B: return op_cmpxchg8b;
    case ZYDIS_MNEMONIC_CMPXCHG16B: return op_cmpxchg16b;
    default: return NULL;
    }
}
