"""The BQL: the one lock over all device, wire, timer and memory-map state.

The real one is a fair ticket mutex in the C core, taken without the GIL; `CoreBql` wraps it. `ThreadBql` has the same
face for unit tests and tools that run without a core.
"""

from __future__ import annotations

import threading
from typing import Any, Protocol


class Bql(Protocol):
    def acquire(self) -> None: ...

    def release(self) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, *exc: object) -> None: ...


class ThreadBql:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.acquire_count = 0

    def acquire(self) -> None:
        self._lock.acquire()
        self.acquire_count += 1

    def release(self) -> None:
        self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *exc: object) -> None:
        self.release()


class CoreBql:
    """Lock and unlock functions of the core. cffi drops the GIL around them, so nobody waits here holding it."""

    __slots__ = ("acquire", "release")

    def __init__(self, lock: Any, unlock: Any) -> None:
        self.acquire = lock
        self.release = unlock

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *exc: object) -> None:
        self.release()
