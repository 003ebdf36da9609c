"""The main loop: file descriptors, timers and posted calls, one at a time with the BQL held.

The loop holds the BQL except while it sleeps. It runs on the thread that calls `run`, normally the process's main
thread, so that Python's signal handlers run there too.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections import deque
from collections.abc import Callable

from qemupy.main_loop.bql import Bql, ThreadBql
from qemupy.main_loop.clock import TimerHeap
from qemupy.main_loop.clocks import CountedClock, CountingCore, HostClock, LoopClock, RealtimeClock, VirtualClock
from qemupy.main_loop.wait import EpollWait, tighten_timer_slack

FdCallback = Callable[[], None]
_READ = select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR
_WRITE = select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR


class MainLoop:
    MAX_EVENTS = 64

    def __init__(self, bql: Bql | None = None) -> None:
        self.bql: Bql = bql if bql is not None else ThreadBql()
        self._epoll = select.epoll()
        self._wait = EpollWait(self._epoll)
        self._fds: dict[int, tuple[FdCallback | None, FdCallback | None]] = {}
        self._posted: deque[Callable[[], None]] = deque()
        self._thread = threading.get_ident()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._epoll.register(self._wake_read, select.EPOLLIN)
        self._running = False
        self._sleepy = False  # goes to sleep, or sleeps
        self._awaited = False  # by somebody who turns the loop until something has happened
        self.realtime = RealtimeClock(self._heap())
        self.host = HostClock(self._heap())
        self.virtual = VirtualClock(self._heap())
        self._clocks: tuple[LoopClock, ...] = (self.virtual, self.realtime, self.host)  # whose timers are fired here
        self.on_exception: Callable[[BaseException], None] | None = None

    def _heap(self) -> TimerHeap:
        return TimerHeap(on_earlier=self._wake_if_elsewhere)

    def count_instructions(self, core: CountingCore) -> CountedClock:
        """Make the virtual clock one that `core` drives. Before anything has taken it."""
        self.virtual = clock = CountedClock(core)
        self._clocks = (self.realtime, self.host)
        return clock

    # Posting from other threads

    def post(self, call: Callable[[], None]) -> None:
        """Run `call` in the loop soon. From any thread, with or without the BQL."""
        self._posted.append(call)
        self._wake_if_elsewhere()

    def call_here(self, call: Callable[[], None]) -> None:
        """Call it as the loop would, but on this thread and at once. From threads that have not got the BQL."""
        with self.bql:
            self._guard(call)
            if self._awaited:
                self._wake_if_elsewhere()

    def _wake_if_elsewhere(self) -> None:
        """A loop that is awake looks at its calls and timers before it sleeps, and says so before it looks."""
        if self._sleepy and threading.get_ident() != self._thread:
            self._sleepy = False
            self.wake()

    def wake(self) -> None:
        try:
            os.write(self._wake_write, b"w")
        except BlockingIOError:
            pass  # a full pipe wakes just as well

    # File descriptors

    def watch(self, fd: int, read: FdCallback | None = None, write: FdCallback | None = None) -> None:
        """Call `read` while `fd` is readable (or hung up), `write` while it is writable; both None: forget it.

        A descriptor epoll refuses (a regular file) counts as always ready and is served through posted calls."""
        known = fd in self._fds
        mask = (select.EPOLLIN if read else 0) | (select.EPOLLOUT if write else 0)
        if not mask:
            if known:
                del self._fds[fd]
                try:
                    self._epoll.unregister(fd)
                except (OSError, ValueError):
                    pass  # closed before it was forgotten, or never pollable
            return
        self._fds[fd] = (read, write)
        try:
            if known:
                self._epoll.modify(fd, mask)
            else:
                self._epoll.register(fd, mask)
        except (PermissionError, FileNotFoundError):
            self._serve_always_ready(fd)

    def _serve_always_ready(self, fd: int) -> None:
        def serve() -> None:
            if fd in self._fds:
                self._dispatch_fd(fd, _READ | _WRITE)
                if fd in self._fds:
                    self._posted.append(serve)

        self.post(serve)

    def unwatch(self, fd: int) -> None:
        self.watch(fd)

    # Running

    def run(self) -> None:
        """Until `quit`. Takes the BQL and gives it back."""
        self._thread = threading.get_ident()
        tighten_timer_slack()
        in_main = threading.current_thread() is threading.main_thread()
        old_wakeup = signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False) if in_main else -1
        self._running = True
        self.bql.acquire()
        try:
            while self._running:
                self.iterate(None)
        finally:
            self.bql.release()
            if in_main:
                signal.set_wakeup_fd(old_wakeup)

    def quit(self) -> None:
        self._running = False
        self.wake()

    def iterate(self, timeout_ns: int | None = 0) -> None:
        """One turn, with the BQL held: sleep at most `timeout_ns` without it, then run what is due."""
        self._sleepy, self._awaited = True, timeout_ns is not None
        sleep = self._sleep_time(timeout_ns)
        self.bql.release()
        try:
            if sleep != 0:
                self._wait.sleep(sleep)
        finally:
            self._sleepy = False
            self.bql.acquire()
        self._dispatch_events()
        for clock in self._clocks:
            self._run_timers(clock)
        for _ in range(len(self._posted)):
            if self._posted:  # a call that turns the loop itself may have served the rest
                self._guard(self._posted.popleft())

    def run_until(self, condition: Callable[[], bool], seconds: float = 10.0) -> bool:
        """Iterate until `condition` holds; for tests and for draining. Takes the BQL itself."""
        end = time.monotonic_ns() + int(seconds * 1e9)
        self._thread = threading.get_ident()
        with self.bql:
            while not condition():
                left = end - time.monotonic_ns()
                if left <= 0:
                    return False
                self.iterate(min(left, 50_000_000))
        return True

    def _sleep_time(self, limit: int | None) -> int | None:
        if self._posted:
            return 0
        best = limit
        for clock in self._clocks:
            left = clock.ns_to_next()
            if left is not None and (best is None or left < best):
                best = max(left, 0)
        return best

    def _dispatch_events(self) -> None:
        for fd, events in self._epoll.poll(0, self.MAX_EVENTS):
            if fd == self._wake_read:
                try:
                    os.read(fd, 4096)
                except BlockingIOError:
                    pass
            else:
                self._dispatch_fd(fd, events)

    def _dispatch_fd(self, fd: int, events: int) -> None:
        read = self._fds.get(fd, (None, None))[0]
        if read is not None and events & _READ:
            self._guard(read)
        write = self._fds.get(fd, (None, None))[1]
        if write is not None and events & _WRITE:
            self._guard(write)

    def _run_timers(self, clock: LoopClock) -> None:
        """Fire what was due when the turn began; a timer that sets itself to the past waits for the next turn."""
        now = clock.now()
        while clock.running and (timer := clock.heap.pop_due(now)) is not None:
            self._guard(timer.callback)

    def _guard(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as e:
            if self.on_exception is None:
                raise
            self.on_exception(e)

    def close(self) -> None:
        self._epoll.close()
        os.close(self._wake_read)
        os.close(self._wake_write)
