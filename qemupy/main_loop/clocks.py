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
    """The same clock in the core, from which the TSC and the local APIC timers run."""

    def sync(self, running: bool, value: int) -> None:
        """Running: `value` is the offset to the host's monotonic time; else the time it stands at."""


class CountingCore(CoreClock, Protocol):
    """The core's clock when it counts instructions (`-icount`)."""

    def now(self) -> int:
        """Exact on the vCPU's thread: the count of the instruction that is being executed."""

    def set_deadline(self, deadline: int | None) -> None:
        """When the core is to call `Upcalls.timers`, between two instructions."""

    def drift(self) -> tuple[int, int, int]:
        """How far the guest was behind the host at most, ahead of it at most, and is ahead now, in ns."""


class VirtualClock(LoopClock):
    """Guest time: monotonic host time plus an offset while running, constant while stopped. The core follows it, so
    that all guest time sources agree and reading the time costs no call into the core."""

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
            self._offset = self._stopped_at - time.monotonic_ns()
            self.running = True
            self._sync(self._offset)

    def stop(self) -> None:
        if self.running:
            self._stopped_at = self.now()
            self.running = False
            self._sync(self._stopped_at)

    def set(self, now: int) -> None:
        """Put the stopped clock to `now` (loading a saved machine)."""
        if self.running:
            raise RuntimeError("the virtual clock is set only while stopped")
        self._stopped_at = now
        self._sync(now)

    def _sync(self, value: int) -> None:
        if self.core is not None:
            self.core.sync(self.running, value)


class CountedClock(VirtualClock):
    """Guest time as the number of instructions executed. Its timers fire on the vCPU's thread, between the two
    instructions where they are due; the main loop neither waits for them nor runs them."""

    def __init__(self, core: CountingCore) -> None:
        super().__init__(TimerHeap(on_earlier=self._tell_deadline))
        self.core = self._counting = core

    def now(self) -> int:
        return self._counting.now()

    def ns_to_next(self) -> int | None:
        return None

    def start(self) -> None:
        if not self.running:
            self.running = True
            self._sync(0)
            self._tell_deadline()

    def run_due(self) -> None:
        """What `Upcalls.timers` calls, with the BQL held."""
        try:
            now = self.now()
            while self.running and (timer := self.heap.pop_due(now)) is not None:
                timer.callback()
        finally:
            self._tell_deadline()

    def _tell_deadline(self) -> None:
        self._counting.set_deadline(self.heap.next_deadline())
