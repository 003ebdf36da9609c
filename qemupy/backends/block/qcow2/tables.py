"""Tables of big-endian entries in the image, held in memory as native integers with a note of what is dirty.

L1, L2 and refcount tables have 64-bit entries, refcount blocks 1 to 64 bits (entries narrower than a byte are packed
from the least significant bit up). A table in memory is an `array`, so that slices, searches and byte swaps run in C.
"""

from __future__ import annotations

import array
import errno
import functools
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

SPAN = 4096  # dirty parts of tables are written in whole, aligned pieces of this many bytes
_CODES = {3: "B", 4: "H", 5: "I", 6: "Q"}  # log2 of the bits of an entry

Buffer = bytes | bytearray | memoryview


class ByteFile(Protocol):
    """What an image lies in. Calls are synchronous and may come from several threads; errors are OSError.

    A read beyond the end gives zeros, a write there makes the file longer."""

    @property
    def length(self) -> int: ...

    @property
    def readonly(self) -> bool: ...

    def read(self, offset: int, data: memoryview) -> None: ...

    def readv(self, offset: int, buffers: Sequence[memoryview]) -> None: ...

    def write(self, offset: int, data: Buffer) -> None: ...

    def writev(self, offset: int, buffers: Sequence[memoryview]) -> None: ...

    def flush(self) -> None: ...

    def begin_writeback(self) -> None: ...

    def discard(self, offset: int, length: int) -> None: ...


def read_bytes(file: ByteFile, offset: int, length: int) -> bytearray:
    data = bytearray(length)
    file.read(offset, memoryview(data))
    return data


@functools.cache
def _unpacked(order: int) -> list[bytes]:
    """The entries in each byte, for those narrower than one."""
    shifts, mask = range(0, 8, 1 << order), (1 << (1 << order)) - 1
    return [bytes([byte >> shift & mask for shift in shifts]) for byte in range(256)]


def decode(data: Buffer, order: int = 6) -> array.array[int]:
    """Entries of 2^order bits as native integers."""
    if order < 3:
        unpacked = _unpacked(order)
        return array.array("B", b"".join([unpacked[byte] for byte in data]))
    values = array.array(_CODES[order], bytes(data))
    if sys.byteorder == "little":
        values.byteswap()
    return values


def encode(values: array.array[int], order: int = 6) -> bytes:
    if order < 3:
        bits = 1 << order
        step = 8 // bits
        packed = bytearray(len(values) // step)
        for place in range(step):
            for index, value in enumerate(values[place::step]):
                packed[index] |= value << (place * bits)
        return bytes(packed)
    swapped = values[:]
    if sys.byteorder == "little":
        swapped.byteswap()
    return swapped.tobytes()


def zeros(count: int, order: int = 6) -> array.array[int]:
    code = _CODES[max(order, 3)]
    return array.array(code, bytes(count * array.array(code).itemsize))


class Table:
    """One table (or block) of the image: where it lies, its entries, and the range of entries not yet written."""

    __slots__ = ("busy", "high", "low", "offset", "order", "values")
    partial: dict[int, int] | None = None  # see subclusters.py

    def __init__(self, offset: int, values: array.array[int], order: int = 6) -> None:
        self.offset, self.values, self.order = offset, values, order
        self.low, self.high = len(values), 0
        self.busy = 0  # writes of it that have been started and are not on the disk yet

    def copy_at(self, offset: int) -> Table:
        """A table with the same entries in another place."""
        return Table(offset, self.values[:], self.order)

    @property
    def dirty(self) -> bool:
        return self.low < self.high

    def mark(self, low: int, high: int) -> None:
        """Entries low..high-1 have changed."""
        if low < self.low:
            self.low = low
        if high > self.high:
            self.high = high

    def mark_all(self) -> None:
        self.low, self.high = 0, len(self.values)

    def take(self) -> tuple[int, bytes]:
        """The dirty part as (file offset, bytes), widened to whole pieces; the table counts as clean from now on."""
        low, high = self._take_range((SPAN << 3) >> self.order)
        return self.offset + (low << self.order >> 3), encode(self.values[low:high], self.order)

    def _take_range(self, per_piece: int) -> tuple[int, int]:
        low = self.low // per_piece * per_piece
        high = min(-(-self.high // per_piece) * per_piece, len(self.values))
        self.low, self.high = len(self.values), 0
        return low, high


class TableCache:
    """Tables by offset, of `size` bytes, made by `load(offset, bytes)`. Clean ones leave in the order of their last use
    when there are more than `limit`."""

    def __init__(self, file: ByteFile, size: int, limit: int, load: Callable[[int, Buffer], Table]) -> None:
        self._file, self._size, self._limit, self._load = file, size, limit, load
        self._tables: OrderedDict[int, Table] = OrderedDict()
        self.dirty: dict[int, Table] = {}

    def __iter__(self) -> Iterator[Table]:
        return iter(self._tables.values())

    def cached(self, offset: int) -> Table | None:
        return self._tables.get(offset)

    def get(self, offset: int) -> Table:
        """The table at `offset`, read if need be. What lies beyond the end of the file reads as zeros."""
        table = self._tables.get(offset)
        if table is None:
            table = self._load(offset, read_bytes(self._file, offset, self._size))
            self.add(table)
        else:
            self._tables.move_to_end(offset)
        return table

    def add(self, table: Table) -> None:
        self._tables[table.offset] = table
        if len(self._tables) > self._limit:
            self._evict()

    def _evict(self) -> None:
        """Forget the clean tables used least recently, a sixteenth of the limit at a time."""
        excess = len(self._tables) - self._limit + self._limit // 16
        newest = next(reversed(self._tables))
        victims: list[int] = []
        for offset, table in self._tables.items():
            if len(victims) >= excess:
                break
            if not table.dirty and not table.busy and offset != newest:
                victims.append(offset)
        for offset in victims:
            del self._tables[offset]

    def mark(self, table: Table, low: int, high: int) -> None:
        """Entries have changed. The table is in the cache from now on, whether it had been evicted meanwhile or not."""
        table.mark(low, high)
        self._tables.setdefault(table.offset, table)
        self.dirty[table.offset] = table

    def drop(self, offset: int) -> None:
        """Forget a table whose cluster has been freed."""
        self._tables.pop(offset, None)
        self.dirty.pop(offset, None)

    @property
    def crowded(self) -> bool:
        """So many dirty tables that they should be written."""
        return len(self.dirty) * 2 > self._limit


def corrupt(message: str) -> OSError:
    """The error of a request that met broken metadata."""
    return OSError(errno.EIO, message)


Report = Callable[[str], None]
