"""Registers of a vCPU as monitors show them, from the core's state (QpyCpuState in csrc/api.h)."""

from __future__ import annotations

from typing import Any

GPR = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))
SEGMENTS = ("ES", "CS", "SS", "DS", "FS", "GS", "LDT", "TR")
EFER_LMA = 1 << 10
CR0_PE, CR0_PG = 1, 1 << 31
CS_L, CS_D = 1 << 13, 1 << 14  # in `rights`
_FLAG_ORDER = ((11, "O"), (10, "D"), (7, "S"), (6, "Z"), (4, "A"), (2, "P"), (0, "C"))
_SYSTEM_TYPES = (
    ("Reserved", "TSS16-avl", "LDT", "TSS16-busy", "CallGate16", "TaskGate", "IntGate16", "TrapGate16",
     "Reserved", "TSS32-avl", "Reserved", "TSS32-busy", "CallGate32", "Reserved", "IntGate32", "TrapGate32"),
    ("<hiword>", "Reserved", "LDT", "Reserved", "Reserved", "Reserved", "Reserved", "Reserved",
     "Reserved", "TSS64-avl", "Reserved", "TSS64-busy", "CallGate64", "Reserved", "IntGate64", "TrapGate64"),
)  # fmt: skip


def code_bits(s: Any) -> int:
    """16, 32 or 64: the size of the code the vCPU is in."""
    rights = s.seg[1].rights
    if s.efer & EFER_LMA and rights & CS_L:
        return 64
    return 32 if rights & CS_D else 16


def segment_flags(segment: Any) -> int:
    """The high dword of the descriptor without base, as QEMU keeps it (limit bits 16-19 included)."""
    limit = segment.limit >> 12 if segment.rights & 0x8000 else segment.limit
    return int(segment.rights << 8 | limit & 0xF0000)


def register_value(s: Any, name: str) -> int | None:
    """`$name` in monitor expressions; the names QEMU knows."""
    low = name.lower()
    mask = (1 << 64) - 1 if code_bits(s) == 64 else 0xFFFFFFFF
    if low in ("eip", "pc", "rip"):
        return int(s.seg[1].base + s.rip) & mask if low == "pc" else int(s.rip) & mask
    if low in ("eflags", "rflags"):
        return int(s.rflags)
    for n, full in enumerate(GPR):
        if low == full or (n < 8 and low == "e" + full[1:]):
            return int(s.gpr[n]) & (mask if low == full else 0xFFFFFFFF)
    for n, segment in enumerate(SEGMENTS[:6]):
        if low == segment.lower():
            return int(s.seg[n].sel)
        if low == segment.lower() + ".base":
            return int(s.seg[n].base)
        if low == segment.lower() + ".limit":
            return int(s.seg[n].limit)
    if low in ("cr0", "cr2", "cr3", "cr4"):
        return int(getattr(s, low))
    return None


def _segment_line(s: Any, n: int, wide: bool) -> str:
    segment = s.seg[n]
    flags = segment_flags(segment)
    base = f"{segment.base:016x}" if wide else f"{segment.base & 0xFFFFFFFF:08x}"
    line = f"{SEGMENTS[n]:<3}={segment.sel:04x} {base} {segment.limit:08x} {flags:08x}"
    present = flags & 0x8000
    if not s.cr0 & CR0_PE or not present:
        return line
    line += f" DPL={flags >> 13 & 3} "
    kind = flags >> 8 & 15
    if not flags & 0x1000:
        return line + _SYSTEM_TYPES[1 if s.efer & EFER_LMA else 0][kind]
    if kind & 8:
        size = "CS64" if flags & 1 << 21 and s.efer & EFER_LMA else "CS32" if flags & 1 << 22 else "CS16"
        line += f"{size} [{'C' if kind & 4 else '-'}{'R' if kind & 2 else '-'}"
    else:
        size = "DS  " if flags & 1 << 22 or s.efer & EFER_LMA else "DS16"
        line += f"{size} [{'E' if kind & 4 else '-'}{'W' if kind & 2 else '-'}"
    return line + f"{'A' if kind & 1 else '-'}]"


def _general_lines(s: Any, a20: bool) -> list[str]:
    letters = "".join(letter if s.rflags >> bit & 1 else "-" for bit, letter in _FLAG_ORDER)
    tail = f"[{letters}] CPL={s.cpl} II={s.shadow} A20={int(a20)} SMM=0 HLT={s.halted}"
    g = dict(zip(GPR, s.gpr, strict=False))
    if code_bits(s) == 64:
        wide = ("rax rbx rcx rdx", "rsi rdi rbp rsp", "r8 r9 r10 r11", "r12 r13 r14 r15")
        lines = [" ".join(f"{name.upper():<3}={g[name]:016x}" for name in row.split()) for row in wide]
        return [*lines, f"RIP={s.rip:016x} RFL={s.rflags:08x} {tail}"]
    rows = ("rax rbx rcx rdx", "rsi rdi rbp rsp")
    lines = [
        " ".join(f"E{name[1:].upper()}={g[name] & 0xFFFFFFFF:08x}" for name in row.split()) for row in rows
    ]
    return [*lines, f"EIP={s.rip & 0xFFFFFFFF:08x} EFL={s.rflags:08x} {tail}"]


def _fpu_lines(s: Any) -> list[str]:
    area = bytes(s.fpu[0:512])
    fcw, fsw, ftw = (int.from_bytes(area[i : i + 2], "little") for i in (0, 2, 4))
    mxcsr = int.from_bytes(area[24:28], "little")
    lines = [
        f"FCW={fcw:04x} FSW={fsw & ~0x3800:04x} [ST={fsw >> 11 & 7}] FTW={ftw & 0xFF:02x} MXCSR={mxcsr:08x}"
    ]
    top = fsw >> 11 & 7
    cells = []
    for physical in range(8):
        at = 32 + 16 * ((physical - top) & 7)
        low, high = int.from_bytes(area[at : at + 8], "little"), int.from_bytes(area[at + 8 : at + 10], "little")
        cells.append(f"FPR{physical}={low:016x} {high:04x}")
    lines += [" ".join(cells[i : i + 2]) for i in range(0, 8, 2)]
    count = 16 if code_bits(s) == 64 else 8
    cells = []
    for n in range(count):
        at = 160 + 16 * n
        low, high = int.from_bytes(area[at : at + 8], "little"), int.from_bytes(area[at + 8 : at + 16], "little")
        cells.append(f"XMM{n:02d}={high:016x} {low:016x}")
    return lines + [" ".join(cells[i : i + 2]) for i in range(0, count, 2)]


def register_lines(s: Any, a20: bool = True) -> list[str]:
    """`info registers`."""
    wide = code_bits(s) == 64
    long_mode = bool(s.efer & EFER_LMA)
    lines = _general_lines(s, a20)
    lines += [_segment_line(s, n, wide) for n in range(6)]
    lines += [_segment_line(s, n, long_mode) for n in (6, 7)]
    base = "016x" if long_mode else "08x"
    lines.append(f"GDT=     {s.gdt_base:{base}} {s.gdt_limit:08x}")
    lines.append(f"IDT=     {s.idt_base:{base}} {s.idt_limit:08x}")
    lines.append(f"CR0={s.cr0:08x} CR2={s.cr2:{base}} CR3={s.cr3:{base}} CR4={s.cr4:08x}")
    lines.append("".join(f"DR{n}={s.dr[n]:016x} " for n in range(4)))
    lines.append(f"DR6={s.dr[6]:016x} DR7={s.dr[7]:016x}")
    lines.append(f"EFER={s.efer:016x}")
    return lines + _fpu_lines(s)
