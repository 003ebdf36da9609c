"""The three clocks of QEMU: virtual (guest time, stands while the VM is stopped), realtime, and host wall time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from qemupy.main_loop.clock import HeapTimer, Timer, TimerHeap


class LoopClock:
    """A clock whose timers the main loop fires."""

    running = True

    def __init__(self, heap: TimerHeap) -> None:
        self.heap = heap

    def now(self) -> int:
        raise NotImplementedError

    def timer(self, callback: Callable[[], None]) -> Timer:
        return HeapTimer(self.heap, callback)

    def ns_to_next(self) -> int | None:
        if not self.running:
            return None
        deadline = self.heap.next_deadline()
        return None if deadline is None else deadline - self.now()


class RealtimeClock(LoopClock):
    def now(self) -> int:
        return time.monotonic_ns()


class HostClock(LoopClock):
    """Wall time since 1970; jumps with the host's."""

    def now(self) -> int:
        return time.time_ns()


class CoreClock(Protocol):
    """The clock in the core, from which the TSC and the local APIC timers run."""

    def now(self) -> int: ...

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def set(self, ns: int) -> None: ...


class VirtualClock(LoopClock):
    """Guest time: monotonic host time plus an offset while running, constant while stopped.

    Where there is a core its clock leads: at every start the offset between the two is measured, so that reading the
    time costs no call into the core and yet all guest time sources agree.
    """

    def __init__(self, heap: TimerHeap) -> None:
        super().__init__(heap)
        self.running = False
        self.core: CoreClock | None = None
        self._offset = 0
        self._stopped_at = 0

    def now(self) -> int:
        return time.monotonic_ns() + self._offset if self.running else self._stopped_at

    def start(self) -> None:
        if not self.running:
            if self.core is not None:
                self.core.start()
                self._offset = _measure_offset(self.core)
            else:
                self._offset = self._stopped_at - time.monotonic_ns()
            self.running = True

    def stop(self) -> None:
        if self.running:
            if self.core is not None:
                self.core.stop()
                self._stopped_at = self.core.now()
            else:
                self._stopped_at = self.now()
            self.running = False

    def set(self, now: int) -> None:
        """Put the stopped clock to `now` (loading a saved machine)."""
        if self.running:
            raise RuntimeError("the virtual clock is set only while stopped")
        self._stopped_at = now
        if self.core is not None:
            self.core.set(now)


def _measure_offset(core: CoreClock) -> int:
    """Core time minus monotonic time; of several samples the one taken fastest."""
    best: tuple[int, int] | None = None
    for _ in range(5):
        before = time.monotonic_ns()
        now = core.now()
        after = time.monotonic_ns()
        if best is None or after - before < best[0]:
            best = (after - before, now - (before + after) // 2)
    assert best is not None
    return best[1]
