"""QEMU's image locks: one byte of the file for each permission, so that QEMU, its tools and we respect each other.

Byte 100 + n of an image is locked shared by everybody who uses permission n, byte 200 + n by everybody who does not
share it. Whoever opens an image takes its locks first and then looks whether others hold the opposite ones. Open file
description locks are of the open file, not of the process: two nodes of one process conflict as two processes do.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from qemupy.backends.block.permissions import EVERYTHING, NAMES, NOTHING, Permission
from qemupy.errors import BackendError

_USED_BASE, _UNSHARED_BASE = 100, 200
_FLOCK = "hhqqi4x"


class ImageLock:
    """The locks of one open file; `change` goes from one pair of sets to another."""

    def __init__(self, fd: int, path: str, always: bool = False) -> None:
        self._fd, self._path, self._always = fd, path, always
        self._used, self._shared = NOTHING, EVERYTHING

    def change(self, used: Permission, shared: Permission) -> None:
        """Take what is new, look for conflicts, give up what is no longer needed. A file system without locks is
        accepted unless file.locking=on was said; BackendError on a conflict, with the locks as before."""
        try:
            self._lock(used | self._used, shared & self._shared)
            try:
                self._look(used, shared)
            except BackendError:
                self._unlock(self._used, self._shared)
                raise
            self._unlock(used, shared)
        except OSError as e:
            if self._always or e.errno not in (errno.ENOLCK, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                raise BackendError(f"Failed to lock '{self._path}': {e.strerror}") from None
        self._used, self._shared = used, shared

    def take_over(self, used: Permission, shared: Permission) -> None:
        """Take these without a look: another open file of ours, about to be closed, has the same ones."""
        try:
            self._lock(used, shared)
        except OSError:
            pass  # no locks here; `change` has accepted that already
        self._used, self._shared = used, shared

    def _flock(self, command: int, kind: int, byte: int) -> int:
        packed = struct.pack(_FLOCK, kind, os.SEEK_SET, byte, 1, 0)
        return int(struct.unpack(_FLOCK, fcntl.fcntl(self._fd, command, packed))[0])

    def _lock(self, used: Permission, shared: Permission) -> None:
        for byte in _bytes(used, shared):
            self._flock(fcntl.F_OFD_SETLK, fcntl.F_RDLCK, byte)

    def _unlock(self, used: Permission, shared: Permission) -> None:
        """All but these."""
        for byte in sorted(set(_bytes(EVERYTHING, NOTHING)) - set(_bytes(used, shared))):
            self._flock(fcntl.F_OFD_SETLK, fcntl.F_UNLCK, byte)

    def _look(self, used: Permission, shared: Permission) -> None:
        for byte, permission in _bits(used, _UNSHARED_BASE):
            if self._flock(fcntl.F_OFD_GETLK, fcntl.F_WRLCK, byte) != fcntl.F_UNLCK:
                raise self._conflict(permission, "")
        for byte, permission in _bits(~shared & EVERYTHING, _USED_BASE):
            if self._flock(fcntl.F_OFD_GETLK, fcntl.F_WRLCK, byte) != fcntl.F_UNLCK:
                raise self._conflict(permission, "shared ")

    def _conflict(self, permission: Permission, kind: str) -> BackendError:
        return BackendError(
            f'Failed to get {kind}"{NAMES[permission]}" lock: Is another process using the image [{self._path}]?'
        )


def _bits(permissions: Permission, base: int) -> list[tuple[int, Permission]]:
    return [(base + bit.bit_length() - 1, bit) for bit in NAMES if bit & permissions]


def _bytes(used: Permission, shared: Permission) -> list[int]:
    return [byte for byte, _ in _bits(used, _USED_BASE) + _bits(~shared & EVERYTHING, _UNSHARED_BASE)]
