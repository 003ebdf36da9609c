/* The translator: hot decoded blocks become host code (docs/threads.md, ARCHITECTURE.md).
 *
 *   Block (interp/) --hits--> translate() --> JitCode in the code cache, entered by jit_run() or by another block
 *
 * Registers in translated code: guest rax rcx rdx rbx rbp rsi rdi r8-r11 at their own numbers, guest rsp in host r12,
 * guest r12-r15 in Cpu.r; r13 r14 r15 are scratch; host rsp is in a stack of return addresses (pairs.c). The six
 * arithmetic flags are in RFLAGS, the guest's x87 and vector state in the host's registers. Cpu, decoded blocks and
 * code lie below 2 GiB and are addressed absolutely.
 *
 * A JitExit is one way out of a block to a known address. In the same page it is patched to jump to the target; to
 * another page it jumps through `code`, which every flush of that page's translation sets back (links.c). */
#ifndef QPY_JIT_JIT_H
#define QPY_JIT_JIT_H

#include "interp/block.h"
#include "jit/tally.h"

#define JIT_MODES      16
#define JIT_PATIENCE   16
#define JIT_SPACES     8      /* address spaces whose jump caches are kept */
#define JIT_CACHE_SIZE 16384u /* entries of one mode's jump cache */

/* Cpu.jit_mask, for PEXT: TLB index, page, jump-cache index, 63, 31, beyond a clock's piece, DF, beyond 13 bits. */
enum { MASK_TLB, MASK_PAGE, MASK_JUMP, MASK_63, MASK_31, MASK_CLOCK, MASK_DF, MASK_LONG };

typedef struct JitExit {
    const u8 *code;          /* where it leads: its stub, or the target */
    u64 rip;                 /* the guest's address there */
    struct JitCode *to;      /* linked to this translation */
    struct JitExit *next_in; /* others linked to it */
    const u8 *stub;          /* leaves to the dispatcher */
    u8 *site;                /* writable view of the rel32 to patch; NULL: jumps through `code` */
    u64 second;              /* second page of a target that crosses, or rip's own */
    u32 mode;                /* MODE_* of the guest there */
    u8 listed;               /* 1 + the one of Jit.filled it was put into last */
    bool shadow;             /* behind STI: the next instruction comes before any interrupt */
    u8 undone;               /* instructions of the run that are counted but were not done */
    u32 fails;               /* of a group's check: how often its operands straddled pages or missed */
    u32 patience;            /* how often it asks the jump cache before it wants to be linked */
    struct JitCode *from;    /* what left, of exits that say why */
} JitExit;
/* How translated code left through an exit, in the low bits of its address. */
enum { JIT_EXIT_POLL = 1, JIT_EXIT_INTERPRET, JIT_EXIT_HOT, JIT_EXIT_BITS = 3 };

/* What comes behind an instruction at a block's end. */
enum { JIT_NEXT, JIT_LEAVE, JIT_AFAR };

/* Where an instruction's host code begins, for host faults. */
typedef struct JitPoint {
    u32 at; /* offset in the code cache */
    u16 insn;
    u16 recover; /* 0, or 1 + the offset from JitCode.end of what recovers its flags */
} JitPoint;

typedef struct JitCode {
    const u8 *entry;
    const u8 *found; /* the way in through a jump cache: r14 = the guest's address wanted */
    Block *block;
    JitExit *in; /* exits linked to it */
    const Insn *insn;
    u32 heat; /* entries left until it becomes a region */
    JitPoint *points;
    u32 n_points;
    u32 run; /* instructions of the straight run it begins with */
    struct JitMode *mode;
    u32 end; /* offset in the code cache */
} JitCode;

/* Linear pages, perhaps some more: those of which code may be in a jump cache, or reached by an exit. */
typedef struct PageSet {
    u64 bits[64];
} PageSet;

typedef struct JumpCache {
    const u8 *code[JIT_CACHE_SIZE]; /* JitCode.found, which verifies */
    u64 rip[JIT_CACHE_SIZE];        /* for whom an entry was filled */
    u64 listed[JIT_CACHE_SIZE / 64];
    u16 filled[JIT_CACHE_SIZE]; /* the entries `listed`: of non-global pages; of user code all */
    u32 n_filled;
    bool ready, used; /* all entries are set, some to code */
    PageSet pages;
} JumpCache;

typedef struct JitMode {
    u32 mode;
    JumpCache *of; /* of user code JIT_SPACES of them */
} JitMode;

/* Which address space a user's jump cache is of. */
typedef struct JitSpace {
    u32 pcid;
    u64 gen; /* the PCID's, in the second-level TLB, when it ran last; 0: unused */
    u64 used;
} JitSpace;

typedef struct ExitList {
    JitExit **v;
    u32 n, max;
    PageSet pages; /* where they lead */
} ExitList;

