/* MOVS STOS LODS, and REP MOVS and STOS that stay within a page on each side (SDM vol 2). Anything else is the
 * handler's: a TLB miss, longer runs, DF=1 with REP. RFLAGS stay. */
#include "jit/trans.h"

static u8 opcode_of(u8 word_form, unsigned n) { return n == 1 ? word_form - 1 : word_form; }

static void load_n(Trans *t, unsigned to, Rm from, unsigned n) {
    if (n == 1) asm_rm(&t->a, 0, MAP_0F, 0xb6, to, from);
    else if (n == 2) asm_rm(&t->a, 0, MAP_0F, 0xb7, to, from);
    else asm_rm(&t->a, n == 8 ? E_W : 0, MAP_1, 0x8b, to, from);
}
static void store_n(Trans *t, Rm to, unsigned from, unsigned n) {
    asm_rm(&t->a, asm_size(n) | (n == 1 ? E_BYTE_REG : 0), MAP_1, opcode_of(0x89, n), from, to);
}

static void add_to(Trans *t, unsigned r, Rm m) { asm_rm(&t->a, t->wide ? E_W : 0, MAP_1, 0x8d, r, m); }

/* 1 if DF is set */
static void load_df(Trans *t, unsigned to) {
    asm_load32(&t->a, to, rm_abs(&t->c->flags));
    asm_vex(&t->a, 2, MAP_0F38, 1, 0xf5, to, to, rm_abs(&t->c->jit_mask[MASK_DF])); /* pext */
}

/* One element further: with r15 = -1 - DF, 3n + 2n * r15 is n or -n. */
static void advance(Trans *t, unsigned n, bool si, bool di) {
    static const u8 scale_of[] = {[1] = 1, [2] = 2, [4] = 3, [8] = 3};
    Asm *a = &t->a;
    load_df(t, R15);
    asm_rm(a, E_W, MAP_1, 0xf7, 2, rm_reg(R15)); /* not */
    if (n == 8) asm_lea(a, R15, rm_sib(R15, R15, 0, 0));
    if (si) add_to(t, RSI, rm_sib(RSI, R15, scale_of[n], (i32)(3 * n)));
    if (di) add_to(t, RDI, rm_sib(RDI, R15, scale_of[n], (i32)(3 * n)));
}

static bool emit_movs(Trans *t, unsigned n) {
    Rm value = rm_abs(&t->c->jit_tmp[0]);
    emit_address_reg(t, R_RSI, 0, n, false);
    load_n(t, R14, t->mem, n);
    asm_store(&t->a, value, R14);
    emit_address_reg(t, R_RDI, 0, n, true);
    asm_load(&t->a, R15, value);
    store_n(t, t->mem, R15, n);
    advance(t, n, true, true);
    return true;
}

static bool emit_stos(Trans *t, unsigned n) {
    emit_address_reg(t, R_RDI, 0, n, true);
    store_n(t, t->mem, RAX, n);
    advance(t, n, false, true);
    return true;
}

static bool emit_lods(Trans *t, unsigned n) {
    emit_address_reg(t, R_RSI, 0, n, false);
    asm_rm(&t->a, asm_size(n) | (n == 1 ? E_BYTE_REG : 0), MAP_1, opcode_of(0x8b, n), RAX, t->mem);
    advance(t, n, true, false);
    return true;
}

/* to = 0 if all rcx elements from the address in `pointer` on lie in one page that the TLB has; r15 leads to its entry.
 */
static void check_run(Trans *t, unsigned to, unsigned pointer, unsigned n, unsigned tag) {
    static const u8 scale_of[] = {[1] = 0, [2] = 1, [4] = 2, [8] = 3};
    Asm *a = &t->a;
    emit_tag(t, to, pointer, tag);
    asm_lea(a, to, rm_sib(to, pointer, 0, -1));
    asm_lea(a, to, rm_sib(to, RCX, scale_of[n], 0)); /* of the last byte: address + tag */
    asm_vex(a, 2, MAP_0F38, 1, 0xf5, to, to, rm_abs(&t->c->jit_mask[MASK_PAGE]));
}

