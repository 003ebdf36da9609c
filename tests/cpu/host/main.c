/* Entry: enumerate forms, run variants on both sides, compare, report. Exit status 1 if anything differed.
 *
 * hostcmp [-n VARIANTS] [-q SEQUENCES] [-s SEED] [-f SUBSTRING] [-v] [-l] */
#include "harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static unsigned n_variants = 12, n_sequences, max_reports = 40;
static u64 seed = 1;
static const char *filter = "";
static bool verbose, list_only;

typedef struct Result {
    unsigned runs, failures, trapped, undefined_differ;
    bool unimplemented, native;
} Result;

/* Bits of RFLAGS that both sides show and that the form defines. */
static u64 defined_flags(const Form *f) {
    u64 undefined = f->zi.cpu_flags ? f->zi.cpu_flags->undefined : 0;
    return (FL_CC & ~undefined) | FL_DF;
}

static const char *compare_fp(const u8 *a, const u8 *b) {
    if (memcmp(a, b, 5)) return "x87 control, status or tags";
    if (memcmp(a + 24, b + 24, 4)) return "mxcsr";
    for (unsigned i = 0; i < 8; i++)
        if (memcmp(a + 32 + 16 * i, b + 32 + 16 * i, 10)) return "st";
    if (memcmp(a + 160, b + 160, 256)) return "xmm";
    return memcmp(a + FP_YMMH, b + FP_YMMH, 256) ? "ymm" : NULL;
}

/* Processors differ in the order in which they read an x87 environment: its page counts. */
static u64 fault_address(const Form *f, const State *st) {
    bool environment = f->zi.mnemonic == ZYDIS_MNEMONIC_FLDENV || f->zi.mnemonic == ZYDIS_MNEMONIC_FRSTOR;
    return environment ? st->fault_addr & PAGE_MASK : st->fault_addr;
}

/* NULL, or what differs. AMD's leave POPA and ENTER half done at a fault; they are restarted anyway. */
static const char *compare(const Form *f, const State *host, const State *guest) {
    if (host->trap != guest->trap) return "exception";
    if (host->trap != NO_TRAP && host->error != guest->error) return "error code";
    if (fault_address(f, host) != fault_address(f, guest)) return "fault address";
    if (host->rip != guest->rip) return "rip";
    bool half_done =
        host->trap == EXC_PF && (f->zi.mnemonic == ZYDIS_MNEMONIC_POPA || f->zi.mnemonic == ZYDIS_MNEMONIC_POPAD);
    for (unsigned i = 0; i < (f->bits == 64 ? 16 : 8) && !half_done; i++)
        if ((host->gpr[i] ^ guest->gpr[i]) & (f->bits == 64 ? ~0ull : 0xffffffff)) return "general register";
    if ((host->flags ^ guest->flags) & defined_flags(f)) return "flags";
    half_done |= host->trap == EXC_AC && f->zi.mnemonic == ZYDIS_MNEMONIC_ENTER;
    if (!half_done && memcmp(host->mem, guest->mem, DATA_BYTES)) return "memory";
    return compare_fp(host->fp, guest->fp);
}

static void show_vector(const char *what, unsigned i, const u8 *in, const u8 *host, const u8 *guest, unsigned n) {
    if (!memcmp(host, guest, n)) return;
    const u8 *rows[3] = {in, host, guest};
    static const char *const names[3] = {"in   ", "host ", "guest"};
    for (unsigned r = 0; r < 3; r++) {
        printf("    %s%u %s ", what, i, names[r]);
        for (unsigned b = n; b--;) printf("%02x", rows[r][b]);
        printf("\n");
    }
}

static void show_difference(const State *in, const State *host, const State *guest) {
    static const char *const names[16] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                          "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};
    printf("    trap host %x err %x cr2 %lx, guest %x err %x cr2 %lx; rip %lx %lx; flags in %lx host %lx guest %lx\n",
           host->trap, host->error, host->fault_addr, guest->trap, guest->error, guest->fault_addr, host->rip,
           guest->rip, in->flags, host->flags & (FL_CC | FL_DF), guest->flags & (FL_CC | FL_DF));
    for (unsigned i = 0; i < 16; i++)
        if (host->gpr[i] != guest->gpr[i])
            printf("    %s in %lx host %lx guest %lx\n", names[i], in->gpr[i], host->gpr[i], guest->gpr[i]);
    for (unsigned i = 0; i < 16; i++) printf("%s %lx%s", names[i], in->gpr[i], i == 15 ? "\n" : " ");
    for (unsigned i = 0; i < DATA_BYTES; i += 16) show_vector("mem", i, in->mem + i, host->mem + i, guest->mem + i, 16);
    show_vector("fpctl", 0, in->fp, host->fp, guest->fp, 5);
    show_vector("mxcsr", 0, in->fp + 24, host->fp + 24, guest->fp + 24, 4);
    for (unsigned i = 0; i < 8; i++)
        show_vector("st", i, in->fp + 32 + 16 * i, host->fp + 32 + 16 * i, guest->fp + 32 + 16 * i, 10);
    for (unsigned i = 0; i < 16; i++) {
        unsigned x = 160 + 16 * i, y = FP_YMMH + 16 * i;
        show_vector("xmm", i, in->fp + x, host->fp + x, guest->fp + x, 16);
        show_vector("ymmh", i, in->fp + y, host->fp + y, guest->fp + y, 16);
    }
}

