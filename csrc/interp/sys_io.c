/* IN, OUT, INS, OUTS (Intel SDM vol 1 chapter 19). A repeated form moves a page at a time in one upcall (CORE 10): the
 * destination is proved writable before the port is read, registers are updated after every piece. */
#include "interp/sys.h"

static unsigned port_of(Cpu *c, const Insn *in) {
    return in->opcode & 8 ? (unsigned)c->r[R_RDX] & 0xffff : (unsigned)in->imm & 0xff;
}

static void op_in(Cpu *c, const Insn *in) {
    unsigned port = port_of(c, in), n = in->osz;
    io_permission(c, port, n);
    debug_note_io(c, port, n);
    u32 v = io_in(c, port, n);
    if (n == 1) REG8(c, 0) = (u8)v;
    else if (n == 2) REG16(c, 0) = (u16)v;
    else c->r[R_RAX] = v;
}

static void op_out(Cpu *c, const Insn *in) {
    unsigned port = port_of(c, in), n = in->osz;
    io_permission(c, port, n);
    debug_note_io(c, port, n);
    io_out(c, port, n, (u32)(c->r[R_RAX] & size_mask(n) & (n == 1 ? 0xff : ~0ull)));
}

INLINE u64 addr_mask(const Insn *in) { return size_mask(in->asz); }

static void add_masked(u64 *r, u64 v, const Insn *in) {
    u64 mask = addr_mask(in);
    if (mask == 0xffff) *r = (*r & ~mask) | ((*r + v) & mask);
    else *r = (*r + v) & mask;
}

/* Elements that lie in one page and one piece of the segment, upwards; 1 where the plain path must look. */
static unsigned piece_count(Cpu *c, const Insn *in, unsigned seg, u64 off, u64 left) {
    unsigned n = in->osz;
    if (left < 2 || (c->flags & FL_DF) || (c->mode & MODE_STEP)) return left != 0;
    u64 lin = (c->ea_base[seg] + off) & c->lin_mask, room = (PAGE_SIZE - (lin & ~PAGE_MASK)) / n;
    u64 wrap = (addr_mask(in) - off) / n;
    if (!(c->seg_wok >> seg & 1)) {
        const Segment *s = &c->seg[seg];
        bool down = cpu_protected(c) && !(s->rights & SR_CODE) && (s->rights & SR_DC);
        if (down || off > s->limit) return 1;
        u64 fit = (s->limit - off + 1) / n;
        if (fit < room) room = fit;
    }
    if (wrap < room) room = wrap;
    if (left < room) room = left;
    return room ? (unsigned)room : 1;
}

static void string_advance(Cpu *c, const Insn *in, unsigned index_reg, unsigned count) {
    i64 step = (i64)count * in->osz;
    add_masked(&c->r[index_reg], (u64)(c->flags & FL_DF ? -step : step), in);
    if (in->flags & (INF_REP | INF_REPNE)) add_masked(&c->r[R_RCX], -(u64)count, in);
}

static void copy(void *to, const void *from, unsigned n) {
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n)::"memory");
}

static void ins_piece(Cpu *c, const Insn *in, unsigned port, unsigned count) {
    u8 buf[PAGE_SIZE], bounce[PAGE_SIZE];
    u64 off = c->r[R_RDI] & addr_mask(in);
    unsigned n = count * in->osz;
    mem_probe(c, SEG_ES, off, n, ACC_WRITE);
    if (count == 1) {
        u32 v = io_in(c, port, in->osz);
        copy(buf, &v, in->osz);
    } else {
        io_in_string(c, port, in->osz, count, buf);
    }
    void *where = st_wide_begin(c, SEG_ES, off, n, bounce);
    copy(where, buf, n);
    st_wide_end(c, SEG_ES, off, n, bounce, where);
    string_advance(c, in, R_RDI, count);
}

static void outs_piece(Cpu *c, const Insn *in, unsigned port, unsigned count) {
    u8 buf[PAGE_SIZE], bounce[PAGE_SIZE];
    u64 off = c->r[R_RSI] & addr_mask(in);
    unsigned n = count * in->osz;
    copy(buf, ld_wide(c, in->seg, off, n, bounce), n);
    if (count == 1) io_out(c, port, in->osz, in->osz == 4 ? *(u32 *)buf : in->osz == 2 ? *(u16 *)buf : buf[0]);
    else io_out_string(c, port, in->osz, count, buf);
    string_advance(c, in, R_RSI, count);
}

/* One piece per execution: a longer REP goes back to itself, so that interrupts and traps find it between pieces. */
static void string_io(Cpu *c, const Insn *in, bool input) {
    unsigned port = (unsigned)c->r[R_RDX] & 0xffff;
    bool rep = in->flags & (INF_REP | INF_REPNE);
    u64 left = rep ? c->r[R_RCX] & addr_mask(in) : 1;
    if (!left) return;
    io_permission(c, port, in->osz);
    debug_note_io(c, port, in->osz);
    unsigned seg = input ? SEG_ES : in->seg;
    unsigned count = piece_count(c, in, seg, c->r[input ? R_RDI : R_RSI] & addr_mask(in), left);
    if (input) ins_piece(c, in, port, count);
    else outs_piece(c, in, port, count);
    if (rep && left > count) c->r[R_RIP] -= in->len;
}
static void op_ins(Cpu *c, const Insn *in) { string_io(c, in, true); }
static void op_outs(Cpu *c, const Insn *in) { string_io(c, in, false); }

OpFn sys_resolve_io(Insn *in, u32 mode) {
    if (in->map != 0) return NULL;
    OpFn fn = NULL;
    switch (in->opcode) {
    case 0xe4:
    case 0xe5:
    case 0xec:
    case 0xed: fn = op_in; break;
    case 0xe6:
    case 0xe7:
    case 0xee:
    case 0xef: fn = op_out; break;
    case 0x6c:
    case 0x6d: fn = op_ins; break;
    case 0x6e:
    case 0x6f: fn = op_outs; break;
    }
    if (fn) in->flags |= INF_END; /* what the device asks for (reset, pause) holds from the next instruction on */
    return fn;
}
