/* MOVS STOS LODS SCAS CMPS with and without REP (SDM vol 2; vol 1, 7.3.9).
 *
 * A repeated instruction works in pieces of at most a page. Registers are updated after every piece; between pieces
 * pending work is looked at, and if there is any, rip goes back to the instruction, which then goes on where it
 * stopped. A piece whose pages are plain RAM is one host string instruction or one tight loop; anything else (MMIO, a
 * page with code, a fault to raise, an element across pages, DF=1) goes element by element through the MMU. */
#include "interp/int.h"
#include "interp/block.h"

#define SLOW_PIECE 256u

/* The running state of one string instruction. */
typedef struct Str {
    u64 si, di, count; /* masked to the address size */
    i64 step;
    unsigned n;
    bool rep;
} Str;

INLINE u64 amask(const Insn *in) { return in->asz == 8 ? ~0ull : in->asz == 4 ? 0xffffffffu : 0xffffu; }

static void str_begin(const Cpu *c, const Insn *in, Str *s) {
    s->n = in->osz;
    s->rep = in->flags & (INF_REP | INF_REPNE);
    s->si = c->r[R_RSI] & amask(in);
    s->di = c->r[R_RDI] & amask(in);
    s->count = s->rep ? c->r[R_RCX] & amask(in) : 1;
    s->step = c->flags & FL_DF ? -(i64)s->n : (i64)s->n;
}

/* done elements are finished: move the registers this instruction uses. */
static void str_advance(Cpu *c, const Insn *in, Str *s, u64 done, bool si, bool di) {
    u64 m = amask(in);
    s->count -= done;
    s->si = (s->si + done * (u64)s->step) & m;
    s->di = (s->di + done * (u64)s->step) & m;
    if (si) set_n(c, ROFF(R_RSI), s->si, in->asz);
    if (di) set_n(c, ROFF(R_RDI), s->di, in->asz);
    if (!s->rep) return;
    set_n(c, ROFF(R_RCX), s->count, in->asz);
    c->icount += done; /* an iteration counts as an instruction */
}

/* After a piece: true to go on at once. Else rip says whether the instruction is finished. */
static bool str_more(Cpu *c, const Insn *in, const Str *s) {
    if (!s->count) {
        if (s->rep) c->icount--; /* the run loop counts the instruction itself */
        return false;
    }
    bool on = likely(!cpu_attention(c)) && !(c->mode & MODE_STEP) && !c->leave_block;
    if (on && interp_icount(c) < c->interp->budget_end) return true;
    c->r[R_RIP] -= in->len;
    c->icount--;
    return false;
}

/* Bytes from off upward that segment seg allows, without raising. */
static u64 seg_room(const Cpu *c, unsigned seg, u64 off, bool write) {
    if ((write ? c->seg_wok : c->seg_rok) >> seg & 1) return ~0ull;
    const Segment *s = &c->seg[seg];
    if (!(s->rights & SR_P) || !(s->rights & SR_S) || off > s->limit) return 0;
    bool code = s->rights & SR_CODE;
    if (!code && s->rights & SR_DC) return 0; /* expand-down: leave it to the exact check */
    if (write ? code || !(s->rights & SR_RW) : code && !(s->rights & SR_RW)) return 0;
    return s->limit - off + 1;
}

/* Elements that one upward piece may cover on one side: page, address wrap, segment limit. */
static u64 side_elements(const Cpu *c, const Insn *in, unsigned seg, u64 off, bool write, unsigned n) {
    u64 lin = (c->ea_base[seg] + off) & c->lin_mask, bytes = PAGE_SIZE - (lin & ~PAGE_MASK);
    u64 wrap = amask(in) - off, room = seg_room(c, seg, off, write);
    if (wrap < bytes - 1) bytes = wrap + 1;
    if (room < bytes) bytes = room;
    return bytes / n;
}

static u64 piece_elements(const Cpu *c, const Str *s) {
    if (s->step < 0 || c->mode & MODE_STEP) return 0;
    u64 k = s->count, budget = c->interp->budget_end - interp_icount(c);
    return k < budget ? k : budget;
}

static u8 *host_r(Cpu *c, unsigned seg, u64 off, u64 bytes) {
    return tlb_hit_r(c->tlb, (c->ea_base[seg] + off) & c->lin_mask, (unsigned)bytes);
}
static u8 *host_w(Cpu *c, unsigned seg, u64 off, u64 bytes) {
    return tlb_hit_w(c->tlb, (c->ea_base[seg] + off) & c->lin_mask, (unsigned)bytes);
}

