/* Decoded blocks: straight runs of Insn, found again by RIP (shortcuts) or by where the bytes lie in RAM (CORE 1).
 *
 *   RIP --successors of the last block, jump cache--> Block        valid while tag (mode, generation) and RIP agree
 *   (ram_off, RIP, mode) --hash--> Block                           survives every change of mappings
 *   64-byte granule written --page list--> Blocks to drop          self-modifying code, DMA
 *
 * Counting (CORE 15). Whatever executes blocks keeps this contract, so that a clock that counts instructions (-icount)
 * is the same in every tier:
 * - it runs until Cpu.icount is exactly Interp.budget_end, or until something is pending, and then returns to the
 *   dispatcher (vcpu/run.c). A block that does not fit in the budget is executed one instruction at a time;
 * - a block may be charged whole when it is entered, but interp_icount() asked inside a handler gives the instructions
 *   completed before the one being executed. A faulting instruction does not count; an iteration of a REP counts one,
 *   and REP stops in between when the budget ends;
 * - when Cpu.leave_block is set (an upcall, an access to the local APIC or a new deadline of its timer, on a machine
 *   whose clock counts) it returns to the dispatcher after this instruction, because the budget may be shorter now and
 *   an interrupt must come between the same two instructions every time.
 *
 * Block and Insn memory comes from one arena and is only reused after the whole cache is dropped, so a stale pointer
 * to a Block (successor, jump cache) is harmless: its tag does not match. */
#ifndef QPY_INTERP_BLOCK_H
#define QPY_INTERP_BLOCK_H

#include "interp/ops.h"

#define BLOCK_MAX_INSNS 64
#define BLOCK_MAX_BYTES 256
#define JUMP_CACHE_SIZE 16384u
#define BLOCK_HASH_BITS 20
#define BLOCK_HASH_SIZE (1u << BLOCK_HASH_BITS)
#define PAGE_HASH_BITS  15
#define PAGE_HASH_SIZE  (1u << PAGE_HASH_BITS)
#define TWINS_BITS      16
#define TWINS           (1u << TWINS_BITS)
#define REMOTE_MAX      64

/* What is asked of every block that is entered lies in its first cache line. */
typedef struct Block {
    u64 rip;
    u64 tag; /* block_tag() under which rip last mapped here; 0: verify at every entry */
    const Insn *insn;
    struct JitCode *code;  /* its translation (jit/) */
    struct Block *succ[2]; /* where execution went last */
    u32 mode;
    u32 hits;           /* times interpreted while it had no translation */
    u16 size;           /* bytes looked at */
    u8 n;               /* instructions */
    bool system;        /* may have halted the CPU */
    bool plain, region; /* translate without groups, as a region (jit/) */
    bool checked;       /* in a hot page: compare bytes before running */
    bool dropped;
    u64 ram_off, ram_off2; /* first byte; second page if the only instruction crosses into it, else ~0 */
    struct Block *hash_next, *page_next[2];
    u64 cs_base;
    u8 bytes[16]; /* checked: what was decoded */
} Block;
_Static_assert(offsetof(Block, ram_off) == CACHE_LINE && sizeof(Block) == 2 * CACHE_LINE, "two cache lines");
_Static_assert(BLOCK_MAX_INSNS <= UINT8_MAX, "Block.n holds them");

/* What is known of one page of RAM that holds decoded code. */
typedef struct CodePage {
    u64 page; /* ram_off of the page */
    Block *blocks;
    u64 smc_since; /* icount when smc was last zero */
    u32 smc;       /* invalidations since then */
    u32 hot;       /* lookups until the page is trusted again */
    struct CodePage *next;
} CodePage;

/* What is found by a hash; a mapping of its own, so that dropping all costs what is there. */
typedef struct BlockTables {
    Block *hash[BLOCK_HASH_SIZE];
    Block *twin[TWINS]; /* the last one built, whatever its RIP */
    CodePage *pages[PAGE_HASH_SIZE];
} BlockTables;

typedef struct Interp {
    u64 stop;       /* icount to stop at; 0 while tracing, so that every block takes the slow path */
    u64 budget_end; /* what stop is without tracing */
    Cpu *owner;
    u32 flushes;
    char *arena;
    size_t used;
    Insn one; /* the instruction of exec_one() */
    u32 lock; /* guards the remote queue: other threads post, the owner drains */
    volatile u32 n_remote;
    struct {
        u64 off;
        u32 n;
    } remote[REMOTE_MAX];
    u32 n_hot; /* pages */
    Block *jump_cache[JUMP_CACHE_SIZE];
    BlockTables *tables;
} Interp;

extern Block block_none;     /* matches nothing */
extern const Insn insn_none; /* length 0: a fault in fetching leaves rip alone */

INLINE u64 block_tag(const Cpu *c) { return *(const u64 *)&c->lookup_gen; }
/* Of code outside of user mode that does not lie in global pages. */
INLINE u64 block_tag_local(const Cpu *c) { return c->user_gen | (u64)c->mode << 32; }
_Static_assert(offsetof(Cpu, mode) == offsetof(Cpu, lookup_gen) + 4, "lookup_gen and mode make a tag");

/* Is the translation through which b was found, of both its pages, global? */
bool block_is_global(Cpu *c, const Block *b);
/* Finds or builds the block at rip (block.c). NULL: the code is not in RAM or ROM. May raise. */
Block *block_lookup(Cpu *c);
/* Called when a block is dropped, for its translation. */
extern void (*block_drop_hook)(Cpu *c, Block *b);
/* What a run loop does first: account for a block that was left half-way, take over what others reported. */
void interp_begin(Cpu *c);
/* Executes one block. */
void block_exec(Cpu *c, const Block *b);
/* Was code in its page written to not long ago? */
bool block_page_written(Cpu *c, const Block *b);
/* Something other than the next block: interrupt shadow, single-step, code outside of RAM. True: leave the run loop. */
bool run_special(Cpu *c, Interp *it);
/* May b be entered at rip without looking? */
bool block_still_holds(const Cpu *c, const Block *b, u64 rip);
/* Drops what other threads reported as written. */
void block_drain_remote(Cpu *c);
/* Makes an executable Insn of at most avail bytes: decode, feature check, handler. Returns length or DECODE_MORE. */
int block_decode(Cpu *c, u64 rip, const u8 *bytes, unsigned avail, Insn *in);

#endif
