/* Where control goes: exits, polls, direct and indirect branches, calls and returns (CORE 6). */
#include "jit/trans.h"

/* Cold parts */

static Cold *cold_add(Trans *t, u8 *site) {
    Cold *k = &t->cold[t->n_cold++];
    *k = (Cold){.held = {NO_REG, NO_REG, NO_REG}, .site = site, .insn = t->i, .x87 = t->x87, .x87_next = t->x87_next};
    return k;
}

void cold_helper(Trans *t, u8 *site) { cold_add(t, site); }

static JitExit *exit_new(Trans *t, u64 rip) {
    JitExit *x = jit_alloc(t->jit, sizeof *x);
    x->rip = rip;
    x->mode = t->mode_after;
    return x;
}

static void cold_exit_of(Trans *t, u8 *site, JitExit *x) { cold_add(t, site)->exit = x; }

/* The rel32 at site leads to the dispatcher, which is told why. */
static void cold_leave(Trans *t, u8 *site, u64 rip, u8 how) {
    JitExit *x = exit_new(t, rip);
    Cold *k = cold_add(t, site);
    x->from = t->code;
    k->exit = x;
    k->how = how;
}

void cold_exit(Trans *t, u8 *site, u64 rip) {
    JitExit *x = exit_new(t, rip);
    if (same_page(t, rip)) x->site = site;
    cold_exit_of(t, site, x);
}

static JitExit *last_exit(const Trans *t) { return t->cold[t->n_cold - 1].exit; }

void cold_interpret(Trans *t, u8 *site) {
    cold_leave(t, site, guest_rip(t->g), JIT_EXIT_INTERPRET);
    last_exit(t)->undone = t->jit->counts ? (u8)run_left(t) : 0;
}

/* The hot code of an instruction is complete: its slow paths come back here. */
void cold_end_insn(Trans *t) {
    for (unsigned i = t->n_cold; i-- && t->cold[i].insn == t->i;)
        if (!t->cold[i].exit && !t->ended && !t->moved) {
            t->cold[i].back = t->a.p;
            for (unsigned h = 0; h < 3; h++) t->cold[i].held[h] = t->held[h];
        }
}

static void call_recovery(Trans *t, const Cold *k) {
    u64 code = flags_recovery(t, t->guest[k->insn].recover);
    if (code) asm_call(&t->a, code);
}

static void emit_cold_helper(Trans *t, const Cold *k) {
    const Guest *g = &t->guest[k->insn];
    call_recovery(t, k);
    if (k->x87) x87_store(t, k->x87, k->x87_next);
    asm_imm(&t->a, R15, (u64)g->in);
    asm_imm(&t->a, R14, g->next);
    asm_call(&t->a, (u64)t->jit->helper);
    held_reload(t, k->held);
    asm_jmp(&t->a, k->back ? (u64)k->back + (u64)t->a.rx : (u64)t->jit->leave_now);
}

static void emit_cold_exit(Trans *t, const Cold *k) {
    Asm *a = &t->a;
    JitExit *x = k->exit;
    if (k->how) {
        call_recovery(t, k);
        if (k->x87) x87_store(t, k->x87, k->x87_next);
        asm_imm(a, R15, (u64)x | k->how);
        asm_jmp(a, (u64)t->jit->exit);
        return;
    }
    if (k->site && !x->site) { /* a conditional jump to another page */
        asm_rm(a, 0, MAP_1, 0xff, 4, rm_abs(&x->code));
    }
    bool by_cache = !x->site && t->b->mode & MODE_CPL3;
    x->patience = JIT_PATIENCE;
    x->stub = x->code = (const u8 *)asm_here(a);
    asm_imm(a, R15, (u64)x);
    asm_jmp(a, (u64)(by_cache ? t->jit->exit_by_cache : t->jit->exit));
}