static void report(const Form *f, const Code *code, const char *what, const State *in, const State *host,
                   const State *guest) {
    static unsigned n;
    if (n++ >= max_reports) return;
    printf("FAIL %s: %s;", f->name, what);
    for (unsigned i = 0; i < code->len; i++) printf(" %02x", code->bytes[i]);
    printf("\n");
    show_difference(in, host, guest);
}

static void run_form(const Form *f, Result *r) {
    static State in, host, guest;
    for (unsigned v = 0; v < n_variants; v++) {
        Code code;
        if (!variant_make(f, &code, &in)) continue;
        bool native = false;
        if (!guest_run(&code, &in, &guest, &native)) {
            r->unimplemented = true;
            return;
        }
        host_run(&code, &in, &host);
        r->runs++;
        r->native |= native;
        r->trapped += host.trap != NO_TRAP;
        const char *what = compare(f, &host, &guest);
        if (!what) {
            r->undefined_differ += ((host.flags ^ guest.flags) & FL_CC) != 0;
            continue;
        }
        r->failures++;
        if (r->failures <= (verbose ? 100 : 1)) report(f, &code, what, &in, &host, &guest);
    }
}

static bool run_sequence(void) {
    static State in, host, guest;
    static const Form any = {.bits = 64, .name = "sequence"};
    Code code;
    unsigned n = sequence_make(&code, &in);
    guest_run_sequence(&code, n, &in, &guest);
    host_run(&code, &in, &host);
    const char *what = compare(&any, &host, &guest);
    if (what) report(&any, &code, what, &in, &host, &guest);
    return !what;
}

/* Whole blocks by the run loop: flags, registers and FPU state carried from one instruction to the next. */
static unsigned run_sequences(unsigned count) {
    unsigned failed = 0;
    rng_state = seed * 0x2000003;
    for (unsigned i = 0; i < count; i++) failed += !run_sequence();
    return failed;
}

static void options(int argc, char **argv) {
    for (int o; (o = getopt(argc, argv, "n:q:s:f:r:vlj")) != -1;) {
        switch (o) {
        case 'n': n_variants = (unsigned)atoi(optarg); break;
        case 'q': n_sequences = (unsigned)atoi(optarg); break;
        case 's': seed = strtoull(optarg, NULL, 0); break;
        case 'f': filter = optarg; break;
        case 'r': max_reports = (unsigned)atoi(optarg); break;
        case 'j': guest_translates = true; break;
        case 'v': verbose = true; break;
        case 'l': list_only = true; break;
        default: exit(2);
        }
    }
}

typedef struct Totals {
    unsigned forms, integer, native, long_integer, long_native, failed, unimplemented, empty, undefined, always_trap;
    u64 runs;
} Totals;

static void add(Totals *t, const Form *f, const Result *r) {
    if (r->unimplemented) {
        t->unimplemented++;
        printf("unimplemented: %s\n", f->name);
        return;
    }
    if (!r->runs) {
        t->empty++;
        printf("no variant: %s\n", f->name);
        return;
    }
    if (r->trapped == r->runs) {
        t->always_trap++;
        if (verbose) printf("always faults: %s\n", f->name);
    }
    t->forms++;
    t->runs += r->runs;
    t->native += r->native;
    t->integer += !r->native;
    t->long_native += f->bits == 64 && r->native;
    t->long_integer += f->bits == 64 && !r->native;
    t->failed += r->failures != 0;
    t->undefined += r->undefined_differ != 0;
    if (r->undefined_differ && verbose) printf("undefined flags differ: %s\n", f->name);
}

int main(int argc, char **argv) {
    options(argc, argv);
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (unsigned bits = 64; bits >= 16; bits /= 2) forms_enumerate(bits);
    host_init();
    guest_init();
    Totals t = {0};
    for (unsigned i = 0; i < n_forms; i++) {
        const Form *f = &forms[i];
        if (!strstr(f->name, filter)) continue;
        if (list_only) {
            printf("%s\n", f->name);
            continue;
        }
        rng_state = seed * 0x1000003 + f->key;
        Result r = {0};
        run_form(f, &r);
        add(&t, f, &r);
    }
    unsigned bad_sequences = run_sequences(n_sequences);
    printf("sequences %u bad-sequences %u ", n_sequences, bad_sequences);
    printf("forms %u integer %u native %u long-integer %u long-native %u failed %u unimplemented %u empty %u "
           "always-fault %u "
           "undefined-differ %u runs %lu\n",
           t.forms, t.integer, t.native, t.long_integer, t.long_native, t.failed, t.unimplemented, t.empty,
           t.always_trap, t.undefined, t.runs);
    return t.failed != 0 || bad_sequences != 0;
}
