"""Pages of RAM space on their way: which are to be sent, and their sending in slices.

Pages are kept as one byte each, so that the searches are bytes' own. A page may change while it is sent: it is copied
before its checksum is taken, and the dirty log names it again.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

from qemupy.memory import CoreMemory
from qemupy.migration.stream import MAX_PAGES, PAGE, Run, StreamWriter

_SET = re.compile(rb"\x01+")
SLICE_SECONDS = 0.05


def runs(marks: bytes | bytearray, granule: int = PAGE) -> Iterator[Run]:
    """(offset, length) of the stretches of ones."""
    for found in _SET.finditer(marks):
        yield found.start() * granule, (found.end() - found.start()) * granule


def pieces(stretches: Iterator[Run], limit: int = MAX_PAGES) -> Iterator[Run]:
    """The same stretches cut into pieces of at most `limit` bytes."""
    for offset, length in stretches:
        for at in range(offset, offset + length, limit):
            yield at, min(limit, offset + length - at)


class PageSender:
    """Sends marked pages through a StreamWriter; `slice` runs on a worker, everything else in the main loop between
    slices. `limit`: bytes a second, 0 for as fast as it goes."""

    def __init__(self, memory: CoreMemory, writer: StreamWriter) -> None:
        self._memory, self._writer = memory, writer
        self._todo = bytearray(b"\1" * (memory.size // PAGE))
        self._at = 0  # every page before this one is done
        self._sent_once = False
        self.remaining = len(self._todo)  # pages
        self.normal = self.duplicate = 0  # pages sent with bytes, as zeros
        self.limit = 0
        self.bandwidth = 0.0  # bytes a second, measured
        self.cancelled = False

    def add(self, dirty: bytes) -> None:
        """Pages written since the last time; what is still to be sent stays so."""
        self._todo = self._with(dirty) if self.remaining else bytearray(dirty)
        self.remaining = self._todo.count(1)
        self._at, self._sent_once = 0, True

    def _with(self, dirty: bytes) -> bytearray:
        return bytearray((int.from_bytes(self._todo, "little") | int.from_bytes(dirty, "little"))
                         .to_bytes(len(self._todo), "little"))  # fmt: skip

    def slice(self, seconds: float = SLICE_SECONDS) -> None:
        """Send for so long, or until nothing is left. Zeros need not be sent the first time."""
        start, sent = time.monotonic(), self._writer.sent
        while self.remaining and not self.cancelled and time.monotonic() - start < seconds:
            self._section()
            self._pace(start, self._writer.sent - sent)
        used = time.monotonic() - start
        if used > 0.001 and self._writer.sent > sent:
            self.bandwidth = (self._writer.sent - sent) / used

    def everything(self) -> None:
        while self.remaining and not self.cancelled:
            self._section()

    def _pace(self, start: float, sent: int) -> None:
        if self.limit:
            ahead = sent / self.limit - (time.monotonic() - start)
            if ahead > 0.001:
                time.sleep(min(ahead, 0.5))

    def _section(self) -> None:
        """One section of at most MAX_PAGES bytes, from as many stretches as it takes."""
        filled: list[tuple[int, bytes]] = []
        zero: list[Run] = []
        room = MAX_PAGES // PAGE
        while room and (first := self._todo.find(1, self._at)) >= 0:
            end = self._todo.find(0, first, first + room)
            end = min(first + room, len(self._todo)) if end < 0 else end
            self._todo[first:end] = bytes(end - first)
            self._at = end
            room -= end - first
            self._sort(first * PAGE, (end - first) * PAGE, filled, zero)
        self.remaining = max(self.remaining - (MAX_PAGES // PAGE - room), 0)
        if filled or zero:
            self._writer.pages(filled, zero)

    def _sort(self, offset: int, length: int, filled: list[tuple[int, bytes]], zero: list[Run]) -> None:
        marks = self._memory.nonzero(offset, length)
        full = marks.count(1)
        self.normal += full
        self.duplicate += len(marks) - full
        for start, size in runs(marks):
            filled.append((offset + start, bytes(self._memory.view(offset + start, size))))
        if self._sent_once and full < len(marks):
            flipped = marks.translate(_FLIP)
            zero.extend((offset + start, size) for start, size in runs(flipped))


_FLIP = bytes((1, 0)) + bytes(254)
