"""PCI: configuration mechanism #1, BAR sizing and mapping, the i440FX's windows, PIIX3's interrupt routing."""

from __future__ import annotations

import pytest

from qemupy.errors import ConfigError
from qemupy.hw.core import IrqLine, on_read, on_write, u32
from qemupy.hw.pci import PciBus, PciDevice, PciHost, parse_addr
from qemupy.hw.pci.i440fx import I440FX
from qemupy.hw.pci.piix3 import Piix3
from qemupy.memory import AddressSpace, MemoryRegion, PortSpace, PyCoreMemory


class Card(PciDevice):
    vendor_id, device_id, class_code, interrupt_pin = 0x1234, 0x5678, 0xFF0000, 1
    scratch: int = u32()

    def realize(self) -> None:
        super().realize()
        self.add_bar(0, MemoryRegion.mmio("card", 0x1000, self.bank("mmio")))
        self.add_bar(1, MemoryRegion.mmio("card-io", 0x20, self.bank("mmio")), io=True)

    @on_read(0, size=4, bank="mmio")
    def read_scratch(self) -> int:
        return self.scratch

    @on_write(0, size=4, bank="mmio")
    def write_scratch(self, value: int) -> None:
        self.scratch = value


class Machine:
    def __init__(self) -> None:
        self.core = PyCoreMemory()
        self.system = MemoryRegion("system", 1 << 32)
        self.pci_memory = MemoryRegion("pci", 1 << 32)
        self.ram = MemoryRegion.ram("ram", self.core.alloc("ram", 1 << 20))
        rom = MemoryRegion.rom("rom", self.core.alloc("rom", 0x10000))
        self.core.view(rom.block.offset, 4)[:] = b"BIOS"  # type: ignore[union-attr]
        self.system.add(MemoryRegion.alias("low", self.ram, 0, 1 << 20), 0)
        self.system.add(self.pci_memory, 0, priority=-1)
        self.pci_memory.add(rom, 0xF0000, priority=1)
        self.pci_memory.add(MemoryRegion.rom("option roms", self.core.alloc("option roms", 0x20000)), 0xC0000)
        self.pci_memory.add(MemoryRegion.mmio("vga", 0x20000, Card().bank("mmio")), 0xA0000)
        self.ports = PortSpace()
        self.space = AddressSpace("memory", self.system, self.core)
        self.bus = PciBus(self.ports.root, self.pci_memory)
        self.host = PciHost(bus=self.bus)
        self.bridge = I440FX(system=self.system, ram=self.ram, pci=self.pci_memory)
        self.irqs = [IrqLine(lambda n, level: None, n) for n in range(16)]
        self.piix3 = Piix3(irqs=self.irqs, multifunction=True)
        self.bus.route = self.piix3.set_interrupt
        self.card = Card()
        self.bus.plug(self.bridge, 0)
        self.bus.plug(self.piix3, 8)
        self.devfn = self.bus.plug(self.card)
        self.ports.map(0xCF8, self.host.bank("address"))
        self.ports.map(0xCFC, self.host.bank("data"))

    def read(self, devfn: int, reg: int, size: int = 4) -> int:
        self.ports.write(0xCF8, 4, 0x80000000 | devfn << 8 | reg & 0xFC)
        return self.ports.read(0xCFC + (reg & 3), size)

    def write(self, devfn: int, reg: int, value: int, size: int = 4) -> None:
        self.ports.write(0xCF8, 4, 0x80000000 | devfn << 8 | reg & 0xFC)
        self.ports.write(0xCFC + (reg & 3), size, value)


@pytest.fixture
def m() -> Machine:
    return Machine()


def test_mechanism_1(m: Machine) -> None:
    assert m.read(0, 0) == 0x12378086
    assert m.read(8, 2, 2) == 0x7000 and m.read(8, 0x0E, 1) == 0x80
    assert m.read(0x40, 0) == 0xFFFFFFFF, "an empty slot"
    assert m.ports.read(0xCF8, 4) == 0x80004000
    m.ports.write(0xCF8, 4, 0)
    assert m.ports.read(0xCFC, 4) == 0xFFFFFFFF, "enable bit clear"


def test_reset_values_match_qemu(m: Machine) -> None:
    assert [m.read(8, r) for r in (0x04, 0x4C, 0x60, 0x68, 0x70, 0x74, 0x78, 0xA0, 0xA8)] == [
        0x02000007, 0x0003004D, 0x80808080, 0x200, 0x80, 0x0C0C0000, 2, 8, 0xF,
    ]  # fmt: skip
    assert m.read(0, 0x70) == 0x20000 and m.read(0, 8) == 0x06000002
    assert m.read(0, 0x2C) == 0x11001AF4


