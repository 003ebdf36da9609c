"""Single registers by which software resets the machine, opens A20 and talks to power management.

Manuals: 82371SB (PIIX3) datasheet 2.5.4 (reset control CF9h) and 2.5.x (port 92h is the PS/2 system control port A);
82371AB (PIIX4) 7.1 (APM control B2h/B3h); IBM PC/AT technical reference (port F0h, coprocessor error latch).
"""

from __future__ import annotations

from collections.abc import Callable

from qemupy.hw.core import Device, IrqLine, boolean, on_read, on_write, u8


class Port92(Device):
    """Fast A20 (bit 1) and fast reset (a rise of bit 0). The A20 mask itself is the board's state: two devices drive
    it and the last write wins, so it is not driven again after a load."""

    a20: IrqLine
    request_reset: Callable[[], None]
    value: int = u8()

    @on_read(0)
    def read_value(self) -> int:
        return self.value

    @on_write(0)
    def write_value(self, value: int) -> None:
        old, self.value = self.value, value
        self.a20.set(bool(value & 2))
        if value & ~old & 1:
            self.request_reset()

    def reset(self) -> None:
        """The A20 bit survives: a reset opens A20 elsewhere."""
        self.value &= ~1


class ResetControl(Device):
    """Port CF9h: bit 2 resets, bit 1 says hard or soft, which is the same here."""

    request_reset: Callable[[], None]
    kind: int = u8()

    @on_read(0)
    def read_kind(self) -> int:
        return self.kind

    @on_write(0)
    def write_control(self, value: int) -> None:
        if value & 4:
            self.request_reset()
        else:
            self.kind = value & 2


class ApmControl(Device):
    """B2h (command) and B3h (status). A command raises an SMI on real machines; here it calls `command`, with which
    the power-management function switches ACPI mode on and off."""

    command: Callable[[int], None]
    apmc: int = u8()
    apms: int = u8()

    @on_read(0)
    def read_command(self) -> int:
        return self.apmc

    @on_write(0)
    def write_command(self, value: int) -> None:
        self.apmc = value
        self.command(value)

    @on_read(1)
    def read_status(self) -> int:
        return self.apms

    @on_write(1)
    def write_status(self, value: int) -> None:
        self.apms = value


class FpuError(Device):
    """FERR# to IRQ 13, and port F0h (and F1h) that takes it back and lets the FPU go on (IGNNE#)."""

    irq: IrqLine
    ignne: Callable[[], None] | None = None
    pending: bool = boolean()

    def ferr(self) -> None:
        """The CPU signals an unmasked x87 exception with CR0.NE clear."""
        self.pending = True
        self.update_irq()

    @on_read(0, 1)
    def read_open_bus(self) -> int:
        return 0xFF

    @on_write(0, 1)
    def write_clear(self, value: int) -> None:
        self.pending = False
        if self.ignne is not None:
            self.ignne()
        self.update_irq()

    def update_irq(self) -> None:
        self.irq.set(self.pending)

    def reset(self) -> None:
        super().reset()
        self.update_irq()

    def post_load(self) -> None:
        self.update_irq()