typedef struct JitStats {
    u64 translated, regions, code_bytes, entered, helper, poll, linked, unlinked, cache_fill, flushes, host_faults,
        group_failed, compared;
    u64 exit_unlinked, exit_handler, exit_handled; /* handled: also those for a target that is in no jump cache */
    u64 interpreted;                               /* blocks */
    i64 translate_ns, interpret_ns;
} JitStats;

typedef struct Jit {
    u8 *rw;           /* the code cache, writable view */
    const u8 *rx;     /* executable view, below 2 GiB */
    u32 used, common; /* common: what the shared stubs take */
    u32 code_max, arena_max;
    char *arena; /* JitCode, JitExit, JitPoint; below 2 GiB */
    u32 arena_used;
    u32 interp_flushes; /* Interp.flushes seen */
    bool leave;     /* a block was dropped or mappings changed while translated code runs: return to the dispatcher */
    bool interpret; /* the next block is to be interpreted: a group's check failed */
    bool handled;   /* the last time it was left without an exit: behind what a handler did, or for an unknown target */
    const u8 *enter, *exit, *leave_now, *helper, *system, *fault, *fault_recover, *return_missed, *target_missed,
        *covered, *exit_by_cache;
    bool loop_is_fast; /* LOOP costs no more than JRCXZ */
    char *stacks;      /* guard page, return addresses; guard page, signal stack */
    JitMode modes[JIT_MODES];
    u32 n_modes;
    JitSpace spaces[JIT_SPACES];
    u32 space; /* the one that runs */
    u64 space_tick;
    JitCode **codes; /* by address, for host faults */
    u32 n_codes;
    ExitList filled[2]; /* cross-page exits in use: to non-global, to global pages */
    JitStats stats;
    u32 heat;    /* entries that make a block a region; 0: none do */
    bool counts; /* instructions: each run adds its own to Cpu.icount, and leaves if they are too many (CORE 15) */
    struct Lockstep *lockstep;
    Tally tally;
} Jit;

/* Why this host cannot run translated code (BMI2, LAHF); NULL: it can. */
const char *jit_unsupported(void);
/* NULL on failure; why: a short reason. */
struct Jit *jit_new(Cpu *c, const char **why);
void jit_free(struct Jit *j);
void jit_run(Cpu *c);          /* like interp_run() */
void jit_run_lockstep(Cpu *c); /* the same, comparing with the interpreter */
void jit_run_block(Cpu *c);    /* translates the block at rip and enters it once, for tests */

/* translate.c: makes b->code; false: this block stays interpreted. FPU parked. */
bool jit_translate(Cpu *c, Block *b);
bool jit_eligible(const Cpu *c, const Block *b);

/* cache.c */
void *jit_alloc(Jit *j, size_t n);
void jit_reset(Cpu *c); /* drops all translations; not from translated code */
bool jit_room(const Jit *j);
void jit_make_common(Cpu *c, Jit *j);

/* run.c: the functions translated code calls */
void jit_bind(Cpu *c);
Block *jit_find(Cpu *c);  /* the block at rip, or NULL */
bool jit_flushed(Cpu *c); /* the interpreter dropped all blocks: so does the translator */
bool jit_wanted(Cpu *c);  /* must the vCPU look at what is pending? */
bool jit_can_enter(const Cpu *c, const Block *b);
JitExit *jit_enter(Cpu *c, Block *b); /* the exit it left through, if that may be linked */

/* links.c */
void jit_link(Cpu *c, JitExit *x, Block *b);
void jit_drop(Cpu *c, Block *b);
void jit_take_flushes(Cpu *c);

/* spaces.c */
void pages_note(PageSet *s, u64 lin);
bool pages_maybe(const PageSet *s, u64 lin);
void pages_clear(PageSet *s);
JitMode *jit_mode(Jit *j, u32 mode); /* NULL: no more room for modes */
void jit_modes_free(Jit *j);
JumpCache *jit_cache_of(const Jit *j, const JitMode *m); /* in the space that runs */
void jit_cache_fill(Cpu *c, Block *b);
JitMode *jit_mode_of(Jit *j, u32 mode); /* NULL: nothing is translated in it */
void jit_cache_drop(Jit *j, const Block *b, const JitCode *code);
void jit_caches_empty(Jit *j);
void jit_caches_flush(Cpu *c, u32 kinds); /* FLUSHED_* */
/* Not of pages that only spaces other than the one that runs and `before` may have seen. */
void jit_caches_flush_range(Cpu *c, u64 base, u64 size, u32 before);

/* fault.c */
void jit_faults_init(void);

/* pairs.c */
bool jit_pairs_init(Cpu *c, Jit *j);
void jit_pairs_free(Jit *j);
void jit_pairs_thread(const Cpu *c);            /* the calling thread is about to run translated code */
bool jit_pairs_full(const Jit *j, u64 address); /* a push there did not fit */

INLINE u32 jump_index(u64 rip) { return rip & (JIT_CACHE_SIZE - 1); }

#endif
