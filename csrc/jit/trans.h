/* What the emitters share while one block is translated. */
#ifndef QPY_JIT_TRANS_H
#define QPY_JIT_TRANS_H

#include <Zydis/Zydis.h>

#include "jit/asm.h"
#include "jit/jit.h"

/* Part of the code that lies behind the block: slow paths, exits. */
typedef struct Cold {
    u8 *site;      /* rel32 that leads here; NULL: none */
    u8 *back;      /* where the hot code goes on (writable view); NULL: it does not */
    JitExit *exit; /* NULL: its handler does the instruction */
    u32 insn;
    u8 how;          /* JIT_EXIT_* */
    u8 held[3];      /* Trans.held where the hot code goes on */
    const Insn *x87; /* Trans.x87 at that point */
    u64 x87_next;
} Cold;
/* Not plain exits: these lie where RFLAGS are right. */
INLINE bool cold_recovers(const Cold *k) { return !k->exit || k->how; }

/* How the flags of the guest come back where RFLAGS may have been clobbered, see recover.c. */
enum { RIGHT, SAVED, REDONE /* + instruction */, JOINED = 128 /* + label */ };
enum { PARTIAL = 1, PARTIAL_UNSEEN };
typedef struct Redo {
    u8 how, size;
    u8 to, from; /* guest registers; from NO_REG: the immediate */
    i32 imm;
} Redo;

typedef struct Guest {
    const Insn *in;
    u64 next;           /* rip behind it */
    u16 live;           /* FL_*: flags that may still be read when it begins */
    u8 recover;         /* RIGHT, or how the flags are recovered that it begins with (recover.c) */
    u8 source;          /* the same for all of its span, but for SAVED */
    u8 came;            /* of a label: how they are where the instruction before goes on to it */
    bool save;          /* they are saved in front of it */
    bool kept;          /* of a label: RFLAGS are right */
    bool stays;         /* nothing leaves the translation in it */
    bool unread;        /* nothing leaves until all flags are written again */
    u8 partial;         /* it writes some flags: PARTIAL, or PARTIAL_UNSEEN: all are written before anybody may look */
    u64 ways;           /* of a label: bit n: those of instruction n may be there */
    Redo redo;          /* of all flags that it writes */
    u8 target;          /* of a branch: the instruction it leads to, or NO_INSN */
    bool label, looped; /* some branch leads here, some backward one */
    u8 *host;           /* where its code begins, if it is a label; writable view */
    u16 written;        /* bit n: general register n changes */
    u8 bytes_used;      /* of its explicit memory operand */
    bool stores;        /* to memory */
    bool implied;       /* has a memory operand that is not explicit */
    bool helped;        /* its handler does it */
    u8 stream;          /* 1 + which of its loop the memory operand belongs to; 0: none */
    u8 moving;          /* register of the operand that moves, or NO_REG */
    i32 fixed;          /* what else the address is, from the stream's other register */
    i32 sp_change;      /* instead of RSP in `written`: it moves by that much */
    ZydisDecodedInstruction zi;
    u8 bytes[16];
} Guest;

INLINE u64 guest_rip(const Guest *g) { return g->next - g->in->len; }

/* The registers of an address, and which of their values in this block are meant. */
typedef struct Place {
    u8 base, index, scale; /* guest registers, NO_REG: none */
    u16 version, index_version;
} Place;

/* A memory operand off a place, met while planning; and what stops a group. */
typedef struct Access {
    Place at;
    u8 insn, n;
    bool write, barrier, branch;
    i32 off; /* from the place; for RSP from its value at the block's begin */
} Access;

/* One check for several accesses: while `on`, r13 (or a word of Cpu.jit_group) is the host address of place + lo, good
 * up to place + hi. */
typedef struct Group {
    Place at;
    bool on, write;
    u8 last; /* the instruction behind which it is over */
    i32 lo, hi;
} Group;

/* A branch forward in this translation, to be patched. */
typedef struct Fix {
    u8 *site;
    u8 insn;
} Fix;

/* Operands of a loop off the same registers, of which one moves, or none. */
typedef struct Stream {
    u8 base, index, scale; /* guest registers */
    u8 moving, shift;      /* that register and how it is scaled, or NO_REG */
    bool write;
    u8 members;
    i32 stride; /* bytes each time round */
    i32 lo, hi; /* the bytes used, from base and index at the loop's begin */
} Stream;

/* A loop that runs in strips (strip.c). */
enum { LOOPS = 4, STREAMS = 5 };
typedef struct Loop {
    u8 first, last; /* instructions; the last one branches back to the first */
    bool on, owns;  /* owns: r14 and r15 hold distances too */
    u8 counter, n;  /* a register that moves, and by how much; streams */
    i32 step;
    Stream stream[STREAMS];
    u8 *again, *checked, *to_probe; /* where its branch back leads, behind the test for a strip, that test's rel32 */
} Loop;

