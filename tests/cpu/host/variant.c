/* One variant of a form: random registers and addressing, checked by decoding it again, and a start state whose
 * addresses lead into (or on purpose across, or out of) the data pages. */
#include "harness.h"

#include <string.h>

enum { TRIES = 24, RM_MEM = 8 };

typedef struct Address {
    u64 target; /* linear address of the operand */
    u8 mode;    /* which of the forms below */
    bool a32, gs;
    u8 base, index, scale; /* 16: none */
    u8 d_bytes;            /* of the displacement, ADDR_16 only */
    i32 disp;
} Address;
enum { ADDR_BASE, ADDR_BASE_D8, ADDR_BASE_D32, ADDR_SIB, ADDR_INDEX_D32, ADDR_RIP, ADDR_ABS, ADDR_KINDS, ADDR_16 };

/* Implied pointers that must lead into the data pages whatever the explicit operand does. */
typedef struct Pinned {
    u32 regs; /* bit n: register n is a pointer or a count of the instruction */
    u64 value[16];
} Pinned;

static u64 target_linear(unsigned bytes) {
    if (bytes == 0) bytes = 8;
    unsigned how = below(10);
    if (how < 4) return DATA_VA + 64 + 32ull * below(200);
    if (how < 8) return DATA_VA + 64 + below(7000);
    if (how == 8) return DATA_VA + PAGE_SIZE - 1 - below(bytes < 2 ? 1 : bytes - 1);
    return DATA_VA + DATA_BYTES - 1 - below(bytes < 2 ? 1 : bytes - 1); /* into the unmapped page */
}

/* As an address of that code size: 16-bit code has offsets, sometimes beyond the limit. */
static u64 target_address(const Form *f, unsigned bytes) {
    if (f->bits != 16) return target_linear(bytes);
    bool in_parts =
        f->zi.mnemonic == ZYDIS_MNEMONIC_FLDENV || bytes == 10 || bytes > 32; /* limits are checked piecewise */
    return !in_parts && chance(4) ? DATA16_LIMIT - 16 + below(32) : target_linear(bytes) - DATA_VA;
}

static unsigned reg_id(ZydisRegister r) { return (unsigned)ZydisRegisterGetId(r); }

static void pin(Pinned *p, ZydisRegister r, u64 value) {
    if (ZydisRegisterGetClass(r) == ZYDIS_REGCLASS_INVALID || ZydisRegisterGetClass(r) == ZYDIS_REGCLASS_IP) return;
    p->regs |= 1u << reg_id(r);
    p->value[reg_id(r)] = value;
}

/* Whether bytes masked off fault, and how they count as misaligned, is each processor's own. */
static bool has_byte_mask(const Form *f) {
    return f->zi.mnemonic == ZYDIS_MNEMONIC_MASKMOVQ || f->zi.mnemonic == ZYDIS_MNEMONIC_MASKMOVDQU ||
           f->zi.mnemonic == ZYDIS_MNEMONIC_VMASKMOVDQU;
}

/* Middle of the pages, aligned for stacks; strings stay inside with up to 20 elements. */
static void pin_implied(const Form *f, Pinned *p) {
    bool repeated = f->zi.attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE);
    for (unsigned i = 0; i < f->zi.operand_count; i++) {
        const ZydisDecodedOperand *op = &f->ops[i];
        if (op->type != ZYDIS_OPERAND_TYPE_MEMORY || op->encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM) continue;
        if (op->encoding == ZYDIS_OPERAND_ENCODING_DISP16_32_64) continue;
        if (has_byte_mask(f)) {
            pin(p, op->mem.base, DATA_VA + 1024 + below(4096));
            continue;
        }
        bool stack = op->mem.base == ZYDIS_REGISTER_RSP || op->mem.base == ZYDIS_REGISTER_ESP;
        u64 at = chance(85) ? DATA_VA + 1024 + 8ull * below(768) : target_linear(op->size / 8);
        if (stack && chance(95)) at = DATA_VA + 2048 + 8ull * below(512);
        pin(p, op->mem.base, at);
        if (f->zi.mnemonic == ZYDIS_MNEMONIC_XLAT) p->value[R_RBX] = DATA_VA + below(4096);
    }
    if (repeated) p->regs |= 1u << R_RCX, p->value[R_RCX] = below(20);
    if (f->zi.mnemonic == ZYDIS_MNEMONIC_LEAVE || f->zi.mnemonic == ZYDIS_MNEMONIC_ENTER) {
        p->regs |= 1u << R_RBP | 1u << R_RSP;
        p->value[R_RBP] = DATA_VA + 2048 + 8ull * below(512);
        p->value[R_RSP] = DATA_VA + 2048 + 8ull * below(512);
    }
}

