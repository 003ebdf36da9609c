"""Interrupt wires. A line carries a level to a handler `(n, level)`; it remembers nothing that would need saving.

A line does not drop repeated levels: after a load every driver sets its lines again, and the receiver must see it.
"""

from __future__ import annotations

from collections.abc import Callable

from qemupy.hw.core.fields import array
from qemupy.hw.core.state import State

IrqHandler = Callable[[int, bool], None]


class IrqLine:
    """`level` is the level last driven, for tests and monitors."""

    __slots__ = ("handler", "level", "n")

    def __init__(self, handler: IrqHandler, n: int = 0) -> None:
        self.handler, self.n, self.level = handler, n, False

    def set(self, level: bool) -> None:
        self.level = level
        self.handler(self.n, level)

    def high(self) -> None:
        self.set(True)

    def low(self) -> None:
        self.set(False)

    def pulse(self) -> None:
        self.set(True)
        self.set(False)


def unconnected() -> IrqLine:
    return IrqLine(lambda n, level: None)


def split(*lines: IrqLine) -> IrqLine:
    """One input that drives several lines (ISA IRQs go to the PIC and to the IOAPIC)."""

    def drive(n: int, level: bool) -> None:
        for line in lines:
            line.set(level)

    return IrqLine(drive)


class IrqOr(State):
    """Wired-or of `count` inputs onto one output. It has state (which inputs are high), so the board saves it."""

    out: IrqLine
    levels: list[int] = array(1, 32)

    def input(self, n: int) -> IrqLine:
        return IrqLine(self._drive, n)

    def _drive(self, n: int, level: bool) -> None:
        self.levels[n] = int(level)
        self.out.set(any(self.levels))

    def post_load(self) -> None:
        self.out.set(any(self.levels))
