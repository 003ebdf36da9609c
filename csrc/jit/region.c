/* Regions: hot code beyond its first branch, translated together.
 *
 * A block ends at every branch. Once its translation has been entered often, the bytes that follow are decoded with it,
 * past conditional branches and calls, and past jumps and returns as long as some branch leads further on. Branches
 * between its instructions become host branches, loops run inside, and what is known (live flags, shared checks) is
 * known for all of it. Everything lies in one page; the block's size grows to cover the bytes, so that a store there
 * drops it. */
#include "jit/trans.h"

#include <string.h>

static const u8 *page_bytes(Cpu *c, const Block *b) { return machine_ram_host(c->machine, b->ram_off); }

static bool is_jump(const Insn *in) { return in->map == 0 && (in->opcode == 0xe9 || in->opcode == 0xeb); }
/* One with an operand size of 16 bits goes elsewhere, by its handler. */
bool direct_branch(const Insn *in) {
    if (!(in->flags & INF_PLAIN) || in->osz == 2) return false;
    if (in->map == 1) return (in->opcode & 0xf0) == 0x80;
    return in->map == 0 && ((in->opcode & 0xf0) == 0x70 || is_jump(in));
}
static bool is_call(const Insn *in) {
    return in->map == 0 && (in->opcode == 0xe8 || (in->opcode == 0xff && (in->modrm >> 3 & 7) == 2));
}

/* Does control come to what follows this instruction in memory? */
static bool goes_on(const Insn *in) {
    if (!(in->flags & INF_END)) return true;
    return (direct_branch(in) && !is_jump(in)) || (in->flags & INF_PLAIN && is_call(in));
}

/* How far decoding is worth while; offsets from the block's begin. */
typedef struct Reach {
    unsigned pos, far;
} Reach;

static void reach_branch(Reach *r, const Insn *in) {
    i64 to = (i64)r->pos + (i64)in->imm;
    if (to > (i64)r->far && to < REGION_BYTES) r->far = (unsigned)to;
}

/* Decodes into out; the bytes looked at. */
static unsigned decode_region(Cpu *c, const Block *b, const u8 *bytes, unsigned avail, Insn *out, unsigned *n) {
    Reach r = {0, 0};
    for (*n = 0; *n < BLOCK_MAX_INSNS && r.pos < avail;) {
        Insn *in = &out[*n];
        int len = block_decode(c, b->rip + r.pos, bytes + r.pos, avail - r.pos, in);
        if (len == DECODE_MORE || in->fn == op_ud) break;
        r.pos += (unsigned)len;
        ++*n;
        if (direct_branch(in)) reach_branch(&r, in);
        if (!goes_on(in) && r.far < r.pos) break;
    }
    return r.pos;
}

bool region_make(Cpu *c, Jit *j, Block *b, const Insn **insn, unsigned *n) {
    u8 bytes[REGION_BYTES + 16];
    Insn out[BLOCK_MAX_INSNS];
    unsigned page = (unsigned)(PAGE_SIZE - (b->ram_off & ~PAGE_MASK)),
             avail = page < REGION_BYTES ? page : REGION_BYTES;
    if (b->ram_off2 != ~0ull || block_page_written(c, b)) return false;
    memcpy(bytes, page_bytes(c, b), avail);
    unsigned count, size = decode_region(c, b, bytes, avail, out, &count);
    if (count < b->n) return false;
    ram_mark_code(c->machine, c, b->ram_off, size);
    if (memcmp(bytes, page_bytes(c, b), size) != 0) return false; /* another vCPU wrote meanwhile */
    b->size = (u16)size;
    Insn *kept = jit_alloc(j, count * sizeof *kept);
    memcpy(kept, out, count * sizeof *kept);
    *insn = kept;
    *n = count;
    return true;
}

/* The instruction of this translation at rip, or NO_INSN. */
static u8 insn_at(const Trans *t, u64 rip) {
    for (unsigned i = 0; i < t->n; i++)
        if (guest_rip(&t->guest[i]) == rip) return (u8)i;
    return NO_INSN;
}

void region_labels(Trans *t) {
    for (unsigned i = 0; i < t->n; i++) t->guest[i].target = NO_INSN;
    for (unsigned i = 0; t->region && i < t->n; i++) {
        Guest *g = &t->guest[i];
        if (!direct_branch(g->in)) continue;
        g->target = insn_at(t, branch_target(t, g));
        if (g->target == NO_INSN) continue;
        t->guest[g->target].label = true;
        t->guest[g->target].looped |= g->target <= i;
    }
}

/* Other ways than the instruction before lead to the one that comes now: nothing is known about registers. */
void region_join(Trans *t) {
    held_drop(t);
    groups_end(t);
    for (unsigned n = 0; n < 16; n++) t->version[n]++;
    group_barrier_behind(t);
}

void region_label(Trans *t) {
    Guest *g = t->g;
    if (!g->label) return;
    if (!t->ended) x87_settle(t), flags_fall(t, g);
    if (t->i) region_join(t);
    t->ended = false;
    g->host = t->a.p;
    for (unsigned k = 0; k < t->n_fix; k++)
        if (t->fix[k].insn == t->i) asm_patch(&t->a, t->fix[k].site, asm_here(&t->a));
}

void region_loop(Trans *t) {
    const Guest *g = t->g;
    Loop *l = strip_loop(t, t->i);
    if (l) strip_enter(t, l);
    else if (g->label && g->looped && !keeps_flags(g)) emit_poll_here(t);
}

/* A jump (cond: if that holds; 16: always) to an instruction of this translation. */
void region_branch(Trans *t, unsigned cond, unsigned insn) {
    Asm *a = &t->a;
    const Guest *to = &t->guest[insn];
    bool back = insn <= t->i || t->strip;
    u8 *over = NULL;
    flags_branch(t);
    if (back && keeps_flags(to)) {
        if (cond != ALWAYS) over = asm_jcc(a, cond ^ 1, asm_here(a));
        emit_poll_for(t, guest_rip(to));
        cond = ALWAYS;
    }
    const Loop *l = strip_loop(t, insn);
    const u8 *there = l && l->last == t->i ? l->again : to->host;
    u64 host = back ? (u64)there + (u64)a->rx : asm_here(a);
    if (cond == ALWAYS) asm_jmp(a, host);
    else asm_jcc(a, cond, host);
    if (!back) t->fix[t->n_fix++] = (Fix){a->p - 4, (u8)insn};
    if (over) asm_patch(a, over, asm_here(a));
}
