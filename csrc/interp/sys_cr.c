/* Control and debug registers, TLB invalidation, XCR0 (Intel SDM vol 3A 2.5, 2.6, 4.10.4, 17.2; vol 2 MOV CR, INVPCID).
 */
#include "interp/sys.h"

#include "cpu/debugreg.h"
#include "apic/apic.h"

/* The four page-directory pointers of PAE paging are registers, loaded here and checked for reserved bits (SDM 4.4.1).
 */
void pdptes_load(Cpu *c, u64 cr3, u64 cr0, u64 cr4) {
    if (!(cr0 & CR0_PG) || !(cr4 & CR4_PAE) || cpu_lma(c)) return;
    u64 p[4], base = cr3 & 0xffffffe0;
    for (unsigned i = 0; i < 4; i++) {
        const MemRange *r = machine_range(c->machine, (base + i * 8) & c->a20_mask);
        p[i] = ~0ull;
        if (r->kind <= RANGE_ROM)
            p[i] = *(u64 *)machine_ram_host(c->machine, r->ram_off + (((base + i * 8) & c->a20_mask) - r->gpa));
        if ((p[i] & 1) && (p[i] & (0x1e6 | ~PHYS_MASK))) exc_gp0(c);
    }
    for (unsigned i = 0; i < 4; i++) c->pdpte[i] = p[i];
}

/* CR0.PG switches long mode on and off where EFER.LME asks for it (SDM vol 3A 9.8.5). */
static u64 efer_after_paging(Cpu *c, u64 v) {
    if (!(c->efer & EFER_LME)) return c->efer;
    if (!(v & CR0_PG)) {
        if (cpu_code64(c) && (c->cr0 & CR0_PG)) exc_gp0(c);
        return c->efer & ~(u64)EFER_LMA;
    }
    if (!(c->cr0 & CR0_PG)) {
        bool tss16 = !(c->seg[SEG_TR].rights & 8);
        if (!(c->cr4 & CR4_PAE) || (c->seg[SEG_CS].rights & SR_L) || tss16) exc_gp0(c);
    }
    return c->efer | EFER_LMA;
}

void cr0_write(Cpu *c, u64 v) {
    if (v >> 32 || ((v & CR0_PG) && !(v & CR0_PE)) || ((v & CR0_NW) && !(v & CR0_CD))) exc_gp0(c);
    if (!(v & CR0_PG) && (c->cr4 & CR4_PCIDE)) exc_gp0(c);
    v = (v & (CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_NE | CR0_WP | CR0_AM | CR0_NW | CR0_CD | CR0_PG)) | CR0_ET;
    u64 efer = efer_after_paging(c, v), old = c->cr0, changed = old ^ v;
    if (!(efer & EFER_LMA) && (changed & (CR0_PG | CR0_CD | CR0_NW))) pdptes_load(c, c->cr3, v, c->cr4);
    c->efer = efer;
    c->cr0 = v;
    if (changed & (CR0_PG | CR0_WP | CR0_PE)) tlb_flush_all(c);
    cpu_update_mode(c);
}

void cr3_write(Cpu *c, u64 v) {
    bool keep = false;
    if (cpu_lma(c)) {
        keep = (c->cr4 & CR4_PCIDE) && v >> 63;
        if (c->cr4 & CR4_PCIDE) v &= ~BIT(63);
        if (v & ~PHYS_MASK) exc_gp0(c);
    } else {
        v &= 0xffffffff;
        pdptes_load(c, v, c->cr0, c->cr4);
    }
    c->cr3 = v;
    if (keep) tlb_drop_nonglobal(c);
    else tlb_flush_nonglobal(c);
}

