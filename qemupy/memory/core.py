"""What the memory floor needs from the C core, as a Protocol, and a pure-Python stand-in for unit tests.

All RAM and ROM blocks of a machine lie in one offset space ("RAM space"); the core backs it with one host mapping and
knows the flat view as ranges of guest-physical pages that point into it (csrc/memory/machine.h).
"""

from __future__ import annotations

import enum
import os
from array import array
from collections.abc import Sequence
from typing import Protocol

from qemupy.records import record
from qemupy.scatter import Scatter

RAM, ROM, MMIO, UNMAPPED = 1, 2, 3, 4
PAGE = 4096
NO_WRITE = (1 << 64) - 1


@record(frozen=True)
class CoreRange:
    """A page-aligned range. Reads of RAM and ROM come from `ram_off`; writes go to `write_off`, or nowhere when that
    is NO_WRITE, or to the MMIO dispatcher when `write_upcall` is set."""

    gpa: int
    size: int
    kind: int
    ram_off: int = 0
    write_off: int = NO_WRITE
    write_upcall: bool = False


@record(frozen=True)
class RamBlock:
    name: str
    offset: int
    size: int


@record(frozen=True)
class RamExtent:
    """Page-aligned bytes of RAM space that lie in a file. Tables of them are sorted by `ram_off`; what no extent covers
    is zero."""

    ram_off: int
    size: int
    fd: int
    file_off: int


@record(frozen=True)
class Doorbell:
    """A write of `size` bytes (of `value`, if there is one) at `address` adds 1 to the eventfd `fd`, and the guest runs
    on: no handler is called. `mmio`: the address is guest-physical, else an I/O port."""

    mmio: bool
    address: int
    size: int
    value: int | None
    fd: int


class Doorbells(Protocol):
    """Who watches the guest's writes for doorbells: the accelerator."""

    def add_doorbell(self, bell: Doorbell) -> bool:
        """False: it cannot watch any more; the write reaches its handler as any other."""

    def remove_doorbell(self, bell: Doorbell) -> None: ...


class DirtyClient(enum.IntEnum):
    """Who logs writes to RAM (csrc/api.h)."""

    VGA = 0
    SNAPSHOT = 1
    MIGRATION = 2


class CoreMemory(Protocol):
    blocks: list[RamBlock]
    """Every block taken, in order of their offsets."""

    @property
    def mapped(self) -> bool:
        """Parts of it may lie in a file."""

    def alloc(self, name: str, size: int) -> RamBlock:
        """A zeroed block, page aligned in RAM space; BackendError when the host has not enough memory."""

    def view(self, offset: int, size: int) -> memoryview:
        """View of RAM space. Not to be kept beyond an upcall or safe point, except by a disk request, which is drained
        before RAM is replaced; whoever writes through it calls `changed` afterwards. PageInError, as in `scatter`,
        `store` and `nonzero`: some of it lies in a file that cannot be read."""

    def claim(self, offset: int, size: int) -> None:
        """Before a view that is kept, or a device that cannot stop half way: the pages are there, and stay there.
        PageInError: some of them cannot be read."""

    def scatter(self, pieces: bytes, to_memory: bool) -> Scatter | None:
        """The RAM at guest-physical addresses, as `scatter.table` packs them; as for `view`, but `landed` is called in
        place of `changed`. None if something is not RAM or lies in two ranges of the flat view."""

    def landed(self, scatter: Scatter) -> None:
        """Somebody wrote through it, or may have: mark dirty, invalidate decoded code. With the BQL held."""

    def set_ranges(self, ranges: Sequence[CoreRange]) -> None:
        """Replace the flat view. Takes effect at the next instruction boundary of every vCPU."""

    def store(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """A store to RAM space by somebody else than a vCPU: announced, done, marked dirty, decoded code invalidated.
        With the BQL held."""

    def changed(self, ranges: array[int]) -> None:
        """Somebody wrote through `view`: mark dirty, invalidate decoded code. `ranges` is an array("Q") of offset and
        size in turn. With the BQL held."""

    @property
    def size(self) -> int:
        """Bytes of RAM space taken so far."""

    def dirty_log(self, client: DirtyClient, on: bool) -> None:
        """Begin (clean) or end to log writes to all of RAM space. With the BQL held, as all that follow."""

    def dirty_fetch(self, client: DirtyClient) -> bytes:
        """One byte for each page, 1 where it was written since the last fetch; the log is clean again."""

    def nonzero(self, offset: int, size: int, granule: int = PAGE) -> bytes:
        """One byte for each granule (whole pages) of the stretch, 1 where it holds more than zeros. On any thread."""

    def load(self, extents: Sequence[RamExtent], map: bool) -> None:
        """Replace all of RAM space, vCPUs paused. `map`: copy-on-write mappings of the files, which must not change
        there until `detach`. OSError: a file cannot be read; without `map` nothing has changed then."""

    def restore(self, client: DirtyClient, extents: Sequence[RamExtent], limit: int) -> int | None:
        """Put the pages that `client` saw written back to what the extents hold, vCPUs paused; how many, or None if
        there are more than `limit`. OSError: nothing has changed."""

    def detach(self, extents: Sequence[RamExtent]) -> None:
        """Make mapped memory plain memory with the same content, vCPUs paused. OSError: a page cannot be read."""

    def watch_page_in(self, fd: int) -> None:
        """Tell the eventfd `fd` when a mapped page cannot be read."""

    def page_in_failures(self) -> tuple[int, int]:
        """How many failed since the last call, and how many of these became zeros because who touched them had not
        claimed them."""


class PyCoreMemory:
    """RAM in a bytearray; the stores are noted for tests to look at."""

    mapped = False

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

    def claim(self, offset: int, size: int) -> None:
        pass

    def scatter(self, pieces: bytes, to_memory: bool) -> Scatter | None:
        return None

    def landed(self, scatter: Scatter) -> None:
        pass

    def set_ranges(self, ranges: Sequence[CoreRange]) -> None:
        self.ranges = list(ranges)

    def store(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        self._ram[offset : offset + len(data)] = data
        self.stores.append((offset, len(data)))

    def changed(self, ranges: array[int]) -> None:
        self.stores += zip(ranges[::2], ranges[1::2], strict=True)

    @property
    def size(self) -> int:
        return len(self._ram)

    def dirty_log(self, client: DirtyClient, on: bool) -> None:
        self.stores.clear()

    def dirty_fetch(self, client: DirtyClient) -> bytes:
        dirty = bytearray(len(self._ram) // PAGE)
        for offset, size in self.stores:
            for page in range(offset // PAGE, -(-(offset + size) // PAGE)):
                dirty[page] = 1
        self.stores.clear()
        return bytes(dirty)

    def nonzero(self, offset: int, size: int, granule: int = PAGE) -> bytes:
        pieces = (self._ram[at : at + granule] for at in range(offset, offset + size, granule))
        return bytes(any(piece) for piece in pieces)

    def load(self, extents: Sequence[RamExtent], map: bool) -> None:
        fresh = bytearray(len(self._ram))
        for e in extents:
            fresh[e.ram_off : e.ram_off + e.size] = os.pread(e.fd, e.size, e.file_off)
        self._ram[:] = fresh

    def restore(self, client: DirtyClient, extents: Sequence[RamExtent], limit: int) -> int | None:
        count = sum(self.dirty_fetch(client))
        self.load(extents, False)
        return count

    def detach(self, extents: Sequence[RamExtent]) -> None:
        pass

    def watch_page_in(self, fd: int) -> None:
        pass

    def page_in_failures(self) -> tuple[int, int]:
        return 0, 0
