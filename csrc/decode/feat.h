/* Which CPUID bit an instruction form needs. */
#ifndef QPY_DECODE_FEAT_H
#define QPY_DECODE_FEAT_H

#include "cpu/model.h"

#include <Zydis/Zydis.h>

u8 decode_feat(const ZydisDecodedInstruction *zi, u32 mode);
void decode_init_zydis(ZydisDecoder *d, u32 mode, const u64 *feat);

#endif
