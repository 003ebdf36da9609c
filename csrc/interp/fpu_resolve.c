/* Chooses the handler of x87, MMX, SSE and AVX instructions and makes their native stubs. Operands, sizes and flags
 * come from Zydis; which control bits forbid the instruction is decided here, for they are part of the mode that keys a
 * decoded block (Intel SDM vol 3A table 2-2 and 2.5; vol 2A 2.4 and 2.8; vol 3A 13.1). */
#include "interp/fpu_stub.h"

#include "decode/feat.h"

typedef ZydisDecodedInstruction Zi;
typedef ZydisDecodedOperand Zo;

static bool is_x87(const Zi *zi) {
    return zi->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY && zi->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT &&
           ((zi->opcode & 0xf8) == 0xd8 || zi->opcode == 0x9b);
}

static bool is_vector(const Zi *zi) {
    switch (zi->meta.isa_ext) {
    case ZYDIS_ISA_EXT_MMX:
    case ZYDIS_ISA_EXT_SSE:
    case ZYDIS_ISA_EXT_SSE2:
    case ZYDIS_ISA_EXT_SSE3:
    case ZYDIS_ISA_EXT_SSSE3:
    case ZYDIS_ISA_EXT_SSE4:
    case ZYDIS_ISA_EXT_AES:
    case ZYDIS_ISA_EXT_PCLMULQDQ:
    case ZYDIS_ISA_EXT_SHA:
    case ZYDIS_ISA_EXT_GFNI:
    case ZYDIS_ISA_EXT_AVX:
    case ZYDIS_ISA_EXT_AVX2:
    case ZYDIS_ISA_EXT_AVX2GATHER:
    case ZYDIS_ISA_EXT_AVXAES:
    case ZYDIS_ISA_EXT_AVX_VNNI:
    case ZYDIS_ISA_EXT_FMA:
    case ZYDIS_ISA_EXT_F16C:
    case ZYDIS_ISA_EXT_VAES:
    case ZYDIS_ISA_EXT_VPCLMULQDQ: return true;
    default: return false;
    }
}

static bool is_gpr(const Zo *op) {
    ZydisRegisterClass cls = ZydisRegisterGetClass(op->reg.value);
    return cls >= ZYDIS_REGCLASS_GPR8 && cls <= ZYDIS_REGCLASS_GPR64;
}

static void note_register(const Zo *op, NativeForm *f) {
    ZydisRegisterClass cls = ZydisRegisterGetClass(op->reg.value);
    if (cls == ZYDIS_REGCLASS_XMM || cls == ZYDIS_REGCLASS_YMM) f->xmm = true;
    if (cls == ZYDIS_REGCLASS_MMX) f->mmx = true;
    if (op->encoding == ZYDIS_OPERAND_ENCODING_IS4) f->is4 = true;
    if (!is_gpr(op) || op->visibility != ZYDIS_OPERAND_VISIBILITY_EXPLICIT) return;
    if (op->encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM) f->rm_gpr = true;
    if (op->encoding == ZYDIS_OPERAND_ENCODING_MODRM_REG) f->reg_gpr = true;
    f->gpr_written = op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
    f->gpr = ROFF(ZydisRegisterGetId(op->reg.value));
}

static NativeForm study(const Zi *zi, const Zo *ops) {
    NativeForm f = {0};
    for (unsigned i = 0; i < zi->operand_count; i++) {
        const Zo *op = &ops[i];
        if (op->type == ZYDIS_OPERAND_TYPE_REGISTER) note_register(op, &f);
        if (op->type != ZYDIS_OPERAND_TYPE_MEMORY) continue;
        f.mem_bytes = (u8)(op->size / 8);
        f.mem_written = op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
    }
    return f;
}

/* Legacy SSE forms whose 16-byte operand may lie anywhere; VEX forms whose operand may not. */
static u8 align_mask(const Zi *zi, const NativeForm *f) {
    switch (zi->mnemonic) {
    case ZYDIS_MNEMONIC_MOVUPS:
    case ZYDIS_MNEMONIC_MOVUPD:
    case ZYDIS_MNEMONIC_MOVDQU:
    case ZYDIS_MNEMONIC_LDDQU: return 0;
    case ZYDIS_MNEMONIC_VMOVAPS:
    case ZYDIS_MNEMONIC_VMOVAPD:
    case ZYDIS_MNEMONIC_VMOVDQA:
    case ZYDIS_MNEMONIC_VMOVNTPS:
    case ZYDIS_MNEMONIC_VMOVNTPD:
    case ZYDIS_MNEMONIC_VMOVNTDQ:
    case ZYDIS_MNEMONIC_VMOVNTDQA: return f->mem_bytes - 1;
    default: return zi->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY && f->mem_bytes == 16 ? 15 : 0;
    }
}

