/* BT BTS BTR BTC BSF BSR TZCNT LZCNT POPCNT, BMI1, BMI2, ADX, CRC32 (SDM vol 2). */
#include "interp/int.h"

/* Bit strings: a register bit offset is signed and reaches beyond the operand: whole operands are added to the address.
 */
static u64 bit_address(const Cpu *c, const Insn *in) {
    u64 ea = insn_ea(c, in);
    if (in->flags & INF_IMM) return ea;
    u64 v = get_n(c, in->reg, in->osz);
    i64 off = in->osz == 8 ? (i64)v : in->osz == 4 ? (i32)v : (i16)v;
    ea += (u64)((off >> (in->osz == 8 ? 6 : in->osz == 4 ? 5 : 4)) * in->osz);
    return in->asz == 8 ? ea : in->asz == 4 ? (u32)ea : (u16)ea;
}
static u64 bit_index(const Cpu *c, const Insn *in) {
    return (in->flags & INF_IMM ? in->imm : REG64(c, in->reg)) & (in->osz * 8u - 1);
}

#define BIT_HOST(name, lock, constraint, d)                                                                            \
    u32 ax = cc_to_ax(c->cc);                                                                                          \
    asm volatile(FLAGS_FROM_AX lock #name " %[b], %[d_]" FLAGS_TO_AX                                                   \
                 : "+a"(ax), [d_] constraint(d)                                                                        \
                 : [b] "r"(bit)                                                                                        \
                 : "cc", "memory");                                                                                    \
    c->cc = cc_from_ax(ax)
#define DEF_BIT_SIZE(name, bits)                                                                                       \
    static void op_##name##_r##bits(Cpu *c, const Insn *in) {                                                          \
        u##bits d = get##bits(c, in->rm), bit = (u##bits)bit_index(c, in);                                             \
        BIT_HOST(name, "", "+r", d);                                                                                   \
        set##bits(c, in->rm, d);                                                                                       \
    }                                                                                                                  \
    static void op_##name##_m##bits(Cpu *c, const Insn *in) {                                                          \
        Rmw m;                                                                                                         \
        u##bits bit = (u##bits)bit_index(c, in);                                                                       \
        u##bits *p = rmw_begin(c, &m, in->seg, bit_address(c, in), bits / 8), d = *p;                                  \
        BIT_HOST(name, "", "+r", d);                                                                                   \
        *p = d;                                                                                                        \
        rmw_end(c, &m);                                                                                                \
    }                                                                                                                  \
    static void op_##name##_l##bits(Cpu *c, const Insn *in) {                                                          \
        Rmw m;                                                                                                         \
        u##bits bit = (u##bits)bit_index(c, in);                                                                       \
        u##bits *p = rmw_begin(c, &m, in->seg, bit_address(c, in), bits / 8);                                          \
        BIT_HOST(name, "lock ", "+m", *p);                                                                             \
        rmw_end(c, &m);                                                                                                \
    }
#define DEF_BIT(name)                                                                                                  \
    DEF_BIT_SIZE(name, 16)                                                                                             \
    DEF_BIT_SIZE(name, 32)                                                                                             \
    DEF_BIT_SIZE(name, 64)                                                                                             \
    static const OpFn name##_table[3][4] = {SIZES_16UP(op_##name##_r), SIZES_16UP(op_##name##_m),                      \
                                            SIZES_16UP(op_##name##_l)};
DEF_BIT(bts)
DEF_BIT(btr)
DEF_BIT(btc)

#define DEF_BT(bits)                                                                                                   \
    static void op_bt##bits(Cpu *c, const Insn *in) {                                                                  \
        bool mem = in->flags & INF_MEM;                                                                                \
        u##bits d = mem ? ld##bits(c, in->seg, bit_address(c, in)) : get##bits(c, in->rm);                             \
        u##bits bit = (u##bits)bit_index(c, in);                                                                       \
        BIT_HOST(bt, "", "+r", d);                                                                                     \
    }
DEF_BT(16)
DEF_BT(32)
DEF_BT(64)
static const OpFn bt_table[4] = SIZES_16UP(op_bt);

