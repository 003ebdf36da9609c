/* Disassembly through Zydis' formatter. See disasm.h. */
#include "decode/disasm.h"

#include <Zydis/Zydis.h>
#include <stdio.h>

static void init(ZydisDecoder *d, unsigned bits) {
    if (bits == 64) ZydisDecoderInit(d, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    else if (bits == 32) ZydisDecoderInit(d, ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32);
    else ZydisDecoderInit(d, ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_STACK_WIDTH_16);
}

int disasm(unsigned bits, u64 rip, const u8 *bytes, unsigned n, char *out, size_t size) {
    ZydisDecoder d;
    ZydisDecodedInstruction zi;
    ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
    ZydisFormatter f;
    init(&d, bits);
    ZydisFormatterInit(&f, ZYDIS_FORMATTER_STYLE_ATT);
    ZydisFormatterSetProperty(&f, ZYDIS_FORMATTER_PROP_FORCE_RELATIVE_RIPREL, ZYAN_TRUE);
    ZydisFormatterSetProperty(&f, ZYDIS_FORMATTER_PROP_HEX_UPPERCASE, ZYAN_FALSE);
    ZydisFormatterSetProperty(&f, ZYDIS_FORMATTER_PROP_ADDR_PADDING_ABSOLUTE, ZYDIS_PADDING_DISABLED);
    ZydisFormatterSetProperty(&f, ZYDIS_FORMATTER_PROP_DISP_PADDING, ZYDIS_PADDING_DISABLED);
    ZydisFormatterSetProperty(&f, ZYDIS_FORMATTER_PROP_IMM_PADDING, ZYDIS_PADDING_DISABLED);
    if (ZYAN_SUCCESS(ZydisDecoderDecodeFull(&d, bytes, n, &zi, ops)) &&
        ZYAN_SUCCESS(ZydisFormatterFormatInstruction(&f, &zi, ops, zi.operand_count_visible, out, size, rip, NULL)))
        return zi.length;
    snprintf(out, size, "(bad)");
    return 0;
}