/* #UD and #NM by control bits: NULL if the instruction may run. */
static OpFn forbidden_x87(u32 mode, const Zi *zi) {
    if (zi->opcode == 0x9b) return (mode & (MODE_MP | MODE_TS)) == (MODE_MP | MODE_TS) ? op_nm : NULL;
    return mode & (MODE_EM | MODE_TS) ? op_nm : NULL;
}

static OpFn forbidden_sse(u32 mode, bool needs_osfxsr) {
    if (mode & MODE_EM || (needs_osfxsr && !(mode & MODE_OSFXSR))) return op_ud;
    return mode & MODE_TS ? op_nm : NULL;
}

static OpFn forbidden_avx(u32 mode) {
    if (!(mode & MODE_OSXSAVE) || !(mode & MODE_AVX) || !(mode & MODE_PE) || mode & MODE_VM) return op_ud;
    return mode & MODE_TS ? op_nm : NULL;
}

static bool make_stub(Insn *in, const Zi *zi, const u8 *bytes, const NativeForm *f, unsigned head, unsigned tail) {
    u8 code[16];
    unsigned n = stub_encode(zi, bytes, f, code);
    in->stub = stub_get(code, n, head, tail);
    return in->stub != NULL;
}

static OpFn native(Insn *in, const Zi *zi, const u8 *bytes, const NativeForm *f, OpFn fn, unsigned head,
                   unsigned tail) {
    in->osz = f->mem_bytes;
    in->imm8b = align_mask(zi, f);
    if (f->rm_gpr || f->reg_gpr) in->reg = f->gpr;
    return make_stub(in, zi, bytes, f, head, tail) ? fn : NULL;
}

static bool writes_flags(const Zi *zi) {
    const ZydisAccessedFlags *a = zi->cpu_flags;
    return a && ((a->modified | a->set_0 | a->set_1 | a->undefined) & FL_CC);
}

static OpFn resolve_vector(Insn *in, const Zi *zi, const u8 *bytes, const NativeForm *f) {
    bool mem = in->flags & INF_MEM, gpr = f->rm_gpr || f->reg_gpr;
    if (writes_flags(zi))
        return native(in, zi, bytes, f, mem ? op_native_load_flags : op_native_flags, HEAD_NONE, TAIL_FLAGS);
    if (gpr && f->gpr_written)
        return native(in, zi, bytes, f, mem ? op_native_load_gpr_out : op_native_gpr_out, HEAD_NONE, TAIL_GPR);
    OpFn fn = !mem ? gpr ? op_native_gpr_in : op_native_reg : f->mem_written ? op_native_store : op_native_load;
    if (f->mmx && mem) fn = f->mem_written ? op_mmx_store : op_mmx_load;
    return native(in, zi, bytes, f, fn, HEAD_NONE, TAIL_NONE);
}

static OpFn resolve_pcmpstr(Insn *in, const Zi *zi, const u8 *bytes, const NativeForm *f) {
    NativeForm form = *f;
    form.rm_gpr = form.reg_gpr = false;
    bool index = zi->opcode == 0x61 || zi->opcode == 0x63;
    OpFn fn = native(in, zi, bytes, &form, op_native_pcmpstr, HEAD_RAX, TAIL_BOTH);
    in->imm8b = index;
    return fn;
}

/* Those that are not a plain native stub. Memory fields were packed by the decoder. */
static OpFn resolve_masked(Insn *in, const Zi *zi) {
    switch (zi->mnemonic) {
    case ZYDIS_MNEMONIC_VMASKMOVPS:
    case ZYDIS_MNEMONIC_VPMASKMOVD: in->osz = 4; break;
    case ZYDIS_MNEMONIC_VMASKMOVPD:
    case ZYDIS_MNEMONIC_VPMASKMOVQ: in->osz = 8; break;
    default: return NULL;
    }
    return in->flags & INF_REGDST ? op_vmaskmov_load : op_vmaskmov_store;
}

