"""What a bus master sees of guest memory. The real one is `qemupy.memory`'s GuestRam; tests pass `FlatDma`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from qemupy.scatter import pairs


class Dma(Protocol):
    """Bounds-checked access by guest-physical address. Reads outside RAM give ones, writes there are dropped; both are
    logged as guest errors. Writes are announced before and marked dirty (and their code invalidated) after."""

    def read(self, gpa: int, size: int) -> bytes: ...

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None: ...

    def views(self, pieces: bytes, to_memory: bool) -> Sequence[memoryview]:
        """Guest memory itself, for a request that a backend works on: as many bytes as the pieces (`scatter.table`)
        have, with stand-ins for what is not RAM. After the last byte has been put there, and before the guest is told,
        call `landed`."""

    def landed(self, pieces: bytes, views: Sequence[memoryview]) -> None:
        """Somebody wrote through `views`, or may have: mark the pages dirty, invalidate their code."""


class FlatDma:
    """Plain memory from address 0 up, for device tests."""

    def __init__(self, size: int = 1 << 20) -> None:
        self.ram = bytearray(size)
        self.landings: list[tuple[int, int]] = []

    def read(self, gpa: int, size: int) -> bytes:
        return bytes(self.ram[gpa : gpa + size]).ljust(size, b"\xff")

    def views(self, pieces: bytes, to_memory: bool) -> Sequence[memoryview]:
        found = []
        for gpa, size in pairs(pieces):
            inside = max(min(size, len(self.ram) - gpa), 0)
            found += [memoryview(self.ram)[gpa : gpa + inside], memoryview(bytearray(b"\xff" * (size - inside)))]
        return [view for view in found if view]

    def landed(self, pieces: bytes, views: Sequence[memoryview]) -> None:
        self.landings += pairs(pieces)

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        end = min(gpa + len(data), len(self.ram))
        if gpa < end:
            self.ram[gpa:end] = bytes(data)[: end - gpa]