/* How many elements to do one by one: enough to get on, few enough to look up again soon. */
static u64 slow_elements(const Cpu *c, const Insn *in, const Str *s) {
    if (c->mode & MODE_STEP) return 1;
    if (s->step > 0) return 1;
    u64 k = s->count < SLOW_PIECE ? s->count : SLOW_PIECE, budget = c->interp->budget_end - interp_icount(c);
    return k < budget || !budget ? k : budget;
}

/* MOVS */

static void copy_up(u8 *d, const u8 *s, u64 k, unsigned n) {
    switch (n) {
    case 1: asm volatile("rep movsb" : "+D"(d), "+S"(s), "+c"(k) : : "memory"); break;
    case 2: asm volatile("rep movsw" : "+D"(d), "+S"(s), "+c"(k) : : "memory"); break;
    case 4: asm volatile("rep movsl" : "+D"(d), "+S"(s), "+c"(k) : : "memory"); break;
    default: asm volatile("rep movsq" : "+D"(d), "+S"(s), "+c"(k) : : "memory"); break;
    }
}

static u64 movs_fast(Cpu *c, const Insn *in, const Str *s) {
    u64 k = piece_elements(c, s), a, b;
    if (k <= 1) return 0;
    a = side_elements(c, in, in->seg, s->si, false, s->n);
    b = side_elements(c, in, SEG_ES, s->di, true, s->n);
    if (a < k) k = a;
    if (b < k) k = b;
    if (!k) return 0;
    const u8 *src = host_r(c, in->seg, s->si, k * s->n);
    u8 *dst = host_w(c, SEG_ES, s->di, k * s->n);
    if (!src || !dst) return 0;
    copy_up(dst, src, k, s->n);
    return k;
}

static void op_movs(Cpu *c, const Insn *in) {
    Str s;
    str_begin(c, in, &s);
    if (!s.count) return;
    do {
        u64 k = movs_fast(c, in, &s);
        if (k) {
            str_advance(c, in, &s, k, true, true);
            continue;
        }
        for (k = slow_elements(c, in, &s); k; k--) {
            st_n(c, SEG_ES, s.di, ld_n(c, in->seg, s.si, s.n), s.n);
            str_advance(c, in, &s, 1, true, true);
        }
    } while (str_more(c, in, &s));
}

/* STOS */

static void fill_up(u8 *d, u64 v, u64 k, unsigned n) {
    switch (n) {
    case 1: asm volatile("rep stosb" : "+D"(d), "+c"(k) : "a"(v) : "memory"); break;
    case 2: asm volatile("rep stosw" : "+D"(d), "+c"(k) : "a"(v) : "memory"); break;
    case 4: asm volatile("rep stosl" : "+D"(d), "+c"(k) : "a"(v) : "memory"); break;
    default: asm volatile("rep stosq" : "+D"(d), "+c"(k) : "a"(v) : "memory"); break;
    }
}

static u64 stos_fast(Cpu *c, const Insn *in, const Str *s) {
    u64 k = piece_elements(c, s);
    if (k <= 1) return 0;
    u64 a = side_elements(c, in, SEG_ES, s->di, true, s->n);
    if (a < k) k = a;
    u8 *dst = k ? host_w(c, SEG_ES, s->di, k * s->n) : NULL;
    if (!dst) return 0;
    fill_up(dst, c->r[R_RAX], k, s->n);
    return k;
}

static void op_stos(Cpu *c, const Insn *in) {
    Str s;
    str_begin(c, in, &s);
    if (!s.count) return;
    do {
        u64 k = stos_fast(c, in, &s);
        if (k) {
            str_advance(c, in, &s, k, false, true);
            continue;
        }
        for (k = slow_elements(c, in, &s); k; k--) {
            st_n(c, SEG_ES, s.di, c->r[R_RAX], s.n);
            str_advance(c, in, &s, 1, false, true);
        }
    } while (str_more(c, in, &s));
}

/* LODS: only the last element counts, but every one is read. */
static void op_lods(Cpu *c, const Insn *in) {
    Str s;
    str_begin(c, in, &s);
    if (!s.count) return;
    do {
        set_n(c, ROFF(R_RAX), ld_n(c, in->seg, s.si, s.n), s.n);
        str_advance(c, in, &s, 1, true, false);
    } while (str_more(c, in, &s));
}

