"""Files for the block tests: a plain local one, and one in memory whose writes can be lost as in a power cut; and a
file system that is soon full."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

Buffer = bytes | bytearray | memoryview


class LocalFile:
    def __init__(self, path: Path | str, readonly: bool = False) -> None:
        self.readonly = readonly
        self.fd = os.open(path, os.O_RDONLY if readonly else os.O_RDWR | os.O_CREAT, 0o644)

    @property
    def length(self) -> int:
        return os.fstat(self.fd).st_size

    def fileno(self) -> int:
        return self.fd

    def read(self, offset: int, data: memoryview) -> None:
        self.readv(offset, [data])

    def readv(self, offset: int, buffers: Sequence[memoryview]) -> None:
        for buffer in buffers:
            count = os.preadv(self.fd, [buffer], offset)
            buffer[count:] = bytes(len(buffer) - count)
            offset += len(buffer)

    def write(self, offset: int, data: Buffer) -> None:
        self.writev(offset, [memoryview(data)])

    def writev(self, offset: int, buffers: Sequence[memoryview]) -> None:
        assert os.pwritev(self.fd, buffers, offset) == sum(map(len, buffers))

    def write_zeroes(self, offset: int, length: int, unmap: bool = False) -> None:
        self.write(offset, bytes(length))

    def truncate(self, length: int) -> None:
        os.ftruncate(self.fd, length)

    def flush(self) -> None:
        os.fdatasync(self.fd)

    def begin_writeback(self) -> None:
        pass

    def discard(self, offset: int, length: int) -> None:
        self.write(offset, b"\xdd" * length)  # the content does not matter: let it not matter

    def close(self) -> None:
        os.close(self.fd)


class MemoryFile:
    """Content in memory, and a log of the writes since the last flush. `fail_after` writes it has no more space."""

    readonly = False
    SECTOR = 512
    LIMIT = 32 << 20

    def __init__(self, data: bytes = b"") -> None:
        self.data = bytearray(data)
        self.stable = bytearray(data)
        self.unflushed: list[tuple[int, bytes]] = []
        self.writes = self.flushes = 0
        self.fail_after: int | None = None
        self.before: Callable[[], None] = lambda: None  # called before every write and flush

    @property
    def length(self) -> int:
        return len(self.data)

    def read(self, offset: int, data: memoryview) -> None:
        self.readv(offset, [data])

    def readv(self, offset: int, buffers: Sequence[memoryview]) -> None:
        for buffer in buffers:
            found = self.data[offset : offset + len(buffer)]
            buffer[:] = found + bytes(len(buffer) - len(found))
            offset += len(buffer)

    def write(self, offset: int, data: Buffer) -> None:
        self.writev(offset, [memoryview(data)])

    def writev(self, offset: int, buffers: Sequence[memoryview]) -> None:
        self.before()
        if self.fail_after is not None and self.writes >= self.fail_after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if offset + sum(map(len, buffers)) > self.LIMIT:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        self.writes += 1
        data = b"".join(buffers)
        _put(self.data, offset, data)
        self.unflushed.append((offset, data))

    def write_zeroes(self, offset: int, length: int, unmap: bool = False) -> None:
        self.write(offset, bytes(length))

    def truncate(self, length: int) -> None:
        self.flush()
        for data in (self.data, self.stable):
            del data[length:]
            data.extend(bytes(length - len(data)))

    def flush(self) -> None:
        self.before()
        self.flushes += 1
        for offset, data in self.unflushed:
            _put(self.stable, offset, data)
        self.unflushed.clear()

    def begin_writeback(self) -> None:
        pass

    def discard(self, offset: int, length: int) -> None:
        self.write(offset, b"\xdd" * length)

    def after_power_cut(self, rng: random.Random) -> bytes:
        """What may be on the disk now: of the unflushed writes some sectors, in any order."""
        image = bytearray(self.stable)
        sectors = [(offset + at, data[at : at + self.SECTOR]) for offset, data in self.unflushed
                   for at in range(0, len(data), self.SECTOR)]  # fmt: skip
        rng.shuffle(sectors)
        for offset, data in sectors[: rng.randint(0, len(sectors))]:
            _put(image, offset, data)
        return bytes(image)


def _put(image: bytearray, offset: int, data: bytes) -> None:
    if offset > len(image):
        image.extend(bytes(offset - len(image)))
    image[offset : offset + len(data)] = data


@contextlib.contextmanager
def small_disk(folder: Path, options: str = "size=2m") -> Iterator[Path]:
    """A file system of its own in `folder`, as long as the context lasts."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount a tmpfs: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, left: int) -> Path:
    """Fill a file system up to `left` bytes with one file, which is answered."""
    ballast, size = folder / "ballast", 0
    with ballast.open("wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while True:
                size += file.write(bytes(4096))
        file.truncate(max(size - left, 0))
    return ballast
