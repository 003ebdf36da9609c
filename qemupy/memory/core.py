"""What the memory floor needs from the C core, as a Protocol, and a pure-Python stand-in for unit tests.

All RAM and ROM blocks of a machine lie in one offset space ("RAM space"); the core backs it with one host mapping and
knows the flat view as ranges of guest-physical pages that point into it (csrc/memory/machine.h).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

RAM, ROM, MMIO, UNMAPPED = 1, 2, 3, 4
PAGE = 4096
NO_WRITE = (1 << 64) - 1


@dataclasses.dataclass(frozen=True, slots=True)
class CoreRange:
    """A page-aligned range. Reads of RAM and ROM come from `ram_off`; writes go to `write_off`, or nowhere when that
    is NO_WRITE, or to the MMIO dispatcher when `write_upcall` is set."""

    gpa: int
    size: int
    kind: int
    ram_off: int = 0
    write_off: int = NO_WRITE
    write_upcall: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class RamBlock:
    name: str
    offset: int
    size: int


class CoreMemory(Protocol):
    blocks: list[RamBlock]
    """Every block taken, in order of their offsets."""

    def alloc(self, name: str, size: int) -> RamBlock:
        """A zeroed block, page aligned in RAM space; BackendError when the host has not enough memory."""

    def view(self, offset: int, size: int) -> memoryview:
        """View of RAM space, for reading. Not to be kept beyond an upcall or safe point."""

    def set_ranges(self, ranges: Sequence[CoreRange]) -> None:
        """Replace the flat view. Takes effect at the next instruction boundary of every vCPU."""

    def store(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """A store to RAM space by somebody else than a vCPU: announced, done, marked dirty, decoded code invalidated.
        With the BQL held."""

    def changed(self, offset: int, size: int) -> None:
        """Somebody wrote through `view` while no vCPU ran: mark dirty, invalidate decoded code. With the BQL held."""


class PyCoreMemory:
    """RAM in a bytearray; the stores are noted for tests to look at."""

    def __init__(self) -> None:
        self._ram = bytearray()
        self.blocks: list[RamBlock] = []
        self.ranges: list[CoreRange] = []
        self.stores: list[tuple[int, int]] = []

    def alloc(self, name: str, size: int) -> RamBlock:
        offset = len(self._ram)
        self._ram = self._ram + bytes(-(-size // PAGE) * PAGE)
        self.blocks.append(RamBlock(name, offset, size))
        return self.blocks[-1]

    def view(self, offset: int, size: int) -> memoryview:
        return memoryview(self._ram)[offset : offset + size]

    def set_ranges(self, ranges: Sequence[CoreRange]) -> None:
        self.ranges = list(ranges)

    def store(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        self._ram[offset : offset + len(data)] = data
        self.stores.append((offset, len(data)))

    def changed(self, offset: int, size: int) -> None:
        self.stores.append((offset, size))
