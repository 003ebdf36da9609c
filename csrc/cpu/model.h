/* CPU models and feature names (QEMU's names), and the CPUID leaves built from them (Intel SDM vol 2A, CPUID). */
#ifndef QPY_CPU_MODEL_H
#define QPY_CPU_MODEL_H

#include "cpu/cpu.h"

/* FEAT_*: bit numbers in Cpu.feat; FEAT_NONE (0) means "needs nothing". The list is features.h. */
enum {
    FEAT_NONE = 0,
#define F(id, name, word, bit, kind) FEAT_##id,
#include "cpu/features.h"
#undef F
    FEAT_COUNT
};
_Static_assert(FEAT_COUNT <= 256, "a FEAT_* fits Insn.feat and Cpu.feat");

/* Feature words: a CPUID register, or an MSR, that is all feature bits. */
enum { FW_NONE, FW_1_EDX, FW_1_ECX, FW_7_EBX, FW_7_ECX, FW_7_EDX, FW_71_EAX, FW_D1_EAX, FW_81_EDX, FW_81_ECX, FW_87_EDX,
       FW_88_EBX, FW_6_EAX, FW_ARCH_CAPS, FW_COUNT };
enum { FK_NONE, FK_SYS, FK_HOST };

typedef struct FeatureName {
    const char *name;
    u8 word, bit, kind;
} FeatureName;
extern const FeatureName feature_names[FEAT_COUNT];

/* Physical address width of every guest; reserved-bit checks of the page walk and CPUID.80000008h agree on it. */
#define PHYS_BITS 40
#define PHYS_MASK ((1ull << PHYS_BITS) - 1)

/* CPUID.1:EAX, what RESET leaves in EDX. */
u32 model_signature(const Cpu *c);

#endif
