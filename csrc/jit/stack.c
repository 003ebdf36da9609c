/* PUSH, POP and LEAVE of a flat stack (SDM vol 2); the pointer moves once the access has succeeded. */
#include "jit/trans.h"

static unsigned word(const Trans *t) { return t->wide ? 8 : 4; }
static unsigned word_flag(const Trans *t) { return t->wide ? E_W : 0; }
static void move_sp(Trans *t, i32 n) { asm_rm(&t->a, word_flag(t), MAP_1, 0x8d, R12, rm_at(R12, n)); }

static void push_from(Trans *t, unsigned host) {
    asm_rm(&t->a, word_flag(t), MAP_1, 0x89, host, t->mem);
    move_sp(t, -(i32)word(t));
}

static bool push_reg(Trans *t, unsigned n) {
    emit_address_reg(t, R_RSP, -(i32)word(t), word(t), true);
    unsigned host = host_reg(n);
    if (host == NO_REG) asm_load(&t->a, host = R15, slot(t, n));
    push_from(t, host);
    return true;
}

static bool push_imm(Trans *t) {
    emit_address_reg(t, R_RSP, -(i32)word(t), word(t), true);
    asm_rm(&t->a, word_flag(t), MAP_1, 0xc7, 0, t->mem);
    put4(&t->a, t->g->in->imm);
    move_sp(t, -(i32)word(t));
    return true;
}

static bool push_mem(Trans *t) {
    if (!address_supported(t)) return false;
    emit_address(t, word(t), false);
    asm_rm(&t->a, word_flag(t), MAP_1, 0x8b, R14, t->mem);
    asm_store(&t->a, rm_abs(&t->c->jit_tmp[0]), R14);
    emit_address_reg(t, R_RSP, -(i32)word(t), word(t), true);
    asm_load(&t->a, R15, rm_abs(&t->c->jit_tmp[0]));
    push_from(t, R15);
    return true;
}

/* The pointer moves first: POP RSP loads what was on the stack. */
static bool pop_reg(Trans *t, unsigned n) {
    emit_address_reg(t, R_RSP, 0, word(t), false);
    unsigned host = host_reg(n);
    asm_rm(&t->a, word_flag(t), MAP_1, 0x8b, R14, t->mem);
    move_sp(t, (i32)word(t));
    if (host == NO_REG) asm_store(&t->a, slot(t, n), R14);
    else asm_mov(&t->a, host, R14);
    return true;
}

static bool leave(Trans *t) {
    emit_address_reg(t, R_RBP, 0, word(t), false);
    asm_rm(&t->a, word_flag(t), MAP_1, 0x8b, R14, t->mem);
    asm_rm(&t->a, word_flag(t), MAP_1, 0x8d, R12, rm_at(RBP, (i32)word(t)));
    asm_mov(&t->a, RBP, R14);
    return true;
}

bool emit_stack(Trans *t) {
    const Insn *in = t->g->in;
    if (in->map || in->osz != word(t) || in->flags & INF_END) return false;
    switch (in->opcode) {
    case 0x68:
    case 0x6a: return push_imm(t);
    case 0xc9: return leave(t);
    case 0xff:
        if ((in->modrm >> 3 & 7) != 6) return false;
        return in->flags & INF_MEM ? push_mem(t) : push_reg(t, in->rm / 8);
    default: break;
    }
    if ((in->opcode & 0xf8) == 0x50) return push_reg(t, in->rm / 8);
    if ((in->opcode & 0xf8) == 0x58) return pop_reg(t, in->rm / 8);
    return false;
}
