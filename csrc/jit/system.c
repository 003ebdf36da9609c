/* System instructions that kernels execute all the time (SDM vol 2): what they touch lies in Cpu, and at CPL 0 they
 * cannot fault. */
#include "jit/trans.h"

static bool at_cpl0(const Trans *t) { return t->b->mode & MODE_CPL0; }

/* r15 &= mask without touching RFLAGS; clobbers r14. */
static void and_keeping(Trans *t, u32 mask) {
    Asm *a = &t->a;
    asm_imm(a, R14, mask);
    asm_vex(a, 2, MAP_0F38, 1, 0xf5, R15, R15, rm_reg(R14)); /* pext */
    asm_vex(a, 3, MAP_0F38, 1, 0xf5, R15, R15, rm_reg(R14)); /* pdep */
}

/* A bit of Cpu.flags, which has those that are not in RFLAGS. */
static void change_flag(Trans *t, u32 bit, bool set) {
    Asm *a = &t->a;
    Rm flags = rm_abs(&t->c->flags);
    if (flags_kept_behind(t, t->i)) {
        asm_load32(a, R15, flags);
        and_keeping(t, ~bit);
        if (set) asm_lea(a, R15, rm_at(R15, (i32)bit));
        asm_rm(a, 0, MAP_1, 0x89, R15, flags);
    } else if (set) {
        asm_rm(a, 0, MAP_1, 0x81, 1, flags), put4(a, bit);
    } else {
        asm_rm(a, 0, MAP_1, 0x81, 4, flags), put4(a, ~bit);
    }
}

/* The next instruction runs without interrupt. With something pending the handler sees to that; otherwise it is enough
 * that nobody looks before the next block: the exit says so to the dispatcher. */
static bool emit_sti(Trans *t) {
    Asm *a = &t->a;
    asm_mov(a, R15, RCX);
    asm_load32(a, RCX, rm_abs((const void *)(u64)&t->c->pending));
    u8 *over = asm_jrcxz(a);
    asm_mov(a, RCX, R15);
    cold_helper(t, asm_jmp_later(a));
    asm_land(a, over);
    asm_mov(a, RCX, R15);
    change_flag(t, FL_IF, true);
    emit_goto_shadowed(t, t->g->next);
    return true;
}

static void push_host(Trans *t, bool push) {
    put1(&t->a, push ? 0x9c : 0x41); /* pushfq; pop r15: on the stack of return addresses */
    if (!push) put1(&t->a, 0x5f);
}

/* r15 = the image that PUSHF stores: Cpu.flags and the six of RFLAGS. */
static void flags_image(Trans *t) {
    Asm *a = &t->a;
    const u32 shown = ~(u32)(FL_RF | FL_VM);
    push_host(t, true), push_host(t, false);
    if (flags_kept_behind(t, t->i)) {
        and_keeping(t, FL_CC);
        asm_load32(a, R14, rm_abs(&t->c->flags));
        asm_lea(a, R15, rm_sib(R15, R14, 0, 0));
        and_keeping(t, shown);
    } else {
        asm_rm(a, 0, MAP_1, 0x81, 4, rm_reg(R15)), put4(a, FL_CC);
        asm_rm(a, 0, MAP_1, 0x0b, R15, rm_abs(&t->c->flags));
        asm_rm(a, 0, MAP_1, 0x81, 4, rm_reg(R15)), put4(a, shown);
    }
}

static bool emit_pushf(Trans *t) {
    Asm *a = &t->a;
    Rm image = rm_abs(&t->c->jit_tmp[0]);
    if (!t->wide || t->g->in->osz != 8) return false;
    bool before = flags_kept_behind(t, t->i); /* where the check would clobber what is to be kept */
    if (before) {
        flags_image(t);
        asm_store(a, image, R15);
    }
    emit_address_reg(t, R_RSP, -8, 8, true);
    if (before) asm_load(a, R15, image);
    else flags_image(t);
    asm_store(a, t->mem, R15);
    asm_lea(a, R12, rm_at(R12, -8));
    return true;
}

static bool emit_swapgs(Trans *t) {
    Asm *a = &t->a;
    Cpu *c = t->c;
    asm_load(a, R14, rm_abs(&c->kernel_gs_base));
    asm_load(a, R15, rm_abs(&c->seg[SEG_GS].base));
    asm_store(a, rm_abs(&c->seg[SEG_GS].base), R14);
    asm_store(a, rm_abs(&c->ea_base[SEG_GS]), R14);
    asm_store(a, rm_abs(&c->kernel_gs_base), R15);
    return true;
}

