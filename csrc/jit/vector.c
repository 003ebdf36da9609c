/* x87, MMX, SSE and AVX: the same instruction natively, on the guest's own registers (CORE 4). Which handler the
 * decoder chose tells the form; those with handlers of their own (state, masked moves, gathers) keep them. */
#include "jit/trans.h"

#include "decode/feat.h"
#include "interp/fpu_stub.h"

enum { REX_W = 8, REX_R = 4, REX_B = 1 };

/* x87 instruction and operand pointers (SDM vol 1, 8.1.8): constants, stored at the end of the block or before
 * anything that may look. */
void x87_store(Trans *t, const Insn *in, u64 next) {
    Asm *a = &t->a;
    FpuState *f = &t->c->fpu;
    asm_imm(a, R15, next - in->len);
    asm_store(a, rm_abs(&f->fip), R15);
    asm_rm(a, E_66, MAP_1, 0xc7, 0, rm_abs(&f->fop));
    put2(a, (in->opcode & 7) << 8 | in->modrm);
    asm_rm(a, 0, MAP_0F, 0xb7, R15, rm_abs(&t->c->seg[SEG_CS].sel));
    asm_rm(a, E_66, MAP_1, 0x89, R15, rm_abs(&f->fcs));
}

void x87_settle(Trans *t) {
    if (t->x87) x87_store(t, t->x87, t->x87_next);
    t->x87 = NULL;
}

static void x87_note(Trans *t) {
    t->x87 = t->g->in;
    t->x87_next = t->g->next;
}

/* The operand pointer is where the operand was: its offset in the segment, which r14 is for a flat one. */
static void x87_note_operand(Trans *t) {
    Asm *a = &t->a;
    FpuState *f = &t->c->fpu;
    asm_store(a, rm_abs(&f->fdp), R14);
    asm_rm(a, 0, MAP_0F, 0xb7, R15, rm_abs(&t->c->seg[t->g->in->seg].sel));
    asm_rm(a, E_66, MAP_1, 0x89, R15, rm_abs(&f->fds));
}

/* The immediate names a vector register. */
static bool has_is4(const ZydisDecodedInstruction *zi) {
    switch (zi->mnemonic) {
    case ZYDIS_MNEMONIC_VBLENDVPS:
    case ZYDIS_MNEMONIC_VBLENDVPD:
    case ZYDIS_MNEMONIC_VPBLENDVB: return true;
    default: return false;
    }
}

/* The instruction as its native stub has it, with t->mem for [rdi] and host register gpr for rcx. */
static bool put_native(Trans *t, bool mem, bool gpr, unsigned host) {
    const Guest *g = t->g;
    NativeForm f = {.is4 = has_is4(&g->zi)};
    if (mem && t->mem.index != NO_REG) f.index = t->mem.index, f.scale = t->mem.scale, f.indexed = true;
    u8 out[20];
    if (gpr) {
        ZydisDecoder d;
        ZydisDecodedInstruction zi;
        ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
        static const u64 no_features[4];
        decode_init_zydis(&d, t->b->mode, no_features);
        if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(&d, g->bytes, g->in->len, &zi, ops))) return false;
        for (unsigned i = 0; i < zi.operand_count; i++) {
            ZydisRegisterClass cls = ZydisRegisterGetClass(ops[i].reg.value);
            if (ops[i].type != ZYDIS_OPERAND_TYPE_REGISTER || cls < ZYDIS_REGCLASS_GPR8 || cls > ZYDIS_REGCLASS_GPR64 ||
                ops[i].visibility != ZYDIS_OPERAND_VISIBILITY_EXPLICIT)
                continue;
            if (ops[i].encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM) f.rm_gpr = true;
            if (ops[i].encoding == ZYDIS_OPERAND_ENCODING_MODRM_REG) f.reg_gpr = true;
        }
        if (f.rm_gpr && f.reg_gpr) return false;
    }
    unsigned rm = mem ? t->mem.base : f.rm_gpr ? host : NO_REG, reg = f.reg_gpr ? host : NO_REG;
    unsigned n = stub_encode_to(&g->zi, g->bytes, &f, rm, mem ? t->mem.disp : 0, reg, out);
    for (unsigned i = 0; i < n; i++) put1(&t->a, out[i]);
    return true;
}

static bool native_reg(Trans *t) { return put_native(t, false, false, 0); }

static bool native_memory(Trans *t, bool write) {
    if (!address_supported(t)) return false;
    x87_settle(t); /* it may raise #GP by its alignment */
    emit_address(t, t->g->in->osz, write);
    return put_native(t, true, false, 0);
}

static bool native_gpr(Trans *t, bool out, bool mem) {
    const Guest *g = t->g;
    unsigned n = g->in->reg / 8, host = host_reg(n);
    if (mem && !address_supported(t)) return false;
    if (mem) emit_address(t, g->in->osz, false);
    bool through = host == NO_REG;
    if (through) host = R15;
    if (through) asm_load(&t->a, R15, slot(t, n));
    if (!put_native(t, mem, true, host)) return false;
    if (through && out) asm_store(&t->a, slot(t, n), R15);
    return true;
}

static bool x87_reg(Trans *t) {
    native_reg(t);
    x87_note(t);
    return true;
}

static bool x87_memory(Trans *t, bool write) {
    const Insn *in = t->g->in;
    if (!address_supported(t) || in->seg == SEG_FS || in->seg == SEG_GS) return false;
    emit_address(t, in->osz, write);
    put_native(t, true, false, 0);
    emit_ea(t, R14);
    x87_note_operand(t);
    x87_note(t);
    return true;
}

bool emit_vector(Trans *t) {
    const Insn *in = t->g->in;
    OpFn fn = in->fn;
    if (fn == op_native_reg) return native_reg(t);
    if (fn == op_native_load) return native_memory(t, false);
    if (fn == op_native_store) return native_memory(t, true);
    if (fn == op_native_gpr_in) return native_gpr(t, false, false);
    if (fn == op_native_gpr_out) return native_gpr(t, true, false);
    if (fn == op_native_load_gpr_out) return native_gpr(t, true, true);
    if (fn == op_native_flags) return native_reg(t);
    if (fn == op_native_load_flags) return native_memory(t, false);
    if (fn == op_mmx_load) return native_memory(t, false);
    if (fn == op_mmx_store) return native_memory(t, true);
    if (fn == op_x87_reg || fn == op_x87_flags || fn == op_x87_cmov) return x87_reg(t);
    if (fn == op_x87_load) return x87_memory(t, false);
    if (fn == op_x87_store) return x87_memory(t, true);
    return false;
}
