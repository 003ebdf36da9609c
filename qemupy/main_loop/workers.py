"""Worker threads for blocking host calls. Jobs touch buffers and descriptors, never devices; what follows one may.

A job shorter than two changes of threads is done by the vCPU that asked for it, once it is out of the device."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TypeVar

from qemupy.main_loop.bql import Bql
from qemupy.main_loop.clock import Clock
from qemupy.main_loop.loop import MainLoop

T = TypeVar("T")
_Job = Callable[[], None]


class CallersJobs:
    """Short jobs for the vCPU that is in a device's handler to do when it has left it. Guarded by the BQL."""

    def __init__(self, bql: Bql) -> None:
        self._bql = bql
        self.entered = False  # a vCPU is there, and will call `leave`
        self._jobs: list[_Job] = []

    def take(self, job: _Job) -> bool:
        """False: there is nobody to do it. It is called without the BQL."""
        if self.entered:
            self._jobs.append(job)
        return self.entered

    def leave(self) -> None:
        self.entered = False
        while self._jobs:
            job = self._jobs.pop(0)
            self._bql.release()
            try:
                job()
            finally:
                self._bql.acquire()


class Workers:
    """`submit(job, done)` runs `job` on a worker and then `done(result)` in the main loop. Threads start on demand."""

    timed = False  # when `done` comes does not depend on the host

    def __init__(self, loop: MainLoop, limit: int = 32) -> None:
        self._loop = loop
        self._limit = limit
        self.callers = CallersJobs(loop.bql)
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self.in_flight = 0

    def submit(self, job: Callable[[], T], done: Callable[[T], None]) -> None:
        """With the BQL held. `job` must not raise; what can fail answers an error value."""
        self.in_flight += 1

        def finish(result: T) -> None:
            self.in_flight -= 1
            done(result)

        def run() -> None:
            result = job()
            self._loop.post(lambda: finish(result))

        self._enqueue(run)

    def request(self, job: Callable[[], int], done: Callable[[int], None], short: bool = False) -> None:
        """A disk request: `job` answers 0 or an errno. `done(0)` is called on the thread that did it, with the BQL,
        which spares a change of thread; an error, which may stop the machine, is for the main loop. `short`: it does
        not take long, and should change threads even less."""
        self.in_flight += 1

        def finish(error: int) -> None:
            self.in_flight -= 1
            done(error)

        def run() -> None:
            if error := job():
                self._loop.post(lambda: finish(error))
            else:
                self._loop.call_here(lambda: finish(0))

        if not (short and self.callers.take(run)):
            self._enqueue(run)

    def soon(self, call: Callable[[], None]) -> None:
        """`call` from where `done` is called too: for answers that need no job. With the BQL held."""
        self._loop.post(call)

    def finish_all(self) -> None:
        """With the guest's clock standing: complete what waits for it."""

    def _enqueue(self, run: _Job) -> None:
        if self.in_flight > len(self._threads) and len(self._threads) < self._limit:
            thread = threading.Thread(target=self._work, name=f"worker-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._jobs.put(run)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def stop(self) -> None:
        """End the threads once their queue is empty."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()


class TimedWorkers(Workers):
    """Jobs for a guest whose clock counts instructions: `done` comes at a virtual time fixed by `submit`, however long
    the host takes, so that a guest with a disk runs the same way every time. A job that is late holds up the guest."""

    timed = True
    LATENCY_NS = 100_000  # about what a solid-state disk takes

    def __init__(self, loop: MainLoop, clock: Clock) -> None:
        super().__init__(loop)
        self._clock = clock
        self._waiting: dict[int, Callable[[], None]] = {}  # by the order they were asked for in
        self._asked = 0

    def submit(self, job: Callable[[], T], done: Callable[[T], None]) -> None:
        self.in_flight += 1
        results: queue.SimpleQueue[T] = queue.SimpleQueue()

        def finish() -> None:
            result = results.get()
            self.in_flight -= 1
            done(result)

        self._enqueue(lambda: results.put(job()))
        self.soon(finish)

    def request(self, job: Callable[[], int], done: Callable[[int], None], short: bool = False) -> None:
        self.submit(job, done)

    def soon(self, call: Callable[[], None]) -> None:
        number = self._asked = self._asked + 1
        self._waiting[number] = call
        self._clock.timer(lambda: self._finish(number)).mod(self._clock.now() + self.LATENCY_NS)

    def _finish(self, number: int) -> None:
        if (call := self._waiting.pop(number, None)) is not None:
            call()

    def finish_all(self) -> None:
        while self._waiting:
            self._finish(next(iter(self._waiting)))
