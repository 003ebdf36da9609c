"""Starting a kernel without firmware: the machine is put into the state SeaBIOS would leave it in.

That is: BARs and interrupt lines assigned, PIRQ and ELCR routing, ACPI and SMBIOS tables in place, shadow RAM closed,
interrupt controllers in virtual wire mode, MTRRs set, and a CPU in flat 32-bit mode.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from qemupy.hw.acpi import smbios
from qemupy.hw.acpi.tables import PM_BASE
from qemupy.hw.i386 import text_mode
from qemupy.hw.i386.linux_boot import GDT_AT, Load
from qemupy.hw.i386.pc_memory import GIB4
from qemupy.hw.pci import Bar, PciDevice, regs

if TYPE_CHECKING:
    from qemupy.hw.i386.pc import Pc

RAM, RESERVED = 1, 2
RSDP_AT, SMBIOS_AT = 0xF5000, 0xF5100
EBDA = 0x9FC00
IO_WINDOW, MEMORY_END = 0xC000, 0xFEC00000
PIRQ_IRQS = (10, 10, 11, 11)
CODE_RIGHTS, DATA_RIGHTS = 0xC09B, 0xC093


def tables_address(board: Pc) -> int:
    """The ACPI block ends where RAM below 4 GiB does; usable RAM ends where the block begins."""
    return (board.memory.split.below_4g - len(board.acpi.block)) & ~0xFFF


def memory_map(board: Pc) -> list[tuple[int, int, int]]:
    """As INT 15h E820h reports it under SeaBIOS."""
    split, top = board.memory.split, tables_address(board)
    entries = [
        (0, EBDA, RAM),
        (EBDA, 0xA0000 - EBDA, RESERVED),
        (0xF0000, 0x10000, RESERVED),
        (0x100000, top - 0x100000, RAM),
        (top, split.below_4g - top, RESERVED),
        (GIB4 - 0x40000, 0x40000, RESERVED),
    ]
    if split.above_4g:
        entries.append((GIB4, split.above_4g, RAM))
    return entries


def start(board: Pc, load: Load) -> None:
    """After a reset: put everything in place and set the boot processor to the kernel's entry."""
    _put_tables(board)
    for address, data in load.pieces:
        board.memory.fill(board.memory.ram, data, address)
    _set_up_pci(board)
    _set_up_interrupts(board)
    if board.vga is not None:
        text_mode.enter(board.vga, board.vga_rom)
    vcpu = board.vm.vcpus[0]
    vcpu.set_state(_entry_state(board, vcpu.state(), load))


def _put_tables(board: Pc) -> None:
    memory, at = board.memory, tables_address(board)
    block, rsdp = board.acpi.place(at)
    memory.fill(memory.ram, block, at)
    memory.fill(memory.ram, rsdp, RSDP_AT)
    anchor, structures = smbios.build(board.direct_identity())
    memory.fill(memory.ram, smbios.place(anchor, SMBIOS_AT + 0x20), SMBIOS_AT)
    memory.fill(memory.ram, structures, SMBIOS_AT + 0x20)
    memory.fill(memory.ram, struct.pack("<H", EBDA >> 4), 0x40E)
    memory.fill(memory.ram, struct.pack("<H", EBDA >> 10), 0x413)
    memory.fill(memory.ram, b"\x01", EBDA)
    gdt = bytes(16) + bytes.fromhex("ffff0000009bcf00 ffff00000093cf00")
    memory.fill(memory.ram, gdt, GDT_AT)


def _assign(board: Pc, bars: list[tuple[int, Bar]], base: int) -> None:
    """By falling size, which leaves no gaps."""
    for devfn, bar in sorted(bars, key=lambda item: (-item[1].size, item[0])):
        board.bus.config_write(devfn, bar.offset, 4, base)
        base += bar.size


def _below(end: int, bars: list[tuple[int, Bar]]) -> int:
    """Where a region for them that ends before `end` begins."""
    if not bars:
        return end
    return (end - sum(bar.size for _, bar in bars)) & -max(bar.size for _, bar in bars)


