/* CPU models: from "-cpu model,+feature,-feature" to the features a guest may use (CORE 13). */
#include "cpu/model.h"
#include "cpu/models.h"

#include <cpuid.h>
#include <stdio.h>
#include <string.h>

const FeatureName feature_names[FEAT_COUNT] = {
    [FEAT_NONE] = {"", FW_NONE, 0, FK_NONE},
#define F(id, name, word, bit, kind) [FEAT_##id] = {name, word, bit, FK_##kind},
#include "cpu/features.h"
#undef F
};

/* Where a feature word lives in CPUID; the text QEMU's warnings use. */
static const struct {
    u32 leaf, sub;
    u8 reg; /* EAX EBX ECX EDX */
    const char *text;
} words[FW_COUNT] = {
    [FW_1_EDX] = {1, 0, 3, "CPUID.01H:EDX"},
    [FW_1_ECX] = {1, 0, 2, "CPUID.01H:ECX"},
    [FW_7_EBX] = {7, 0, 1, "CPUID.07H:EBX"},
    [FW_7_ECX] = {7, 0, 2, "CPUID.07H:ECX"},
    [FW_7_EDX] = {7, 0, 3, "CPUID.07H:EDX"},
    [FW_71_EAX] = {7, 1, 0, "CPUID.07H.01H:EAX"},
    [FW_72_EDX] = {7, 2, 3, "CPUID.07H.02H:EDX"},
    [FW_D1_EAX] = {0xd, 1, 0, "CPUID.0DH:EAX"},
    [FW_81_EDX] = {0x80000001, 0, 3, "CPUID.80000001H:EDX"},
    [FW_81_ECX] = {0x80000001, 0, 2, "CPUID.80000001H:ECX"},
    [FW_87_EDX] = {0x80000007, 0, 3, "CPUID.80000007H:EDX"},
    [FW_88_EBX] = {0x80000008, 0, 1, "CPUID.80000008H:EBX"},
    [FW_6_EAX] = {6, 0, 0, "CPUID.06H:EAX"},
    [FW_ARCH_CAPS] = {0, 0, 0, "MSR(10AH)"},
};

/* Emulated features that no model gets unless asked by name: they cost the guest speed or belong to another vendor. */
static const u8 not_by_default[] = {FEAT_LA57, FEAT_PKU,      FEAT_HT,        FEAT_CMP_LEGACY, FEAT_CR8LEGACY,
                                    FEAT_IBPB, FEAT_AMD_IBRS, FEAT_AMD_STIBP, FEAT_AMD_SSBD,   FEAT_WBNOINVD};

static void feat_set(u64 *set, unsigned f, bool on) {
    if (on) set[f >> 6] |= BIT(f & 63);
    else set[f >> 6] &= ~BIT(f & 63);
}

static bool host_has(unsigned f) {
    const FeatureName *n = &feature_names[f];
    u32 r[4] = {0};
    if (!__get_cpuid_count(words[n->word].leaf, words[n->word].sub, &r[0], &r[1], &r[2], &r[3])) return false;
    return r[words[n->word].reg] >> n->bit & 1;
}

static bool offered(unsigned f) {
    return feature_names[f].kind == FK_SYS || (feature_names[f].kind == FK_HOST && host_has(f));
}

static char lower(char ch) { return ch == '_' ? '-' : ch; }
static bool same_name(const char *name, const char *word, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!name[i] || lower(name[i]) != lower(word[i])) return false;
    return !name[n];
}

static const struct {
    const char *alias, *name;
} aliases[] = {{"sse3", "pni"}, {"pclmuldq", "pclmulqdq"}, {"sse4-1", "sse4.1"}, {"sse4-2", "sse4.2"}, {"xd", "nx"},
               {"i64", "lm"},   {"ffxsr", "fxsr-opt"},     {"lzcnt", "abm"}};

static unsigned feat_find(const char *word, size_t n) {
    for (unsigned i = 0; i < ARRAY_LEN(aliases); i++)
        if (same_name(aliases[i].alias, word, n)) return feat_find(aliases[i].name, strlen(aliases[i].name));
    for (unsigned f = 1; f < FEAT_COUNT; f++)
        if (same_name(feature_names[f].name, word, n)) return f;
    return FEAT_NONE;
}

/* models[] with the host's own identity filled into its last entry. */
static CpuModel host_model;
static char host_brand[49];
static const CpuModel *model_host(const CpuModel *entry) {
    u32 a, b, cx, d;
    host_model = *entry;
    host_model.brand = host_brand;
    if (__get_cpuid(0, &a, &b, &cx, &d)) host_model.vendor = b == signature_AMD_ebx ? VENDOR_AMD : VENDOR_INTEL;
    if (__get_cpuid(1, &a, &b, &cx, &d)) {
        unsigned family = a >> 8 & 15, model = a >> 4 & 15;
        if (family == 6 || family == 15) model |= a >> 12 & 0xf0;
        host_model.family = (u16)(family == 15 ? family + (a >> 20 & 0xff) : family);
        host_model.model = (u8)model;
        host_model.stepping = a & 15;
    }
    u32 *text = (u32 *)host_brand;
    for (u32 i = 0; i < 3; i++)
        if (!__get_cpuid(0x80000002 + i, &text[4 * i], &text[4 * i + 1], &text[4 * i + 2], &text[4 * i + 3])) break;
    return &host_model;
}

const CpuModel *model_at(unsigned i) { return i < ARRAY_LEN(models) ? &models[i] : NULL; }
const char *model_name(int i) { return i >= 0 && model_at((unsigned)i) ? models[i].name : NULL; }