void cold_emit(Trans *t) {
    flags_recoveries(t);
    for (unsigned i = 0; i < t->n_cold; i++) {
        Cold *k = &t->cold[i];
        if (k->site) asm_patch(&t->a, k->site, asm_here(&t->a));
        if (k->exit) emit_cold_exit(t, k);
        else emit_cold_helper(t, k);
    }
}

/* Leaving */

/* Somebody wants the vCPU: leave before jumping to x. RFLAGS stay. */
static void emit_poll(Trans *t, JitExit *x) {
    Asm *a = &t->a;
    asm_mov(a, R15, RCX);
    asm_load32(a, RCX, rm_abs(&t->c->poll));
    u8 *over = asm_jrcxz(a);
    asm_mov(a, RCX, R15);
    asm_imm(a, R15, (u64)x | JIT_EXIT_POLL);
    asm_jmp(a, (u64)t->jit->exit);
    asm_land(a, over);
    asm_mov(a, RCX, R15);
}

void emit_poll_here(Trans *t) {
    asm_rm(&t->a, 0, MAP_1, 0x83, 7, rm_abs(&t->c->poll)), put1(&t->a, 0);
    cold_leave(t, asm_jcc(&t->a, 5, asm_here(&t->a)), guest_rip(t->g), JIT_EXIT_POLL);
}
void emit_poll_for(Trans *t, u64 rip) { emit_poll(t, exit_new(t, rip)); }

/* Counts down in memory; the rel32 to lead to where it has come to 0. RFLAGS stay. */
static u8 *count_keeping(Trans *t, Rm count) {
    Asm *a = &t->a;
    asm_mov(a, R15, RCX);
    asm_load32(a, RCX, count);
    asm_rm(a, 0, MAP_1, 0x8d, RCX, rm_at(RCX, -1));
    asm_rm(a, 0, MAP_1, 0x89, RCX, count);
    u8 *zero = asm_jrcxz(a);
    put1(a, 0xeb), put1(a, 0); /* jmp */
    u8 *over = a->p - 1;
    asm_land(a, zero);
    asm_mov(a, RCX, R15);
    u8 *site = asm_jmp_later(a);
    asm_land(a, over);
    asm_mov(a, RCX, R15);
    return site;
}

static u8 *count_short(Trans *t, Rm count) {
    asm_rm(&t->a, 0, MAP_1, 0xff, 1, count); /* dec */
    return asm_jcc(&t->a, 4, asm_here(&t->a));
}

/* Counts entries of what may become a region. */
void emit_heat(Trans *t) {
    if (t->b->region || !t->jit->heat || t->b->ram_off2 != ~0ull) return;
    if (machine_one_insn(t->c->machine)) return;
    t->code->heat = t->jit->heat;
    Rm count = rm_abs(&t->code->heat);
    cold_leave(t, keep_flags(t) ? count_keeping(t, count) : count_short(t, count), t->b->rip, JIT_EXIT_HOT);
}

/* rcx = -1 in place of what fits, which goes home; RFLAGS stay. */
static u8 *charge_keeping(Trans *t, unsigned n) {
    Asm *a = &t->a;
    Rm left = rm_abs(&t->c->jit_left), count = rm_abs(&t->c->icount);
    asm_mov(a, R14, RCX);
    asm_load(a, RCX, count);
    asm_lea(a, RCX, rm_at(RCX, (i32)n));
    asm_store(a, count, RCX);
    asm_load(a, RCX, left);
    asm_lea(a, RCX, rm_at(RCX, -(i32)n));
    asm_store(a, left, RCX);
    asm_imm(a, R15, 63);
    asm_vex(a, 3, MAP_0F38, 1, 0xf7, RCX, R15, rm_reg(RCX)); /* shrx rcx, rcx, r15 */
    u8 *over = asm_jrcxz(a);
    asm_mov(a, RCX, R14);
    u8 *site = asm_jmp_later(a);
    asm_land(a, over);
    asm_mov(a, RCX, R14);
    return site;
}