def _set_up_pci(board: Pc) -> None:
    """Ports from C000h up; memory below the IOAPIC, and below it prefetchable memory."""
    config = board.bus
    bars = [(devfn, bar) for devfn, device in config for bar in device.bars]
    _assign(board, [b for b in bars if b[1].is_io], IO_WINDOW)
    plain = [b for b in bars if not b[1].is_io and not b[1].flags & regs.BAR_PREFETCH]
    prefetch = [b for b in bars if not b[1].is_io and b[1].flags & regs.BAR_PREFETCH]
    base = _below(MEMORY_END, plain)
    _assign(board, plain, base)
    _assign(board, prefetch, _below(base, prefetch))
    for devfn, device in config:
        _enable(devfn, device)
    config.config_write(8, 0x60, 4, int.from_bytes(bytes(PIRQ_IRQS), "little"))
    config.config_write(9, 0x40, 4, 0x80008000)  # both IDE channels decode
    config.config_write(11, regs.INTERRUPT_LINE, 1, 9)
    config.config_write(11, 0x40, 4, PM_BASE | 1)
    config.config_write(11, 0x80, 1, 1)
    config.config_write(0, 0x58, 4, 0x11111000)
    config.config_write(0, 0x5C, 4, 0x33111111)
    config.config_write(0, 0x72, 1, 0x0A)


def _enable(devfn: int, device: PciDevice) -> None:
    command = device.command | regs.COMMAND_IO | regs.COMMAND_MEMORY | regs.COMMAND_SERR
    device.config_write(regs.COMMAND, 2, command)
    if device.interrupt_pin:
        line = PIRQ_IRQS[(device.interrupt_pin - 1 + (devfn >> 3) - 1) & 3]
        device.config_write(regs.INTERRUPT_LINE, 1, line)


def _set_up_interrupts(board: Pc) -> None:
    """The 8259s at 08h and 70h with the timer, keyboard, cascade, floppy and clock open; IRQ 10 and 11 by level; the
    timer at 18.2 Hz; the keyboard controller translating."""
    ports = board.vm.ports
    for port, values in (
        (0x20, (0x11,)), (0x21, (0x08, 0x04, 0x01)), (0xA0, (0x11,)), (0xA1, (0x70, 0x02, 0x01)),
        (0x21, (0xB8,)), (0xA1, (0x8E,)), (0x4D1, (0x0C,)), (0x43, (0x34,)), (0x40, (0, 0)),
        (0x64, (0x60,)), (0x60, (0x61,)),
    ):  # fmt: skip
        for value in values:
            ports.write(port, 1, value)


def _entry_state(board: Pc, state: Any, load: Load) -> Any:
    for n in range(16):
        state.gpr[n] = 0
    state.gpr[0], state.gpr[3], state.gpr[6] = load.eax, load.ebx, load.esi
    state.rip, state.rflags = load.eip, 2
    for n in range(6):
        segment = state.seg[n]
        is_code = n == 1
        segment.base, segment.limit = 0, 0xFFFFFFFF
        segment.sel, segment.rights = (0x10, CODE_RIGHTS) if is_code else (0x18, DATA_RIGHTS)
    state.gdt_base, state.gdt_limit = GDT_AT, 0x1F
    state.cr0 = 0x11  # PE, ET
    _set_mtrrs(board, state)
    apic = state.apic
    apic.svr = 0x1FF
    apic.lvt_lint0, apic.lvt_lint1 = 0x8700, 0x8400
    return state


def _set_mtrrs(board: Pc, state: Any) -> None:
    """Everything write-back but the VGA window, the ROM area (write-protected) and the PCI hole (uncached)."""
    write_back, protected = 0x0606060606060606, 0x0505050505050505
    state.mtrr_fixed[0] = state.mtrr_fixed[1] = write_back
    state.mtrr_fixed[2] = 0
    for n in range(3, 11):
        state.mtrr_fixed[n] = protected
    below = board.memory.split.below_4g
    hole = 0x80000000 if below <= 0x80000000 else 0xC0000000 if below <= 0xC0000000 else 0xE0000000
    state.mtrr_phys[0], state.mtrr_phys[1] = hole, (1 << 40) - (GIB4 - hole) | 0x800
    state.mtrr_def = 0xC06
