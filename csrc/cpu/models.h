/* The CPU models, QEMU's names and identities (CPUID.1:EAX, brand strings, leaf limits). Features no guest is ever
 * offered (kind NONE in features.h) are left out. Each line names the model it extends. */
#define F_486     "fpu pse hypervisor"
#define F_PENTIUM "de tsc msr mce cx8 mmx apic"
#define F_P6      "cmov fxsr mca mtrr pae pat pge pse36 sep"
#define F_X86_64  "cx16 lm nx syscall"

#define INTEL      VENDOR_INTEL
#define AMD        VENDOR_AMD
#define QEMU_BRAND "QEMU Virtual CPU version 2.5+"

static const CpuModel models[] = {
    {"486", "", NULL, F_486, 1, 0, 4, 8, 0, INTEL},
    {"pentium", "", "486", F_PENTIUM, 1, 0, 5, 4, 3, INTEL},
    {"pentium2", "", "pentium", F_P6, 2, 0, 6, 5, 2, INTEL},
    {"pentium3", "", "pentium2", "sse", 3, 0, 6, 7, 3, INTEL},
    {"athlon", QEMU_BRAND, "pentium3", "sse2", 2, 0x80000008, 6, 2, 3, AMD},
    {"coreduo", "Genuine Intel(R) CPU           T2600  @ 2.16GHz", "pentium3", "clflush nx pni -pse36 ss sse2", 10,
     0x80000008, 6, 14, 8, INTEL},
    {"n270", "Intel(R) Atom(TM) CPU N270   @ 1.60GHz", "coreduo", "lahf-lm movbe ssse3", 10, 0x80000008, 6, 28, 2,
     INTEL},
    {"kvm32", "Common 32-bit KVM processor", "pentium3", "clflush pni sse2", 5, 0x80000008, 15, 6, 1, INTEL},
    {"qemu32", QEMU_BRAND, "pentium3", "-mca -mtrr -pse36 pni sse2", 4, 0x80000004, 6, 6, 3, INTEL},
    {"kvm64", "Common KVM processor", "kvm32", F_X86_64, 13, 0x80000008, 15, 6, 1, INTEL},
    {"qemu64", QEMU_BRAND, "kvm64", "lahf-lm", 13, 0x8000000a, 15, 107, 1, AMD},
    {"core2duo", "Intel(R) Core(TM)2 Duo CPU     T7700  @ 2.40GHz", "kvm64", "lahf-lm ss ssse3", 10, 0x80000008, 6, 15,
     11, INTEL},
    {"phenom", "AMD Phenom(tm) 9550 Quad-Core Processor", "qemu64", "abm pdpe1gb popcnt rdtscp", 5, 0x8000001a, 16, 2,
     3, AMD},
    {"Conroe", "Intel Celeron_4x0 (Conroe/Merom Class Core 2)", "kvm64", "-cx16 lahf-lm ssse3", 10, 0x80000008, 6, 15,
     3, INTEL},
    {"Penryn", "Intel Core 2 Duo P9xxx (Penryn Class Core 2)", "Conroe", "cx16 sse4.1", 10, 0x80000008, 6, 23, 3,
     INTEL},
    {"Nehalem", "Intel Core i7 9xx (Nehalem Class Core i7)", "Penryn", "popcnt sse4.2", 11, 0x80000008, 6, 26, 3,
     INTEL},
    {"Westmere", "Westmere E56xx/L56xx/X56xx (Nehalem-C)", "Nehalem", "aes arat pclmulqdq", 11, 0x80000008, 6, 44, 1,
     INTEL},
    {"SandyBridge", "Intel Xeon E312xx (Sandy Bridge)", "Westmere", "avx rdtscp tsc-deadline x2apic xsave xsaveopt", 13,
     0x80000008, 6, 42, 1, INTEL},
    {"IvyBridge", "Intel Xeon E3-12xx v2 (Ivy Bridge)", "SandyBridge", "erms f16c fsgsbase rdrand smep", 13, 0x80000008,
     6, 58, 9, INTEL},
    {"Haswell", "Intel Core Processor (Haswell)", "IvyBridge", "abm avx2 bmi1 bmi2 fma invpcid movbe pcid", 13,
     0x80000008, 6, 60, 4, INTEL},
    {"Haswell-noTSX", "Intel Core Processor (Haswell, no TSX)", "Haswell", "", 13, 0x80000008, 6, 60, 1, INTEL},
    {"Broadwell", "Intel Core Processor (Broadwell)", "Haswell", "3dnowprefetch adx rdseed smap", 13, 0x80000008, 6, 61,
     2, INTEL},
    {"Broadwell-noTSX", "Intel Core Processor (Broadwell, no TSX)", "Broadwell", "", 13, 0x80000008, 6, 61, 2, INTEL},
    {"Skylake-Client", "Intel Core Processor (Skylake)", "Broadwell", "xgetbv1 xsavec", 13, 0x80000008, 6, 94, 3,
     INTEL},
    {"Skylake-Client-noTSX-IBRS", "Intel Core Processor (Skylake, IBRS, no TSX)", "Skylake-Client", "spec-ctrl", 13,
     0x80000008, 6, 94, 3, INTEL},
    {"EPYC", "AMD EPYC Processor", "Skylake-Client",
     "-erms -invpcid -pcid -tsc-deadline -x2apic clflushopt cr8legacy pdpe1gb sha-ni", 13, 0x8000001e, 23, 1, 2, AMD},
    {"max", "qemupy Virtual CPU", NULL, "*", 0x16, 0x80000008, 6, 143, 8, INTEL},
    {"host", "", NULL, "*", 0x16, 0x80000008, 6, 143, 8, INTEL}, /* identity: the host's (model_host) */
};

#undef INTEL
#undef AMD