/* To the handler unless what the check left in r13 is 0, DF clear and rcx no more than a page; rcx waits at home. */
static void check_rest(Trans *t, Rm home) {
    Asm *a = &t->a;
    asm_vex(a, 2, MAP_0F38, 1, 0xf5, RCX, RCX, rm_abs(&t->c->jit_mask[MASK_LONG]));
    asm_lea(a, RCX, rm_sib(RCX, R13, 0, 0));
    load_df(t, R13);
    asm_lea(a, RCX, rm_sib(RCX, R13, 0, 0));
    u8 *over = asm_jrcxz(a);
    asm_load(a, RCX, home);
    cold_helper(t, asm_jmp_later(a));
    asm_land(a, over);
    asm_load(a, RCX, home);
}

/* Before any register changes: if the page cannot be read in, the instruction starts again. */
static void touch(Trans *t, unsigned pointer, unsigned delta) {
    asm_rm(&t->a, 0, MAP_0F, 0xb6, R15, rm_sib(pointer, delta, 0, 0)); /* movzx */
}
static void to_host(Trans *t, unsigned pointer, unsigned delta) {
    asm_lea(&t->a, pointer, rm_sib(pointer, delta, 0, 0));
}
static void to_guest(Trans *t, unsigned pointer, unsigned delta) {
    asm_rm(&t->a, E_W, MAP_1, 0xf7, 2, rm_reg(delta)); /* not */
    add_to(t, pointer, rm_sib(pointer, delta, 0, 1));
}

static void repeat(Trans *t, u8 word_form, unsigned n) {
    put1(&t->a, 0xf3);
    if (n == 2) put1(&t->a, 0x66);
    if (n == 8) put1(&t->a, 0x48);
    put1(&t->a, opcode_of(word_form, n));
}

static bool emit_rep_stos(Trans *t, unsigned n) {
    Rm rcx = rm_abs(&t->c->jit_tmp[2]);
    group_barrier(t);
    asm_store(&t->a, rcx, RCX);
    check_run(t, R13, RDI, n, offsetof(TlbEntry, wtag));
    check_rest(t, rcx);
    asm_load(&t->a, R14, tlb_field(t, offsetof(TlbEntry, delta), 3));
    touch(t, RDI, R14);
    to_host(t, RDI, R14);
    repeat(t, 0xab, n);
    to_guest(t, RDI, R14);
    return true;
}

static bool emit_rep_movs(Trans *t, unsigned n) {
    Asm *a = &t->a;
    Rm rcx = rm_abs(&t->c->jit_tmp[2]), delta = rm_abs(&t->c->jit_tmp[0]);
    group_barrier(t);
    asm_store(a, rcx, RCX);
    check_run(t, R13, RSI, n, offsetof(TlbEntry, rtag));
    asm_load(a, R15, tlb_field(t, offsetof(TlbEntry, delta), 3));
    asm_store(a, delta, R15);
    check_run(t, R14, RDI, n, offsetof(TlbEntry, wtag));
    asm_lea(a, R13, rm_sib(R13, R14, 0, 0));
    check_rest(t, rcx);
    asm_load(a, R13, delta);
    asm_load(a, R14, tlb_field(t, offsetof(TlbEntry, delta), 3));
    touch(t, RSI, R13);
    touch(t, RDI, R14);
    to_host(t, RSI, R13);
    to_host(t, RDI, R14);
    repeat(t, 0xa5, n);
    to_guest(t, RSI, R13);
    to_guest(t, RDI, R14);
    return true;
}

bool emit_string(Trans *t) {
    const Insn *in = t->g->in;
    bool repeated = in->flags & (INF_REP | INF_REPNE), based = in->seg == SEG_FS || in->seg == SEG_GS;
    unsigned n = in->osz;
    if ((in->flags & (INF_END | INF_PLAIN)) == INF_END) return false;
    if (in->map || in->asz != (t->wide ? 8 : 4) || (repeated && t->jit->counts)) return false;
    switch (in->opcode & 0xfe) {
    case 0xa4:
        if (based) return false;
        return repeated ? emit_rep_movs(t, n) : emit_movs(t, n);
    case 0xaa: return repeated ? emit_rep_stos(t, n) : emit_stos(t, n);
    case 0xac: return !based && !repeated && emit_lods(t, n);
    default: return false;
    }
}
