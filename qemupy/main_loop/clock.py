"""Clocks and timers. Devices see the Protocols `Clock` and `Timer` only, never the host's time.

Times are ints in ns. A timer fires once, at or after its deadline; a periodic device sets it again from its handler,
counting from the old deadline (`mod(old + period)`) so that it does not drift, and skipping ticks long missed.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import Protocol

NS_PER_S = 1_000_000_000


class Timer(Protocol):
    @property
    def deadline(self) -> int | None:
        """When it is due on its clock, None while idle."""

    def mod(self, deadline: int) -> None:
        """Due at `deadline`, whether or not it was pending."""

    def cancel(self) -> None: ...


class Clock(Protocol):
    def now(self) -> int: ...

    def timer(self, callback: Callable[[], None]) -> Timer: ...


class HeapTimer:
    """A timer in a TimerHeap. A changed deadline leaves the old heap entry behind, recognised by its serial."""

    __slots__ = ("_heap", "callback", "deadline", "serial")

    def __init__(self, heap: TimerHeap, callback: Callable[[], None]) -> None:
        self._heap = heap
        self.callback = callback
        self.deadline: int | None = None
        self.serial = -1

    def mod(self, deadline: int) -> None:
        if deadline != self.deadline:
            self.deadline = deadline
            self._heap.push(self)

    def cancel(self) -> None:
        self.deadline = None
        self.serial = -1


class TimerHeap:
    """Pending timers of one clock, nearest first; equal deadlines fire in the order they were set."""

    def __init__(self, on_earlier: Callable[[], None] | None = None) -> None:
        self._entries: list[tuple[int, int, HeapTimer]] = []
        self._serials = itertools.count()
        self._on_earlier = on_earlier

    def push(self, timer: HeapTimer) -> None:
        assert timer.deadline is not None
        timer.serial = next(self._serials)
        heapq.heappush(self._entries, (timer.deadline, timer.serial, timer))
        if self._on_earlier is not None and self._entries[0][2] is timer:
            self._on_earlier()

    def next_deadline(self) -> int | None:
        while self._entries:
            deadline, serial, timer = self._entries[0]
            if timer.serial == serial:
                return deadline
            heapq.heappop(self._entries)
        return None

    def pop_due(self, now: int) -> HeapTimer | None:
        """Take the nearest timer if it is due; the caller runs its callback."""
        deadline = self.next_deadline()
        if deadline is None or deadline > now:
            return None
        timer = heapq.heappop(self._entries)[2]
        timer.cancel()
        return timer


class ManualClock:
    """A clock moved by hand, for tests."""

    def __init__(self, now: int = 0) -> None:
        self._now = now
        self._heap = TimerHeap()

    def now(self) -> int:
        return self._now

    def timer(self, callback: Callable[[], None]) -> Timer:
        return HeapTimer(self._heap, callback)

    def advance(self, ns: int) -> None:
        """Go forward, firing timers in order, each at its own time."""
        end = self._now + ns
        while (deadline := self._heap.next_deadline()) is not None and deadline <= end:
            self._now = max(self._now, deadline)
            timer = self._heap.pop_due(self._now)
            assert timer is not None
            timer.callback()
        self._now = end