/* SCAS and CMPS */

static void compare_n(Cpu *c, u64 a, u64 b, unsigned n) {
    u32 ax = 0;
    unsigned shift = 64 - 8 * n;
    u64 x = a << shift, y = b << shift;
    asm("cmp %[y], %[x]" FLAGS_TO_AX : "+a"(ax) : [x] "r"(x), [y] "r"(y) : "cc");
    u64 cc = cc_from_ax(ax) & ~(u64)(FL_PF | FL_AF);
    u8 low = (u8)(a - b);
    c->cc = cc | (__builtin_parity(low) ? 0 : FL_PF) | ((a ^ b ^ low) & FL_AF);
}

INLINE u64 element(const u8 *p, unsigned n) {
    return n == 8 ? *(const u64 *)p : n == 4 ? *(const u32 *)p : n == 2 ? *(const u16 *)p : *p;
}
static bool repeat_ends(const Cpu *c, const Insn *in) {
    if (in->flags & INF_REP) return !(c->cc & FL_ZF);
    return in->flags & INF_REPNE && c->cc & FL_ZF;
}

/* Compares up to k pairs until the pair that ends the repetition; *a and *b are the last pair. b_step 0: one operand.
 */
static u64 scan(const u8 *p, const u8 *q, u64 k, unsigned n, bool until_equal, u64 *a, u64 *b) {
    for (u64 i = 0; i < k; i++) {
        *b = element(q + i * n, n);
        if (p) *a = element(p + i * n, n);
        if ((*a == *b) == until_equal) return i + 1;
    }
    return k;
}

/* One fast piece of SCAS (cmps false) or CMPS. Returns elements done, flags set; 0: take the slow path. */
static u64 compare_fast(Cpu *c, const Insn *in, const Str *s, bool cmps) {
    u64 k = piece_elements(c, s), room = side_elements(c, in, SEG_ES, s->di, false, s->n), a = 0, b = 0;
    const u8 *p = NULL;
    if (k <= 1) return 0;
    if (room < k) k = room;
    if (cmps) {
        room = side_elements(c, in, in->seg, s->si, false, s->n);
        if (room < k) k = room;
        p = k ? host_r(c, in->seg, s->si, k * s->n) : NULL;
        if (!p) return 0;
    } else {
        a = get_n(c, ROFF(R_RAX), s->n);
    }
    const u8 *q = k ? host_r(c, SEG_ES, s->di, k * s->n) : NULL;
    if (!q) return 0;
    k = scan(p, q, k, s->n, in->flags & INF_REPNE, &a, &b);
    compare_n(c, a, b, s->n);
    return k;
}

static void compare_slow(Cpu *c, const Insn *in, const Str *s, bool cmps) {
    u64 a = cmps ? ld_n(c, in->seg, s->si, s->n) : get_n(c, ROFF(R_RAX), s->n);
    compare_n(c, a, ld_n(c, SEG_ES, s->di, s->n), s->n);
}

INLINE void compare_string(Cpu *c, const Insn *in, bool cmps) {
    Str s;
    str_begin(c, in, &s);
    if (!s.count) return;
    do {
        u64 k = compare_fast(c, in, &s, cmps);
        if (!k) {
            compare_slow(c, in, &s, cmps);
            k = 1;
        }
        str_advance(c, in, &s, k, cmps, true);
        if (s.rep && repeat_ends(c, in)) {
            c->icount--;
            return;
        }
    } while (str_more(c, in, &s));
}
static void op_scas(Cpu *c, const Insn *in) { compare_string(c, in, false); }
static void op_cmps(Cpu *c, const Insn *in) { compare_string(c, in, true); }

static OpFn resolve(const Insn *in) {
    if (in->map != 0) return NULL; /* MOVSD and CMPSD are also SSE2 mnemonics */
    switch (in->opcode) {
    case 0xa4:
    case 0xa5: return op_movs;
    case 0xa6:
    case 0xa7: return op_cmps;
    case 0xaa:
    case 0xab: return op_stos;
    case 0xac:
    case 0xad: return op_lods;
    case 0xae:
    case 0xaf: return op_scas;
    default: return NULL;
    }
}

OpFn int_string_resolve(Insn *in, u32 mode) {
    OpFn fn = resolve(in);
    if (fn && in->flags & (INF_REP | INF_REPNE)) in->flags |= INF_END | INF_PLAIN;
    return fn;
}
