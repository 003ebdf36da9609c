/* The decoded instruction: what Zydis said, packed for execution. Register operands are byte offsets into Cpu.r, so
 * that AH-BH need no special case and no handler scales an index. */
#ifndef QPY_DECODE_INSN_H
#define QPY_DECODE_INSN_H

#include "cpu/cpu.h"

/* Names in rows and comments in columns: laid out by hand. */
/* clang-format off */

typedef void (*OpFn)(Cpu *c, const Insn *in);

/* Operand layout. "rm" is the ModRM.rm operand (register or memory) or the implied one (accumulator, opcode register);
 * "reg" is ModRM.reg; "reg2" is VEX.vvvv. */
enum {
    INF_MEM = 1 << 0,    /* rm is memory: seg:[base + index << scale + disp] */
    INF_IMM = 1 << 1,    /* imm holds an immediate (sign-extended as the instruction asks) */
    INF_REGDST = 1 << 2, /* reg is the destination and rm the source; else rm is the destination */
    INF_LOCK = 1 << 3, INF_REP = 1 << 4, INF_REPNE = 1 << 5,
    INF_REX = 1 << 6,
    INF_HASREG = 1 << 7, /* there is a reg operand */
    INF_END = 1 << 9,    /* ends a block (branch, mode change, shadow, ...) */
    INF_VEX = 1 << 10, INF_VEX256 = 1 << 11, INF_O16 = 1 << 12, /* 66 prefix present */
    INF_PLAIN = 1 << 13 /* ends a block but only by changing rip: no halt, no mode change */
};

struct Insn {
    OpFn fn;
    union {
        u64 imm;     /* also: 64-bit moffs address; far pointer as selector << 32 | offset; ENTER as imm16 | imm8 << 16 */
        i64 simm;
        void *stub;  /* native x87/SIMD instructions: executable stub (interp/native) */
    };
    i32 disp;
    u16 flags; /* INF_* */
    u16 op;    /* ZydisMnemonic */
    u8 len;
    u8 osz, asz;           /* operand size 1 2 4 8 (16, 32 for vectors), address size 2 4 8; bytes */
    u8 ssz;                /* stack address size 2 4 8 */
    u8 seg;                /* SEG_* of the memory operand, overrides applied */
    u8 base, index, scale; /* byte offsets into Cpu.r; scale is a shift count */
    u8 rm, reg, reg2;      /* GPRs: byte offset into Cpu.r (n * 8, AH-BH: n * 8 + 1); CR, DR, segment, x87, MMX, vector
                              registers: plain number */
    u8 imm8b;              /* second immediate, or the is4 register */
    u8 opcode, map;        /* last opcode byte and opcode map (0 one-byte, 1 0F, 2 0F38, 3 0F3A) */
    u8 modrm;
    u8 feat;               /* FEAT_* this form needs, 0: none */
};
_Static_assert(sizeof(struct Insn) <= 48, "Insn is three quarters of a cache line");

/* rm/reg value of general register n. */
#define ROFF(n) ((u8)((n) * 8))

#define REG8(c, off)  (*(u8 *)((char *)(c)->r + (off)))
#define REG16(c, off) (*(u16 *)((char *)(c)->r + (off)))
#define REG32(c, off) (*(u32 *)((char *)(c)->r + (off)))
#define REG64(c, off) (*(u64 *)((char *)(c)->r + (off)))

/* Segment offset of the memory operand, truncated to the address size. */
INLINE u64 insn_ea(const Cpu *c, const Insn *in) {
    u64 a = REG64(c, in->base) + (REG64(c, in->index) << in->scale) + (i64)in->disp;
    if (likely(in->asz == 8)) return a;
    return in->asz == 4 ? (u32)a : (u16)a;
}

/* Decodes one instruction. mode: MODE_* word; feat: the guest's FEAT_* set; rip: its address; bytes/avail: at most 15
 * readable bytes. Returns its length; DECODE_MORE if avail bytes are not enough; DECODE_UD for an undefined opcode
 * (out->len is still set where known); DECODE_TOO_LONG for over 15 bytes (#GP). Never reads past avail. */
enum { DECODE_MORE = 0, DECODE_UD = -1, DECODE_TOO_LONG = -2 };
int decode_insn(u32 mode, const u64 *feat, u64 rip, const u8 *bytes, unsigned avail, Insn *out);

#endif
