/* Text of instructions for the monitor's x/i and for -d in_asm: Zydis' Intel syntax. */
#include "api.h"
#include "base/common.h"

#include <Zydis/Zydis.h>

static bool decoder_for(int bits, ZydisDecoder *d) {
    switch (bits) {
    case 16: return ZYAN_SUCCESS(ZydisDecoderInit(d, ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_STACK_WIDTH_16));
    case 32: return ZYAN_SUCCESS(ZydisDecoderInit(d, ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32));
    default: return ZYAN_SUCCESS(ZydisDecoderInit(d, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64));
    }
}

int qpy_disassemble(uint64_t rip, int bits, const void *code, size_t n, char *out, size_t out_size) {
    ZydisDecoder decoder;
    ZydisFormatter formatter;
    ZydisDecodedInstruction insn;
    ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
    if (!decoder_for(bits, &decoder)) return 0;
    if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoder, code, n, &insn, operands))) return 0;
    ZydisFormatterInit(&formatter, ZYDIS_FORMATTER_STYLE_INTEL);
    if (!ZYAN_SUCCESS(ZydisFormatterFormatInstruction(&formatter, &insn, operands, insn.operand_count_visible, out,
                                                      out_size, rip, NULL)))
        return 0;
    return insn.length;
}
