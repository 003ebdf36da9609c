/* Finds every user-mode instruction form by decoding the whole opcode space with Zydis: each map, opcode, mandatory
 * prefix, operand size, ModRM.reg and register or memory operand. Forms that cannot be compared with a host in user
 * mode (system state, control transfers to kernels, clocks) are left out. */
#include "harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_FORMS = 12000, TABLE = 1 << 15, RM_MEM = 8 };

Form *forms;
unsigned n_forms;
static u64 seen[TABLE];

bool decode(unsigned bits, const u8 *bytes, ZydisDecodedInstruction *zi, ZydisDecodedOperand *ops) {
    static ZydisDecoder decoder[3];
    ZydisDecoder *d = &decoder[bits / 32];
    if (!d->stack_width) {
        static const ZydisMachineMode modes[3] = {ZYDIS_MACHINE_MODE_LONG_COMPAT_16, ZYDIS_MACHINE_MODE_LONG_COMPAT_32,
                                                  ZYDIS_MACHINE_MODE_LONG_64};
        static const ZydisStackWidth widths[3] = {ZYDIS_STACK_WIDTH_16, ZYDIS_STACK_WIDTH_32, ZYDIS_STACK_WIDTH_64};
        ZydisDecoderInit(d, modes[bits / 32], widths[bits / 32]);
        ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_MPX, ZYAN_FALSE);
        ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_CET, ZYAN_FALSE);
    }
    return ZYAN_SUCCESS(ZydisDecoderDecodeFull(d, bytes, 15, zi, ops));
}

static u64 mix(u64 h, u64 v) {
    h = (h ^ v) * 0x9e3779b97f4a7c15ull;
    return h ^ h >> 31;
}

static bool opcode_names_register(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *ops) {
    for (unsigned i = 0; i < zi->operand_count; i++)
        if (ops[i].encoding == ZYDIS_OPERAND_ENCODING_OPCODE) return true;
    return false;
}

/* What makes two encodings the same form: everything but register numbers, addresses and values. */
u64 form_key(const Form *f, const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *ops) {
    u64 h = mix(zi->mnemonic, zi->encoding);
    h = mix(h, (u64)zi->opcode_map << 8 | (opcode_names_register(zi, ops) ? zi->opcode & 0xf8 : zi->opcode));
    h = mix(h, f->bits);
    h = mix(h, zi->attributes &
                   (ZYDIS_ATTRIB_HAS_LOCK | ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE));
    for (unsigned i = 0; i < zi->operand_count; i++) {
        const ZydisDecodedOperand *op = &ops[i];
        h = mix(h, (u64)op->type << 32 | (u64)op->encoding << 16 | op->actions);
        h = mix(h, op->type == ZYDIS_OPERAND_TYPE_IMMEDIATE ? 0 : op->size);
        if (op->type == ZYDIS_OPERAND_TYPE_REGISTER) h = mix(h, ZydisRegisterGetClass(op->reg.value));
    }
    return h;
}

/* Comparable in user mode: by category and instruction set, then single instructions. */
static bool category_allowed(const ZydisDecodedInstruction *zi) {
    switch (zi->meta.category) {
    case ZYDIS_CATEGORY_SYSTEM:
    case ZYDIS_CATEGORY_INTERRUPT:
    case ZYDIS_CATEGORY_SYSCALL:
    case ZYDIS_CATEGORY_SYSRET:
    case ZYDIS_CATEGORY_IO:
    case ZYDIS_CATEGORY_IOSTRINGOP:
    case ZYDIS_CATEGORY_SEGOP:
    case ZYDIS_CATEGORY_XSAVE:
    case ZYDIS_CATEGORY_XSAVEOPT:
    case ZYDIS_CATEGORY_RDRAND:
    case ZYDIS_CATEGORY_RDSEED:
    case ZYDIS_CATEGORY_RDWRFSGS: return false;
    default: return true;
    }
}

static bool set_allowed(const ZydisDecodedInstruction *zi) {
    switch (zi->meta.isa_ext) {
    case ZYDIS_ISA_EXT_ADOX_ADCX:
    case ZYDIS_ISA_EXT_AES:
    case ZYDIS_ISA_EXT_AVX:
    case ZYDIS_ISA_EXT_AVX2:
    case ZYDIS_ISA_EXT_AVX2GATHER:
    case ZYDIS_ISA_EXT_AVXAES:
    case ZYDIS_ISA_EXT_BASE:
    case ZYDIS_ISA_EXT_BMI1:
    case ZYDIS_ISA_EXT_BMI2:
    case ZYDIS_ISA_EXT_CLFSH:
    case ZYDIS_ISA_EXT_F16C:
    case ZYDIS_ISA_EXT_FMA:
    case ZYDIS_ISA_EXT_LONGMODE:
    case ZYDIS_ISA_EXT_LZCNT:
    case ZYDIS_ISA_EXT_MMX:
    case ZYDIS_ISA_EXT_MOVBE:
    case ZYDIS_ISA_EXT_PAUSE:
    case ZYDIS_ISA_EXT_PCLMULQDQ:
    case ZYDIS_ISA_EXT_SHA:
    case ZYDIS_ISA_EXT_SSE:
    case ZYDIS_ISA_EXT_SSE2:
    case ZYDIS_ISA_EXT_SSE3:
    case ZYDIS_ISA_EXT_SSE4:
    case ZYDIS_ISA_EXT_SSSE3:
    case ZYDIS_ISA_EXT_VAES:
    case ZYDIS_ISA_EXT_VPCLMULQDQ:
    case ZYDIS_ISA_EXT_X87: return true;
    default: return false;
    }
}