/* 16-bit code sees offsets in the low half of a register. */
static u64 pinned_value(const Form *f, u64 value) {
    if (f->bits != 16) return value;
    return (value >= DATA_VA ? value - DATA_VA : value) | (rnd() & 0xffff0000);
}

static u8 pick_base(const Form *f, const Pinned *p) {
    for (unsigned i = 0; i < 64; i++) {
        u8 r = (u8)below(f->bits == 64 ? 16 : 8);
        if (!(p->regs >> r & 1)) return r;
    }
    return R_RBX;
}

static unsigned mem_bytes(const Form *f) {
    for (unsigned i = 0; i < f->zi.operand_count; i++)
        if (f->ops[i].type == ZYDIS_OPERAND_TYPE_MEMORY) return f->ops[i].size / 8;
    return 0;
}

/* SDM vol 2A table 2-1: base and index of the eight 16-bit forms. */
static const u8 base16[8] = {R_RBX, R_RBX, R_RBP, R_RBP, R_RSI, R_RDI, R_RBP, R_RBX};
static const u8 index16[8] = {R_RSI, R_RDI, R_RSI, R_RDI, 16, 16, 16, 16};

/* scale holds ModRM.rm, gs is never set; form 6 without displacement bytes is an absolute address. */
static void pick_address16(const Pinned *p, Address *a) {
    for (unsigned i = 0; i < 64; i++) {
        *a = (Address){.target = a->target, .mode = ADDR_16, .scale = (u8)below(8), .d_bytes = (u8)below(3)};
        a->base = base16[a->scale];
        a->index = index16[a->scale];
        if (a->scale == 6 && a->d_bytes == 0) a->base = 16;
        if (a->base != 16 && p->regs >> a->base & 1) continue;
        if (a->index == 16 || !(p->regs >> a->index & 1)) break;
    }
    a->disp = a->d_bytes == 1 ? (i8)rnd() : a->d_bytes == 2 ? (i16)rnd() : 0;
}

static void pick_address(const Form *f, const Pinned *p, bool vsib, Address *a) {
    *a = (Address){.base = pick_base(f, p), .index = 16, .target = target_address(f, mem_bytes(f))};
    if (f->zi.meta.isa_ext == ZYDIS_ISA_EXT_SHA) a->target &= ~15ull; /* AMD's do not check what the SDM says */
    do a->mode = (u8)below(ADDR_KINDS);
    while (vsib ? a->mode != ADDR_SIB : f->bits != 64 && a->mode == ADDR_RIP);
    a->a32 = f->bits != 32 && chance(20);
    a->gs = f->bits == 64 && chance(10);
    if (vsib && f->bits == 16) a->a32 = true;
    if (f->bits == 16 && !a->a32) {
        pick_address16(p, a);
        return;
    }
    if (a->mode == ADDR_SIB || a->mode == ADDR_INDEX_D32) {
        do a->index = pick_base(f, p);
        while (!vsib && (a->index == R_RSP || a->index == a->base));
        a->scale = (u8)below(4);
    }
    a->disp = a->mode == ADDR_BASE_D8 ? (i32)below(256) - 128 : (i32)(rnd() & 0xfff) - 2048;
    if (a->mode == ADDR_INDEX_D32 || a->mode == ADDR_RIP || a->mode == ADDR_ABS) a->base = 16;
    if (a->mode == ADDR_BASE) a->disp = 0;
}

typedef struct Bits {
    u8 reg, rm, x, vvvv; /* 4-bit numbers; x: REX.X */
} Bits;