void emit_charge(Trans *t) {
    Asm *a = &t->a;
    unsigned n = run_left(t);
    u8 *site;
    if (keep_flags(t)) {
        held_drop(t);
        site = charge_keeping(t, n);
    } else {
        asm_rm(a, E_W, MAP_1, 0x83, 0, rm_abs(&t->c->icount)), put1(a, n);
        asm_rm(a, E_W, MAP_1, 0x83, 5, rm_abs(&t->c->jit_left)), put1(a, n);
        site = asm_jcc(a, 8, asm_here(a)); /* js */
    }
    cold_leave(t, site, guest_rip(t->g), JIT_EXIT_POLL);
    last_exit(t)->undone = (u8)n;
    u64 end = (u64)(t->g->in + n);
    asm_rm(a, 0, MAP_1, 0xc7, 0, rm_abs(&t->c->run_end)), put4(a, end);
    asm_rm(a, 0, MAP_1, 0xc7, 0, rm_abs((u32 *)&t->c->run_end + 1)), put4(a, end >> 32);
}

/* A jump or a call to where x leads. */
static void emit_transfer(Trans *t, JitExit *x, bool call) {
    Asm *a = &t->a;
    if (same_page(t, x->rip)) {
        put1(a, call ? 0xe8 : 0xe9), put4(a, 0);
        x->site = a->p - 4;
        cold_exit_of(t, x->site, x);
    } else {
        asm_rm(a, 0, MAP_1, 0xff, call ? 2 : 4, rm_abs(&x->code));
        cold_exit_of(t, NULL, x);
    }
}

static void go(Trans *t, JitExit *x, bool poll) {
    x87_settle(t);
    if (poll) emit_poll(t, x);
    emit_transfer(t, x, false);
    t->ended = true;
}

void emit_goto(Trans *t, u64 rip, bool poll) { go(t, exit_new(t, rip), poll); }

void emit_goto_shadowed(Trans *t, u64 rip) {
    JitExit *x = exit_new(t, rip);
    x->shadow = true;
    go(t, x, false);
}

/* What comes when the guest returns from a call. */
static void emit_behind_call(Trans *t) {
    if (t->i + 1 == t->n) emit_goto(t, t->g->next, false);
    else region_join(t);
}

/* Branches */

u64 branch_target(const Trans *t, const Guest *g) {
    u64 target = g->next + g->in->imm;
    return t->wide ? target : (u32)target;
}
static bool backward(const Trans *t, u64 target) { return target < t->g->next; }

/* Conditional, with more of this translation behind it. */
static void emit_jcc_inside(Trans *t, unsigned cond, u64 target) {
    Asm *a = &t->a;
    group_branch(t);
    if (t->g->target != NO_INSN) {
        region_branch(t, cond, t->g->target);
    } else if (!backward(t, target)) {
        cold_exit(t, asm_jcc(a, cond, asm_here(a)), target);
    } else {
        u8 *over = asm_jcc(a, cond ^ 1, asm_here(a));
        emit_goto(t, target, true);
        t->ended = false;
        asm_patch(a, over, asm_here(a));
    }
}

static bool emit_jcc(Trans *t, unsigned cond) {
    u64 target = branch_target(t, t->g);
    x87_settle(t);
    if (t->i + 1 < t->n) {
        emit_jcc_inside(t, cond, target);
    } else if (t->g->target != NO_INSN) {
        region_branch(t, cond, t->g->target);
        emit_goto(t, t->g->next, false);
    } else if (backward(t, target)) {
        cold_exit(t, asm_jcc(&t->a, cond ^ 1, asm_here(&t->a)), t->g->next);
        emit_goto(t, target, true);
    } else {
        cold_exit(t, asm_jcc(&t->a, cond, asm_here(&t->a)), target);
        emit_goto(t, t->g->next, false);
    }
    return true;
}

static unsigned word(const Trans *t) { return t->wide ? 8 : 4; }

/* rsp += n */
static void move_sp(Trans *t, i32 n) { asm_rm(&t->a, t->wide ? E_W : 0, MAP_1, 0x8d, R12, rm_at(R12, n)); }

