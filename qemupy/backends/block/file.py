"""`file` and `host_device`: a file or block device of the host, the bottom of most graphs."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from typing import Self

from qemupy.backends.block import hostfile
from qemupy.backends.block.locks import ImageLock
from qemupy.backends.block.node import SECTOR, Buffer, Extent, Node
from qemupy.backends.block.opening import Flags, Opening
from qemupy.backends.block.permissions import joint_use
from qemupy.errors import BackendError
from qemupy.scatter import Scatter, begin_writeback, total

AIO = ("threads", "native", "io_uring")


class FileNode(Node):
    """Reads beyond the end give zeroes, writes there extend the file (formats grow that way)."""

    driver = "file"
    is_protocol = True

    def __init__(self, path: str, flags: Flags | None = None, locking: str = "auto") -> None:
        self.filename = path
        self.flags = flags if flags is not None else Flags()
        self.uses = []
        self._locking, self._lock_always = locking != "off", locking == "on"
        self._direct: hostfile.DirectFile | None = None
        self._open(self.flags.readonly, self.flags.auto_read_only)

    @classmethod
    def open(cls, opening: Opening) -> Self:
        path = opening.required("filename").removeprefix(f"{cls.driver}:")
        locking = opening.choice("locking", ("auto", "on", "off"))
        aio = opening.choice("aio", AIO)
        if aio == "native" and not opening.flags.direct:
            raise BackendError("aio=native was specified, but it requires cache.direct=on, which was not specified.")
        return cls(path, opening.flags, locking)

    # Opening

    def _open(self, readonly: bool, automatic: bool) -> None:
        """Sets all that depends on the descriptor, or raises BackendError and changes nothing. With `automatic` an
        image that cannot be written is opened for reading."""
        fd, readonly = self._open_fd(readonly, automatic)
        try:
            self._check_kind(os.fstat(fd).st_mode)
            direct = hostfile.DirectFile(fd) if self.flags.direct else None
            length = os.lseek(fd, 0, os.SEEK_END)
        except OSError as e:
            os.close(fd)
            raise BackendError(f"Could not get the size of '{self.filename}': {e.strerror}") from None
        except BackendError:
            os.close(fd)
            raise
        self._fd, self._direct, self.readonly = fd, direct, readonly
        self.buffered = direct is None
        self._lock = ImageLock(fd, self.filename, self._lock_always)
        self.length = -(-length // SECTOR) * SECTOR

    def _open_fd(self, readonly: bool, automatic: bool) -> tuple[int, bool]:
        flags = os.O_CLOEXEC | (os.O_DIRECT if self.flags.direct else 0)
        try:
            return os.open(self.filename, flags | (os.O_RDONLY if readonly else os.O_RDWR)), readonly
        except OSError as e:
            if not readonly and automatic and e.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
                return self._open_fd(True, False)
            if e.errno == errno.EISDIR:
                raise self._wrong_kind() from None
            if e.errno == errno.EINVAL and self.flags.direct:
                raise BackendError(
                    f"Could not open '{self.filename}': filesystem does not support O_DIRECT"
                ) from None
            raise BackendError(f"Could not open '{self.filename}': {os.strerror(e.errno or 0)}") from None

    def _check_kind(self, mode: int) -> None:
        if not stat.S_ISREG(mode):
            raise self._wrong_kind()

    def _wrong_kind(self) -> BackendError:
        return BackendError(f"'file' driver requires '{self.filename}' to be a regular file")

    def reopen(self, readonly: bool) -> None:
        """The new descriptor takes its locks before the old one gives up the same ones: nobody slips in between."""
        if readonly == self.readonly:
            return
        old = self._fd
        self._open(readonly, automatic=False)
        if self._locking:
            self._lock.take_over(*joint_use(self.uses))
        os.close(old)

    def uses_changed(self) -> None:
        if self._locking:
            self._lock.change(*joint_use(self.uses))

    # Data

    def read_cached(self, offset: int, buffers: Sequence[memoryview]) -> bool:
        if self._direct is not None or len(buffers) > hostfile.IOV_MAX:
            return False
        if isinstance(buffers, Scatter):
            return buffers.read_cached(self._fd, offset)
        try:
            return os.preadv(self._fd, buffers, offset, os.RWF_NOWAIT) == total(buffers)
        except OSError:
            return False

    def read(self, offset: int, data: memoryview) -> None:
        self.readv(offset, (data,))

    def write(self, offset: int, data: Buffer) -> None:
        self.writev(offset, (memoryview(data),))

    def readv(self, offset: int, buffers: Sequence[memoryview]) -> None:
        if self._direct is not None:
            self._direct.read(offset, buffers)
        else:
            hostfile.read_fully(self._fd, offset, buffers)

    def writev(self, offset: int, buffers: Sequence[memoryview]) -> None:
        if self._direct is not None:
            self._direct.write(offset, buffers)
        else:
            hostfile.write_fully(self._fd, offset, buffers)
        self._grown_to(offset + total(buffers))

    def _grown_to(self, end: int) -> None:
        if end > self.length:
            self.length = -(-end // SECTOR) * SECTOR

    def flush(self) -> None:
        if not self.readonly and not self.flags.no_flush:
            os.fdatasync(self._fd)

    def begin_writeback(self) -> None:
        if self._direct is None and not self.flags.no_flush:
            begin_writeback(self._fd)

    def discard(self, offset: int, length: int) -> None:
        if self.flags.discard and length:
            hostfile.fallocate(self._fd, hostfile.PUNCH_HOLE | hostfile.KEEP_SIZE, offset, length)

    def write_zeroes(self, offset: int, length: int, unmap: bool = False) -> None:
        if not length:
            return
        hole = unmap and self.flags.discard
        mode = hostfile.PUNCH_HOLE | hostfile.KEEP_SIZE if hole else hostfile.ZERO_RANGE
        if offset + length <= self.length and hostfile.fallocate(self._fd, mode, offset, length):
            return
        super().write_zeroes(offset, length)

    def truncate(self, length: int) -> None:
        os.ftruncate(self._fd, length)
        self.length = -(-length // SECTOR) * SECTOR

    def block_status(self, offset: int, length: int) -> Extent:
        try:
            data = os.lseek(self._fd, offset, os.SEEK_DATA)
            if data > offset:
                return Extent(min(data - offset, length), data=False, zero=True, offset=offset)
            hole = os.lseek(self._fd, offset, os.SEEK_HOLE)
            return Extent(min(max(hole - offset, 1), length), data=True, zero=False, offset=offset)
        except OSError as e:
            if e.errno == errno.ENXIO:  # no data from here to the end
                return Extent(length, data=False, zero=True, offset=offset)
            return Extent(length, data=True, zero=False, offset=offset)

    def allocated_size(self) -> int | None:
        return os.fstat(self._fd).st_blocks * 512

    def fileno(self) -> int:
        """The descriptor, for mapping parts of the file."""
        return self._fd

    def close(self) -> None:
        os.close(self._fd)


class HostDeviceNode(FileNode):
    """A block device; it has no size to change."""

    driver = "host_device"

    def _check_kind(self, mode: int) -> None:
        if not stat.S_ISBLK(mode):
            raise self._wrong_kind()

    def _wrong_kind(self) -> BackendError:
        return BackendError(f"'host_device' driver requires '{self.filename}' to be either a character or block device")

    def truncate(self, length: int) -> None:
        raise OSError(errno.ENOTSUP, "Cannot resize device files")

    def allocated_size(self) -> int | None:
        return None
