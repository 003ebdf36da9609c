/* Vector instructions with masked memory elements: VMASKMOVPS/PD, VPMASKMOVD/Q, MASKMOVDQU, MASKMOVQ and the gathers
 * (Intel SDM vol 2). Element by element: a masked-off element is never touched, so it cannot fault. */
#include "interp/fpu_stub.h"

typedef union Vec {
    u8 b[32];
    u32 d[8];
    u64 q[4];
} __attribute__((aligned(32))) Vec;

static unsigned vec_bytes(const Insn *in) { return in->flags & INF_VEX256 ? 32 : 16; }

static bool selected(const Vec *mask, unsigned i, unsigned size) {
    return size == 8 ? mask->q[i] >> 63 : mask->d[i] >> 31;
}

/* A VEX load zeroes what lies above its vector. */
static void set_vec(Cpu *c, unsigned reg, Vec *v, unsigned n) {
    for (unsigned i = n / 8; i < 4; i++) v->q[i] = 0;
    stub_vec_load(c, reg, v, 32);
}

/* These instructions never report #AC: with alignment checks on they go byte by byte (SDM vol 2A table 2-23). */
static void load_element(Cpu *c, const Insn *in, u64 off, void *to, unsigned size) {
    if (unlikely(c->flags & FL_AC)) {
        seg_lin_r(c, in->seg, off, size);
        for (unsigned i = 0; i < size; i++) ((u8 *)to)[i] = ld8(c, in->seg, off + i);
    } else if (size == 8) {
        *(u64 *)to = ld64(c, in->seg, off);
    } else {
        *(u32 *)to = ld32(c, in->seg, off);
    }
}

static void store_element(Cpu *c, const Insn *in, u64 off, const void *from, unsigned size) {
    if (unlikely(c->flags & FL_AC))
        for (unsigned i = 0; i < size; i++) st8(c, in->seg, off + i, ((const u8 *)from)[i]);
    else if (size == 8) st64(c, in->seg, off, *(const u64 *)from);
    else st32(c, in->seg, off, *(const u32 *)from);
}

static void prove_writable(Cpu *c, const Insn *in, u64 off, unsigned size) {
    seg_lin_w(c, in->seg, off, size);
    unsigned step = c->flags & FL_AC ? 1 : size;
    for (unsigned i = 0; i < size; i += step) mem_probe(c, in->seg, off + i, step, ACC_WRITE);
}

void op_vmaskmov_load(Cpu *c, const Insn *in) {
    Vec mask, v = {0};
    unsigned n = vec_bytes(in), size = in->osz;
    u64 off = insn_ea(c, in);
    stub_vec_store(c, in->reg2, &mask, n);
    for (unsigned i = 0; i < n / size; i++)
        if (selected(&mask, i, size)) load_element(c, in, off + size * i, v.b + size * i, size);
    set_vec(c, in->reg, &v, n);
}

/* A fault leaves memory as it was: every selected element is proven writable first. */
void op_vmaskmov_store(Cpu *c, const Insn *in) {
    Vec mask, v;
    unsigned n = vec_bytes(in), size = in->osz;
    u64 off = insn_ea(c, in);
    stub_vec_store(c, in->reg2, &mask, n);
    stub_vec_store(c, in->reg, &v, n);
    for (unsigned i = 0; i < n / size; i++)
        if (selected(&mask, i, size)) prove_writable(c, in, off + size * i, size);
    for (unsigned i = 0; i < n / size; i++)
        if (selected(&mask, i, size)) store_element(c, in, off + size * i, v.b + size * i, size);
}

static void store_bytes(Cpu *c, const Insn *in, const Vec *v, const Vec *mask, unsigned n) {
    u64 off = insn_ea(c, in);
    for (unsigned i = 0; i < n; i++)
        if (mask->b[i] & 0x80) mem_probe(c, in->seg, off + i, 1, ACC_WRITE);
    for (unsigned i = 0; i < n; i++)
        if (mask->b[i] & 0x80) st8(c, in->seg, off + i, v->b[i]);
}

void op_maskmovdqu(Cpu *c, const Insn *in) {
    Vec mask, v;
    stub_vec_store(c, in->rm, &mask, 16);
    stub_vec_store(c, in->reg, &v, 16);
    store_bytes(c, in, &v, &mask, 16);
}

/* The two MMX registers come through stubs that MOVQ them to memory, which also makes the x87 to MMX transition. */
void op_maskmovq(Cpu *c, const Insn *in) {
    Vec mask, v;
    static void *movq[8];
    const u8 regs[2] = {in->rm, in->reg};
    Vec *to[2] = {&mask, &v};
    for (unsigned i = 0; i < 2; i++) {
        u8 code[3] = {0x0f, 0x7f, (u8)(regs[i] << 3 | 7)};
        if (!movq[regs[i]]) movq[regs[i]] = stub_get(code, sizeof code, HEAD_NONE, TAIL_NONE);
        fpu_ensure_live(c);
        ((StubFn)movq[regs[i]])(to[i], 0, 0, 0, c);
    }
    store_bytes(c, in, &v, &mask, 8);
}

/* VGATHERxxx, VPGATHERxx. osz = element bytes, imm8b = index register, INF_O16 repurposed by the resolver: 64-bit
 * indices. Elements passed before a fault keep their value and have their mask cleared (SDM vol 2, VPGATHERDD). */
static u64 element_address(Cpu *c, const Insn *in, const Vec *index, unsigned i) {
    i64 idx = in->flags & INF_O16 ? (i64)index->q[i] : (i32)index->d[i];
    u64 a = REG64(c, in->base) + ((u64)idx << in->scale) + (i64)in->disp;
    return in->asz == 8 ? a : in->asz == 4 ? (u32)a : (u16)a;
}

static unsigned gather_count(const Insn *in) {
    unsigned by_data = vec_bytes(in) / in->osz, by_index = vec_bytes(in) / (in->flags & INF_O16 ? 8 : 4);
    return by_data < by_index ? by_data : by_index;
}

/* What a fault at the next element must leave behind. */
static void gather_commit(Cpu *c, const Insn *in, const Vec *v, const Vec *mask) {
    stub_vec_load(c, in->reg, v, vec_bytes(in));
    stub_vec_load(c, in->reg2, mask, vec_bytes(in));
}

void op_gather(Cpu *c, const Insn *in) {
    Vec mask, v, index;
    unsigned size = in->osz, count = gather_count(in);
    stub_vec_store(c, in->reg2, &mask, 32);
    stub_vec_store(c, in->reg, &v, 32);
    stub_vec_store(c, in->imm8b, &index, 32);
    for (unsigned i = 0; i < count; i++) {
        if (selected(&mask, i, size)) {
            u64 a = element_address(c, in, &index, i);
            gather_commit(c, in, &v, &mask);
            load_element(c, in, a, v.b + size * i, size);
        }
        if (size == 8) mask.q[i] = 0;
        else mask.d[i] = 0;
    }
    Vec zero = {0};
    set_vec(c, in->reg, &v, count * size);
    stub_vec_load(c, in->reg2, &zero, 32);
}