static bool touches_system_registers(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *ops) {
    for (unsigned i = 0; i < zi->operand_count_visible; i++) {
        if (ops[i].type != ZYDIS_OPERAND_TYPE_REGISTER) continue;
        ZydisRegisterClass cls = ZydisRegisterGetClass(ops[i].reg.value);
        if (cls == ZYDIS_REGCLASS_SEGMENT || cls == ZYDIS_REGCLASS_CONTROL || cls == ZYDIS_REGCLASS_DEBUG) return true;
    }
    return false;
}

static bool instruction_allowed(const ZydisDecodedInstruction *zi) {
    switch (zi->mnemonic) {
    case ZYDIS_MNEMONIC_CPUID:
    case ZYDIS_MNEMONIC_RDTSC:
    case ZYDIS_MNEMONIC_RDTSCP:
    case ZYDIS_MNEMONIC_RDPMC:
    case ZYDIS_MNEMONIC_ARPL:
    case ZYDIS_MNEMONIC_LAR:
    case ZYDIS_MNEMONIC_LSL:
    case ZYDIS_MNEMONIC_VERR:
    case ZYDIS_MNEMONIC_VERW:
    case ZYDIS_MNEMONIC_SGDT:
    case ZYDIS_MNEMONIC_SIDT:
    case ZYDIS_MNEMONIC_SLDT:
    case ZYDIS_MNEMONIC_STR:
    case ZYDIS_MNEMONIC_SMSW:
    case ZYDIS_MNEMONIC_CLI:
    case ZYDIS_MNEMONIC_STI:
    case ZYDIS_MNEMONIC_HLT:
    case ZYDIS_MNEMONIC_INT3:
    case ZYDIS_MNEMONIC_INT1:
    case ZYDIS_MNEMONIC_INT:
    case ZYDIS_MNEMONIC_INTO:
    case ZYDIS_MNEMONIC_FXSAVE: /* the pointers of the host process, compared elsewhere */
    case ZYDIS_MNEMONIC_FXSAVE64:
    case ZYDIS_MNEMONIC_FXRSTOR:
    case ZYDIS_MNEMONIC_FXRSTOR64:
    case ZYDIS_MNEMONIC_FNSTENV:
    case ZYDIS_MNEMONIC_FNSAVE: return false;
    case ZYDIS_MNEMONIC_IRET:
    case ZYDIS_MNEMONIC_IRETD:
    case ZYDIS_MNEMONIC_IRETQ: return false;
    case ZYDIS_MNEMONIC_MOVSXD: return zi->operand_width != 16; /* reads 2 bytes on Intel's, 4 on AMD's */
    case ZYDIS_MNEMONIC_NOP: return zi->opcode != 0x0d;         /* PREFETCHW of a register: #UD on AMD's */
    default: return zi->meta.branch_type != ZYDIS_BRANCH_TYPE_FAR;
    }
}

static bool new_key(u64 key) {
    unsigned i = (unsigned)(key & (TABLE - 1));
    while (seen[i] && seen[i] != key) i = (i + 1) & (TABLE - 1);
    if (seen[i]) return false;
    seen[i] = key;
    return true;
}

static void name_form(Form *f) {
    char *p = f->name, *end = f->name + sizeof f->name;
    p += snprintf(p, (size_t)(end - p), "%s%s",
                  f->bits == 64   ? ""
                  : f->bits == 32 ? "[32] "
                                  : "[16] ",
                  f->prefix[0] == 0xf0 ? "lock " : "");
    p += snprintf(p, (size_t)(end - p), "%s", ZydisMnemonicGetString(f->zi.mnemonic));
    for (unsigned i = 0; i < f->zi.operand_count_visible && p < end - 12; i++) {
        static const char *const kind[] = {"?", "r", "m", "p", "i"};
        const ZydisDecodedOperand *op = &f->ops[i];
        const char *k = kind[op->type];
        if (op->type == ZYDIS_OPERAND_TYPE_REGISTER) {
            ZydisRegisterClass cls = ZydisRegisterGetClass(op->reg.value);
            k = cls == ZYDIS_REGCLASS_XMM   ? "x"
                : cls == ZYDIS_REGCLASS_YMM ? "y"
                : cls == ZYDIS_REGCLASS_MMX ? "mm"
                                            : k;
        }
        p += snprintf(p, (size_t)(end - p), "%s%s%u", i ? ", " : " ", k, op->size);
    }
    snprintf(p, (size_t)(end - p), " (%s%02x)",
             f->map == 0   ? ""
             : f->map == 1 ? "0f"
             : f->map == 2 ? "0f38"
                           : "0f3a",
             f->opcode);
}

