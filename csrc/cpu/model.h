/* CPU models and feature names (QEMU's names), and the CPUID leaves built from them (Intel SDM vol 2A, CPUID). */
#ifndef QPY_CPU_MODEL_H
#define QPY_CPU_MODEL_H

#include "cpu/cpu.h"

/* Names in rows and comments in columns: laid out by hand. */
/* clang-format off */

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
enum { FW_NONE, FW_1_EDX, FW_1_ECX, FW_7_EBX, FW_7_ECX, FW_7_EDX, FW_71_EAX, FW_72_EDX, FW_D1_EAX, FW_81_EDX, FW_81_ECX, FW_87_EDX,
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

enum { VENDOR_INTEL, VENDOR_AMD };

typedef struct CpuModel {
    const char *name, *brand;
    const char *base;  /* the model whose features it extends, or NULL */
    const char *feats; /* names to add, "-name" to take away, "*": everything offered by default */
    u32 level, xlevel; /* highest basic and extended CPUID leaf */
    u16 family;
    u8 model, stepping, vendor;
} CpuModel;

/* The i-th model in help order, NULL after the last. */
const CpuModel *model_at(unsigned i);
const char *model_name(int i);

/* Gives c the features and identity of "model[,+feat][,-feat][,feat=on|off][,enforce]". On failure false and one line
 * in err. Features asked for that cannot be had are left out and noted in c->feat_missing (-cpu's warnings). */
bool model_setup(Cpu *c, const char *spec, char *err, size_t err_size);
/* "CPUID.01H:ECX.monitor [bit 3]", for warnings about a FEAT_*. */
void model_feature_text(unsigned feat, char *out, size_t size);

/* CPUID.1:EAX, what RESET leaves in EDX. */
u32 model_signature(const Cpu *c);

/* The CPUID instruction: out = EAX EBX ECX EDX of a leaf (cpu/cpuid.c). */
void cpuid_query(const Cpu *c, u32 leaf, u32 subleaf, u32 out[4]);

#endif
