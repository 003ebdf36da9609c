/* The CPUID leaves (Intel SDM vol 2A, CPUID; AMD APM vol 3, appendix E), built from model and features when asked for.
 * Light code: the guest's vector registers may be live. */
#include "cpu/model.h"

enum { EAX, EBX, ECX, EDX };

static u32 feature_word(const Cpu *c, unsigned word) {
    u32 v = 0;
    for (unsigned f = 1; f < FEAT_COUNT; f++)
        if (feature_names[f].word == word && cpu_has(c, f)) v |= 1u << feature_names[f].bit;
    return v;
}

static u32 four_chars(const char *s) {
    return (u32)(u8)s[0] | (u32)(u8)s[1] << 8 | (u32)(u8)s[2] << 16 | (u32)(u8)s[3] << 24;
}
/* A 12-character signature in EBX, EDX, ECX or EBX, ECX, EDX order. */
static void signature(u32 out[4], const char *s, bool hypervisor) {
    out[EBX] = four_chars(s);
    out[hypervisor ? ECX : EDX] = four_chars(s + 4);
    out[hypervisor ? EDX : ECX] = four_chars(s + 8);
}

static void vendor(const Cpu *c, u32 out[4]) {
    signature(out, c->model->vendor == VENDOR_AMD ? "AuthenticAMD" : "GenuineIntel", false);
}

static u32 smp(const Cpu *c) { return c->smp ? c->smp : 1; }
static u32 ceil_log2(u32 n) { return n <= 1 ? 0 : 32 - (u32)__builtin_clz(n - 1); }

static void leaf_1(const Cpu *c, u32 out[4]) {
    out[EAX] = model_signature(c);
    out[EBX] = 8 << 8 | c->index << 24 | (smp(c) > 1 ? smp(c) << 16 : 0); /* CLFLUSH line 64 bytes, APIC id */
    out[ECX] = feature_word(c, FW_1_ECX);
    if (c->cr4 & CR4_OSXSAVE) out[ECX] |= 1u << 27;
    out[EDX] = feature_word(c, FW_1_EDX);
    if (smp(c) > 1) out[EDX] |= 1u << 28;
}

/* Deterministic cache parameters: L1 32 KiB 8-way each, L2 4 MiB 16-way, L3 16 MiB 16-way, lines of 64 bytes. */
static void leaf_4(const Cpu *c, u32 sub, u32 out[4]) {
    static const struct {
        u8 type, level, ways;
        u32 sets;
        bool shared;
    } caches[] = {{1, 1, 8, 64, false}, {2, 1, 8, 64, false}, {3, 2, 16, 4096, false}, {3, 3, 16, 16384, true}};
    if (sub >= ARRAY_LEN(caches)) return;
    u32 sharing = caches[sub].shared ? smp(c) - 1 : 0;
    out[EAX] = caches[sub].type | (u32)caches[sub].level << 5 | 1 << 8 | sharing << 14 | (smp(c) - 1) << 26;
    out[EBX] = 63 | (u32)(caches[sub].ways - 1) << 22;
    out[ECX] = caches[sub].sets - 1;
    out[EDX] = caches[sub].shared ? 6 : 1;
}

static void leaf_7(const Cpu *c, u32 sub, u32 out[4]) {
    if (sub == 1) out[EAX] = feature_word(c, FW_71_EAX);
    if (sub == 2) out[EDX] = feature_word(c, FW_72_EDX);
    if (sub != 0) return;
    out[EAX] = feature_word(c, FW_72_EDX) ? 2 : feature_word(c, FW_71_EAX) ? 1 : 0;
    out[EBX] = feature_word(c, FW_7_EBX);
    out[ECX] = feature_word(c, FW_7_ECX);
    if (c->cr4 & CR4_PKE) out[ECX] |= 1u << 4; /* OSPKE */
    out[EDX] = feature_word(c, FW_7_EDX);
}

/* Topology: one thread a core, all cores in one package. */
static void leaf_b(const Cpu *c, u32 sub, u32 out[4]) {
    out[ECX] = sub & 0xff;
    out[EDX] = c->index;
    if (sub == 0) {
        out[EBX] = 1;
        out[ECX] |= 1 << 8;
    } else if (sub == 1) {
        out[EAX] = ceil_log2(smp(c));
        out[EBX] = smp(c);
        out[ECX] |= 2 << 8;
    }
}

/* XSAVE components: x87 and SSE in the legacy area, AVX at 576, PKRU at 832 (as in cpu/fpu.h). */
static u32 xsave_size(u64 xcr0) { return xcr0 >> 9 & 1 ? 840 : xcr0 >> 2 & 1 ? 832 : 576; }
static void leaf_d(const Cpu *c, u32 sub, u32 out[4]) {
    if (!cpu_has(c, FEAT_XSAVE)) return;
    u64 all = 3 | (cpu_has(c, FEAT_AVX) ? 4 : 0) | (cpu_has(c, FEAT_PKU) ? BIT(9) : 0);
    if (sub == 0) {
        out[EAX] = (u32)all;
        out[EBX] = xsave_size(c->xcr0);
        out[ECX] = xsave_size(all);
    } else if (sub == 1) {
        out[EAX] = feature_word(c, FW_D1_EAX);
        out[EBX] = 576 + (c->xcr0 & 4 ? 256 : 0) + (c->xcr0 >> 9 & 1 ? 8 : 0);
    } else if (sub == 2 && all & 4) {
        out[EAX] = 256;
        out[EBX] = 576;
    } else if (sub == 9 && all >> 9 & 1) {
        out[EAX] = 8;
        out[EBX] = 832;
    }
}