def test_bar_sizing_and_mapping(m: Machine) -> None:
    fn = m.devfn
    assert fn == 16
    m.write(fn, 0x10, 0xFFFFFFFF)
    m.write(fn, 0x14, 0xFFFFFFFF)
    assert m.read(fn, 0x10) == 0xFFFFF000 and m.read(fn, 0x14) == 0xFFFFFFE1
    m.write(fn, 0x10, 0xFEB00000)
    m.write(fn, 0x14, 0xC000)
    assert m.space.read(0xFEB00000, 4) == 0xFFFFFFFF, "not decoded before the command register says so"
    m.write(fn, 4, 3, 2)
    m.space.write(0xFEB00000, 4, 77)
    assert m.ports.read(0xC000, 4) == 77
    m.write(fn, 0x10, 0xFEC00000)
    assert m.space.read(0xFEC00000, 4) == 77 and m.space.read(0xFEB00000, 4) == 0xFFFFFFFF
    m.write(fn, 4, 1, 2)
    assert m.space.read(0xFEC00000, 4) == 0xFFFFFFFF and m.ports.read(0xC000, 4) == 77


def test_bars_follow_a_load(m: Machine) -> None:
    fn = m.devfn
    m.write(fn, 0x10, 0xFEB00000)
    m.write(fn, 4, 2, 2)
    other = Machine()
    other.card.load(m.card.save())
    other.card.scratch = 5
    assert other.space.read(0xFEB00000, 4) == 5
    other.card.reset()
    assert other.space.read(0xFEB00000, 4) == 0xFFFFFFFF and other.read(fn, 0) == 0x56781234


def test_pam_shows_rom_or_ram(m: Machine) -> None:
    m.space.write(0xF0000, 4, 0x11111111)
    assert m.space.read(0xF0000, 4) == int.from_bytes(b"BIOS", "little")
    m.write(0, 0x59, 0x30, 1)
    assert m.space.read(0xF0000, 4) == 0, "the write to ROM must not have reached RAM"
    m.space.write(0xF0000, 4, 0x22222222)
    m.write(0, 0x59, 0x10, 1)
    m.space.write(0xF0000, 4, 0x33333333)
    assert m.space.read(0xF0000, 4) == 0x22222222, "read enable alone makes it read-only"
    m.write(0, 0x5A, 0x03, 1)
    m.space.write(0xC0000, 1, 9)
    m.write(0, 0x5A, 0x30, 1)
    assert m.space.read(0xC0000, 1) == 0 and m.space.read(0xC4000, 1) == 0
    m.write(0, 0x5A, 0x31, 1)
    assert m.space.read(0xC0000, 1) == 9


def test_smram_open_shows_ram(m: Machine) -> None:
    assert m.space.read(0xA0010, 1) == 0xFF, "the VGA window"
    m.write(0, 0x72, 0x4A, 1)
    assert m.space.read(0xA0010, 1) == 0
    saved = m.bridge.save()
    m.bridge.reset()
    assert m.space.read(0xA0010, 1) == 0xFF
    m.bridge.load(saved)
    assert m.space.read(0xA0010, 1) == 0
    m.write(0, 0x72, 0x1A, 1)
    m.write(0, 0x72, 0x4A, 1)
    assert m.read(0, 0x72, 1) == 0x1A, "locked until reset"


def test_interrupts_follow_the_routing(m: Machine) -> None:
    m.card.set_intx(True)
    assert not any(line.level for line in m.irqs), "routed nowhere after reset"
    m.write(8, 0x61, 11, 1)  # slot 2, INTA# is PIRQB
    assert m.irqs[11].level and m.read(m.devfn, 6, 2) & 8
    m.write(8, 0x61, 10, 1)
    assert m.irqs[10].level and not m.irqs[11].level
    m.write(m.devfn, 4, 0x400, 2)
    assert not m.irqs[10].level, "INTx disable"
    m.write(m.devfn, 4, 0, 2)
    m.card.set_intx(False)
    assert not m.irqs[10].level


def test_shared_lines_are_ored(m: Machine) -> None:
    other = Card()
    m.bus.plug(other, 6 << 3)  # the same PIRQB as slot 2
    m.write(8, 0x60, 0x0A0A0A0A)
    m.card.set_intx(True)
    other.set_intx(True)
    m.card.set_intx(False)
    assert m.irqs[10].level
    again = Machine()
    again.piix3.load(m.piix3.save())
    assert again.irqs[10].level, "the lines are driven again after a load"
    other.set_intx(False)
    assert not m.irqs[10].level


def test_slots_and_addresses(m: Machine) -> None:
    assert parse_addr("1f.3") == 0xFB
    for bad in ("20", "1.8", "x", ""):
        with pytest.raises(ConfigError):
            parse_addr(bad)
    with pytest.raises(ConfigError, match="slot 1 function 0 not available"):
        m.bus.plug(Card(), 8)
    assert m.bus.plug(Card(addr="5.1")) == 0x29 and m.bus.plug(Card()) == 24
