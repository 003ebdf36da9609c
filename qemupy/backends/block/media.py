"""Media: where the bytes of a drive are. Synchronous calls, made on worker threads; errors are OSError.

A medium knows bytes only. Reads beyond the end of a file give zeros (a file need not end on a sector boundary).
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import tempfile
import threading
from typing import Protocol

from qemupy.errors import BackendError

SECTOR = 512
_PUNCH_HOLE_KEEP_SIZE = 3
_LOCK_PERM, _LOCK_SHARED = 100, 200  # QEMU's image locks: one byte of the file for each permission
_CONSISTENT_READ, _WRITE, _RESIZE = 0, 1, 3

Buffer = bytes | bytearray | memoryview


class Medium(Protocol):
    length: int
    filename: str
    format: str
    readonly: bool

    def read_cached(self, offset: int, data: memoryview) -> bool:
        """Fill `data` if that takes no waiting; may be called on any thread."""

    def read(self, offset: int, data: memoryview) -> None: ...

    def write(self, offset: int, data: Buffer) -> None: ...

    def flush(self) -> None: ...

    def discard(self, offset: int, length: int) -> None: ...

    def close(self) -> None: ...


# (name, offset, magic): what the formats we do not open begin with
_MAGICS = (
    ("qcow2", 0, b"QFI\xfb"),
    ("qed", 0, b"QED\0"),
    ("vmdk", 0, b"KDMV"),
    ("vmdk", 0, b"COWD"),
    ("vmdk", 0, b"# Disk DescriptorFile"),
    ("vhdx", 0, b"vhdxfile"),
    ("vpc", 0, b"conectix"),
    ("vdi", 0x40, b"\x7f\x10\xda\xbe"),
    ("luks", 0, b"LUKS\xba\xbe"),
    ("parallels", 0, b"WithoutFreeSpace"),
    ("parallels", 0, b"WithouFreSpacExt"),
    ("bochs", 0, b"Bochs Virtual HD Image"),
    ("cloop", 0, b"#!/bin/sh\n#V2.0 Format"),
)


def foreign_format(head: bytes) -> str | None:
    """The format whose magic the first bytes of an image bear, None for raw."""
    for name, at, magic in _MAGICS:
        if head[at : at + len(magic)] == magic:
            return name
    return None


class RawFile:
    """A file or block device used as it is."""

    format = "raw"

    def __init__(self, path: str, readonly: bool, locking: bool = True, discard: bool = False) -> None:
        self.filename, self.readonly, self._discard = path, readonly, discard
        try:
            self._fd = os.open(path, (os.O_RDONLY if readonly else os.O_RDWR) | os.O_CLOEXEC)
        except IsADirectoryError:
            raise BackendError(f"'file' driver requires '{path}' to be a regular file") from None
        except OSError as e:
            raise BackendError(f"Could not open '{path}': {e.strerror}") from None
        try:
            self._check(path)
            if locking:
                self._lock(path)
        except BaseException:
            os.close(self._fd)
            raise

    def _check(self, path: str) -> None:
        mode = os.fstat(self._fd).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise BackendError(f"'file' driver requires '{path}' to be a regular file")
        try:
            found = foreign_format(os.pread(self._fd, SECTOR, 0))
        except OSError as e:
            raise BackendError(f"Could not read image '{path}': {e.strerror}") from None
        if found is not None:
            raise BackendError(f"'{path}' is an image in {found} format; it is not supported and not opened as raw")
        self._end = os.lseek(self._fd, 0, os.SEEK_END)
        self.length = -(-self._end // SECTOR) * SECTOR

    def _lock(self, path: str) -> None:
        """QEMU's scheme: shared locks on the bytes of the permissions we use and of those we grant to nobody else,
        then a look whether others hold the opposite ones."""
        import fcntl

        used = [_CONSISTENT_READ] if self.readonly else [_CONSISTENT_READ, _WRITE, _RESIZE]
        denied = [_WRITE, _RESIZE]

        def flock(command: int, kind: int, byte: int) -> int:
            packed = struct.pack("hhqqi4x", kind, os.SEEK_SET, byte, 1, 0)
            return int(struct.unpack("hhqqi4x", fcntl.fcntl(self._fd, command, packed))[0])

        try:
            for byte in [_LOCK_PERM + p for p in used] + [_LOCK_SHARED + p for p in denied]:
                flock(fcntl.F_OFD_SETLK, fcntl.F_RDLCK, byte)
            for byte, name in [(_LOCK_SHARED + p, p) for p in used] + [(_LOCK_PERM + p, p) for p in denied]:
                if flock(fcntl.F_OFD_GETLK, fcntl.F_WRLCK, byte) != fcntl.F_UNLCK:
                    word = {_CONSISTENT_READ: "consistent read", _WRITE: "write", _RESIZE: "resize"}[name]
                    raise BackendError(f'Failed to get "{word}" lock: is another process using the image [{path}]?')
        except OSError:
            pass  # a file system without locks

    def read_cached(self, offset: int, data: memoryview) -> bool:
        try:
            return os.preadv(self._fd, [data], offset, os.RWF_NOWAIT) == len(data)
        except OSError:
            return False

    def read(self, offset: int, data: memoryview) -> None:
        done = 0
        while done < len(data):
            count = os.preadv(self._fd, [data[done:]], offset + done)
            if count == 0:
                data[done:] = bytes(len(data) - done)
                return
            done += count

    def write(self, offset: int, data: Buffer) -> None:
        view = memoryview(data)
        done = 0
        while done < len(view):
            done += os.pwrite(self._fd, view[done:], offset + done)

    def flush(self) -> None:
        if not self.readonly:
            os.fdatasync(self._fd)

    def discard(self, offset: int, length: int) -> None:
        if self._discard and length:
            libc = ctypes.CDLL(None, use_errno=True)
            libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)
            if libc.fallocate(self._fd, _PUNCH_HOLE_KEEP_SIZE, offset, length) < 0:
                error = ctypes.get_errno()
                if error != errno.EOPNOTSUPP:
                    raise OSError(error, os.strerror(error))

    def close(self) -> None:
        os.close(self._fd)


class NullMedium:
    """Reads zeros, forgets writes (`driver=null-co,size=...`)."""

    format = "null-co"

    def __init__(self, length: int = 1 << 30, readonly: bool = False) -> None:
        self.length, self.readonly, self.filename = length, readonly, "null-co://"

    def read_cached(self, offset: int, data: memoryview) -> bool:
        self.read(offset, data)
        return True

    def read(self, offset: int, data: memoryview) -> None:
        data[:] = bytes(len(data))

    def write(self, offset: int, data: Buffer) -> None:
        pass

    def flush(self) -> None:
        pass

    def discard(self, offset: int, length: int) -> None:
        pass

    def close(self) -> None:
        pass


class Overlay:
    """`snapshot=on`: writes go to an unlinked temporary file, by granules; the base is only read, until `commit`."""

    GRANULE = 4096
    format = "overlay"

    def __init__(self, base: Medium) -> None:
        self.base, self.length, self.readonly = base, base.length, False
        self.filename = base.filename
        folder = os.environ.get("TMPDIR", "/var/tmp")
        try:
            self._file = tempfile.TemporaryFile(dir=folder, prefix="qemupy-")  # noqa: SIM115
        except OSError as e:
            raise BackendError(f"Could not create a snapshot file in {folder}: {e.strerror}") from None
        self._fd = self._file.fileno()
        self._present = bytearray(-(-self.length // self.GRANULE))
        self._lock = threading.Lock()

    def read_cached(self, offset: int, data: memoryview) -> bool:
        return False

    def _runs(self, offset: int, length: int) -> list[tuple[int, int, bool]]:
        """(offset, length, present) pieces, neighbours of one kind joined."""
        runs: list[tuple[int, int, bool]] = []
        at, end = offset, offset + length
        while at < end:
            granule = at // self.GRANULE
            stop = min((granule + 1) * self.GRANULE, end)
            present = bool(self._present[granule])
            if runs and runs[-1][2] == present:
                runs[-1] = (runs[-1][0], runs[-1][1] + stop - at, present)
            else:
                runs.append((at, stop - at, present))
            at = stop
        return runs

    def read(self, offset: int, data: memoryview) -> None:
        with self._lock:
            for at, length, present in self._runs(offset, len(data)):
                piece = data[at - offset : at - offset + length]
                if not present:
                    self.base.read(at, piece)
                elif os.preadv(self._fd, [piece], at) != length:
                    raise OSError(errno.EIO, "snapshot file is short")

    def write(self, offset: int, data: Buffer) -> None:
        with self._lock:
            end = offset + len(data)
            for edge in (offset, end):
                if edge % self.GRANULE:
                    self._copy_up(edge // self.GRANULE)
            view, done = memoryview(data), 0
            while done < len(view):
                done += os.pwrite(self._fd, view[done:], offset + done)
            first, last = offset // self.GRANULE, -(-end // self.GRANULE)
            self._present[first:last] = b"\1" * (last - first)

    def _copy_up(self, granule: int) -> None:
        """Bring a granule that is written in part into the temporary file."""
        if not self._present[granule]:
            data = bytearray(self.GRANULE)
            start = granule * self.GRANULE
            length = min(self.GRANULE, self.length - start)
            self.base.read(start, memoryview(data)[:length])
            os.pwrite(self._fd, data, start)
            self._present[granule] = 1

    def flush(self) -> None:
        """What is thrown away at the end needs no stable storage."""

    def discard(self, offset: int, length: int) -> None:
        pass

    def commit(self) -> None:
        """Write the changes to the base (`commit`, Ctrl-a s)."""
        if self.base.readonly:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        with self._lock:
            for at, length, present in self._runs(0, self.length):
                for start in range(at, at + length if present else at, 1 << 20):
                    self.base.write(start, os.pread(self._fd, min(1 << 20, at + length - start), start))
            self.base.flush()
            self._present[:] = bytes(len(self._present))

    def close(self) -> None:
        self._file.close()
        self.base.close()
