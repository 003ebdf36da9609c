"""A machine in the state area of a snapshot: where things lie, and what of it is written.

    0         a stream (stream.py) with the machine's description, the table `ram`, guest time, devices, vCPUs
    RAM_BASE  RAM space, byte for byte, sparse: what is zero is not stored

So a page has the same place in every snapshot, clusters of neighbouring pages lie one after the other in the file, and
all of it can be mapped copy-on-write.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import Any, Protocol

from qemupy.errors import StateError
from qemupy.memory import CoreMemory
from qemupy.memory.core import RamExtent
from qemupy.migration.machine import Tables
from qemupy.migration.pages import pieces, runs
from qemupy.migration.stream import END, PAGE, Run, StreamReader, StreamWriter

RAM_BASE = 16 << 20
GRANULE = 64 << 10  # what is looked at for zeros, and written, at once
MAX_MAPPINGS = 60_000  # the kernel allows 65,530
_PIECE = 8 << 20  # bytes looked at for zeros and written by turns


class StateImage(Protocol):
    """A disk image with a state area for each snapshot. Sizes and offsets are bytes; errors OSErrors."""

    def fileno(self) -> int | None:
        """The file in which extents lie; None: it cannot be mapped."""

    def vmstate_begin(self) -> None: ...

    def vmstate_write(self, offset: int, data: bytes | memoryview) -> None: ...

    def vmstate_push(self) -> None: ...

    def vmstate_share(self, snapshot: Any, source: int, offset: int, length: int) -> None: ...

    def vmstate_read(self, offset: int, data: memoryview, snapshot: Any = None) -> None: ...

    def vmstate_extents(self, snapshot: Any, offset: int, length: int) -> list[tuple[int, int | None, int]] | None:
        """(offset, offset in the file or None for zeros, length), in order; None: some of it can only be read."""


def write_head(image: StateImage, tables: Tables) -> int:
    """Everything but RAM; its length."""
    head = bytearray()
    stream = StreamWriter(head.extend)
    stream.tables(tables)
    stream.end()
    if len(head) > RAM_BASE:
        raise StateError(f"the machine without its RAM takes {len(head)} bytes, {RAM_BASE} at most")
    image.vmstate_write(0, bytes(head))
    return len(head)


def read_head(read: Callable[[int, memoryview], None], where: str, check: Callable[[Any], None]) -> Tables:
    """The tables of a head; `check` sees the machine's description first. `read(offset, buffer)` fills a buffer."""
    stream = StreamReader(_Buffered(read).read, where)
    tables: Tables = {}
    while (section := stream.next()).kind != END:
        if section.name in tables or len(tables) > 4096:
            raise StateError(f"{where}: section {section.name[:40]!r} out of place")
        tables[section.name] = stream.table(section)
        if len(tables) == 1:
            check(tables.get("machine"))
    return tables


class _Buffered:
    """A head as a stream; it ends at RAM_BASE at the latest."""

    def __init__(self, read: Callable[[int, memoryview], None]) -> None:
        self._fill, self._at = read, 0
        self._data = io.BytesIO()

    def read(self, size: int) -> bytes:
        while self._at < RAM_BASE and len(self._data.getbuffer()) - self._data.tell() < size:
            chunk = bytearray(1 << 18)
            self._fill(self._at, memoryview(chunk))
            self._at += len(chunk)
            place = self._data.tell()
            self._data.seek(0, os.SEEK_END)
            self._data.write(chunk)
            self._data.seek(place)
        return self._data.read(size)