static OpFn resolve_maskmov(Insn *in, const Zi *zi, const Zo *ops) {
    bool wide = zi->mnemonic != ZYDIS_MNEMONIC_MASKMOVQ;
    in->base = ROFF(R_RDI);
    in->index = ROFF(R_ZERO);
    in->disp = 0;
    for (unsigned i = 0; i < zi->operand_count; i++)
        if (ops[i].type == ZYDIS_OPERAND_TYPE_MEMORY) in->seg = (u8)(ops[i].mem.segment - ZYDIS_REGISTER_ES);
    return wide ? op_maskmovdqu : op_maskmovq;
}

static OpFn resolve_gather(Insn *in, const Zi *zi, const Zo *ops) {
    const Zo *mem = &ops[1];
    in->imm8b = (u8)ZydisRegisterGetId(mem->mem.index);
    in->index = ROFF(R_ZERO);
    if (in->reg == in->reg2 || in->reg == in->imm8b || in->reg2 == in->imm8b) return op_ud;
    bool qword_index = zi->opcode & 1, qword_data = zi->raw.vex.W;
    in->osz = qword_data ? 8 : 4;
    in->flags = qword_index ? in->flags | INF_O16 : in->flags & (u16)~INF_O16;
    return op_gather;
}

static OpFn resolve_special_vector(Insn *in, const Zi *zi, const Zo *ops, const u8 *bytes, const NativeForm *f) {
    switch (zi->mnemonic) {
    case ZYDIS_MNEMONIC_LDMXCSR:
    case ZYDIS_MNEMONIC_VLDMXCSR: return op_ldmxcsr;
    case ZYDIS_MNEMONIC_STMXCSR:
    case ZYDIS_MNEMONIC_VSTMXCSR: return op_stmxcsr;
    case ZYDIS_MNEMONIC_PCMPESTRI:
    case ZYDIS_MNEMONIC_PCMPESTRM:
    case ZYDIS_MNEMONIC_PCMPISTRI:
    case ZYDIS_MNEMONIC_PCMPISTRM:
    case ZYDIS_MNEMONIC_VPCMPESTRI:
    case ZYDIS_MNEMONIC_VPCMPESTRM:
    case ZYDIS_MNEMONIC_VPCMPISTRI:
    case ZYDIS_MNEMONIC_VPCMPISTRM: return resolve_pcmpstr(in, zi, bytes, f);
    case ZYDIS_MNEMONIC_VZEROUPPER:
    case ZYDIS_MNEMONIC_VZEROALL: return zi->machine_mode == ZYDIS_MACHINE_MODE_LONG_64 ? NULL : op_vzero_low;
    case ZYDIS_MNEMONIC_MASKMOVQ:
    case ZYDIS_MNEMONIC_MASKMOVDQU:
    case ZYDIS_MNEMONIC_VMASKMOVDQU: return resolve_maskmov(in, zi, ops);
    default: break;
    }
    if (zi->meta.isa_set == ZYDIS_ISA_SET_AVX2GATHER) return resolve_gather(in, zi, ops);
    return resolve_masked(in, zi);
}

static OpFn resolve_x87_stub(Insn *in, const Zi *zi, const u8 *bytes, const NativeForm *f, OpFn fn) {
    unsigned head = fn == op_x87_cmov || fn == op_x87_flags ? HEAD_SAHF : HEAD_NONE;
    unsigned tail = fn == op_x87_flags ? TAIL_FLAGS : fn == op_fnstsw_ax ? TAIL_RAX : TAIL_NONE;
    return native(in, zi, bytes, f, fn, head, tail);
}