static u64 cr4_allowed(const Cpu *c) {
    static const struct {
        u32 bits;
        u8 feat;
    } needs[] = {
        {CR4_VME | CR4_PVI, FEAT_VME}, {CR4_TSD, FEAT_TSC},       {CR4_DE, FEAT_DE},     {CR4_PSE, FEAT_PSE},
        {CR4_PAE, FEAT_PAE},           {CR4_MCE, FEAT_MCE},       {CR4_PGE, FEAT_PGE},   {CR4_OSFXSR, FEAT_FXSR},
        {CR4_OSXMMEXCPT, FEAT_SSE},    {CR4_UMIP, FEAT_UMIP},     {CR4_LA57, FEAT_LA57}, {CR4_FSGSBASE, FEAT_FSGSBASE},
        {CR4_PCIDE, FEAT_PCID},        {CR4_OSXSAVE, FEAT_XSAVE}, {CR4_SMEP, FEAT_SMEP}, {CR4_SMAP, FEAT_SMAP},
        {CR4_PKE, FEAT_PKU},
    };
    u64 mask = CR4_PCE;
    for (unsigned i = 0; i < ARRAY_LEN(needs); i++)
        if (cpu_has(c, needs[i].feat)) mask |= needs[i].bits;
    return mask;
}

void cr4_write(Cpu *c, u64 v) {
    u64 changed = c->cr4 ^ v;
    if (v & ~cr4_allowed(c)) exc_gp0(c);
    if (cpu_lma(c) && (!(v & CR4_PAE) || (changed & CR4_LA57))) exc_gp0(c);
    if ((v & changed & CR4_PCIDE) && (!cpu_lma(c) || (c->cr3 & 0xfff))) exc_gp0(c);
    if (changed & (CR4_PAE | CR4_PSE | CR4_PGE | CR4_SMEP)) pdptes_load(c, c->cr3, c->cr0, v);
    c->cr4 = v;
    if (changed & CR4_TSD) cpu_tsc_forget(c);
    if (changed & (CR4_PAE | CR4_PSE | CR4_PGE | CR4_SMEP | CR4_SMAP | CR4_PCIDE | CR4_LA57 | CR4_PKE))
        tlb_flush_all(c);
    cpu_update_mode(c);
}

void efer_write(Cpu *c, u64 v) {
    u64 allowed = (cpu_has(c, FEAT_SYSCALL) ? EFER_SCE : 0) | (cpu_has(c, FEAT_LM) ? EFER_LME | EFER_LMA : 0) |
                  (cpu_has(c, FEAT_NX) ? EFER_NXE : 0);
    u64 changed = c->efer ^ v;
    if ((v & ~allowed) || ((changed & EFER_LME) && (c->cr0 & CR0_PG))) exc_gp0(c);
    c->efer = (v & ~(u64)EFER_LMA) | (c->efer & EFER_LMA);
    if (changed & EFER_NXE) tlb_flush_all(c);
    cpu_update_mode(c);
}

static void op_mov_from_cr(Cpu *c, const Insn *in) {
    require_cpl0(c);
    u64 v = 0;
    switch (in->reg) {
    case 0: v = c->cr0; break;
    case 2: v = c->cr2; break;
    case 3: v = c->cr3; break;
    case 4: v = c->cr4; break;
    case 8: v = apic_get_cr8(c); break;
    default: exc_ud(c);
    }
    REG64(c, in->rm) = cpu_code64(c) ? v : (u32)v;
}

static void op_mov_to_cr(Cpu *c, const Insn *in) {
    require_cpl0(c);
    u64 v = cpu_code64(c) ? REG64(c, in->rm) : REG32(c, in->rm);
    switch (in->reg) {
    case 0: cr0_write(c, v); break;
    case 2: c->cr2 = v; break;
    case 3: cr3_write(c, v); break;
    case 4: cr4_write(c, v); break;
    case 8:
        if (v > 15) exc_gp0(c);
        apic_set_cr8(c, v);
        break;
    default: exc_ud(c);
    }
}

