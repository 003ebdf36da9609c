/* Machine code -> Insn. Zydis knows the encodings; this file packs its answer and applies the CPU model (Intel SDM
 * vol 2, chapter 2 and appendix A). Zydis is ordinary library code and may use vector registers: the guest's FPU state
 * must be parked by the caller. */
#include "decode/insn.h"
#include "decode/feat.h"

#include <Zydis/Zydis.h>

static bool has(const u64 *feat, unsigned f) { return feat[f >> 6] >> (f & 63) & 1; }

static ZydisMachineMode machine_mode(u32 mode) {
    if (mode & MODE_CS64) return ZYDIS_MACHINE_MODE_LONG_64;
    if (!(mode & MODE_PE) || (mode & MODE_VM))
        return mode & MODE_CS32 ? ZYDIS_MACHINE_MODE_LEGACY_32 : ZYDIS_MACHINE_MODE_REAL_16;
    if (mode & MODE_LMA)
        return mode & MODE_CS32 ? ZYDIS_MACHINE_MODE_LONG_COMPAT_32 : ZYDIS_MACHINE_MODE_LONG_COMPAT_16;
    return mode & MODE_CS32 ? ZYDIS_MACHINE_MODE_LEGACY_32 : ZYDIS_MACHINE_MODE_LEGACY_16;
}

static ZydisStackWidth stack_width(u32 mode) {
    if (mode & MODE_CS64) return ZYDIS_STACK_WIDTH_64;
    return mode & MODE_SS32 ? ZYDIS_STACK_WIDTH_32 : ZYDIS_STACK_WIDTH_16;
}

/* Opcodes that older models execute as something else (CORE 12). CET and MPX are never offered: their hints stay NOPs.
 */
void decode_init_zydis(ZydisDecoder *d, u32 mode, const u64 *feat) {
    ZydisDecoderInit(d, machine_mode(mode), stack_width(mode));
    ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_MPX, ZYAN_FALSE);
    ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_CET, ZYAN_FALSE);
    ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_CLDEMOTE, ZYAN_FALSE);
    ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_LZCNT, has(feat, FEAT_ABM));
    ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_TZCNT, has(feat, FEAT_BMI1));
    ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_WBNOINVD, has(feat, FEAT_WBNOINVD));
}

/* Insn encoding of a register: offset into Cpu.r for general registers, the plain number for all others. */
static u8 pack_reg(ZydisRegister r) {
    ZyanI8 id = ZydisRegisterGetId(r);
    switch (ZydisRegisterGetClass(r)) {
    case ZYDIS_REGCLASS_GPR8:
        if (r >= ZYDIS_REGISTER_AH && r <= ZYDIS_REGISTER_BH) return (u8)((r - ZYDIS_REGISTER_AH) * 8 + 1);
        if (r >= ZYDIS_REGISTER_SPL) return ROFF(r - ZYDIS_REGISTER_SPL + R_RSP);
        return ROFF(r - ZYDIS_REGISTER_AL);
    case ZYDIS_REGCLASS_GPR16:
    case ZYDIS_REGCLASS_GPR32:
    case ZYDIS_REGCLASS_GPR64: return ROFF(id);
    case ZYDIS_REGCLASS_IP: return ROFF(R_RIP);
    case ZYDIS_REGCLASS_SEGMENT: return (u8)(r - ZYDIS_REGISTER_ES);
    case ZYDIS_REGCLASS_INVALID: return ROFF(R_ZERO);
    default: return (u8)id;
    }
}

static u8 pack_segment(ZydisRegister r) { return r == ZYDIS_REGISTER_NONE ? SEG_DS : (u8)(r - ZYDIS_REGISTER_ES); }

/* SIB base 101 without a mod is "no base, disp32" whatever REX.B says; Zydis 4.0 forgets that for 32-bit addresses. */
static bool sib_without_base(const ZydisDecodedInstruction *zi) {
    return zi->address_width == 32 && zi->raw.sib.offset && zi->raw.modrm.mod == 0 && zi->raw.sib.base == 5;
}

