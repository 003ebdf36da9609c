"""The Protocol between a disk device and the bytes of its medium.

Requests are asynchronous: a call starts one and returns; `done(error)` is called later with the BQL held, from the main
loop or a worker, never from inside the call. `error` is 0 or an errno. Offsets and lengths are bytes; a request beyond
the end completes with EINVAL. Requests of one backend may complete in any order, as on real hardware with queues; a
flush covers the writes that completed before it was issued. `read_now` alone is over when it returns.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import Protocol

from qemupy.scatter import total

Completion = Callable[[int], None]


class BlockBackend(Protocol):
    @property
    def length(self) -> int:
        """Size of the medium in bytes, 0 when the drive is empty."""

    @property
    def readonly(self) -> bool: ...

    @property
    def inserted(self) -> bool:
        """False for a removable drive without medium."""

    def on_media_change(self, changed: Callable[[], None]) -> None:
        """`changed` is called after a medium was inserted or ejected from the monitor."""

    def read(self, offset: int, data: bytearray | memoryview, done: Completion) -> None:
        """Fill `data`; it belongs to the backend until `done`."""

    def write(self, offset: int, data: bytes | bytearray | memoryview, done: Completion) -> None:
        """`data` must not change until `done`."""

    def readv(self, offset: int, buffers: Sequence[memoryview], done: Completion, merged: int = 0) -> None:
        """Like `read`, into several buffers in order: guest memory without a copy. `merged`: how many more requests of
        the guest this one stands for."""

    def read_now(self, offset: int, buffers: Sequence[memoryview], merged: int = 0) -> bool:
        """Fill the buffers if that takes no waiting: nobody is called, the request is done. False: nothing was done,
        though the buffers may have changed; use `readv`. The caller holds everybody up meanwhile: some 0.2 ms for a
        megabyte."""

    def writev(self, offset: int, buffers: Sequence[memoryview], done: Completion, merged: int = 0) -> None: ...

    def write_zeroes(self, offset: int, length: int, unmap: bool, done: Completion) -> None:
        """The range reads as zeroes; with `unmap` its space may be given back to the host."""

    def flush(self, done: Completion) -> None:
        """All completed writes are on stable storage when this is done."""

    def discard(self, offset: int, length: int, done: Completion) -> None:
        """A hint that the content of the range does not matter any more."""


class MemoryBlock:
    """A medium in memory, for device tests. Completions wait in `queue` until the test calls `run`."""

    def __init__(self, data: bytes | bytearray, readonly: bool = False) -> None:
        self.data = bytearray(data)
        self.readonly = readonly
        self.inserted = True
        self.queue: list[tuple[Completion, int]] = []
        self.fail_next = 0
        self.cached = False  # reads need no waiting
        self.flushes = 0
        self._changed: list[Callable[[], None]] = []

    @property
    def length(self) -> int:
        return len(self.data) if self.inserted else 0

    def on_media_change(self, changed: Callable[[], None]) -> None:
        self._changed.append(changed)

    def change(self, data: bytes | None) -> None:
        self.inserted = data is not None
        self.data = bytearray(data or b"")
        for changed in self._changed:
            changed()

    def run(self) -> None:
        """Complete all requests, also those started by completions."""
        while self.queue:
            done, error = self.queue.pop(0)
            done(error)

    def _error(self, offset: int, length: int) -> int:
        error, self.fail_next = self.fail_next, 0
        if error:
            return error
        if not self.inserted:
            return errno.ENOMEDIUM
        return 0 if 0 <= offset <= offset + length <= len(self.data) else errno.EINVAL

    def read(self, offset: int, data: bytearray | memoryview, done: Completion) -> None:
        error = self._error(offset, len(data))
        if not error:
            data[:] = self.data[offset : offset + len(data)]
        self.queue.append((done, error))

    def write(self, offset: int, data: bytes | bytearray | memoryview, done: Completion) -> None:
        error = errno.EROFS if self.readonly else self._error(offset, len(data))
        if not error:
            self.data[offset : offset + len(data)] = data
        self.queue.append((done, error))

    def readv(self, offset: int, buffers: Sequence[memoryview], done: Completion, merged: int = 0) -> None:
        data = bytearray(total(buffers))
        self.read(offset, data, done)
        at = 0
        for buffer in buffers:
            buffer[:] = data[at : at + len(buffer)]
            at += len(buffer)

    def read_now(self, offset: int, buffers: Sequence[memoryview], merged: int = 0) -> bool:
        if self.cached and not self.fail_next:
            self.readv(offset, buffers, lambda error: None)
            self.queue.pop()
            return True
        return False

    def writev(self, offset: int, buffers: Sequence[memoryview], done: Completion, merged: int = 0) -> None:
        self.write(offset, b"".join(buffers), done)

    def write_zeroes(self, offset: int, length: int, unmap: bool, done: Completion) -> None:
        self.write(offset, bytes(length), done)

    def flush(self, done: Completion) -> None:
        self.flushes += 1
        self.queue.append((done, self._error(0, 0)))

    def discard(self, offset: int, length: int, done: Completion) -> None:
        error = self._error(offset, length)
        if not error:
            self.data[offset : offset + length] = bytes(length)
        self.queue.append((done, error))