/* ModRM, SIB, displacement for the address; returns bytes written. Sets the extension bits. */
static unsigned put_address(const Form *f, const Address *a, Bits *bits, u8 *b) {
    unsigned n = 0;
    u8 reg = (u8)((bits->reg & 7) << 3);
    if (a->mode == ADDR_16) {
        b[0] = (u8)(a->d_bytes << 6 | reg | a->scale);
        memcpy(b + 1, &a->disp, 2);
        return 1 + (a->base == 16 ? 2 : a->d_bytes);
    }
    bool sib = a->index != 16 || a->mode == ADDR_ABS || (a->base != 16 && (a->base & 7) == 4);
    bits->rm = a->base == 16 ? 0 : a->base;
    bits->x = a->index == 16 ? 0 : a->index >> 3;
    if (a->mode == ADDR_RIP || (a->mode == ADDR_ABS && f->bits != 64)) {
        b[n++] = reg | 5;
        memcpy(b + n, &a->disp, 4);
        return n + 4;
    }
    unsigned mod = a->base == 16 || a->mode == ADDR_BASE ? 0 : a->mode == ADDR_BASE_D8 ? 1 : 2;
    if (mod == 0 && a->base != 16 && (a->base & 7) == 5) mod = 1; /* [rbp] needs a displacement */
    b[n++] = (u8)(mod << 6 | reg | (sib ? 4 : a->base & 7));
    if (sib)
        b[n++] = (u8)(a->scale << 6 | (a->index == 16 ? 4 : a->index & 7) << 3 | (a->base == 16 ? 5 : a->base & 7));
    unsigned d = a->base == 16 || mod == 2 ? 4 : mod;
    memcpy(b + n, &a->disp, d);
    return n + d;
}

static bool opcode_register(const Form *f) {
    for (unsigned i = 0; i < f->zi.operand_count; i++)
        if (f->ops[i].encoding == ZYDIS_OPERAND_ENCODING_OPCODE) return true;
    return false;
}

static unsigned assemble(const Form *f, const Address *a, Bits bits, u8 *b) {
    u8 tail[12];
    unsigned n = 0, n_tail;
    if (f->rm == RM_MEM && f->has_modrm) {
        n_tail = put_address(f, a, &bits, tail);
    } else {
        tail[0] = (u8)(0xc0 | (bits.reg & 7) << 3 | (bits.rm & 7));
        n_tail = f->has_modrm;
    }
    if (f->has_modrm && f->rm == RM_MEM && a->a32) b[n++] = 0x67;
    if (f->has_modrm && f->rm == RM_MEM && a->gs) b[n++] = 0x65;
    for (unsigned i = 0; i < f->n_prefix; i++) b[n++] = f->prefix[i];
    u8 rxb = (u8)((bits.reg >> 3 & 1) << 2 | (bits.x & 1) << 1 | (bits.rm >> 3 & 1));
    if (f->vex) {
        b[n++] = 0xc4;
        b[n++] = (u8)((~rxb & 7) << 5 | f->map);
        b[n++] = (u8)(f->w << 7 | (~bits.vvvv & 15) << 3 | f->l << 2 | f->vex_pp);
    } else {
        if (f->bits == 64 && (f->w || rxb || chance(15))) b[n++] = (u8)(0x40 | f->w << 3 | rxb);
        if (f->map) b[n++] = 0x0f;
        if (f->map > 1) b[n++] = f->map == 2 ? 0x38 : 0x3a;
    }
    bool in_opcode = opcode_register(f);
    b[n++] = in_opcode ? (u8)((f->opcode & 0xf8) | (bits.rm & 7)) : f->opcode;
    memcpy(b + n, tail, n_tail);
    n += n_tail;
    u64 imm = chance(50) ? rnd() : rnd() & 0x1f1f1f1f1f1f1f1f;
    memcpy(b + n, &imm, 8);
    return n;
}

static bool explicit_memory(const Form *f) { return f->has_modrm && f->rm == RM_MEM; }

static bool has_vsib(const Form *f) {
    for (unsigned i = 0; i < f->zi.operand_count_visible; i++)
        if (f->ops[i].type == ZYDIS_OPERAND_TYPE_MEMORY && f->ops[i].mem.type == ZYDIS_MEMOP_TYPE_VSIB) return true;
    return false;
}

/* Only the low half of a register counts; the other half is noise. */
static void aim16(Address *a, u16 want, State *st) {
    u16 rest = (u16)(want - a->disp);
    if (a->index != 16) {
        st->gpr[a->index] = rnd();
        rest = (u16)(rest - st->gpr[a->index]);
    }
    if (a->base == 16) a->disp = want;
    else st->gpr[a->base] = rest | (rnd() & ~0xffffull);
}

