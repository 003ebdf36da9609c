"""The memory map of a PC: RAM below and above 4 GiB, the PCI hole, firmware and the option ROM area.

RAM that fits below E0000000h lies there whole; more is split at C0000000h, so that both parts are whole gigabytes
(QEMU's pc-i440fx). What RAM does not cover shows `pci`, in which the BIOS, its alias under 1 MiB and the BARs lie.
"""

from __future__ import annotations

from qemupy.memory import CoreMemory, MemoryRegion
from qemupy.records import record

GIB4 = 1 << 32
LOW_LIMIT, LOW_SPLIT = 0xE0000000, 0xC0000000
OPTION_ROMS, OPTION_ROMS_SIZE = 0xC0000, 0x20000


@record(frozen=True)
class RamSplit:
    below_4g: int
    above_4g: int


def split_ram(size: int) -> RamSplit:
    if size < LOW_LIMIT:
        return RamSplit(size, 0)
    return RamSplit(LOW_SPLIT, size - LOW_SPLIT)


class PcMemory:
    def __init__(self, system: MemoryRegion, core: CoreMemory, ram_size: int) -> None:
        self.system, self.core = system, core
        self.split = split_ram(ram_size)
        self.ram = MemoryRegion.ram("pc.ram", core.alloc("pc.ram", ram_size))
        below, above = self.split.below_4g, self.split.above_4g
        system.add(MemoryRegion.alias("ram-below-4g", self.ram, 0, below), 0)
        if above:
            system.add(MemoryRegion.alias("ram-above-4g", self.ram, below, above), GIB4)
        self.pci = MemoryRegion("pci", 1 << 64)
        system.add(self.pci, 0, priority=-1)
        option_roms = MemoryRegion.rom("pc.rom", core.alloc("pc.rom", OPTION_ROMS_SIZE))
        self.pci.add(option_roms, OPTION_ROMS, priority=1)

    def fill(self, region: MemoryRegion, data: bytes | memoryview, at: int = 0) -> None:
        """Contents of a RAM or ROM block, from the host's side."""
        assert region.block is not None
        self.core.store(region.block.offset + at, data)

    def add_bios(self, data: bytes) -> None:
        bios = MemoryRegion.rom("pc.bios", self.core.alloc("pc.bios", len(data)))
        self.fill(bios, data)
        self.pci.add(bios, GIB4 - len(data))
        low = min(len(data), 0x20000)
        self.pci.add(MemoryRegion.alias("isa-bios", bios, len(data) - low, low, readonly=True), 0x100000 - low, 1)
