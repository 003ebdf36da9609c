"""What a bus master sees of guest memory. The real one is `qemupy.memory`'s GuestRam; tests pass `FlatDma`."""

from __future__ import annotations

from typing import Protocol


class Dma(Protocol):
    """Bounds-checked access by guest-physical address. Reads outside RAM give ones, writes there are dropped; both are
    logged as guest errors. Writes are announced before and marked dirty (and their code invalidated) after."""

    def read(self, gpa: int, size: int) -> bytes: ...

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None: ...


class FlatDma:
    """Plain memory from address 0 up, for device tests."""

    def __init__(self, size: int = 1 << 20) -> None:
        self.ram = bytearray(size)

    def read(self, gpa: int, size: int) -> bytes:
        return bytes(self.ram[gpa : gpa + size]).ljust(size, b"\xff")

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        end = min(gpa + len(data), len(self.ram))
        if gpa < end:
            self.ram[gpa:end] = bytes(data)[: end - gpa]