/* BSF and BSR of zero leave the destination alone: it enters the host instruction whole. */
#define DEF_SCAN(name, bits, size)                                                                                     \
    static void op_##name##bits(Cpu *c, const Insn *in) {                                                              \
        u##bits s = (u##bits)rm_read(c, in, bits / 8);                                                                 \
        u64 d = REG64(c, in->reg);                                                                                     \
        u32 ax = cc_to_ax(c->cc);                                                                                      \
        asm(FLAGS_FROM_AX #name " %[s], %" #size "[d]" FLAGS_TO_AX : "+a"(ax), [d] "+r"(d) : [s] "r"(s) : "cc");       \
        c->cc = cc_from_ax(ax);                                                                                        \
        REG64(c, in->reg) = d;                                                                                         \
    }
#define DEF_SCAN_ALL(name)                                                                                             \
    DEF_SCAN(name, 16, w)                                                                                              \
    DEF_SCAN(name, 32, k)                                                                                              \
    DEF_SCAN(name, 64, q)                                                                                              \
    static const OpFn name##_table[4] = SIZES_16UP(op_##name);
DEF_SCAN_ALL(bsf)
DEF_SCAN_ALL(bsr)
DEF_SCAN_ALL(tzcnt)
DEF_SCAN_ALL(lzcnt)
DEF_SCAN_ALL(popcnt)

/* Three-operand BMI: destination, a, b; 32 or 64 bits. */
#define DEF_BMI(name, bits, dst, first, second)                                                                        \
    static void op_##name##bits(Cpu *c, const Insn *in) {                                                              \
        u##bits m = (u##bits)rm_read(c, in, bits / 8), v = get##bits(c, in->reg2), d;                                  \
        u32 ax = cc_to_ax(c->cc);                                                                                      \
        asm(FLAGS_FROM_AX #name " %[" #second "], %[" #first "], %[d]" FLAGS_TO_AX                                     \
            : "+a"(ax), [d] "=&r"(d)                                                                                   \
            : [m] "r"(m), [v] "r"(v)                                                                                   \
            : "cc");                                                                                                   \
        c->cc = cc_from_ax(ax);                                                                                        \
        set##bits(c, in->dst, d);                                                                                      \
    }
/* AT&T operand order: the first source of Intel's order is written last before the destination. */
#define DEF_BMI3(name, first, second)                                                                                  \
    DEF_BMI(name, 32, reg, first, second)                                                                              \
    DEF_BMI(name, 64, reg, first, second)                                                                              \
    static const OpFn name##_table[2] = {op_##name##32, op_##name##64};
DEF_BMI3(andn, v, m)
DEF_BMI3(bextr, m, v)
DEF_BMI3(bzhi, m, v)
DEF_BMI3(pdep, v, m)
DEF_BMI3(pext, v, m)
DEF_BMI3(sarx, m, v)
DEF_BMI3(shlx, m, v)
DEF_BMI3(shrx, m, v)

/* Two-operand BMI1: vvvv is the destination. */
#define DEF_BLS_SIZE(name, bits)                                                                                       \
    static void op_##name##bits(Cpu *c, const Insn *in) {                                                              \
        u##bits m = (u##bits)rm_read(c, in, bits / 8), d;                                                              \
        u32 ax = cc_to_ax(c->cc);                                                                                      \
        asm(FLAGS_FROM_AX #name " %[m], %[d]" FLAGS_TO_AX : "+a"(ax), [d] "=&r"(d) : [m] "r"(m) : "cc");               \
        c->cc = cc_from_ax(ax);                                                                                        \
        set##bits(c, in->reg2, d);                                                                                     \
    }
#define DEF_BLS(name)                                                                                                  \
    DEF_BLS_SIZE(name, 32)                                                                                             \
    DEF_BLS_SIZE(name, 64)                                                                                             \
    static const OpFn name##_table[2] = {op_##name##32, op_##name##64};
DEF_BLS(blsi)
DEF_BLS(blsmsk)
DEF_BLS(blsr)

static void op_rorx32(Cpu *c, const Insn *in) {
    u32 v = (u32)rm_read(c, in, 4), n = in->imm & 31;
    set32(c, in->reg, v >> n | v << (-n & 31));
}
static void op_rorx64(Cpu *c, const Insn *in) {
    u64 v = rm_read(c, in, 8);
    unsigned n = in->imm & 63;
    REG64(c, in->reg) = v >> n | v << (-n & 63);
}