/* The bytes of a form with the simplest operands. */
static unsigned assemble_plain(const Form *f, u8 *b) {
    unsigned n = 0;
    for (unsigned i = 0; i < f->n_prefix; i++) b[n++] = f->prefix[i];
    if (f->vex) {
        b[n++] = 0xc4;
        b[n++] = 0xe0 | f->map;
        b[n++] = (u8)(f->w << 7 | 0x78 | f->l << 2 | f->vex_pp);
    } else {
        if (f->w) b[n++] = 0x48;
        if (f->map) b[n++] = 0x0f;
        if (f->map > 1) b[n++] = f->map == 2 ? 0x38 : 0x3a;
    }
    b[n++] = f->opcode;
    b[n++] = (u8)(f->rm == RM_MEM ? f->reg << 3 | 3 : 0xc0 | f->reg << 3 | f->rm);
    memset(b + n, 0x10, 24 - n);
    return n;
}

/* VSIB forms need a SIB byte, gathers three different vector registers: try once more with both. */
static bool decode_form(Form *f) {
    u8 b[32];
    unsigned n = assemble_plain(f, b);
    if (decode(f->bits, b, &f->zi, f->ops)) return true;
    if (!f->vex || f->map != 2 || f->rm != RM_MEM) return false;
    b[n - 1] = (u8)(1 << 3 | 4);
    b[n] = 2 << 3 | 3;
    b[n - 3] = (u8)((b[n - 3] & 0x87) | (~3u & 15) << 3);
    return decode(f->bits, b, &f->zi, f->ops);
}

static void consider(Form *f) {
    if (!decode_form(f)) return;
    const ZydisDecodedInstruction *zi = &f->zi;
    if (zi->encoding != (f->vex ? ZYDIS_INSTRUCTION_ENCODING_VEX : ZYDIS_INSTRUCTION_ENCODING_LEGACY)) return;
    if (zi->opcode != f->opcode || (unsigned)zi->opcode_map != f->map) return;
    if (!category_allowed(zi) || !set_allowed(zi) || !instruction_allowed(zi)) return;
    if (touches_system_registers(zi, f->ops)) return;
    f->has_modrm = zi->attributes & ZYDIS_ATTRIB_HAS_MODRM;
    f->key = form_key(f, zi, f->ops);
    if (!new_key(f->key) || n_forms == MAX_FORMS) return;
    name_form(f);
    forms[n_forms++] = *f;
}

static void each_modrm(Form *f) {
    bool x87 = !f->vex && f->map == 0 && (f->opcode & 0xf8) == 0xd8;
    for (f->reg = 0; f->reg < 8; f->reg++) {
        f->rm = RM_MEM;
        consider(f);
        for (f->rm = 0; f->rm < (x87 || f->map == 1 ? 8 : 1); f->rm++) consider(f);
    }
}

static bool is_prefix(unsigned opcode, unsigned bits) {
    if (bits == 64 && (opcode & 0xf0) == 0x40) return true;
    return opcode == 0x26 || opcode == 0x2e || opcode == 0x36 || opcode == 0x3e || (opcode >= 0x64 && opcode <= 0x67) ||
           opcode == 0xf0 || opcode == 0xf2 || opcode == 0xf3 || opcode == 0x0f;
}

static void legacy_forms(unsigned bits) {
    static const u8 lists[][3] = {{0, 0, 0},       {0x66, 0, 0}, {0xf3, 0, 0},    {0xf2, 0, 0},
                                  {0x66, 0xf2, 0}, {0xf0, 0, 0}, {0xf0, 0x66, 0}, {0x66, 0xf3, 0}};
    for (unsigned map = 0; map < 4; map++)
        for (unsigned opcode = 0; opcode < 256; opcode++)
            for (unsigned p = 0; p < ARRAY_LEN(lists); p++)
                for (unsigned w = 0; w < (bits == 64 ? 2 : 1); w++) {
                    if (map == 0 && is_prefix(opcode, bits)) continue;
                    Form f = {.map = (u8)map, .opcode = (u8)opcode, .w = w, .bits = (u8)bits};
                    while (f.n_prefix < 3 && lists[p][f.n_prefix])
                        f.prefix[f.n_prefix] = lists[p][f.n_prefix], f.n_prefix++;
                    each_modrm(&f);
                }
}

static void vex_forms(unsigned bits) {
    for (unsigned map = 1; map < 4; map++)
        for (unsigned opcode = 0; opcode < 256; opcode++)
            for (unsigned x = 0; x < 16; x++) {
                Form f = {.vex = true, .map = (u8)map, .opcode = (u8)opcode, .bits = (u8)bits};
                f.vex_pp = x & 3;
                f.w = x >> 2 & 1;
                f.l = x >> 3 & 1;
                each_modrm(&f);
            }
}

void forms_enumerate(unsigned bits) {
    if (!forms) forms = calloc(MAX_FORMS, sizeof *forms);
    legacy_forms(bits);
    vex_forms(bits);
}