/* DR4 and DR5 are DR6 and DR7, or undefined with CR4.DE. */
static unsigned debug_register(Cpu *c, const Insn *in) {
    require_cpl0(c);
    unsigned n = in->reg;
    if (n > 7 || ((c->cr4 & CR4_DE) && (n == 4 || n == 5))) exc_ud(c);
    debug_check_gd(c);
    return n == 4 || n == 5 ? n + 2 : n;
}
static void op_mov_from_dr(Cpu *c, const Insn *in) {
    u64 v = c->dr[debug_register(c, in)];
    REG64(c, in->rm) = cpu_code64(c) ? v : (u32)v;
}
static void op_mov_to_dr(Cpu *c, const Insn *in) {
    unsigned n = debug_register(c, in);
    u64 v = cpu_code64(c) ? REG64(c, in->rm) : REG32(c, in->rm);
    if (n >= 6 && v >> 32) exc_gp0(c);
    if (n == 6) v = (v & 0xe00f) | 0xffff0ff0;
    if (n == 7) v = (v & 0xffff2bff) | 0x400;
    bool armed = dr_any_armed(c);
    c->dr[n] = v;
    if (armed || dr_any_armed(c)) tlb_flush_all(c);
    cpu_update_mode(c);
}

static void op_lmsw(Cpu *c, const Insn *in) {
    require_cpl0(c);
    u64 v = in->flags & INF_MEM ? ld16(c, in->seg, insn_ea(c, in)) : REG16(c, in->rm);
    cr0_write(c, (c->cr0 & ~0xeull) | (v & 0xf)); /* PE can be set, never cleared */
}
static void op_clts(Cpu *c, const Insn *in) {
    require_cpl0(c);
    c->cr0 &= ~(u64)CR0_TS;
    cpu_update_mode(c);
}
static void op_cache(Cpu *c, const Insn *in) { require_cpl0(c); } /* INVD, WBINVD: the host's caches are coherent */

static void op_invlpg(Cpu *c, const Insn *in) {
    require_cpl0(c);
    u64 lin = (c->ea_base[in->seg] + insn_ea(c, in)) & c->lin_mask;
    if (lin_canonical(c, lin) || !cpu_code64(c)) tlb_flush_page(c, lin);
}

static void op_invpcid(Cpu *c, const Insn *in) {
    require_cpl0(c);
    u64 ea = insn_ea(c, in), type = cpu_code64(c) ? REG64(c, in->reg) : REG32(c, in->reg);
    u64 pcid = ld64(c, in->seg, ea), lin = ld64(c, in->seg, ea + 8);
    if (type > 3 || (type < 2 && (pcid >> 12 || (pcid && !(c->cr4 & CR4_PCIDE))))) exc_gp0(c);
    if (type == 0 && !lin_canonical(c, lin)) exc_gp0(c);
    switch (type) {
    case 0: tlb_flush_page_pcid(c, lin, (unsigned)pcid); break;
    case 1: tlb_flush_pcid(c, (unsigned)pcid); break;
    case 2: tlb_flush_all(c); break;
    case 3: tlb_flush_all_nonglobal(c); break;
    }
}

OpFn sys_resolve_control(Insn *in, u32 mode) {
    OpFn fn = NULL;
    bool mem = in->flags & INF_MEM;
    unsigned reg = in->modrm >> 3 & 7;
    if (in->flags & INF_VEX) return NULL;
    if (in->map == 2 && in->opcode == 0x82) fn = op_invpcid;
    if (in->map == 1) switch (in->opcode) {
        case 0x01: fn = reg == 6 ? op_lmsw : reg == 7 && mem ? op_invlpg : NULL; break;
        case 0x06: fn = op_clts; break;
        case 0x08:
        case 0x09: return op_cache;
        case 0x20: return op_mov_from_cr;
        case 0x21: return op_mov_from_dr;
        case 0x22: fn = op_mov_to_cr; break;
        case 0x23: fn = op_mov_to_dr; break;
        }
    if (fn) in->flags |= INF_END;
    return fn;
}
