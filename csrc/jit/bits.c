/* Bit strings in memory, and the VEX-encoded instructions on general registers: BMI1, BMI2 (SDM vol 2). */
#include "jit/trans.h"

#include "interp/ops.h"

/* BT BTS BTR BTC with a register offset: whole operands of it go to the address, the rest names the bit. */
static bool emit_bit_string(Trans *t) {
    Asm *a = &t->a;
    const Insn *in = t->g->in;
    unsigned n = in->osz, guest = in->reg / 8, src = host_reg(guest);
    bool wide = n == 8;
    if (n == 2 || !t->wide || in->asz != 8) return false;
    emit_ea(t, R14);
    asm_imm(a, R15, wide ? 6 : 5);
    asm_vex(a, 2, MAP_0F38, wide, 0xf7, R15, R15, src == NO_REG ? slot(t, guest) : rm_reg(src)); /* sarx */
    if (!wide) asm_rm(a, E_W, MAP_1, 0x63, R15, rm_reg(R15));                                    /* movsxd */
    asm_lea(a, R14, rm_sib(R14, R15, wide ? 3 : 2, 0));
    emit_check_linear(t, n, in->opcode != 0xa3);
    if (src == NO_REG) asm_load(a, src = R15, slot(t, guest));
    asm_vex(a, 2, MAP_0F38, 1, 0xf5, R15, src,
            rm_abs(&t->c->jit_mask[wide ? MASK_63 : MASK_31])); /* pext: the low bits */
    asm_rm(a, (wide ? E_W : 0) | (in->flags & INF_LOCK ? E_LOCK : 0), MAP_0F, in->opcode, R15, t->mem);
    return true;
}

static bool is_bit_string(const Guest *g) {
    u8 op = g->in->opcode;
    bool offset = op == 0xa3 || op == 0xab || op == 0xb3 || op == 0xbb;
    return g->in->map == 1 && offset && g->in->flags & INF_MEM && !(g->in->flags & INF_VEX);
}

/* Which of reg and vvvv the instruction writes; the others it reads. */
typedef struct Writes {
    bool reg, vvvv;
} Writes;

static bool writes_of(const Guest *g, Writes *w) {
    const Insn *in = g->in;
    *w = (Writes){.reg = true};
    if (in->map == 3) return in->opcode == 0xf0; /* RORX */
    switch (in->opcode) {
    case 0xf2:
    case 0xf5:
    case 0xf7: return true;
    case 0xf3: *w = (Writes){.vvvv = true}; return true; /* BLSR BLSMSK BLSI */
    case 0xf6: *w = (Writes){true, true}; return true;   /* MULX */
    default: return false;
    }
}

/* The same instruction: a source in Cpu.r is a memory operand or goes through r15, as does one destination there. */
static bool emit_bmi(Trans *t) {
    const Guest *g = t->g;
    const Insn *in = g->in;
    Writes w;
    if (in->map < 2 || !writes_of(g, &w)) return false;
    unsigned reg = in->reg / 8, vvvv = in->reg2 / 8, rm = in->rm / 8;
    unsigned hreg = w.reg ? host_reg(reg) : g->zi.raw.modrm.reg, hv = in->map == 2 ? host_reg(vvvv) : 0;
    if (w.reg && w.vvvv && hreg == NO_REG && hv == NO_REG) return false;
    if (in->flags & INF_MEM) {
        if (!address_supported(t)) return false;
        emit_address(t, in->osz, false);
    } else {
        t->mem = host_reg(rm) == NO_REG ? slot(t, rm) : rm_reg(host_reg(rm));
    }
    if (hv == NO_REG && !w.vvvv) asm_load(&t->a, R15, slot(t, vvvv));
    unsigned reg_at = hreg == NO_REG ? R15 : hreg, vvvv_at = hv == NO_REG ? R15 : hv;
    asm_vex(&t->a, g->zi.raw.vex.pp, in->map, in->osz == 8, in->opcode, reg_at, vvvv_at, t->mem);
    if (g->zi.raw.imm[0].size) put1(&t->a, g->zi.raw.imm[0].value.u);
    if (w.reg && hreg == NO_REG) asm_store(&t->a, slot(t, reg), R15);
    if (w.vvvv && hv == NO_REG) asm_store(&t->a, slot(t, vvvv), R15);
    return true;
}

bool emit_bits(Trans *t) {
    const Guest *g = t->g;
    if (g->in->fn == op_ud) return false;
    if (is_bit_string(g)) return emit_bit_string(t);
    return g->in->flags & INF_VEX && emit_bmi(t);
}