static const CpuModel *model_find(const char *name, size_t n) {
    for (unsigned i = 0; i < ARRAY_LEN(models); i++)
        if (strlen(models[i].name) == n && !memcmp(models[i].name, name, n)) return &models[i];
    return NULL;
}

/* One feature switched on or off; what cannot be had goes to `missing`. */
static void feat_request(u64 *set, u64 *missing, unsigned f, bool on) {
    bool can = offered(f);
    feat_set(set, f, on && can);
    feat_set(missing, f, on && !can);
}

static void model_defaults(u64 *set) {
    for (unsigned f = 1; f < FEAT_COUNT; f++) feat_set(set, f, offered(f));
    for (unsigned i = 0; i < ARRAY_LEN(not_by_default); i++) feat_set(set, not_by_default[i], false);
}

static void model_features(const CpuModel *m, u64 *set, u64 *missing) {
    if (m->base) model_features(model_find(m->base, strlen(m->base)), set, missing);
    for (const char *p = m->feats; *p;) {
        size_t n = strcspn(p, " ");
        bool off = *p == '-';
        if (*p == '*') model_defaults(set);
        else feat_request(set, missing, feat_find(p + off, n - off), !off);
        p += n;
        p += strspn(p, " ");
    }
}

static bool is_word(const char *s, size_t n, const char *word) { return strlen(word) == n && !memcmp(s, word, n); }

/* One element of the list behind the model: +f, -f, f, f=on|off. */
static bool apply_option(Cpu *c, const CpuModel *m, const char *p, size_t n, bool *enforce, char *err, size_t size) {
    bool sign = *p == '+' || *p == '-';
    const char *name = p + sign, *eq = memchr(p, '=', n);
    size_t name_len = (eq ? (size_t)(eq - p) : n) - sign, value_len = eq ? n - (size_t)(eq + 1 - p) : 0;
    bool on = *p != '-';
    if (eq) {
        on = is_word(eq + 1, value_len, "on") || is_word(eq + 1, value_len, "true");
        if (!on && !is_word(eq + 1, value_len, "off") && !is_word(eq + 1, value_len, "false")) {
            snprintf(err, size, "Parameter '%.*s' expects 'on' or 'off', not '%.*s'", (int)name_len, name,
                     (int)value_len, eq + 1);
            return false;
        }
    }
    if (is_word(name, name_len, "check")) return true;
    if (is_word(name, name_len, "enforce")) {
        *enforce = on;
        return true;
    }
    unsigned f = feat_find(name, name_len);
    if (f) {
        feat_request(c->feat, c->feat_missing, f, on);
        return true;
    }
    snprintf(err, size, "Property '%s-x86_64-cpu.%.*s' not found", m->name, (int)name_len, name);
    return false;
}

void model_feature_text(unsigned feat, char *out, size_t size) {
    const FeatureName *n = &feature_names[feat];
    snprintf(out, size, "%s.%s [bit %u]", words[n->word].text, n->name, n->bit);
}

/* What cannot work without something that is off. */
static void drop_dependent(Cpu *c) {
    static const u8 needs[][2] = {
        {FEAT_AVX, FEAT_XSAVE},         {FEAT_XSAVEOPT, FEAT_XSAVE}, {FEAT_XSAVEC, FEAT_XSAVE},
        {FEAT_XGETBV1, FEAT_XSAVE},     {FEAT_AVX2, FEAT_AVX},       {FEAT_FMA, FEAT_AVX},
        {FEAT_F16C, FEAT_AVX},          {FEAT_VAES, FEAT_AVX},       {FEAT_AVX_VNNI, FEAT_AVX2},
        {FEAT_VPCLMULQDQ, FEAT_AVX},    {FEAT_PCID, FEAT_LM},        {FEAT_X2APIC, FEAT_APIC},
        {FEAT_TSC_DEADLINE, FEAT_APIC},
    };
    for (unsigned i = 0; i < ARRAY_LEN(needs); i++)
        if (!cpu_has(c, needs[i][1])) feat_set(c->feat, needs[i][0], false);
}

bool model_setup(Cpu *c, const char *spec, char *err, size_t err_size) {
    size_t n = strcspn(spec, ",");
    const CpuModel *m = model_find(spec, n);
    bool enforce = false;
    if (!m) {
        snprintf(err, err_size, "unable to find CPU model '%.*s'", (int)n, spec);
        return false;
    }
    c->model = !strcmp(m->name, "host") ? model_host(m) : m;
    memset(c->feat, 0, sizeof c->feat);
    memset(c->feat_missing, 0, sizeof c->feat_missing);
    model_features(m, c->feat, c->feat_missing);
    for (const char *p = spec + n; *p;) {
        size_t len = strcspn(++p, ",");
        if (len && !apply_option(c, m, p, len, &enforce, err, err_size)) return false;
        p += len;
    }
    drop_dependent(c);
    for (unsigned f = 1; enforce && f < FEAT_COUNT; f++) {
        if (!(c->feat_missing[f >> 6] >> (f & 63) & 1)) continue;
        char text[64];
        model_feature_text(f, text, sizeof text);
        snprintf(err, err_size, "no guest here can have the requested feature: %s", text);
        return false;
    }
    return true;
}

u32 model_signature(const Cpu *c) {
    const CpuModel *m = c->model;
    u32 family = m->family > 15 ? 15u | (u32)(m->family - 15) << 12 : m->family;
    return (u32)m->stepping | (m->model & 15u) << 4 | (u32)(m->model >> 4) << 16 | family << 8;
}