/* Gives base and index the values that lead to the target; RIP-relative and absolute forms get their displacement. */
static void aim(Address *a, u64 next_rip, bool vsib, State *st) {
    u64 want = a->target - (a->gs ? GS_BASE : 0), index = 0;
    if (a->mode == ADDR_16) {
        aim16(a, (u16)want, st);
        return;
    }
    if (a->mode == ADDR_RIP) a->disp = (i32)(want - next_rip);
    if (a->mode == ADDR_ABS) a->disp = (i32)want;
    if (a->index != 16 && !vsib) {
        st->gpr[a->index] = index = (rnd() & 0xffff) - 0x8000;
        if (a->a32) st->gpr[a->index] = (u32)index | rnd() << 32;
        index <<= a->scale;
    }
    if (a->mode == ADDR_INDEX_D32) a->disp = (i32)(want - index);
    if (a->base == 16) return;
    st->gpr[a->base] = want - index - (u64)(i64)a->disp;
    if (a->a32) st->gpr[a->base] = (u32)st->gpr[a->base] | rnd() << 32;
}

/* Small signed indices in every lane of the gather's index register. */
static void spread_indices(const Form *f, unsigned reg, State *st) {
    bool qword = f->opcode & 1;
    for (unsigned i = 0; i < 32; i += qword ? 8 : 4) {
        i64 v = (i64)below(128) - 64;
        u8 *half = i < 16 ? st->fp + 160 + 16 * reg + i : st->fp + FP_YMMH + 16 * reg + (i - 16);
        memcpy(half, &v, qword ? 8 : 4);
    }
}

static void patch_immediates(const Form *f, Code *code, const ZydisDecodedInstruction *zi,
                             const ZydisDecodedOperand *ops) {
    if (f->zi.mnemonic == ZYDIS_MNEMONIC_ENTER) {
        code->bytes[zi->raw.imm[0].offset + 1] = 0;
        code->bytes[zi->raw.imm[1].offset] &= 3;
    }
    for (unsigned i = 0; i < zi->operand_count_visible; i++)
        if (ops[i].encoding == ZYDIS_OPERAND_ENCODING_DISP16_32_64) {
            u64 at = target_address(f, ops[i].size / 8);
            memcpy(code->bytes + zi->raw.disp.offset, &at, zi->raw.disp.size / 8);
        }
}

static bool is_branch(const ZydisDecodedInstruction *zi) {
    return zi->meta.category == ZYDIS_CATEGORY_COND_BR || zi->meta.category == ZYDIS_CATEGORY_UNCOND_BR ||
           zi->meta.category == ZYDIS_CATEGORY_CALL || zi->meta.category == ZYDIS_CATEGORY_RET;
}

static void put_mem(State *st, u64 va, u64 v) {
    if (va >= DATA_VA && va <= DATA_VA + DATA_BYTES - 8) memcpy(st->mem + (va - DATA_VA), &v, 8);
}

/* Values without which an instruction would only ever fault, or do what the two sides cannot share. */
static void tame(const Form *f, const Address *a, const ZydisDecodedOperand *ops, State *st) {
    u64 code_address = (f->bits == 16 ? 0 : CODE_VA) + below(4096), base = f->bits == 16 ? DATA_VA : 0;
    u64 stack = f->bits == 16 ? base + (u16)st->gpr[R_RSP] : st->gpr[R_RSP], target = base + a->target;
    if (f->zi.meta.category == ZYDIS_CATEGORY_RET) put_mem(st, stack, code_address);
    if (is_branch(&f->zi) && ops[0].type == ZYDIS_OPERAND_TYPE_REGISTER &&
        ops[0].encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM)
        st->gpr[reg_id(ops[0].reg.value)] = code_address;
    if (is_branch(&f->zi) && explicit_memory(f)) put_mem(st, target, code_address);
    if (f->zi.meta.category == ZYDIS_CATEGORY_POP && !f->has_modrm && f->opcode == 0x9d)
        put_mem(st, stack, (rnd() & (FL_CC | FL_DF)) | 0x202);
    if (f->zi.meta.category == ZYDIS_CATEGORY_STRINGOP && chance(40)) st->flags |= FL_DF;
    if (f->zi.meta.category == ZYDIS_CATEGORY_BITBYTE && explicit_memory(f) &&
        ops[1].type == ZYDIS_OPERAND_TYPE_REGISTER && reg_id(ops[1].reg.value) != a->base &&
        reg_id(ops[1].reg.value) != a->index)
        st->gpr[reg_id(ops[1].reg.value)] = (u64)((i64)below(4000) - 2000);
    if ((f->zi.mnemonic == ZYDIS_MNEMONIC_LDMXCSR || f->zi.mnemonic == ZYDIS_MNEMONIC_VLDMXCSR) &&
        target <= DATA_VA + DATA_BYTES - 4)
        st->mem[target - DATA_VA + 2] &=
            chance(70) ? 0 : (u8)~2; /* bit 17 is AMD's misaligned mode, which we do not have */
    if (has_byte_mask(f) || (is_branch(&f->zi) && f->bits == 16))
        st->flags &= ~(u64)FL_AC; /* nor which fault is first */
    if (f->bits != 64)
        for (unsigned i = 0; i < 16; i++) st->gpr[i] = i < 8 ? (u32)st->gpr[i] : 0;
}