static u32 gcd(u32 a, u32 b) { return b ? gcd(b, a % b) : a; }
/* TSC frequency as a ratio to the local APIC timer's 1 GHz, so that guests need no calibration loop. */
static void leaf_15(const Cpu *c, u32 out[4]) {
    u32 khz = c->tsc_khz ? c->tsc_khz : 1000000, g = gcd(khz, 1000000);
    out[EAX] = 1000000 / g;
    out[EBX] = khz / g;
    out[ECX] = 1000000000;
}
static void leaf_16(const Cpu *c, u32 out[4]) {
    u32 mhz = (c->tsc_khz ? c->tsc_khz : 1000000) / 1000;
    out[EAX] = mhz;
    out[EBX] = mhz;
    out[ECX] = 100;
}

static void brand(const Cpu *c, u32 part, u32 out[4]) {
    char text[49] = {0};
    for (unsigned i = 0; i < 48 && c->model->brand[i]; i++) text[i] = c->model->brand[i];
    for (unsigned i = 0; i < 4; i++) out[i] = four_chars(text + 16 * part + 4 * i);
}

/* AMD repeats most of CPUID.1:EDX in the extended leaf. */
#define AMD_REPEATED 0x0183f3ffu
static void leaf_x1(const Cpu *c, u32 out[4]) {
    out[EAX] = model_signature(c);
    out[ECX] = feature_word(c, FW_81_ECX);
    out[EDX] = feature_word(c, FW_81_EDX);
    if (c->model->vendor == VENDOR_AMD) out[EDX] |= feature_word(c, FW_1_EDX) & AMD_REPEATED;
}

static void leaf_x8(const Cpu *c, u32 out[4]) {
    bool lm = cpu_has(c, FEAT_LM);
    u32 phys = lm ? PHYS_BITS : cpu_has(c, FEAT_PSE36) ? 36 : 32;
    out[EAX] = phys | (lm ? cpu_has(c, FEAT_LA57) ? 57u : 48u : 32u) << 8;
    out[EBX] = feature_word(c, FW_88_EBX);
    out[ECX] = smp(c) - 1;
}

/* Caches as AMD reports them: L1 64 KiB 2-way, L2 512 KiB 16-way, L3 16 MiB 16-way. */
static void leaf_amd_cache(const Cpu *c, u32 leaf, u32 out[4]) {
    if (c->model->vendor == VENDOR_AMD && leaf == 0x80000005) {
        out[EAX] = out[EBX] = 0x01ff01ff;
        out[ECX] = out[EDX] = 0x40020140;
    } else if (leaf == 0x80000006) {
        out[EBX] = c->model->vendor == VENDOR_AMD ? 0x42004200 : 0;
        out[ECX] = 0x02008140;
        out[EDX] = c->model->vendor == VENDOR_AMD ? 0x00808140 : 0;
    }
}

static void extended(const Cpu *c, u32 leaf, u32 out[4]) {
    switch (leaf) {
    case 0x80000000:
        out[EAX] = c->model->xlevel;
        vendor(c, out);
        return;
    case 0x80000001: leaf_x1(c, out); return;
    case 0x80000002:
    case 0x80000003:
    case 0x80000004: brand(c, leaf - 0x80000002, out); return;
    case 0x80000005:
    case 0x80000006: leaf_amd_cache(c, leaf, out); return;
    case 0x80000007: out[EDX] = feature_word(c, FW_87_EDX); return;
    case 0x80000008: leaf_x8(c, out); return;
    default: return;
    }
}

static void basic(const Cpu *c, u32 leaf, u32 sub, u32 out[4]) {
    bool intel = c->model->vendor == VENDOR_INTEL;
    switch (leaf) {
    case 0:
        out[EAX] = c->model->level;
        vendor(c, out);
        return;
    case 1: leaf_1(c, out); return;
    case 2:
        out[EAX] = 1;
        out[ECX] = 0x4d;     /* L3 16 MiB */
        out[EDX] = 0x2c307d; /* L1D 32 KiB, L1I 32 KiB, L2 2 MiB */
        return;
    case 4:
        if (intel) leaf_4(c, sub, out);
        return;
    case 6: out[EAX] = feature_word(c, FW_6_EAX); return;
    case 7: leaf_7(c, sub, out); return;
    case 0xb: leaf_b(c, sub, out); return;
    case 0xd: leaf_d(c, sub, out); return;
    case 0x15: leaf_15(c, out); return;
    case 0x16: leaf_16(c, out); return;
    default: return;
    }
}

/* A leaf above its range's limit reads as the highest basic leaf (SDM vol 2A, CPUID). */
void cpuid_query(const Cpu *c, u32 leaf, u32 subleaf, u32 out[4]) {
    out[EAX] = out[EBX] = out[ECX] = out[EDX] = 0;
    if (leaf >> 16 == 0x4000 && cpu_has(c, FEAT_HYPERVISOR)) {
        if (leaf > 0x40000001) return;
        out[EAX] = leaf == 0x40000000 ? 0x40000001 : 0;
        if (leaf == 0x40000000) signature(out, "QemupyQemupy", true);
    } else if (leaf >= 0x80000000 && leaf <= c->model->xlevel) {
        extended(c, leaf, out);
    } else {
        basic(c, leaf > c->model->level ? c->model->level : leaf, subleaf, out);
    }
}