/* A register from one of Cpu's fields. */
static bool load_field(Trans *t, Rm from, bool word) {
    unsigned n = t->g->in->rm / 8, to = host_reg(n) == NO_REG ? R15 : host_reg(n);
    if (word) asm_rm(&t->a, 0, MAP_0F, 0xb7, to, from);
    else asm_rm(&t->a, t->wide ? E_W : 0, MAP_1, 0x8b, to, from);
    if (host_reg(n) == NO_REG) asm_store(&t->a, slot(t, n), R15);
    return true;
}

static bool emit_from_cr(Trans *t) {
    Cpu *c = t->c;
    if (t->g->in->flags & INF_LOCK) return false;
    switch (t->g->in->reg) {
    case 0: return load_field(t, rm_abs(&c->cr0), false);
    case 2: return load_field(t, rm_abs(&c->cr2), false);
    case 3: return load_field(t, rm_abs(&c->cr3), false);
    case 4: return load_field(t, rm_abs(&c->cr4), false);
    default: return false;
    }
}

static bool emit_from_segment(Trans *t) {
    const Insn *in = t->g->in;
    unsigned seg = in->modrm >> 3 & 7;
    if (in->flags & INF_MEM || in->osz == 2 || seg > SEG_GS) return false;
    return load_field(t, rm_abs(&t->c->seg[seg].sel), true);
}

/* STAC and CLAC: the same code with the TLB that has the other rights. */
static void enter_mode(Trans *t, u32 to, const JitMode *m, bool suspend) {
    Asm *a = &t->a;
    Cpu *c = t->c;
    unsigned mmu = suspend ? MMU_KERNEL_AC : MMU_KERNEL;
    change_flag(t, FL_AC, suspend);
    asm_rm(a, 0, MAP_1, 0xc7, 0, rm_abs(&c->mode)), put4(a, to);
    asm_rm(a, E_BYTE_RM, MAP_1, 0xc6, 0, rm_abs(&c->mmu_mode)), put1(a, mmu);
    asm_rm(a, E_W, MAP_1, 0xc7, 0, rm_abs(&c->tlb)), put4(a, (u64)c->tlbs[mmu]);
    asm_rm(a, E_W, MAP_1, 0xc7, 0, rm_abs(&c->jit_cache)), put4(a, (u64)m->of->code);
}

static bool emit_smap(Trans *t, bool suspend) {
    u32 mode = t->b->mode, to = suspend ? mode | MODE_SMAP_AC : mode & ~(u32)MODE_SMAP_AC;
    if (!t->wide || !(mode & MODE_SMAP)) return false;
    if (to != mode) {
        const JitMode *m = jit_mode(t->jit, to);
        if (!m) return false;
        enter_mode(t, to, m, suspend);
        if (suspend) emit_cover_pairs(t);
        else emit_uncover_pairs(t);
        t->mode_after = to;
    }
    emit_goto(t, t->g->next, false);
    return true;
}

static bool emit_kernel_two_byte(Trans *t) {
    const Insn *in = t->g->in;
    if (in->opcode == 0x20) return emit_from_cr(t);
    if (in->opcode != 0x01) return false;
    switch (in->modrm) {
    case 0xca: return emit_smap(t, false);
    case 0xcb: return emit_smap(t, true);
    case 0xf8: return t->wide && emit_swapgs(t);
    default: return false;
    }
}

static bool emit_kernel(Trans *t) {
    const Insn *in = t->g->in;
    if (in->map == 1) return emit_kernel_two_byte(t);
    switch (in->opcode) {
    case 0xfa: change_flag(t, FL_IF, false); return true;
    case 0xfb: return emit_sti(t);
    default: return false;
    }
}

bool emit_sys(Trans *t) {
    const Insn *in = t->g->in;
    if (in->flags & INF_VEX || in->map > 1 || in->fn == op_ud) return false;
    if (emit_tsc(t) || (at_cpl0(t) && emit_kernel(t))) return true;
    if (in->map) return false;
    switch (in->opcode) {
    case 0x8c: return emit_from_segment(t);
    case 0x9c: return emit_pushf(t);
    case 0xfc: change_flag(t, FL_DF, false); return true;
    case 0xfd: change_flag(t, FL_DF, true); return true;
    default: return false;
    }
}