/* ADCX and ADOX: one carry chain each, in CF and in OF; no other flag changes. */
static void add_carry(Cpu *c, const Insn *in, u64 flag) {
    u64 a = get_n(c, in->reg, in->osz), b = rm_read(c, in, in->osz), carry_in = c->cc & flag ? 1 : 0;
    u64 sum = a + b;
    bool carry = in->osz == 8 ? sum < a : sum >> 32;
    sum += carry_in;
    carry |= in->osz == 8 ? sum < carry_in : sum >> 32;
    set_n(c, in->reg, sum, in->osz);
    c->cc = (c->cc & ~flag) | (carry ? flag : 0);
}
static void op_adcx(Cpu *c, const Insn *in) { add_carry(c, in, FL_CF); }
static void op_adox(Cpu *c, const Insn *in) { add_carry(c, in, FL_OF); }

/* The source size is the opcode's, the destination's is 32 bits or, with REX.W, 64: the upper half is cleared anyway.
 */
#define DEF_CRC32(bits)                                                                                                \
    static void op_crc32_##bits(Cpu *c, const Insn *in) {                                                              \
        u64 d = REG32(c, in->reg);                                                                                     \
        u##bits s = (u##bits)rm_read(c, in, bits / 8);                                                                 \
        DO_CRC32_##bits;                                                                                               \
        REG64(c, in->reg) = d;                                                                                         \
    }
#define DO_CRC32_8  asm("crc32b %[s], %k[d]" : [d] "+r"(d) : [s] "r"(s))
#define DO_CRC32_16 asm("crc32w %[s], %k[d]" : [d] "+r"(d) : [s] "r"(s))
#define DO_CRC32_32 asm("crc32l %[s], %k[d]" : [d] "+r"(d) : [s] "r"(s))
#define DO_CRC32_64 asm("crc32q %[s], %[d]" : [d] "+r"(d) : [s] "r"(s))
DEF_CRC32(8)
DEF_CRC32(16)
DEF_CRC32(32)
DEF_CRC32(64)
static const OpFn crc32_table[4] = SIZES(op_crc32_);

static OpFn resolve_bmi(const Insn *in) {
    unsigned wide = in->osz == 8;
    switch (in->op) {
    case ZYDIS_MNEMONIC_ANDN: return andn_table[wide];
    case ZYDIS_MNEMONIC_BEXTR: return bextr_table[wide];
    case ZYDIS_MNEMONIC_BZHI: return bzhi_table[wide];
    case ZYDIS_MNEMONIC_PDEP: return pdep_table[wide];
    case ZYDIS_MNEMONIC_PEXT: return pext_table[wide];
    case ZYDIS_MNEMONIC_SARX: return sarx_table[wide];
    case ZYDIS_MNEMONIC_SHLX: return shlx_table[wide];
    case ZYDIS_MNEMONIC_SHRX: return shrx_table[wide];
    case ZYDIS_MNEMONIC_BLSI: return blsi_table[wide];
    case ZYDIS_MNEMONIC_BLSMSK: return blsmsk_table[wide];
    case ZYDIS_MNEMONIC_BLSR: return blsr_table[wide];
    case ZYDIS_MNEMONIC_RORX: return wide ? op_rorx64 : op_rorx32;
    case ZYDIS_MNEMONIC_ADCX: return op_adcx;
    case ZYDIS_MNEMONIC_ADOX: return op_adox;
    default: return NULL;
    }
}

OpFn int_bit_resolve(Insn *in, u32 mode) {
    unsigned size = size_index(in->osz), form = in->flags & INF_LOCK ? 2 : in->flags & INF_MEM ? 1 : 0;
    switch (in->op) {
    case ZYDIS_MNEMONIC_BT: return bt_table[size];
    case ZYDIS_MNEMONIC_BTS: return bts_table[form][size];
    case ZYDIS_MNEMONIC_BTR: return btr_table[form][size];
    case ZYDIS_MNEMONIC_BTC: return btc_table[form][size];
    case ZYDIS_MNEMONIC_BSF: return bsf_table[size];
    case ZYDIS_MNEMONIC_BSR: return bsr_table[size];
    case ZYDIS_MNEMONIC_TZCNT: return tzcnt_table[size];
    case ZYDIS_MNEMONIC_LZCNT: return lzcnt_table[size];
    case ZYDIS_MNEMONIC_POPCNT: return popcnt_table[size];
    case ZYDIS_MNEMONIC_CRC32: return crc32_table[in->opcode == 0xf0 ? 0 : in->osz == 8 ? 3 : in->osz == 2 ? 1 : 2];
    default: return resolve_bmi(in);
    }
}