static void pack_mem(Insn *in, const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *op) {
    in->seg = pack_segment(op->mem.segment);
    if (op->encoding == ZYDIS_OPERAND_ENCODING_NONE) return; /* implied: string operand, stack, XLAT */
    in->flags |= INF_MEM;
    if (op->encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM) {
        in->base = pack_reg(op->mem.base);
        if (op->mem.type == ZYDIS_MEMOP_TYPE_VSIB) in->imm8b = (u8)ZydisRegisterGetId(op->mem.index);
        else in->index = pack_reg(op->mem.index);
        in->scale = op->mem.scale ? (u8)__builtin_ctz(op->mem.scale) : 0;
        in->disp = (i32)op->mem.disp.value;
        if (sib_without_base(zi)) {
            in->base = ROFF(R_ZERO);
            in->disp = (i32)zi->raw.disp.value;
        }
    } else {
        in->imm = (u64)op->mem.disp.value; /* moffs; Zydis extends the sign */
        if (in->asz != 8) in->imm &= in->asz == 4 ? 0xffffffffu : 0xffffu;
    }
}

static void pack_imm(Insn *in, const ZydisDecodedOperand *op) {
    if (!(in->flags & INF_IMM)) in->imm = op->imm.value.u;
    else if (in->op == ZYDIS_MNEMONIC_ENTER) in->imm |= op->imm.value.u << 16;
    else in->imm8b = (u8)op->imm.value.u;
    in->flags |= INF_IMM;
}

/* Places an implied register (accumulator, CL, DX): rm if no operand took that yet, else reg. */
static void pack_implied(Insn *in, u8 r, bool *have_rm) {
    if (!*have_rm) in->rm = r;
    else if (!(in->flags & INF_HASREG)) in->reg = r;
    *have_rm = true;
}

static void pack_operand(Insn *in, const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *op, unsigned pos,
                         bool *have_rm) {
    switch (op->type) {
    case ZYDIS_OPERAND_TYPE_MEMORY:
        pack_mem(in, zi, op);
        *have_rm = true;
        return;
    case ZYDIS_OPERAND_TYPE_IMMEDIATE: pack_imm(in, op); return;
    case ZYDIS_OPERAND_TYPE_POINTER: in->imm = (u64)op->ptr.segment << 32 | op->ptr.offset; return;
    default: break;
    }
    u8 r = pack_reg(op->reg.value);
    switch (op->encoding) {
    case ZYDIS_OPERAND_ENCODING_MODRM_REG:
        in->reg = r;
        in->flags |= pos == 0 ? INF_HASREG | INF_REGDST : INF_HASREG;
        return;
    case ZYDIS_OPERAND_ENCODING_NDSNDD: in->reg2 = r; return;
    case ZYDIS_OPERAND_ENCODING_IS4: in->imm8b = r; return;
    case ZYDIS_OPERAND_ENCODING_MODRM_RM:
    case ZYDIS_OPERAND_ENCODING_OPCODE:
        in->rm = r;
        *have_rm = true;
        return;
    default: pack_implied(in, r, have_rm);
    }
}

/* On string instructions F2 repeats just as F3 does; the last of them counts. */
static u16 repeat_flags(const ZydisDecodedInstruction *zi) {
    ZydisInstructionCategory cat = zi->meta.category;
    u16 f = 0;
    if (cat != ZYDIS_CATEGORY_STRINGOP && cat != ZYDIS_CATEGORY_IOSTRINGOP) return 0;
    for (unsigned i = 0; i < zi->raw.prefix_count; i++) {
        if (zi->raw.prefixes[i].value == 0xf3) f = INF_REP;
        if (zi->raw.prefixes[i].value == 0xf2) f = INF_REPNE;
    }
    return f;
}

static u16 pack_flags(const ZydisDecodedInstruction *zi) {
    ZydisInstructionAttributes a = zi->attributes;
    u16 f = repeat_flags(zi);
    if (a & ZYDIS_ATTRIB_HAS_LOCK) f |= INF_LOCK;
    if (a & ZYDIS_ATTRIB_HAS_REX) f |= INF_REX;
    if (a & ZYDIS_ATTRIB_HAS_OPERANDSIZE) f |= INF_O16;
    if (zi->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX) {
        f |= INF_VEX;
        if (zi->raw.vex.L) f |= INF_VEX256;
    }
    return f;
}