typedef struct Trans {
    Asm a;
    Cpu *c;
    Jit *jit;
    Block *b;
    JitCode *code;
    JitMode *mode;
    Guest *g; /* the instruction being translated */
    unsigned i, n;
    bool wide;  /* 64-bit code */
    bool ended; /* control does not come to the next instruction */
    bool moved; /* the current instruction's handler says where to go on */
    bool region;
    u32 mode_after; /* MODE_* where control goes from the current instruction */
    const TlbEntry *tlb;
    u8 held[3]; /* guest register (r12-r15) whose value r13, r14, r15 hold too; NO_REG: scratch */
    u8 late;    /* bit n: what r13 + n holds is not in its slot yet */
    unsigned victim;
    Rm mem;        /* the memory operand after emit_address() */
    bool planning; /* first pass: accesses are noted, the code is thrown away */
    Group group, stored[4];
    const Loop *strip; /* the loop whose copy without checks is being emitted */
    u16 version[16];
    i32 sp;          /* RSP - its value at the block's begin */
    const Insn *x87; /* last x87 instruction, whose pointers are still to be stored */
    u64 x87_next;
    Access access[4 * BLOCK_MAX_INSNS + 2];
    unsigned n_access;
    Cold cold[8 * BLOCK_MAX_INSNS + 8]; /* loops may come twice */
    unsigned n_cold;
    Fix fix[BLOCK_MAX_INSNS];
    unsigned n_fix;
    Loop loop[LOOPS];
    unsigned n_loops;
    Fix recovering[4 * BLOCK_MAX_INSNS]; /* calls of recoveries; insn: RIGHT... */
    unsigned n_recovering;
    u64 recovery[JOINED + BLOCK_MAX_INSNS]; /* their addresses, or 0 */
    Guest guest[BLOCK_MAX_INSNS];
} Trans;

/* Host register of guest register n, or NO_REG: it lives in Cpu.r. */
INLINE unsigned host_reg(unsigned n) { return n == R_RSP ? R12 : n < R_R12 ? n : NO_REG; }
INLINE Rm slot(const Trans *t, unsigned n) { return rm_abs(&t->c->r[n]); }
/* A full guest register into a host one. */
INLINE void get_reg(Trans *t, unsigned to, unsigned n) {
    if (host_reg(n) == NO_REG) asm_load(&t->a, to, slot(t, n));
    else asm_mov(&t->a, to, host_reg(n));
}
/* regs.c: guest r12-r15 are in Cpu.r; scratch registers may hold their values as well, or newer ones (Trans.late). */
unsigned held_find(const Trans *t, unsigned n);                     /* the host register, or NO_REG */
unsigned held_get(Trans *t, unsigned n, bool load, unsigned avoid); /* one that will hold it */
void held_wrote(Trans *t, unsigned host);                           /* what it holds has changed */
void held_flush(Trans *t);                                          /* Cpu.r is up to date again */
void held_drop(Trans *t);                                           /* all scratch registers are about to be used */
void held_drop_host(Trans *t, unsigned host);
void held_forget(Trans *t, unsigned n); /* Cpu.r alone is changed */
void held_reload(Trans *t, const u8 held[3]);

/* Must RFLAGS survive what is emitted in front of the current instruction? */
INLINE bool keeps_flags(const Guest *g) { return g->live || g->recover == RIGHT; }
INLINE bool keep_flags(const Trans *t) { return keeps_flags(t->g); }

/* Emitters: true if they translated the current instruction. */
bool emit_int(Trans *t);
bool only_registers(const Guest *g); /* cannot fault, and looks at no slot behind the back of regs.c */
bool emit_control(Trans *t);
bool emit_stack(Trans *t);
bool emit_vector(Trans *t);
bool emit_sys(Trans *t);
bool emit_bits(Trans *t);
bool emit_tsc(Trans *t);
bool emit_string(Trans *t);
void emit_helper(Trans *t); /* its op_* does it */

/* mem.c: t->mem = the n bytes at the memory operand, all of them readable / writable; else its op_* is called and the
 * instruction is over. Clobbers r14 and r15, r13 without a group, and RFLAGS unless keep_flags(). */
void emit_address(Trans *t, unsigned n, bool write);
void emit_address_reg(Trans *t, unsigned base, i32 disp, unsigned n, bool write); /* of [guest register + disp] */
void emit_check_linear(Trans *t, unsigned n, bool write); /* the same for the linear address in r14 */
/* host (r13 or r14), a linear address, becomes the host's; rcx may wait at home. The rel32 to lead to the slow path. */
u8 *emit_check(Trans *t, unsigned host, Rm home, unsigned n, bool write);
/* The TLB entry's field at offset r15 << scale. */
Rm tlb_field(const Trans *t, unsigned offset, unsigned scale);
/* to = the tag of the entry for this address, r15 << 3 leads to it: RFLAGS stay. */
void emit_tag(Trans *t, unsigned to, unsigned address, unsigned tag);
bool address_supported(const Trans *t);
void emit_ea(Trans *t, unsigned to); /* the linear address only; may clobber r15 */

