"""The i440FX host bridge: PAM and SMRAM decide what C0000-FFFFF and A0000-BFFFF show.

82441FX datasheet 3.2.18 (PAM, 59h-5Fh) and 3.2.20 (SMRAM, 72h). PAM holds two enables for each segment: bit 0 sends
reads to RAM, bit 1 sends writes there; otherwise they go to PCI (ROM). A segment whose writes alone go to RAM is shown
as PCI, as in QEMU. The CPU has no SMM, so SMRAM matters only while D_OPEN shows it to ordinary code.
"""

from __future__ import annotations

from typing import ClassVar

from qemupy.hw.core import transient
from qemupy.hw.core.registry import register
from qemupy.hw.pci.device import PciDevice
from qemupy.memory import MemoryRegion, transaction

PAM, PAM_END, SMRAM = 0x59, 0x60, 0x72
D_OPEN, D_LCK, G_SMRAME = 1 << 6, 1 << 4, 1 << 3

# (first address, size, PAM register, shift) of the 13 segments
SEGMENTS = [(0xF0000, 0x10000, PAM, 4)] + [
    (0xC0000 + 0x4000 * i, 0x4000, PAM + 1 + i // 2, 4 * (i % 2)) for i in range(12)
]


@register("i440FX", bus="PCI")
class I440FX(PciDevice):
    device_id = 0x1237
    revision = 0x02
    class_code = 0x060000
    config_reset: ClassVar[dict[int, bytes]] = {SMRAM: b"\x02"}

    system: MemoryRegion  # guest-physical memory
    ram: MemoryRegion  # RAM from address 0 up
    pci: MemoryRegion  # what lies on the PCI bus, by the same addresses
    _segments: list[tuple[MemoryRegion, MemoryRegion, MemoryRegion]] = transient(factory=list)
    _smram: MemoryRegion | None = transient(None)

    def realize(self) -> None:
        super().realize()
        for start, size, _, _ in SEGMENTS:
            shown = (
                MemoryRegion.alias("pam-pci", self.pci, start, size),
                MemoryRegion.alias("pam-rom", self.ram, start, size, readonly=True),
                MemoryRegion.alias("pam-ram", self.ram, start, size),
            )
            for region in shown:
                region.set_enabled(region is shown[0])
                self.system.add(region, start, priority=1)
            self._segments.append(shown)
        self._smram = MemoryRegion.alias("smram-region", self.pci, 0xA0000, 0x20000)
        self.system.add(self._smram, 0xA0000, priority=1)

    def update_memory(self) -> None:
        """Show every segment as its PAM bits say."""
        with transaction():
            for (_, _, register_, shift), shown in zip(SEGMENTS, self._segments, strict=True):
                mode = self.config[register_] >> shift & 3
                choice = 2 if mode == 3 else mode & 1
                for at, region in enumerate(shown):
                    region.set_enabled(at == choice)
            if self._smram is not None:
                self._smram.set_enabled(not self.config[SMRAM] & D_OPEN)

    def config_write(self, offset: int, size: int, value: int) -> None:
        smram = self.config[SMRAM]
        super().config_write(offset, size, value)
        if smram & D_LCK:
            self.config[SMRAM] = smram
        if (offset < PAM_END and offset + size > PAM) or offset <= SMRAM < offset + size:
            self.update_memory()

    def place(self) -> None:
        super().place()
        self.update_memory()