/* Stores an immediate of a word at [r14]. */
static void store_imm(Trans *t, u64 v) {
    Asm *a = &t->a;
    if (t->wide && (i64)v != (i32)v) {
        asm_imm(a, R15, v);
        asm_store(a, t->mem, R15);
    } else {
        asm_rm(a, t->wide ? E_W : 0, MAP_1, 0xc7, 0, t->mem);
        put4(a, v);
    }
}

static void push_next(Trans *t) {
    emit_address_reg(t, R_RSP, -(i32)word(t), word(t), true);
    store_imm(t, t->g->next);
    move_sp(t, -(i32)word(t));
}

static void load_word(Trans *t, unsigned to, Rm from) { asm_rm(&t->a, t->wide ? E_W : 0, MAP_1, 0x8b, to, from); }

static bool emit_ret(Trans *t) {
    unsigned extra = t->g->in->flags & INF_IMM ? (u16)t->g->in->imm : 0;
    emit_address_reg(t, R_RSP, 0, word(t), false);
    load_word(t, R14, t->mem);
    x87_settle(t);
    move_sp(t, (i32)(word(t) + extra));
    emit_return(t);
    t->ended = true;
    return true;
}

/* r14 = the operand of an indirect jump or call. */
static bool load_target(Trans *t) {
    const Guest *g = t->g;
    if (g->in->flags & INF_MEM) {
        if (!address_supported(t)) return false;
        emit_address(t, word(t), false);
        load_word(t, R14, t->mem);
    } else {
        get_reg(t, R14, g->in->rm / 8);
    }
    return true;
}

static bool emit_jmp_indirect(Trans *t) {
    if (!load_target(t)) return false;
    x87_settle(t);
    jit_by_cache(&t->a, t->c, false);
    t->ended = true;
    return true;
}

static bool emit_call_indirect(Trans *t) {
    Rm target = rm_abs(&t->c->jit_tmp[1]);
    if (!load_target(t)) return false;
    x87_settle(t);
    asm_store(&t->a, target, R14);
    push_next(t);
    asm_load(&t->a, R14, target);
    emit_push_pair(t, t->g->next);
    jit_by_cache(&t->a, t->c, true);
    emit_behind_call(t);
    return true;
}

static bool emit_group5(Trans *t) {
    switch (t->g->in->modrm >> 3 & 7) {
    case 2: return emit_call_indirect(t);
    case 4: return emit_jmp_indirect(t);
    default: return false;
    }
}

static bool emit_call(Trans *t) {
    u64 target = branch_target(t, t->g);
    JitExit *x = exit_new(t, target);
    push_next(t);
    x87_settle(t);
    if (backward(t, target)) emit_poll(t, x);
    emit_push_pair(t, t->g->next);
    emit_transfer(t, x, true);
    emit_behind_call(t);
    return true;
}

static bool emit_jmp(Trans *t) {
    u64 target = branch_target(t, t->g);
    x87_settle(t);
    if (t->g->target == NO_INSN) emit_goto(t, target, backward(t, target));
    else region_branch(t, ALWAYS, t->g->target);
    t->ended = true;
    return true;
}

bool emit_control(Trans *t) {
    const Insn *in = t->g->in;
    if ((in->flags & (INF_END | INF_PLAIN)) != (INF_END | INF_PLAIN) || in->osz != word(t)) return false;
    t->moved = true;
    if (in->map == 1 && (in->opcode & 0xf0) == 0x80) return emit_jcc(t, in->opcode & 15);
    if (in->map != 0) return false;
    switch (in->opcode) {
    case 0xc2:
    case 0xc3: return emit_ret(t);
    case 0xe8: return emit_call(t);
    case 0xe9:
    case 0xeb: return emit_jmp(t);
    case 0xff: return emit_group5(t);
    default: return (in->opcode & 0xf0) == 0x70 && emit_jcc(t, in->opcode & 15);
    }
}