class RamWriter:
    """Writes RAM space to a state area: what is not zero, and what was written before. On a worker."""

    def __init__(self, memory: CoreMemory, image: StateImage) -> None:
        self._memory, self._image = memory, image
        self._written = bytearray(-(-memory.size // GRANULE))
        self.bytes_written = self.bytes_shared = 0
        self.cancelled = False

    @property
    def stored(self) -> list[int]:
        """The stretches written: offset, length, offset, length, ... in ascending order."""
        return [number for run in runs(self._written, GRANULE) for number in run]

    def everything(self) -> None:
        """Looking for zeros and writing take turns, so that the disk is busy from the beginning."""
        for at in range(0, self._memory.size, _PIECE):
            if self.cancelled:
                return
            self._write(self._memory.nonzero(at, min(_PIECE, self._memory.size - at), GRANULE), at)
            self._image.vmstate_push()

    def since(self, base: Any, stored: list[Run], dirty: bytes) -> None:
        """What differs from the snapshot `base`, which holds `stored`; the rest is shared with it. `dirty`: the pages
        written since then."""
        same = bytearray(len(self._written))
        for offset, length in stored:
            same[offset // GRANULE : (offset + length) // GRANULE] = b"\1" * (length // GRANULE)
        for at, mark in enumerate(self._granules(dirty)):
            same[at] &= ~mark
        for offset, length in runs(same, GRANULE):
            if self.cancelled:
                return
            self._image.vmstate_share(base, RAM_BASE + offset, RAM_BASE + offset, length)
            self.bytes_shared += length
        self._written = same
        self.again(dirty)

    def _granules(self, dirty: bytes) -> bytearray:
        marks = bytearray(len(self._written))
        for offset, length in runs(dirty):
            first, last = offset // GRANULE, (offset + length - 1) // GRANULE
            marks[first : last + 1] = b"\1" * (last + 1 - first)
        return marks

    def again(self, dirty: bytes) -> None:
        """The granules with pages marked in `dirty`, one byte for each page."""
        per = GRANULE // PAGE
        marks = self._granules(dirty)
        for at in [i for i, mark in enumerate(marks) if mark and not self._written[i]]:
            size = min(per * PAGE, self._memory.size - at * GRANULE)
            marks[at] = self._memory.nonzero(at * GRANULE, size, GRANULE)[0]
        self._write(marks)

    def _write(self, marks: bytes | bytearray, start: int = 0) -> None:
        """The granules from `start` on that are marked."""
        for offset, length in pieces(runs(marks, GRANULE), _PIECE):
            if self.cancelled:
                return
            at = start + offset
            length = min(length, self._memory.size - at)
            self._image.vmstate_write(RAM_BASE + at, self._memory.view(at, length))
            self.bytes_written += length
            first = at // GRANULE
            self._written[first : first + -(-length // GRANULE)] = b"\1" * -(-length // GRANULE)


def stored_runs(table: dict[str, Any], size: int, where: str) -> list[Run]:
    """The stretches of RAM space that a head's table `ram` names; everything else is zero. StateError: it cannot be."""
    flat = table.get("stored")
    if not isinstance(flat, list) or len(flat) % 2 or not all(type(n) is int for n in flat):
        raise StateError(f"{where}: no list of RAM")
    stored, at = list(zip(flat[::2], flat[1::2], strict=True)), 0
    for offset, length in stored:
        if offset < at or length <= 0 or offset % GRANULE or length % GRANULE or offset >= size:
            raise StateError(f"{where}: RAM at {offset:#x}+{length:#x} out of place, this machine has {size:#x}")
        at = offset + length
    return stored


def ram_extents(
    image: StateImage, fd: int, snapshot: Any, stored: list[Run], size: int
) -> tuple[RamExtent, ...] | None:
    """Where a snapshot's RAM lies in the image's file `fd`; None if not all of it can be mapped from there."""
    end = -(-os.fstat(fd).st_size // PAGE) * PAGE
    found: list[RamExtent] = []
    for start, length in stored:
        listed = image.vmstate_extents(snapshot, RAM_BASE + start, min(length, size - start))
        if listed is None:
            return None
        for offset, place, count in listed:
            if place is None or (offset | place | count) % PAGE or place + count > end:
                return None
            found.append(RamExtent(offset - RAM_BASE, count, fd, place))
    return tuple(found) if len(found) <= MAX_MAPPINGS else None
