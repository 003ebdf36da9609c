"""`snapshot=on`: a temporary node over an image. Writes go to an unlinked file, by granules; the image is only read."""

from __future__ import annotations

import errno
import os
import tempfile
import threading
from collections.abc import Sequence

from qemupy.backends.block import hostfile
from qemupy.backends.block.node import Buffer, Extent, Node
from qemupy.errors import BackendError


class OverlayNode(Node):
    GRANULE = 4096
    driver = "overlay"

    def __init__(self, base: Node) -> None:
        self.base, self.length, self.readonly = base, base.length, False
        self.filename = base.filename
        self.uses = []
        folder = os.environ.get("TMPDIR", "/var/tmp")
        try:
            self._file = tempfile.TemporaryFile(dir=folder, prefix="qemupy-")  # noqa: SIM115
        except OSError as e:
            raise BackendError(f"Could not create a snapshot file in {folder}: {e.strerror}") from None
        self._fd = self._file.fileno()
        self._present = bytearray(-(-self.length // self.GRANULE))
        self._lock = threading.Lock()

    def children(self) -> dict[str, Node]:
        return {"backing": self.base}

    def _runs(self, offset: int, length: int) -> list[tuple[int, int, bool]]:
        """(offset, length, present) pieces, neighbours of one kind joined."""
        runs: list[tuple[int, int, bool]] = []
        end = offset + length
        while offset < end:
            extent = self._run(offset, end - offset)
            runs.append((offset, extent.length, extent.allocated))
            offset += extent.length
        return runs

    def _run(self, offset: int, length: int) -> Extent:
        first, last = offset // self.GRANULE, -(-(offset + length) // self.GRANULE)
        present = self._present[first]
        stop = self._present.find(not present, first, last)
        end = stop * self.GRANULE if stop >= 0 else offset + length
        return Extent(min(end - offset, length), data=bool(present), zero=False, allocated=bool(present))

    def block_status(self, offset: int, length: int) -> Extent:
        with self._lock:
            return self._run(offset, length)

    def read(self, offset: int, data: memoryview) -> None:
        with self._lock:
            for at, length, present in self._runs(offset, len(data)):
                piece = data[at - offset : at - offset + length]
                if present:
                    hostfile.read_fully(self._fd, at, (piece,))
                else:
                    self.base.read(at, piece)

    def write(self, offset: int, data: Buffer) -> None:
        self.writev(offset, (memoryview(data),))

    def writev(self, offset: int, buffers: Sequence[memoryview]) -> None:
        with self._lock:
            end = offset + sum(map(len, buffers))
            for edge in (offset, end):
                if edge % self.GRANULE:
                    self._copy_up(edge // self.GRANULE)
            hostfile.write_fully(self._fd, offset, buffers)
            first, last = offset // self.GRANULE, -(-end // self.GRANULE)
            self._present[first:last] = b"\1" * (last - first)

    def _copy_up(self, granule: int) -> None:
        """Bring a granule that is written in part into the temporary file."""
        if not self._present[granule]:
            data = bytearray(self.GRANULE)
            start = granule * self.GRANULE
            length = min(self.GRANULE, self.length - start)
            self.base.read(start, memoryview(data)[:length])
            hostfile.write_fully(self._fd, start, (memoryview(data),))
            self._present[granule] = 1

    def make_empty(self) -> None:
        with self._lock:
            self._present[:] = bytes(len(self._present))
            os.ftruncate(self._fd, 0)

    def truncate(self, length: int) -> None:
        if length < self.length:
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
        with self._lock:
            if self.length % self.GRANULE:
                self._copy_up(self.length // self.GRANULE)
            self._present += b"\1" * (-(-length // self.GRANULE) - len(self._present))
            self.length = length

    def allocated_size(self) -> int:
        return os.fstat(self._fd).st_blocks * 512

    def reopen(self, readonly: bool) -> None:
        self.readonly = readonly

    def close(self) -> None:
        self._file.close()