/* Operand size: of the memory operand, or the widest register, for vector forms; else the effective integer size. */
static u8 operand_size(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *ops) {
    unsigned reg = 0, mem = 0;
    if (zi->mnemonic == ZYDIS_MNEMONIC_SYSRET || zi->mnemonic == ZYDIS_MNEMONIC_SYSEXIT) return zi->raw.rex.W ? 8 : 4;
    for (unsigned i = 0; i < zi->operand_count_visible; i++) {
        if (ops[i].type == ZYDIS_OPERAND_TYPE_MEMORY) mem = ops[i].size / 8;
        if (ops[i].type != ZYDIS_OPERAND_TYPE_REGISTER) continue;
        ZydisRegisterClass cls = ZydisRegisterGetClass(ops[i].reg.value);
        if (cls >= ZYDIS_REGCLASS_MMX && cls <= ZYDIS_REGCLASS_YMM && ops[i].size / 8 > reg) reg = ops[i].size / 8;
    }
    if (!reg) return zi->operand_width / 8;
    return (u8)(mem ? mem : reg);
}

/* ES:[rDI] of MOVS, STOS, ...: the one implicit operand that no prefix moves to another segment. */
static bool string_destination(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *op) {
    ZydisRegister b = op->mem.base;
    return zi->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT &&
           (b == ZYDIS_REGISTER_DI || b == ZYDIS_REGISTER_EDI || b == ZYDIS_REGISTER_RDI);
}

static void pack(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *ops, u32 mode, Insn *in) {
    in->op = (u16)zi->mnemonic;
    in->len = zi->length;
    in->flags = pack_flags(zi);
    in->osz = operand_size(zi, ops);
    in->asz = zi->address_width / 8;
    in->ssz = mode & MODE_CS64 ? 8 : mode & MODE_SS32 ? 4 : 2;
    in->seg = SEG_DS;
    in->base = in->index = ROFF(R_ZERO);
    in->opcode = zi->opcode;
    in->map = (u8)zi->opcode_map;
    if (zi->attributes & ZYDIS_ATTRIB_HAS_MODRM)
        in->modrm = (u8)(zi->raw.modrm.mod << 6 | zi->raw.modrm.reg << 3 | zi->raw.modrm.rm);
    if (zi->mnemonic == ZYDIS_MNEMONIC_PAUSE && zi->raw.rex.B) { /* F3 does not turn XCHG r8, rAX into PAUSE */
        in->op = ZYDIS_MNEMONIC_XCHG;
        in->rm = ROFF(R_R8);
        in->reg = ROFF(R_RAX);
    }
    bool have_rm = false, seg_known = false;
    for (unsigned i = 0; i < zi->operand_count; i++) {
        const ZydisDecodedOperand *op = &ops[i];
        if (op->visibility != ZYDIS_OPERAND_VISIBILITY_HIDDEN) {
            pack_operand(in, zi, op, i, &have_rm);
            seg_known |= op->type == ZYDIS_OPERAND_TYPE_MEMORY;
        } else if (op->type == ZYDIS_OPERAND_TYPE_MEMORY && !seg_known && !string_destination(zi, op)) {
            in->seg = pack_segment(op->mem.segment); /* the overridable operand of MOVS, LODS, XLAT, ... */
        }
    }
    in->feat = decode_feat(zi, mode);
}

int decode_insn(u32 mode, const u64 *feat, u64 rip, const u8 *bytes, unsigned avail, Insn *out) {
    ZydisDecoder d;
    ZydisDecodedInstruction zi;
    ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
    *out = (Insn){.base = ROFF(R_ZERO), .index = ROFF(R_ZERO), .seg = SEG_DS};
    decode_init_zydis(&d, mode, feat);
    ZyanStatus s = ZydisDecoderDecodeFull(&d, bytes, avail, &zi, ops);
    if (s == ZYDIS_STATUS_NO_MORE_DATA) return DECODE_MORE;
    if (s == ZYDIS_STATUS_INSTRUCTION_TOO_LONG) return DECODE_TOO_LONG;
    if (!ZYAN_SUCCESS(s)) return DECODE_UD;
    if (zi.encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY && zi.encoding != ZYDIS_INSTRUCTION_ENCODING_VEX)
        return DECODE_UD;
    pack(&zi, ops, mode, out);
    return out->len;
}