/* Control instructions, which do not touch the pointers, run as plain loads, stores and register forms. */
static OpFn x87_handler(const Insn *in, const Zi *zi, const NativeForm *f) {
    bool mem = in->flags & INF_MEM;
    switch (zi->mnemonic) {
    case ZYDIS_MNEMONIC_FNINIT: return op_fninit;
    case ZYDIS_MNEMONIC_FLDCW: return op_fldcw;
    case ZYDIS_MNEMONIC_FWAIT: return op_native_reg;
    case ZYDIS_MNEMONIC_FNCLEX: return op_fnclex;
    case ZYDIS_MNEMONIC_FNSTCW: return op_native_store;
    case ZYDIS_MNEMONIC_FNSTSW: return mem ? op_native_store : op_fnstsw_ax;
    case ZYDIS_MNEMONIC_FCOMI:
    case ZYDIS_MNEMONIC_FCOMIP:
    case ZYDIS_MNEMONIC_FUCOMI:
    case ZYDIS_MNEMONIC_FUCOMIP: return op_x87_flags;
    default: break;
    }
    if (zi->meta.isa_set == ZYDIS_ISA_SET_FCMOV) return op_x87_cmov;
    return !mem ? op_x87_reg : f->mem_written ? op_x87_store : op_x87_load;
}

static OpFn resolve_x87(Insn *in, u32 mode, const Zi *zi, const u8 *bytes, const NativeForm *f) {
    OpFn no = forbidden_x87(mode, zi);
    if (no) return no;
    in->osz = zi->operand_width / 8;
    switch (zi->mnemonic) {
    case ZYDIS_MNEMONIC_FNSTENV: return op_fnstenv;
    case ZYDIS_MNEMONIC_FLDENV: return op_fldenv;
    case ZYDIS_MNEMONIC_FNSAVE: return op_fnsave;
    case ZYDIS_MNEMONIC_FRSTOR: return op_frstor;
    default: return resolve_x87_stub(in, zi, bytes, f, x87_handler(in, zi, f));
    }
}

/* State save and restore (SDM vol 1, 10.5 and 13.5). */
static OpFn resolve_state(Insn *in, u32 mode, const Zi *zi) {
    OpFn fn;
    bool fx = false;
    switch (zi->mnemonic) {
    case ZYDIS_MNEMONIC_FXSAVE:
    case ZYDIS_MNEMONIC_FXSAVE64: fn = op_fxsave, fx = true; break;
    case ZYDIS_MNEMONIC_FXRSTOR:
    case ZYDIS_MNEMONIC_FXRSTOR64: fn = op_fxrstor, fx = true; break;
    case ZYDIS_MNEMONIC_XSAVE:
    case ZYDIS_MNEMONIC_XSAVE64: fn = op_xsave; break;
    case ZYDIS_MNEMONIC_XSAVEOPT:
    case ZYDIS_MNEMONIC_XSAVEOPT64: fn = op_xsaveopt; break;
    case ZYDIS_MNEMONIC_XSAVEC:
    case ZYDIS_MNEMONIC_XSAVEC64: fn = op_xsavec; break;
    case ZYDIS_MNEMONIC_XRSTOR:
    case ZYDIS_MNEMONIC_XRSTOR64: fn = op_xrstor; break;
    default: return NULL;
    }
    in->osz = zi->raw.rex.W ? 8 : 4;
    if (!fx && !(mode & MODE_OSXSAVE)) return op_ud;
    if (mode & MODE_TS || (fx && mode & MODE_EM)) return op_nm;
    return fn;
}

OpFn ops_fpu_resolve(Insn *in, u32 mode, const u8 *bytes) {
    static const u64 no_features[4];
    ZydisDecoder d;
    Zi zi;
    Zo ops[ZYDIS_MAX_OPERAND_COUNT];
    decode_init_zydis(&d, mode, no_features);
    if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(&d, bytes, in->len, &zi, ops))) return NULL;
    OpFn fn = resolve_state(in, mode, &zi);
    if (fn) return fn;
    NativeForm f = study(&zi, ops);
    if (is_x87(&zi)) return resolve_x87(in, mode, &zi, bytes, &f);
    if (!is_vector(&zi)) return NULL;
    if (zi.mnemonic == ZYDIS_MNEMONIC_MOVNTI) return in->osz = f.mem_bytes, op_movnti;
    if (zi.mnemonic == ZYDIS_MNEMONIC_POPCNT || zi.mnemonic == ZYDIS_MNEMONIC_CRC32) return NULL;
    bool only_mmx = !f.xmm && (f.mmx || zi.mnemonic == ZYDIS_MNEMONIC_EMMS);
    fn = zi.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX ? forbidden_avx(mode) : forbidden_sse(mode, !only_mmx);
    if (!fn) fn = resolve_special_vector(in, &zi, ops, bytes, &f);
    return fn ? fn : resolve_vector(in, &zi, bytes, &f);
}
