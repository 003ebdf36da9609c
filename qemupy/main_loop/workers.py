"""Worker threads for blocking host calls. Jobs touch buffers and descriptors, never devices."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TypeVar

from qemupy.main_loop.loop import MainLoop

T = TypeVar("T")
_Job = Callable[[], None]


class Workers:
    """`submit(job, done)` runs `job` on a worker and then `done(result)` in the main loop. Threads start on demand."""

    def __init__(self, loop: MainLoop, limit: int = 8) -> None:
        self._loop = loop
        self._limit = limit
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
