/* Re-encoding a guest instruction for its native stub (Intel SDM vol 2A, chapter 2): only the mandatory prefix stays,
 * a memory operand becomes [rdi], a general register rcx (in translated code, whatever it asks for). The decoder has
 * accepted the bytes already. */
#include "interp/fpu_ops.h"
#include "interp/fpu_stub.h"

enum { REX = 0x40, REX_W = 8, REX_R = 4, REX_X = 2, REX_B = 1, RM_RDI_MEM = 7, RCX = 1 };

/* VEX opcodes whose W only widens a general register (also the implied ones of VPCMPESTRx); outside 64-bit code it is
 * ignored there. */
static bool w_is_gpr_width(const ZydisDecodedInstruction *zi) {
    switch (zi->opcode_map) {
    case ZYDIS_OPCODE_MAP_0F:
        return zi->opcode == 0x6e || zi->opcode == 0x7e || zi->opcode == 0x2a || (zi->opcode | 1) == 0x2d;
    case ZYDIS_OPCODE_MAP_0F3A: return zi->opcode == 0x16 || zi->opcode == 0x22 || (zi->opcode | 1) == 0x61;
    default: return false;
    }
}

/* R, X, B and W in REX's layout, from either prefix. */
static u8 rex_bits(const ZydisDecodedInstruction *zi, const u8 *bytes) {
    bool long_mode = zi->machine_mode == ZYDIS_MACHINE_MODE_LONG_64;
    u8 rex;
    if (zi->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX) {
        const u8 *v = bytes + zi->raw.vex.offset;
        rex = *v == 0xc5 ? (u8)(~v[1] >> 5 & REX_R) : (u8)((~v[1] >> 5 & 7) | (v[2] >> 4 & REX_W));
        if (!long_mode) rex &= w_is_gpr_width(zi) ? 0 : REX_W;
        return rex;
    }
    return zi->attributes & ZYDIS_ATTRIB_HAS_REX ? bytes[zi->raw.rex.offset] & 15 : 0;
}

static unsigned put_vex(const ZydisDecodedInstruction *zi, const u8 *bytes, u8 rex, u8 *out) {
    const u8 *v = bytes + zi->raw.vex.offset;
    u8 last = v[*v == 0xc5 ? 1 : 2] & 0x7f, map = *v == 0xc5 ? 1 : v[1] & 0x1f;
    if (zi->machine_mode != ZYDIS_MACHINE_MODE_LONG_64) last |= 0x40; /* vvvv has three bits there */
    out[0] = 0xc4;
    out[1] = (u8)((~rex & 7) << 5 | map);
    out[2] = (u8)((rex & REX_W) << 4 | last);
    return 3;
}

static unsigned put_legacy(const ZydisDecodedInstruction *zi, u8 rex, u8 *out) {
    unsigned n = 0;
    bool x87 = zi->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT;
    for (unsigned i = 0; i < zi->raw.prefix_count && !x87; i++)
        if (zi->raw.prefixes[i].type == ZYDIS_PREFIX_TYPE_MANDATORY) out[n++] = zi->raw.prefixes[i].value;
    if (rex && (!x87 || rex & REX_B)) out[n++] = REX | rex;
    if (!x87) out[n++] = 0x0f;
    if (zi->opcode_map == ZYDIS_OPCODE_MAP_0F38) out[n++] = 0x38;
    if (zi->opcode_map == ZYDIS_OPCODE_MAP_0F3A) out[n++] = 0x3a;
    return n;
}

/* rm and reg: the host registers that replace a memory base, or general registers. */
static u8 redirect_modrm(u8 modrm, u8 *rex, const NativeForm *form, unsigned rm, unsigned reg) {
    bool mem = modrm < 0xc0;
    if (mem || form->rm_gpr) {
        modrm = (u8)((mem ? modrm & 0x38 : modrm & 0xf8) | (mem && form->indexed ? 4 : rm & 7));
        *rex &= mem ? (u8) ~(REX_X | REX_B) : (u8)~REX_B;
        *rex |= rm & 8 ? REX_B : 0;
        if (mem && form->indexed) *rex |= form->index & 8 ? REX_X : 0;
    }
    if (form->reg_gpr) {
        modrm = (u8)((modrm & 0xc7) | (reg & 7) << 3);
        *rex = (u8)((*rex & ~REX_R) | (reg & 8 ? REX_R : 0));
    }
    return modrm;
}

/* A base like rbp needs a displacement even where it is zero. */
static unsigned put_modrm(u8 modrm, const NativeForm *form, unsigned rm, i32 disp, u8 *out) {
    unsigned n = 0, bytes = disp == (i8)disp ? 1 : 4;
    if (modrm >= 0xc0) return *out = modrm, 1;
    if (!disp && (rm & 7) != 5) bytes = 0;
    out[n++] = modrm | (bytes == 1 ? 0x40 : bytes ? 0x80 : 0);
    if (form->indexed) out[n++] = (u8)(form->scale << 6 | (form->index & 7) << 3 | (rm & 7));
    for (unsigned i = 0; i < bytes; i++) out[n++] = (u8)((u32)disp >> 8 * i);
    return n;
}

unsigned stub_encode(const ZydisDecodedInstruction *zi, const u8 *bytes, const NativeForm *form, u8 *out) {
    bool mem = zi->attributes & ZYDIS_ATTRIB_HAS_MODRM && bytes[zi->raw.modrm.offset] < 0xc0;
    return stub_encode_to(zi, bytes, form, mem ? RM_RDI_MEM : RCX, 0, RCX, out);
}

unsigned stub_encode_to(const ZydisDecodedInstruction *zi, const u8 *bytes, const NativeForm *form, unsigned rm,
                        i32 disp, unsigned reg, u8 *out) {
    u8 rex = rex_bits(zi, bytes), modrm = 0;
    bool has_modrm = zi->attributes & ZYDIS_ATTRIB_HAS_MODRM;
    if (has_modrm) modrm = redirect_modrm(bytes[zi->raw.modrm.offset], &rex, form, rm, reg);
    bool vex = zi->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX;
    unsigned n = vex ? put_vex(zi, bytes, rex, out) : put_legacy(zi, rex, out);
    out[n++] = zi->opcode;
    if (has_modrm) n += put_modrm(modrm, form, rm, disp, out + n);
    if (zi->raw.imm[0].size) {
        u8 imm = bytes[zi->raw.imm[0].offset];
        bool long_mode = zi->machine_mode == ZYDIS_MACHINE_MODE_LONG_64;
        out[n++] = form->is4 && !long_mode ? imm & 0x7f : imm;
    }
    return n;
}
