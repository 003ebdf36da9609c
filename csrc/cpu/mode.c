/* What CR0, CR4, EFER, segments, RFLAGS and XCR0 mean for the next instruction, worked out once when one of them
 * changes (Intel SDM vol 3A 2.2, 3.4, 5.3). */
#include "cpu/cpu.h"
#include "cpu/debugreg.h"

TlbEntry tlb_never[TLB_SIZE];
void (*cpu_flush_hook)(Cpu *c);

__attribute__((constructor)) static void tlb_never_init(void) {
    for (u64 set = 0; set < TLB_SIZE; set++)
        tlb_never[set].rtag = tlb_never[set].wtag = -((set ^ TLB_SIZE / 2) << PAGE_BITS);
}

static bool is_flat(const Segment *s) { return s->base == 0 && s->limit == 0xffffffff; }

/* Segments whose accesses need no check: expand-up, 4 GiB, present, with the right. */
static void update_segment_rights(Cpu *c, bool protected_mode) {
    c->seg_rok = c->seg_wok = 0;
    for (unsigned i = 0; i < 6; i++) {
        unsigned r = c->seg[i].rights;
        if (c->seg[i].limit != 0xffffffff) continue;
        if (!protected_mode) {
            c->seg_rok |= 1u << i;
            c->seg_wok |= 1u << i;
        } else if (r & SR_P) {
            bool code = r & SR_CODE;
            if (!code && (r & SR_DC)) continue;
            if (!code || (r & SR_RW)) c->seg_rok |= 1u << i;
            if (!code && (r & SR_RW)) c->seg_wok |= 1u << i;
        }
    }
}

static u32 segment_mode(Cpu *c, bool protected_mode) {
    if ((c->efer & EFER_LMA) && (c->seg[SEG_CS].rights & SR_L)) {
        c->seg_rok = c->seg_wok = 0x3f;
        c->lin_mask = ~0ull;
        for (unsigned i = 0; i < 6; i++) c->ea_base[i] = i >= SEG_FS ? c->seg[i].base : 0;
        return MODE_CS64 | MODE_FLAT;
    }
    update_segment_rights(c, protected_mode);
    c->lin_mask = 0xffffffff;
    bool flat = true;
    for (unsigned i = 0; i < 6; i++) {
        c->ea_base[i] = c->seg[i].base;
        u32 ok = i == SEG_CS ? c->seg_rok : c->seg_wok; /* flat handlers check neither limit nor rights */
        if (i < SEG_FS && (!is_flat(&c->seg[i]) || !(ok >> i & 1))) flat = false;
    }
    return (flat ? MODE_FLAT : 0) | (c->seg[SEG_CS].rights & SR_DB ? MODE_CS32 : 0) |
           (c->seg[SEG_SS].rights & SR_DB ? MODE_SS32 : 0);
}

static u32 control_mode(const Cpu *c) {
    return (c->cr0 & CR0_PE ? MODE_PE : 0) | (c->flags & FL_VM ? MODE_VM : 0) | (c->efer & EFER_LMA ? MODE_LMA : 0) |
           (c->cpl == 3   ? MODE_CPL3
            : c->cpl == 0 ? MODE_CPL0
                          : 0) |
           (c->cr0 & CR0_EM ? MODE_EM : 0) | (c->cr0 & CR0_MP ? MODE_MP : 0) | (c->cr0 & CR0_TS ? MODE_TS : 0) |
           (c->cr4 & CR4_SMAP ? MODE_SMAP : 0) | (c->cr4 & CR4_OSFXSR ? MODE_OSFXSR : 0) |
           (c->cr4 & CR4_OSXSAVE ? MODE_OSXSAVE : 0) | ((c->xcr0 & 6) == 6 && (c->cr4 & CR4_OSXSAVE) ? MODE_AVX : 0);
}

/* An armed breakpoint slows nothing but its page: instructions are executed singly there, and so is one that was about
 * to touch watched data (interp/sys_debug.c). RF lasts for one instruction. */
static u32 debug_mode(Cpu *c) {
    c->dbg_code = c->dbg_data = false;
    for (unsigned i = 0; i < 4; i++) {
        if (!dr_armed(c, i)) continue;
        if (dr_kind(c, i) == DR_EXECUTE) c->dbg_code = true;
        else c->dbg_data = true;
    }
    bool resume = c->flags & FL_RF && dr_any_armed(c);
    return c->flags & FL_TF || c->dbg_step || resume ? MODE_STEP : 0;
}

void cpu_update_mode(Cpu *c) {
    bool protected_mode = (c->cr0 & CR0_PE) && !(c->flags & FL_VM);
    u32 mode = control_mode(c) | segment_mode(c, protected_mode) | debug_mode(c);
    c->mmu_mode = c->cpl == 3 ? MMU_USER : MMU_KERNEL;
    if ((c->cr4 & CR4_SMAP) && (c->flags & FL_AC) && c->cpl != 3) {
        c->mmu_mode = MMU_KERNEL_AC;
        mode |= MODE_SMAP_AC;
    }
    bool align_check = c->cpl == 3 && (c->flags & FL_AC) && (c->cr0 & CR0_AM);
    c->tlb = align_check || c->stores ? tlb_never : c->tlbs[c->mmu_mode];
    mode |= c->mode & (MODE_FPUNMASK | MODE_SSEUNMASK);
    c->mode = mode;
    cpu_choose_gen(c);
}

/* Most often from 64-bit code to 64-bit code, with nothing armed. */
void cpu_update_level(Cpu *c) {
    bool plain = c->mode & MODE_CS64 && c->seg[SEG_CS].rights & SR_L && !(c->mode & MODE_STEP);
    if (!plain || c->flags & (FL_TF | FL_AC | FL_VM) || dr_any_armed(c) || c->stores) {
        cpu_update_mode(c);
        return;
    }
    c->mode &= ~(u32)(MODE_CPL0 | MODE_CPL3 | MODE_SMAP_AC);
    c->mode |= c->cpl == 3 ? MODE_CPL3 : c->cpl == 0 ? MODE_CPL0 : 0;
    c->mmu_mode = c->cpl == 3 ? MMU_USER : MMU_KERNEL;
    c->tlb = c->tlbs[c->mmu_mode];
    cpu_choose_gen(c);
}
