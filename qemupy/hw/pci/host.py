"""Configuration mechanism #1 (PCI 3.0, 3.2.2.3.2): CONFIG_ADDRESS at CF8h, CONFIG_DATA at CFCh.

CONFIG_ADDRESS answers dword accesses only, so that byte accesses to its ports reach other devices (CF9h).
"""

from __future__ import annotations

from qemupy.hw.core import Device, on_read, on_write, u32
from qemupy.hw.core.registry import register
from qemupy.hw.pci.bus import PciBus

ENABLE = 1 << 31


@register("i440FX-pcihost", bus="System")
class PciHost(Device):
    bus: PciBus
    address: int = u32()

    @on_read(0, size=4, bank="address")
    def read_address(self) -> int:
        return self.address

    @on_write(0, size=4, bank="address")
    def write_address(self, value: int) -> None:
        self.address = value

    def read_data(self, offset: int, size: int) -> int:
        """`offset` is that within CONFIG_DATA."""
        at = self.address
        if not at & ENABLE or at & 0xFF0000:
            return (1 << 8 * size) - 1
        return self.bus.config_read(at >> 8 & 0xFF, at & 0xFC | offset, size)

    def write_data(self, offset: int, size: int, value: int) -> None:
        at = self.address
        if at & ENABLE and not at & 0xFF0000:
            self.bus.config_write(at >> 8 & 0xFF, at & 0xFC | offset, size, value)

    @on_read(0, 1, 2, 3, bank="data")
    def read_byte(self, offset: int) -> int:
        return self.read_data(offset, 1)

    @on_read(0, 1, 2, size=2, bank="data")
    def read_word(self, offset: int) -> int:
        return self.read_data(offset, 2)

    @on_read(0, size=4, bank="data")
    def read_dword(self) -> int:
        return self.read_data(0, 4)

    @on_write(0, 1, 2, 3, bank="data")
    def write_byte(self, offset: int, value: int) -> None:
        self.write_data(offset, 1, value)

    @on_write(0, 1, 2, size=2, bank="data")
    def write_word(self, offset: int, value: int) -> None:
        self.write_data(offset, 2, value)

    @on_write(0, size=4, bank="data")
    def write_dword(self, value: int) -> None:
        self.write_data(0, 4, value)
