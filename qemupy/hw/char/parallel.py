"""Parallel port in standard mode (IBM PC/AT technical reference, "printer adapter"; IEEE 1284 compatibility mode).

A byte goes to the chardev on the rise of STROBE. The printer answers with BUSY and then ACK, played out in the reads of
the status register.
"""

from __future__ import annotations

from qemupy.backends.chardev import CharBackend
from qemupy.hw.core import Device, IrqLine, boolean, on_read, on_write, register, u8

NOT_BUSY, NOT_ACK, ONLINE, NOT_ERROR = 0x80, 0x40, 0x10, 0x08
STROBE, NOT_INIT, SELECT, IRQ_ENABLE, DIRECTION = 0x01, 0x04, 0x08, 0x10, 0x20
IDLE = NOT_BUSY | NOT_ACK | ONLINE | NOT_ERROR


@register("isa-parallel", bus="ISA", help="parallel port")
class Parallel(Device):
    """Three ports: data, status, control."""

    chardev: CharBackend
    irq: IrqLine
    data: int = u8(reset=0xFF)
    status: int = u8(reset=IDLE)
    control: int = u8(reset=0xC0 | SELECT | NOT_INIT)
    pending: bool = boolean()

    def realize(self) -> None:
        self.chardev.connect(lambda data: None, lambda: 0)

    def reset(self) -> None:
        super().reset()
        self.update_irq()

    def post_load(self) -> None:
        self.update_irq()

    def update_irq(self) -> None:
        self.irq.set(self.pending)

    @on_read(0)
    def read_data(self) -> int:
        return 0xFF if self.control & DIRECTION else self.data

    @on_write(0)
    def write_data(self, value: int) -> None:
        self.data = value

    @on_read(1)
    def read_status(self) -> int:
        status = self.status
        self.pending = False
        if not status & NOT_BUSY and not self.control & STROBE:
            self.status = status & ~NOT_ACK if status & NOT_ACK else status | NOT_ACK | NOT_BUSY
        self.update_irq()
        return status

    @on_write(1)
    def write_ignored(self, value: int) -> None:
        """The printer sets the status."""

    @on_read(2)
    def read_control(self) -> int:
        return self.control

    @on_write(2)
    def write_control(self, value: int) -> None:
        old, self.control = self.control, value | 0xC0
        if not value & NOT_INIT:
            self.status = IDLE
        elif value & SELECT:
            if value & STROBE:
                self.status &= ~NOT_BUSY
                if not old & STROBE:
                    self.chardev.write(bytes([self.data]))
            elif value & IRQ_ENABLE and old & STROBE:
                self.pending = True
        self.update_irq()
