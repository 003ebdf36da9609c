"""`commit`: what an overlay holds is written down into its backing image, and the overlay is empty afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from qemupy.backends.block.qcow2.disk import Qcow2Disk
from qemupy.backends.block.qcow2.mapping import Kind

_CHUNK = 4 << 20


class Target(Protocol):
    @property
    def length(self) -> int: ...

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None: ...

    def write_zeroes(self, offset: int, length: int, unmap: bool = False) -> None: ...

    def truncate(self, length: int) -> None: ...

    def flush(self) -> None: ...


def commit(image: Qcow2Disk, target: Target, progress: Callable[[int, int], None] | None = None) -> None:
    """Copy all that is allocated in `image` to `target`, its backing image, which grows if it is shorter; flush it;
    then empty the image. Nobody else writes to the two meanwhile.

    `progress(bytes done, bytes in all)` is called between pieces; it may raise to stop: the image is still whole."""
    if target.length < image.length:
        target.truncate(image.length)
    buffer, at = memoryview(bytearray(_CHUNK)), 0
    while at < image.length:
        if progress is not None:
            progress(at, image.length)
        length = min(_CHUNK, image.length - at)
        for run in image.runs(at, length):
            if run.kind is Kind.ZERO:
                target.write_zeroes(at, run.length, unmap=True)
            elif run.kind is not Kind.UNALLOCATED:
                image.read(at, buffer[: run.length])
                target.write(at, buffer[: run.length])
            at += run.length
    target.flush()
    image.make_empty()
    if progress is not None:
        progress(image.length, image.length)
