"""`VGA`: the standard VGA as a PCI card, 1234:1111 (QEMU docs/specs/standard-vga.rst).

BAR 0 is the linear frame buffer, BAR 2 registers: VGA ports 3C0h-3DFh from 400h, the VBE registers from 500h, and
QEMU's extended registers from 600h. The VGA BIOS is the expansion ROM.
"""

from __future__ import annotations

from qemupy.hw.core import on_read, on_write, transient
from qemupy.hw.core.registers import RegisterBank
from qemupy.hw.core.registry import register
from qemupy.hw.display.vga import VgaCore
from qemupy.hw.display.vga_render import picture
from qemupy.hw.pci.device import PciDevice
from qemupy.memory import CoreMemory, MemoryRegion

LITTLE_ENDIAN = 0x1E1E1E1E
EXTENDED_SIZE = 8


@register("VGA", bus="PCI", help="standard VGA with Bochs VBE extensions")
class VgaPci(PciDevice):
    vendor_id, device_id, revision, class_code = 0x1234, 0x1111, 0x02, 0x030000

    vga: VgaCore
    memory: CoreMemory
    rom: bytes | None = None
    _ports: RegisterBank = transient()

    def realize(self) -> None:
        super().realize()
        self._ports = self.vga.bank("vga")
        self.add_bar(0, self.vga.vram, prefetch=True)
        self.add_bar(2, MemoryRegion.mmio("vga.mmio", 4096, self.bank("mmio")))
        if self.rom is not None:
            region = MemoryRegion.rom("vga.rom", self.memory.alloc("vga.rom", len(self.rom)))
            assert region.block is not None
            self.memory.store(region.block.offset, self.rom)
            self.add_rom(region)

    def screenshot(self) -> tuple[int, int, bytes]:
        return picture(self.vga)

    @on_read(range(0x080), bank="mmio")
    def read_edid(self, offset: int) -> int:
        """No monitor data."""
        return 0

    @on_read(range(0x400, 0x420), bank="mmio")
    def read_port(self, offset: int) -> int:
        return self._ports.read(offset - 0x3F0, 1)

    @on_write(range(0x400, 0x420), bank="mmio")
    def write_port(self, offset: int, value: int) -> None:
        self._ports.write(offset - 0x3F0, 1, value)

    @on_read(range(0x500, 0x516, 2), size=2, bank="mmio")
    def read_vbe(self, offset: int) -> int:
        return self.vga.vbe_read((offset - 0x500) >> 1)

    @on_write(range(0x500, 0x516, 2), size=2, bank="mmio")
    def write_vbe(self, offset: int, value: int) -> None:
        self.vga.vbe_write((offset - 0x500) >> 1, value)

    @on_read(0x600, size=4, bank="mmio")
    def read_extended_size(self) -> int:
        return EXTENDED_SIZE

    @on_read(0x604, size=4, bank="mmio")
    def read_byte_order(self) -> int:
        return LITTLE_ENDIAN

    @on_write(0x604, size=4, bank="mmio")
    def write_byte_order(self, value: int) -> None:
        """Only little-endian frame buffers."""
