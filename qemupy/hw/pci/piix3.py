"""The PIIX3 ISA bridge: routing of the PCI interrupt pins to ISA IRQs.

82371SB datasheet 2.2.6 (PIRQRC, 60h-63h: bit 7 off, bits 0-3 the IRQ). Its register CF9h is a device of its own.
"""

from __future__ import annotations

from typing import ClassVar

from qemupy.hw.core import IrqLine, array
from qemupy.hw.core.registry import register
from qemupy.hw.pci.device import PciDevice

PIRQ = 0x60
PIRQ_DISABLED = 0x80


def pirq_of(devfn: int, pin: int) -> int:
    """Pins rotate with the slot, so that neighbours do not share a line; slot 1 begins with PIRQA."""
    return (pin + (devfn >> 3) - 1) & 3


@register("PIIX3", bus="PCI")
class Piix3(PciDevice):
    device_id = 0x7000
    class_code = 0x060100
    command_mask = 0
    config_reset: ClassVar[dict[int, bytes]] = {
        0x04: b"\x07\x00\x00\x02", 0x4C: b"\x4d", 0x4E: b"\x03", PIRQ: b"\x80\x80\x80\x80", 0x69: b"\x02",
        0x70: b"\x80", 0x76: b"\x0c\x0c\x02", 0xA0: b"\x08", 0xA8: b"\x0f",
    }  # fmt: skip

    irqs: list[IrqLine]  # the 16 ISA interrupts, those of PCI wired-or into them
    sources: list[int] = array(8, 128)  # [PIRQ * 32 + slot]: a bit for every function that drives it

    def set_interrupt(self, devfn: int, pin: int, level: bool) -> None:
        """The bus's interrupt router."""
        pirq = pirq_of(devfn, pin)
        at, bit = pirq * 32 + (devfn >> 3), 1 << (devfn & 7)
        before = self.sources[at]
        self.sources[at] = before | bit if level else before & ~bit
        if self.sources[at] != before:
            self._drive(self.config[PIRQ + pirq])

    def _drive(self, route: int) -> None:
        """Set the ISA line `route` to the or of all PIRQs that lead there."""
        if route < 16:
            level = any(
                self.config[PIRQ + pirq] == route and any(self.sources[pirq * 32 : pirq * 32 + 32]) for pirq in range(4)
            )
            self.irqs[route].set(level)

    def config_write(self, offset: int, size: int, value: int) -> None:
        before = bytes(self.config[PIRQ : PIRQ + 4])
        super().config_write(offset, size, value)
        after = bytes(self.config[PIRQ : PIRQ + 4])
        if after != before:
            for route in sorted({*before, *after}):
                self._drive(route)

    def route_of(self, pirq: int) -> int | None:
        route = self.config[PIRQ + pirq]
        return route if route < 16 else None

    def post_load(self) -> None:
        super().post_load()
        for route in sorted(set(self.config[PIRQ : PIRQ + 4])):
            self._drive(route)

    def reset(self) -> None:
        used = sorted(set(self.config[PIRQ : PIRQ + 4]))
        super().reset()
        for route in used:
            self._drive(route)
