"""Global system interrupts: an ISA interrupt goes to the 8259 pair and to the IOAPIC, and the guest masks one of them.

The PIT's IRQ 0 arrives at IOAPIC pin 2, since pin 0 is the 8259 pair's; the ACPI tables tell of it as an interrupt
source override (ACPI 5.2.12.5).
"""

from __future__ import annotations

from typing import Protocol

from qemupy.hw.core import IrqLine, split, unconnected

ISA_IRQS = 16
CASCADE = 2


class Inputs(Protocol):
    def input(self, n: int) -> IrqLine: ...


def gsi_lines(pic: Inputs, ioapic: Inputs | None, pins: int = 24) -> list[IrqLine]:
    """The lines devices drive: 0-15 are the ISA interrupts, the rest reach the IOAPIC only."""
    lines = []
    for n in range(pins):
        targets = [pic.input(n)] if n < ISA_IRQS and n != CASCADE else []
        if ioapic is not None:
            targets.append(ioapic.input(2 if n == 0 else n))
        lines.append(split(*targets) if targets else unconnected())
    return lines
