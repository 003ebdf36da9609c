"""Memory in pieces: what a request of a guest reads from or writes to.

The block layer takes any sequence of memoryviews. A `Scatter` is one that keeps its pieces in a table of addresses and
sizes, as preadv wants them: a request of a megabyte has 256 pages, and an object for each costs more than the copying.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

from qemupy._core import ffi, lib

_WORDS = struct.Struct("=QQ")  # an entry of a table: address and size
PIECE = _WORDS.size
_PRD_HEAD = struct.Struct("=QQQ")


def words(data: bytes | bytearray) -> object:
    """A table as the core takes it."""
    return ffi.from_buffer("uint64_t[]", data)


def table(pieces: Iterable[tuple[int, int]]) -> bytes:
    """Addresses and sizes, packed; of guest memory they are guest-physical."""
    return b"".join(_WORDS.pack(*piece) for piece in pieces)


def pairs(table: bytes) -> Iterator[tuple[int, int]]:
    """The reverse of `table`."""
    return _WORDS.iter_unpack(table)


def descriptors(data: bytes, wanted: int) -> tuple[bytes, int, bool]:
    """A bus master's descriptors (csrc/base/prd.h) up to the end mark or until there is room for `wanted` bytes, as
    `table` packs them; the bytes they have room for; was there the end mark?"""
    out = bytearray(_PRD_HEAD.size + len(data) // 8 * PIECE)
    lib.qpy_prd_pairs(words(data), len(data) // 8, wanted, words(out))
    count, room, ended = _PRD_HEAD.unpack_from(out)
    return bytes(memoryview(out)[_PRD_HEAD.size : _PRD_HEAD.size + count * PIECE]), room, bool(ended)


class Scatter(Sequence[memoryview]):
    """`table` holds native 64-bit words, address and size in turn, `size` bytes in all. Who makes one sees to it that
    the memory stays where it is for as long."""

    __slots__ = ("size", "table")

    def __init__(self, table: bytes, size: int) -> None:
        self.table, self.size = table, size

    def __len__(self) -> int:
        return len(self.table) // PIECE

    @overload
    def __getitem__(self, index: int) -> memoryview: ...
    @overload
    def __getitem__(self, index: slice) -> list[memoryview]: ...

    def __getitem__(self, index: int | slice) -> memoryview | list[memoryview]:
        if isinstance(index, slice):
            return [self[n] for n in range(*index.indices(len(self)))]
        at = range(0, len(self.table), PIECE)[index] >> 3
        entries = memoryview(self.table).cast("Q")
        return memoryview(ffi.buffer(ffi.cast("uint8_t *", entries[at]), entries[at + 1]))

    def __iter__(self) -> Iterator[memoryview]:
        return (self[n] for n in range(len(self)))

    def cut(self, start: int, length: int) -> Scatter:
        """The part from byte `start` on, `length` bytes of it or what there is."""
        length = max(min(length, self.size - start), 0)
        return self if length == self.size else Scatter(cut_table(self.table, start, length), length)

    # Host I/O, on any thread; OSError

    def read_from(self, fd: int, offset: int) -> None:
        """Fill all of it from a file; what lies beyond the file's end reads as zeros."""
        _check(lib.qpy_iov_read(fd, offset, words(self.table), len(self)))

    def write_to(self, fd: int, offset: int) -> None:
        _check(lib.qpy_iov_write(fd, offset, words(self.table), len(self)))

    def read_cached(self, fd: int, offset: int) -> bool:
        """Fill it with what the host has in its page cache; False if that is not all."""
        return bool(lib.qpy_iov_read_cached(fd, offset, words(self.table), len(self)) == self.size)


def as_table(buffers: Sequence[memoryview]) -> Scatter:
    """The same pieces as a table. They have to be kept for as long."""
    if isinstance(buffers, Scatter):
        return buffers
    pieces = [(int(ffi.cast("uintptr_t", ffi.from_buffer(buffer))), len(buffer)) for buffer in buffers]
    return Scatter(table(pieces), sum(size for _, size in pieces))


def begin_writeback(fd: int) -> None:
    """Have the host begin to bring to its disk what was written to a file; an fdatasync then has less to wait for."""
    lib.qpy_file_begin_writeback(fd)


def cut_table(table: bytes, start: int, length: int) -> bytes:
    """The entries for `length` bytes from `start` on; addresses may be of any kind."""
    out = bytearray(len(table))
    count = lib.qpy_iov_cut(words(table), len(table) // PIECE, start, length, words(out))
    return bytes(memoryview(out)[: count * PIECE])


def _check(result: int) -> None:
    if result:
        raise OSError(-result, os.strerror(-result))


def join(parts: Sequence[Scatter]) -> Scatter:
    """One after the other."""
    if len(parts) == 1:
        return parts[0]
    return Scatter(b"".join(part.table for part in parts), sum(part.size for part in parts))


def total(buffers: Sequence[memoryview]) -> int:
    """Bytes of all pieces."""
    if isinstance(buffers, Scatter):
        return buffers.size
    return len(buffers[0]) if len(buffers) == 1 else sum(map(len, buffers))


def cut(buffers: Sequence[memoryview], start: int, length: int) -> Sequence[memoryview]:
    """The part of a vector from `start` on, `length` bytes of it or what there is."""
    if isinstance(buffers, Scatter):
        return buffers.cut(start, length)
    pieces: list[memoryview] = []
    for buffer in buffers:
        if length <= 0:
            break
        if start >= len(buffer):
            start -= len(buffer)
            continue
        piece = buffer[start : start + length] if start or length < len(buffer) else buffer
        pieces.append(piece)
        length -= len(piece)
        start = 0
    return pieces
