"""Fake wires for device tests, and the save/load round trip every device must pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from qemupy.hw.core import Device, IrqLine

D = TypeVar("D", bound=Device)


class Wire(IrqLine):
    """A line that counts its rising edges."""

    def __init__(self) -> None:
        super().__init__(self._seen)
        self.rises = 0
        self.last = False

    def _seen(self, n: int, level: bool) -> None:
        if level and not self.last:
            self.rises += 1
        self.last = level


def round_trip(dev: D, make: Callable[[], D]) -> D:
    """A new device loaded with the state of `dev`; saving it gives the same again."""
    saved = dev.save()
    fresh = make()
    assert fresh.save() != saved, "the test must change the state before saving it"
    fresh.load(saved)
    assert fresh.save() == saved
    return fresh