/* group.c */
Place group_place(const Trans *t, unsigned base, unsigned index, unsigned scale);
void group_note(Trans *t, Place at, i32 disp, unsigned n, bool write);
void group_barrier(Trans *t);
void group_barrier_behind(Trans *t); /* behind the instruction before */
void group_branch(Trans *t);
/* True: t->mem is the operand. */
bool group_serves(Trans *t, Place at, i32 disp, unsigned n, bool write);
void groups_end(Trans *t);
void group_open(Trans *t);
void group_step(Trans *t);
void group_registers(Guest *g, const ZydisDecodedOperand *ops);
bool group_possible(const Trans *t, const Insn *in); /* can its memory operand be in a group? */
/* host = the guest address of at + disp; may clobber r15 */
void group_address(Trans *t, const Place *at, i32 disp, unsigned host);

/* trace.c */
void jit_trace(Trans *t);

/* flags.c */
void flags_liveness(Trans *t);
u16 flags_killed(const Guest *g);                     /* FL_* that it writes for sure */
u16 flags_live_behind(const Trans *t, unsigned insn); /* FL_* that may be read behind it */

/* recover.c */
void flags_operands(Guest *g, const ZydisDecodedOperand *ops);
void flags_plan(Trans *t);                             /* Guest.live and Guest.recover of all instructions */
bool flags_kept_behind(const Trans *t, unsigned insn); /* must RFLAGS be what it leaves? */
void flags_save(Trans *t);                             /* may clobber r15; RFLAGS stay */
void flags_branch(Trans *t);                           /* before the current branch inside, RFLAGS stay */
void flags_fall(Trans *t, const Guest *label); /* before a label, for who comes from the instruction before it */
void flags_recover(Trans *t);                  /* RFLAGS are right; clobbers r15 */
void flags_recoveries(Trans *t);
u64 flags_recovery(Trans *t, u8 how); /* the code to call, which clobbers r15; 0: RFLAGS are right */

/* pairs.c */
void jit_make_pairs(Asm *a, Cpu *c, Jit *j);
/* To the guest's address r14, by the jump cache; clobbers r13 and r15. RFLAGS stay. */
void jit_by_cache(Asm *a, Cpu *c, bool call);
/* The way into the block for who comes through a jump cache. */
void emit_found(Trans *t);
void emit_push_pair(Trans *t, u64 rip); /* before a host call, behind which the guest is at rip */
void emit_return(Trans *t);             /* r14 = where to */

/* Around code in another mode: pairs made outside wait, unless control leaves it another way. RFLAGS stay. */
void emit_cover_pairs(Trans *t);
void emit_uncover_pairs(Trans *t);

/* region.c */
enum { REGION_BYTES = 512, NO_INSN = 0xff, ALWAYS = 16 };
bool region_make(Cpu *c, Jit *j, Block *b, const Insn **insn, unsigned *n); /* false: nothing to gain */
void region_labels(Trans *t);
void region_label(Trans *t); /* before an instruction */
void region_loop(Trans *t);  /* behind the label, if a loop begins there: it may be stopped */
void region_join(Trans *t);
void region_branch(Trans *t, unsigned cond, unsigned insn);
bool direct_branch(const Insn *in); /* JMP, Jcc */

/* strip.c */
void strip_operands(Guest *g, const ZydisDecodedOperand *ops);
void strips_find(Trans *t);    /* the loops that may run in strips; before planning */
void strips_planned(Trans *t); /* and do */
Loop *strip_loop(Trans *t, unsigned first);
void strip_enter(Trans *t, Loop *l);                 /* at the loop's begin */
bool strip_serves(Trans *t, unsigned n, bool write); /* like group_serves() */
void strip_reload(Trans *t);                         /* r14 and r15, if it owns them */
void strips_emit(Trans *t);

/* cache.c */
/* The arithmetic flags to and from memory, by rax, which is clobbered. */
void jit_flags_to(Asm *a, Rm to);
void jit_flags_from(Asm *a, Rm from);

/* translate.c */
void emit_guest(Trans *t); /* the instruction Trans.i */
/* A straight run of instructions begins here; how many there are from here to its end. */
bool run_begins(const Trans *t, unsigned i);
unsigned run_left(const Trans *t);

/* control.c */
void emit_goto(Trans *t, u64 rip, bool poll);
void emit_goto_shadowed(Trans *t, u64 rip); /* no interrupt before its first instruction */
void emit_poll_here(Trans *t);              /* before the current instruction; clobbers RFLAGS */
void emit_poll_for(Trans *t, u64 rip);      /* before going to rip; RFLAGS stay */
void emit_heat(Trans *t);
void emit_charge(Trans *t); /* counts the run that begins here */
u64 branch_target(const Trans *t, const Guest *g);
void x87_settle(Trans *t); /* stores the pointers of the last x87 instruction */
void x87_store(Trans *t, const Insn *in, u64 next);

void cold_helper(Trans *t, u8 *site); /* the rel32 at site leads to the instruction's handler */
void cold_exit(Trans *t, u8 *site, u64 rip);
void cold_interpret(Trans *t, u8 *site); /* a group's check failed */
void cold_end_insn(Trans *t);
void cold_emit(Trans *t);
INLINE bool same_page(const Trans *t, u64 rip) { return !((rip ^ t->b->rip) & PAGE_MASK); }

#endif
