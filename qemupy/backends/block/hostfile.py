"""Calls on open host files that Python's os module does not make, and buffers fit for O_DIRECT."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from qemupy.scatter import as_table, total

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 0x01, 0x02, 0x10  # linux/falloc.h
IOV_MAX = 1024
BOUNCE = 1 << 20
UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOTTY, errno.ENODEV)
Transfer = Callable[[int, Sequence[memoryview]], None]
_libc: ctypes.CDLL | None = None


def fallocate(fd: int, mode: int, offset: int, length: int) -> bool:
    """fallocate(2) with a mode; False where the file system cannot do it, OSError for real failures."""
    global _libc
    if _libc is None:
        _libc = ctypes.CDLL(None, use_errno=True)
        _libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)
    while _libc.fallocate(fd, mode, offset, length) < 0:
        error = ctypes.get_errno()
        if error in UNSUPPORTED:
            return False
        if error != errno.EINTR:
            raise OSError(error, os.strerror(error))
    return True


def read_fully(fd: int, offset: int, buffers: Sequence[memoryview]) -> None:
    """Fill the buffers; what lies beyond the end of the file reads as zeroes."""
    as_table(buffers).read_from(fd, offset)


def write_fully(fd: int, offset: int, buffers: Sequence[memoryview]) -> None:
    as_table(buffers).write_to(fd, offset)


def rest_of(group: list[memoryview], done: int) -> list[memoryview]:
    """What is left of the buffers after `done` bytes."""
    for n, buffer in enumerate(group):
        if done < len(buffer):
            return [buffer[done:], *group[n + 1 :]]
        done -= len(buffer)
    return []


class RangeLock:
    """Lets writes to different places go on side by side and those to the same place one after the other."""

    def __init__(self) -> None:
        self._held: list[tuple[int, int]] = []
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, start: int, end: int) -> Iterator[None]:
        with self._changed:
            while any(start < e and s < end for s, e in self._held):
                self._changed.wait()
            self._held.append((start, end))
        try:
            yield
        finally:
            with self._changed:
                self._held.remove((start, end))
                self._changed.notify_all()


class AlignedAccess:
    """Reads and writes of any shape on something that wants offset and length on multiples of `alignment`: what fits
    goes straight to `read` and `write`; the rest goes through an aligned buffer, edges being read first."""

    def __init__(self, alignment: int, read: Transfer, write: Transfer) -> None:
        self.alignment = alignment
        self._read, self._write = read, write
        self._ranges = RangeLock()
        self._local = threading.local()

    @property
    def _bounce(self) -> memoryview:
        """The thread's own aligned buffer."""
        if not hasattr(self._local, "view"):
            self._local.view = memoryview(mmap.mmap(-1, BOUNCE))
        view: memoryview = self._local.view
        return view

    def _goes_straight(self, transfer: Transfer, offset: int, buffers: Sequence[memoryview]) -> bool:
        """Done, if it fits as it is."""
        if any((offset | len(b)) % self.alignment for b in buffers):
            return False
        transfer(offset, buffers)
        return True

    def read(self, offset: int, buffers: Sequence[memoryview]) -> None:
        if self._goes_straight(self._read, offset, buffers):
            return
        for buffer in buffers:
            for at, piece, lead, span in self._pieces(offset, buffer):
                self._read(at - lead, [self._bounce[:span]])
                piece[:] = self._bounce[lead : lead + len(piece)]
            offset += len(buffer)

    def write(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Widened to whole blocks for the lock: a neighbour's bytes in a block that is read first must not change."""
        end = offset + total(buffers)
        with self._ranges.hold(offset - offset % self.alignment, end + -end % self.alignment):
            if self._goes_straight(self._write, offset, buffers):
                return
            for buffer in buffers:
                for at, piece, lead, span in self._pieces(offset, buffer):
                    self._write_piece(at - lead, piece, lead, span)
                offset += len(buffer)

    def _write_piece(self, start: int, piece: memoryview, lead: int, span: int) -> None:
        if lead or len(piece) != span:
            self._read(start, [self._bounce[: self.alignment]])
            if span > self.alignment:
                self._read(start + span - self.alignment, [self._bounce[span - self.alignment : span]])
        self._bounce[lead : lead + len(piece)] = piece
        self._write(start, [self._bounce[:span]])

    def _pieces(self, offset: int, buffer: memoryview) -> Iterator[tuple[int, memoryview, int, int]]:
        """(offset, piece, bytes of its first block before it, length of its whole blocks), each fit for the bounce
        buffer."""
        done = 0
        while done < len(buffer):
            lead = (offset + done) % self.alignment
            piece = buffer[done : done + BOUNCE - lead]
            span = lead + len(piece) + -(lead + len(piece)) % self.alignment
            yield offset + done, piece, lead, span
            done += len(piece)


class DirectFile(AlignedAccess):
    """A descriptor opened with O_DIRECT, which wants the memory aligned as well; the host tells by EINVAL."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        super().__init__(
            next((size for size in (512, 1024, 2048, 4096) if self._takes(size)), 4096),
            lambda offset, buffers: read_fully(fd, offset, buffers),
            lambda offset, buffers: write_fully(fd, offset, buffers),
        )

    def _takes(self, alignment: int) -> bool:
        """Does a read at an odd multiple of this work?"""
        with mmap.mmap(-1, 8192) as pages, memoryview(pages) as view, view[alignment : 2 * alignment] as part:
            try:
                os.preadv(self._fd, [part], alignment)
            except OSError as e:
                return e.errno != errno.EINVAL
        return True

    def _goes_straight(self, transfer: Transfer, offset: int, buffers: Sequence[memoryview]) -> bool:
        try:
            return super()._goes_straight(transfer, offset, buffers)
        except OSError as e:
            if e.errno != errno.EINVAL:
                raise
            return False
