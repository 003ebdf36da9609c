"""`NbdNode`: an export of an NBD server as a protocol node.

A connection that breaks fails the requests under way with EIO; what comes of that is the drive's policy. The next
request connects again.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Self

from qemupy.backends.block.hostfile import AlignedAccess
from qemupy.backends.block.nbd import connection as wire
from qemupy.backends.block.nbd import handshake
from qemupy.backends.block.nbd.address import DEFAULT_PORT, Address
from qemupy.backends.block.nbd.connection import Connection
from qemupy.backends.block.node import SECTOR, Buffer, Extent, Node
from qemupy.backends.block.opening import Opening
from qemupy.errors import BackendError, ConfigError
from qemupy.scatter import total

CONNECT_SECONDS = 10.0
_RETRY_SECONDS = 0.2
_MAX_SPAN = 1 << 30  # of a request without payload
_HOLE, _ZERO = 1 << 0, 1 << 1  # base:allocation


class NbdNode(Node):
    driver = "nbd"
    is_protocol = True

    def __init__(self, address: Address, export: str, readonly: bool, auto_read_only: bool,
                 reconnect_seconds: float = 0, open_seconds: float = 0) -> None:  # fmt: skip
        self.filename = address.uri(export)
        self._address, self._export_name, self._reconnect_seconds = address, export, reconnect_seconds
        self._connecting = threading.Lock()
        self._closed = False
        self._connection = self._first_connection(open_seconds)
        self.export = self._connection.export
        self.length = -(-self.export.size // SECTOR) * SECTOR
        self.readonly = readonly
        if self.export.flags & handshake.READ_ONLY and not readonly:
            if not auto_read_only:
                self._connection.close()
                raise BackendError("request for write access to read-only export")
            self.readonly = True
        self._access = AlignedAccess(self.export.min_block, self._read_pieces, self._write_pieces)

    @classmethod
    def open(cls, opening: Opening) -> Self:
        if opening.take("tls-creds") is not None:
            raise BackendError("TLS for NBD (tls-creds) is not supported")
        address = _address(opening)
        export = opening.take("export") or ""
        if len(export.encode()) > 4096:
            raise ConfigError("export name too long to send to server")
        flags = opening.flags
        return cls(
            address,
            export,
            flags.readonly,
            flags.auto_read_only,
            reconnect_seconds=opening.size("reconnect-delay", 0),
            open_seconds=opening.size("open-timeout", 0),
        )

    # Connecting

    def _connect(self) -> Connection:
        sock = self._address.connect(CONNECT_SECONDS)
        try:
            return Connection(sock, handshake.negotiate(sock, self._export_name))
        except BaseException:
            sock.close()
            raise

    def _first_connection(self, seconds: float) -> Connection:
        """Tried again for so long: the server may start at the same time as we."""
        end = time.monotonic() + seconds
        while True:
            try:
                return self._connect()
            except BackendError:
                if time.monotonic() >= end:
                    raise
            time.sleep(_RETRY_SECONDS)

    def _ready(self) -> Connection:
        """The connection, made anew if the old one broke; OSError (EIO) if there is nobody. On a worker."""
        if not self._connection.broken:
            return self._connection
        with self._connecting:
            end = time.monotonic() + self._reconnect_seconds
            while self._connection.broken:
                if self._closed:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                try:
                    self._replace(self._connect())
                except BackendError as e:
                    if time.monotonic() >= end:
                        sys.stderr.write(f"qemupy: {self.filename}: {e}\n")
                        raise OSError(errno.EIO, os.strerror(errno.EIO)) from None
                    time.sleep(_RETRY_SECONDS)
            return self._connection

    def _replace(self, new: Connection) -> None:
        """BackendError if the export is not what it was."""
        found, wanted = new.export, self.export
        worse = wanted.flags & ~found.flags & ~handshake.READ_ONLY
        if not self.readonly:
            worse |= found.flags & handshake.READ_ONLY
        if found.size != wanted.size or worse or found.min_block > wanted.min_block:
            new.close()
            raise BackendError(f"the export changed: {found.size} bytes, flags {found.flags:#x}, "
                               f"before {wanted.size} bytes, flags {wanted.flags:#x}")  # fmt: skip
        self._connection.close()
        self._connection = new

    # Data

    def read(self, offset: int, data: memoryview) -> None:
        self.readv(offset, (data,))

    def write(self, offset: int, data: Buffer) -> None:
        self.writev(offset, (memoryview(data),))

    def readv(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """The last sector of an export of odd size ends in zeroes."""
        length = total(buffers)
        if offset + length > self.export.size:
            buffers = _cut(buffers, max(self.export.size - offset, 0))
        self._access.read(offset, buffers)

    def writev(self, offset: int, buffers: Sequence[memoryview]) -> None:
        if offset + total(buffers) > self.export.size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._access.write(offset, buffers)

    def _read_pieces(self, offset: int, buffers: Sequence[memoryview]) -> None:
        for at, piece, length in self._payloads(offset, buffers):
            self._ready().request(wire.CMD_READ, at, length, 0, piece)

    def _write_pieces(self, offset: int, buffers: Sequence[memoryview], flags: int = 0) -> None:
        for at, piece, length in self._payloads(offset, buffers):
            self._ready().request(wire.CMD_WRITE, at, length, flags, piece)

    def _payloads(self, offset: int, buffers: Sequence[memoryview]) -> list[tuple[int, list[memoryview], int]]:
        """(offset, buffers, length) of requests that the server takes."""
        limit = self.export.max_payload - self.export.max_payload % self.export.min_block
        groups: list[tuple[int, list[memoryview], int]] = []
        for whole in buffers:
            buffer = whole
            while len(buffer):
                if not groups or groups[-1][2] == limit:
                    groups.append((offset, [], 0))
                at, pieces, length = groups[-1]
                piece = buffer[: limit - length]
                pieces.append(piece)
                groups[-1] = at, pieces, length + len(piece)
                offset += len(piece)
                buffer = buffer[len(piece) :]
        return groups

    def writev_durable(self, offset: int, buffers: Sequence[memoryview]) -> None:
        aligned = not any((offset | len(b)) % self.export.min_block for b in buffers)
        if self.export.flags & handshake.SEND_FUA and aligned:
            self._write_pieces(offset, buffers, wire.FLAG_FUA)
        else:
            super().writev_durable(offset, buffers)

    def flush(self) -> None:
        if self.export.flags & handshake.SEND_FLUSH and not self.readonly:
            self._ready().request(wire.CMD_FLUSH, 0, 0)

    def discard(self, offset: int, length: int) -> None:
        """Whole blocks only: a hint may be dropped."""
        if self.export.flags & handshake.SEND_TRIM and self.flags.discard:
            end = (offset + length) & -self.export.min_block
            offset = offset + -offset % self.export.min_block
            self._spans(offset, end - offset, lambda at, size: self._ready().request(wire.CMD_TRIM, at, size))

    def write_zeroes(self, offset: int, length: int, unmap: bool = False) -> None:
        if not self.export.flags & handshake.SEND_WRITE_ZEROES or (offset | length) % self.export.min_block:
            super().write_zeroes(offset, length, unmap)
            return
        if offset + length > self.export.size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flags = 0 if unmap and self.flags.discard else wire.FLAG_NO_HOLE
        self._spans(
            offset, length, lambda at, size: self._ready().request(wire.CMD_WRITE_ZEROES, at, size, flags)
        )

    @staticmethod
    def _spans(offset: int, length: int, call: Callable[[int, int], object]) -> None:
        while length > 0:
            size = min(length, _MAX_SPAN)
            call(offset, size)
            offset += size
            length -= size

    def block_status(self, offset: int, length: int) -> Extent:
        """By base:allocation, where the server has it."""
        if offset >= self.export.size:
            return Extent(length, data=False, zero=True)
        if self.export.allocation is None or offset % self.export.min_block:
            return Extent(length, data=True, zero=False, offset=offset)
        size = min(length, self.export.size - offset, _MAX_SPAN)
        size += -size % self.export.min_block
        status = self._ready().request(wire.CMD_BLOCK_STATUS, offset, size, wire.FLAG_REQ_ONE).status
        if status is None:
            raise OSError(errno.EIO, "the NBD server told no block status")
        extent, flags = status
        return Extent(min(extent, length), data=not flags & _HOLE, zero=bool(flags & _ZERO), offset=offset)

    def allocated_size(self) -> int | None:
        return None

    def reopen(self, readonly: bool) -> None:
        if not readonly and self.export.flags & handshake.READ_ONLY:
            raise BackendError("request for write access to read-only export")
        self.readonly = readonly

    def close(self) -> None:
        self._closed = True
        self._connection.close()


def _cut(buffers: Sequence[memoryview], length: int) -> list[memoryview]:
    """The first `length` bytes of the buffers; the rest is filled with zeroes."""
    kept = []
    for buffer in buffers:
        inside = min(len(buffer), length)
        if inside:
            kept.append(buffer[:inside])
        if inside < len(buffer):
            buffer[inside:] = bytes(len(buffer) - inside)
        length -= inside
    return kept


def _address(opening: Opening) -> Address:
    """`server.*`, or the older `host`, `port`, `path`."""
    kind = opening.take("server.type")
    if kind is None:
        path, host = opening.take("path"), opening.take("host")
        if (path is None) == (host is None):
            raise ConfigError("one of path and host must be specified." if path is None else
                              "path and host may not be used at the same time.")  # fmt: skip
        return Address(path=path) if path else Address(host=host or "", port=opening.take("port") or DEFAULT_PORT)
    if kind == "unix":
        return Address(path=opening.required("server.path"))
    if kind == "inet":
        return Address(host=opening.required("server.host"), port=opening.required("server.port"))
    raise ConfigError(f"Parameter 'server.type' does not accept value '{kind}' (inet or unix)")