static bool try_variant(const Form *f, Code *code, State *st) {
    Pinned pinned = {0};
    Address a = {0};
    bool vsib = has_vsib(f), mem = explicit_memory(f);
    unsigned regs = f->bits == 64 ? 16 : 8;
    Bits bits = {(u8)below(regs), (u8)below(regs), 0, (u8)below(regs)};
    if (chance(30)) bits.reg = f->reg;
    if (chance(50)) bits.vvvv = 0;
    if (chance(30) && f->rm != RM_MEM) bits.rm = f->rm;
    u8 b[32];
    ZydisDecodedInstruction zi;
    ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
    if (f->bits == 16) st->rip -= CODE_VA;
    pin_implied(f, &pinned);
    if (mem) pick_address(f, &pinned, vsib, &a);
    u64 rng = rng_state; /* the second pass differs only in the displacement */
    if (!decode(f->bits, (assemble(f, &a, bits, b), b), &zi, ops)) return false;
    if (form_key(f, &zi, ops) != f->key) return false;
    if (mem) aim(&a, st->rip + zi.length, vsib, st);
    u64 after = rng_state;
    rng_state = rng;
    assemble(f, &a, bits, b);
    rng_state = after;
    if (!decode(f->bits, b, &zi, ops)) return false;
    *code = (Code){.len = zi.length, .bits = f->bits, .branch = is_branch(&zi)};
    memcpy(code->bytes, b, zi.length);
    if (a.gs && chance(50)) code->fs_at = a.a32 ? 2 : 1;
    patch_immediates(f, code, &zi, ops);
    for (unsigned i = 0; i < 16; i++)
        if (pinned.regs >> i & 1) st->gpr[i] = pinned_value(f, pinned.value[i]);
    if (vsib) spread_indices(f, a.index, st);
    tame(f, &a, ops, st);
    return true;
}

bool variant_make(const Form *f, Code *code, State *st) {
    for (unsigned i = 0; i < TRIES; i++) {
        state_random(st);
        if (try_variant(f, code, st)) return true;
    }
    return false;
}

static bool fits_sequence(const Form *f) {
    if (f->bits != 64 || is_branch(&f->zi)) return false;
    for (unsigned i = 0; i < f->zi.operand_count; i++)
        if (f->ops[i].type == ZYDIS_OPERAND_TYPE_MEMORY) return false;
    return f->zi.mnemonic != ZYDIS_MNEMONIC_UD0 && f->zi.mnemonic != ZYDIS_MNEMONIC_UD1 &&
           f->zi.mnemonic != ZYDIS_MNEMONIC_UD2;
}

/* Few faults by chance: most sequences should run to their end. */
static bool faults_often(const Form *f) {
    return f->zi.mnemonic == ZYDIS_MNEMONIC_DIV || f->zi.mnemonic == ZYDIS_MNEMONIC_IDIV;
}

unsigned sequence_make(Code *code, State *st) {
    unsigned n = 0, wanted = 4 + below(20);
    *code = (Code){.bits = 64};
    while (n < wanted && code->len < 200) {
        const Form *f = &forms[below(n_forms)];
        Code one;
        if (!fits_sequence(f) || (faults_often(f) && chance(90)) || !variant_make(f, &one, st)) continue;
        memcpy(code->bytes + code->len, one.bytes, one.len);
        code->len += one.len;
        n++;
    }
    code->bytes[code->len++] = 0xeb; /* jmp to the next instruction: ends the block */
    code->bytes[code->len++] = 0;
    state_random(st);
    if (chance(80)) *(u32 *)(st->fp + 24) |= 0x1f80, *(u16 *)st->fp |= 0x3f, *(u16 *)(st->fp + 2) &= 0x7f3f;
    return n + 1;
}
