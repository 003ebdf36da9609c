"""`Drive`: the BlockBackend of one drive over a medium, or over none (an empty CD-ROM or floppy drive).

Requests run on worker threads. A read that the host has in its page cache is done at once; even then its completion
comes from the main loop, because a device must not be called back from inside its own request.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from qemupy.backends.block.base import Completion
from qemupy.backends.block.media import Medium, Overlay
from qemupy.main_loop.loop import MainLoop
from qemupy.main_loop.workers import Workers


class Drive:
    def __init__(self, name: str, loop: MainLoop, workers: Workers, medium: Medium | None, *, removable: bool = False,
                 writethrough: bool = False, no_flush: bool = False) -> None:  # fmt: skip
        self.name, self.medium, self.removable = name, medium, removable
        self.locked = False  # by the guest (PREVENT ALLOW MEDIUM REMOVAL)
        self.tray_open = False
        self.in_flight = 0
        self.attached_to = ""  # the device's path, for `info block`
        self.writethrough, self.no_flush = writethrough, no_flush
        self.counts = {"rd_bytes": 0, "wr_bytes": 0, "rd_operations": 0, "wr_operations": 0, "flush_operations": 0}
        self._loop, self._workers = loop, workers
        self._changed: list[Callable[[], None]] = []

    @property
    def length(self) -> int:
        return self.medium.length if self.medium is not None else 0

    @property
    def readonly(self) -> bool:
        return self.medium is not None and self.medium.readonly

    @property
    def inserted(self) -> bool:
        return self.medium is not None

    def on_media_change(self, changed: Callable[[], None]) -> None:
        self._changed.append(changed)

    def change(self, medium: Medium | None) -> None:
        """Insert or eject, with no request in flight."""
        old, self.medium = self.medium, medium
        if old is not None:
            old.close()
        for changed in self._changed:
            changed()

    def _refusal(self, offset: int, length: int, write: bool) -> int:
        if self.medium is None:
            return errno.ENOMEDIUM
        if write and self.medium.readonly:
            return errno.EROFS
        return 0 if offset >= 0 and offset + length <= self.medium.length else errno.EINVAL

    def read(self, offset: int, data: bytearray | memoryview, done: Completion) -> None:
        error = self._refusal(offset, len(data), False)
        medium, view = self.medium, memoryview(data)
        if error or medium is None:
            self._answer(error, done)
            return
        self.counts["rd_bytes"] += len(view)
        self.counts["rd_operations"] += 1
        if medium.read_cached(offset, view):
            self._answer(0, done)
        else:
            self._start(lambda: medium.read(offset, view), done)

    def write(self, offset: int, data: bytes | bytearray | memoryview, done: Completion) -> None:
        error = self._refusal(offset, len(data), True)
        medium = self.medium
        if error or medium is None:
            self._answer(error, done)
            return
        self.counts["wr_bytes"] += len(data)
        self.counts["wr_operations"] += 1

        def job() -> None:
            medium.write(offset, data)
            if self.writethrough:
                medium.flush()

        self._start(job, done)

    def flush(self, done: Completion) -> None:
        medium = self.medium
        self.counts["flush_operations"] += 1
        if medium is None or self.no_flush:
            self._answer(errno.ENOMEDIUM if medium is None else 0, done)
        else:
            self._start(medium.flush, done)

    def discard(self, offset: int, length: int, done: Completion) -> None:
        error = self._refusal(offset, length, True)
        medium = self.medium
        if error or medium is None:
            self._answer(error, done)
        else:
            self._start(lambda: medium.discard(offset, length), done)

    def _answer(self, error: int, done: Completion) -> None:
        self.in_flight += 1
        self._loop.post(lambda: self._finish(error, done))

    def _start(self, call: Callable[[], None], done: Completion) -> None:
        def job() -> int:
            try:
                call()
            except OSError as e:
                return e.errno or errno.EIO
            return 0

        self.in_flight += 1
        self._workers.submit(job, lambda error: self._finish(error, done))

    def _finish(self, error: int, done: Completion) -> None:
        self.in_flight -= 1
        done(error)

    def commit(self) -> int:
        """Write a snapshot overlay back to its image; an errno, 0 also when there is nothing to do."""
        if isinstance(self.medium, Overlay):
            try:
                self.medium.commit()
            except OSError as e:
                return e.errno or errno.EIO
        return 0

    def close(self) -> None:
        """Flush and let go of the image; requests must have been drained."""
        if self.medium is not None:
            try:
                self.medium.flush()
            except OSError:
                pass  # nobody is left to tell
            self.medium.close()
            self.medium = None
