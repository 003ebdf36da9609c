"""What a bus master sees of guest memory. The real one is `qemupy.memory`'s GuestRam; tests pass `FlatDma`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from qemupy.errors import PageInError
from qemupy.scatter import pairs


class Dma(Protocol):
    """Bounds-checked access by guest-physical address. Reads outside RAM give ones, writes there are dropped; both are
    logged as guest errors. Writes are announced before and marked dirty (and their code invalidated) after.

    Memory may lie in a snapshot's file, which may be out of reach: then all but `landed` raise PageInError, and the
    machine is about to stop. In the handler of a register that may be called again this needs no thought: the guest's
    instruction starts again when the machine goes on. Other devices `claim` what they will touch before they change
    anything, and on PageInError begin again `later`."""

    def read(self, gpa: int, size: int) -> bytes: ...

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None: ...

    def views(self, pieces: bytes, to_memory: bool) -> Sequence[memoryview]:
        """Guest memory itself, for a request that a backend works on: as many bytes as the pieces (`scatter.table`)
        have, with stand-ins for what is not RAM. After the last byte has been put there, and before the guest is told,
        call `landed`."""

    def landed(self, pieces: bytes, views: Sequence[memoryview]) -> None:
        """Somebody wrote through `views`, or may have: mark the pages dirty, invalidate their code."""

    def claim(self, pieces: bytes) -> None:
        """What of the pieces (`scatter.table`) is RAM can be read, and stays so."""

    def later(self, call: Callable[[], None]) -> None:
        """Call it when the machine goes on after a PageInError. Not called if the machine is reset or becomes another
        one meanwhile."""


class FlatDma:
    """Plain memory from address 0 up, for device tests."""

    def __init__(self, size: int = 1 << 20) -> None:
        self.ram = bytearray(size)
        self.landings: list[tuple[int, int]] = []
        self.unreadable = range(0)  # addresses that raise PageInError
        self.waiting: list[Callable[[], None]] = []

    def _check(self, gpa: int, size: int) -> None:
        if max(gpa, self.unreadable.start) < min(gpa + size, self.unreadable.stop):
            raise PageInError(f"{gpa:#x}")

    def claim(self, pieces: bytes) -> None:
        for gpa, size in pairs(pieces):
            self._check(gpa, size)

    def later(self, call: Callable[[], None]) -> None:
        self.waiting.append(call)

    def resume(self) -> None:
        """Memory can be read again, and the machine goes on."""
        self.unreadable = range(0)
        waiting, self.waiting = self.waiting, []
        for call in waiting:
            call()

    def read(self, gpa: int, size: int) -> bytes:
        self._check(gpa, size)
        return bytes(self.ram[gpa : gpa + size]).ljust(size, b"\xff")

    def views(self, pieces: bytes, to_memory: bool) -> Sequence[memoryview]:
        found = []
        self.claim(pieces)
        for gpa, size in pairs(pieces):
            inside = max(min(size, len(self.ram) - gpa), 0)
            found += [memoryview(self.ram)[gpa : gpa + inside], memoryview(bytearray(b"\xff" * (size - inside)))]
        return [view for view in found if view]

    def landed(self, pieces: bytes, views: Sequence[memoryview]) -> None:
        self.landings += pairs(pieces)

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        self._check(gpa, len(data))
        end = min(gpa + len(data), len(self.ram))
        if gpa < end:
            self.ram[gpa:end] = bytes(data)[: end - gpa]
