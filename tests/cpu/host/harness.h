/* Comparison of the interpreter with the host's own CPU, instruction form by instruction form.
 *
 * A form is an opcode with its operand kinds. It is tried in many variants (registers, addressing, data); each runs
 * once on the host, by a signal frame that holds the whole register state, and once by our decoder and handlers on a
 * guest whose page tables map the same linear addresses. Both ends are compared: registers, flags, FPU, memory, faults.
 */
#ifndef HARNESS_H
#define HARNESS_H

#include <Zydis/Zydis.h>

#include "cpu/cpu.h"

/* Linear addresses, the same on both sides and below 2 GiB; what surrounds the data pages is not mapped. */
#define CODE_VA    0x10000000ull
#define DATA_VA    0x10010000ull
#define DATA_BYTES 8192ull
/* 16-bit code runs in segments of its own: code at CODE_VA, data and stack at DATA_VA, with limits. */
#define CODE16_LIMIT 0xfffu
#define DATA16_LIMIT 0x27ffu
#define GS_BASE      (DATA_VA - 0x1000)

enum { FP_BYTES = 832, FP_YMMH = 576, NO_TRAP = 0xff };

typedef struct State {
    u64 gpr[16];
    u64 rip, flags;
    u8 fp[FP_BYTES] __attribute__((aligned(64))); /* XSAVE standard format */
    u8 mem[DATA_BYTES];
    u32 trap, error; /* exception vector or NO_TRAP */
    u64 fault_addr;
} State;

typedef struct Code {
    u8 bytes[256];
    unsigned len;
    u8 fs_at;    /* 1 + index of a GS prefix that the guest sees as FS (the host's FS is libc's), or 0 */
    u8 bits;     /* of the code segment: 64, 32 or 16 */
    bool branch; /* stop it by the trap flag: the next instruction is elsewhere */
} Code;

void host_init(void);
void host_run(const Code *code, const State *in, State *out);

void guest_init(void);
/* False if the interpreter does not implement the form. */
extern bool guest_translates; /* guest_run uses the translator where it can */
bool guest_run(const Code *code, const State *in, State *out, bool *native);
/* n instructions by the run loop and its block cache. */
void guest_run_sequence(const Code *code, unsigned n, const State *in, State *out);

/* Random numbers, reproducible from the seed. */
extern u64 rng_state;
u64 rnd(void);
INLINE unsigned below(unsigned n) { return (unsigned)((rnd() >> 11) % n); }
INLINE bool chance(unsigned percent) { return below(100) < percent; }

typedef struct Form {
    u8 prefix[3]; /* legacy prefixes: LOCK or REP, 66, mandatory */
    u8 n_prefix, map, opcode, vex_pp;
    bool vex, w, l, has_modrm;
    u8 bits;
    u8 reg, rm; /* ModRM as found; rm 8: memory */
    ZydisDecodedInstruction zi;
    ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
    u64 key;
    char name[96];
} Form;

extern Form *forms;
extern unsigned n_forms;
void forms_enumerate(unsigned bits);
/* Decodes with the decoder of that code size. */
bool decode(unsigned bits, const u8 *bytes, ZydisDecodedInstruction *zi, ZydisDecodedOperand *ops);
u64 form_key(const Form *f, const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *ops);

/* Makes one variant: code bytes and a start state for it. False: this form took no variant. */
/* A random run of instructions without memory operands, ended by a branch; returns how many. */
unsigned sequence_make(Code *code, State *st);

bool variant_make(const Form *f, Code *code, State *st);

/* Fills a whole start state with random and edge values. */
void state_random(State *st);

#endif
