"""The transmission phase: several requests under way on one connection (proto.md, "Transmission").

Workers send under a lock and then wait for their replies; one of the waiting ones reads for all. When the connection
breaks, or the server says something that makes no sense, every request under way fails with EIO and the connection is
over.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import threading
from collections.abc import Iterator, Sequence

from qemupy.backends.block.hostfile import IOV_MAX, rest_of
from qemupy.backends.block.nbd.handshake import Export, receive, receive_into

CMD_READ, CMD_WRITE, CMD_DISC, CMD_FLUSH, CMD_TRIM, CMD_WRITE_ZEROES, CMD_BLOCK_STATUS = 0, 1, 2, 3, 4, 6, 7
FLAG_FUA, FLAG_NO_HOLE, FLAG_REQ_ONE = 1 << 0, 1 << 1, 1 << 3
_REQUEST_MAGIC, _SIMPLE_MAGIC, _STRUCTURED_MAGIC = 0x25609513, 0x67446698, 0x668E33EF
_CHUNK_NONE, _CHUNK_DATA, _CHUNK_HOLE, _CHUNK_STATUS, _CHUNK_ERROR = 0, 1, 2, 5, 1 << 15
_DONE = 1
_MAX_ERROR_CHUNK, _MAX_STATUS_CHUNK = 8192, 4 + 8 * (1 << 20)
# proto.md, "Error values"; what else a server says is an I/O error
_ERRORS = {
    1: errno.EPERM, 5: errno.EIO, 12: errno.ENOMEM, 22: errno.EINVAL, 28: errno.ENOSPC, 75: errno.EOVERFLOW,
    95: errno.ENOTSUP, 108: errno.ESHUTDOWN,
}  # fmt: skip


class ProtocolError(Exception):
    """The server broke the rules."""


class Request:
    __slots__ = ("buffers", "covered", "done", "error", "kind", "length", "offset", "status")

    def __init__(self, kind: int, offset: int, length: int, buffers: Sequence[memoryview]) -> None:
        self.kind, self.offset, self.length, self.buffers = kind, offset, length, buffers
        self.covered = 0  # bytes of a read that chunks have brought
        self.status: tuple[int, int] | None = None  # first extent: length, flags
        self.error = 0
        self.done = False

    def slices(self, offset: int, length: int) -> Iterator[memoryview]:
        """The parts of the buffers that hold these bytes of the export."""
        skip = offset - self.offset
        for buffer in self.buffers:
            if skip < len(buffer) and length:
                piece = buffer[skip : skip + length]
                length -= len(piece)
                skip = 0
                yield piece
            else:
                skip -= min(skip, len(buffer))


class Connection:
    def __init__(self, sock: socket.socket, export: Export) -> None:
        self.export = export
        self._sock = sock
        sock.settimeout(None)
        self._sending = threading.Lock()
        self._changed = threading.Condition()
        self._reading = False  # somebody reads
        self._requests: dict[int, Request] = {}
        self._cookie = 0
        self.broken = False

    def request(self, kind: int, offset: int, length: int, flags: int = 0,
                buffers: Sequence[memoryview] = ()) -> Request:  # fmt: skip
        """Send and wait for the answer. OSError with the server's error, or EIO if the connection broke."""
        request = Request(kind, offset, length, buffers)
        try:
            self._send(request, flags)
            self._wait(request)
        except (OSError, ProtocolError):
            self.fail()
        if not request.done:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if request.error:
            raise OSError(request.error, os.strerror(request.error))
        return request

    def _send(self, request: Request, flags: int) -> None:
        with self._sending:
            with self._changed:
                if self.broken:
                    raise ConnectionResetError
                self._cookie += 1
                cookie = self._cookie
                self._requests[cookie] = request
            head = struct.pack(
                ">IHHQQI", _REQUEST_MAGIC, flags, request.kind, cookie, request.offset, request.length
            )
            pieces = [memoryview(head), *(request.buffers if request.kind == CMD_WRITE else ())]
            for start in range(0, len(pieces), IOV_MAX):
                group = pieces[start : start + IOV_MAX]
                while group:
                    group = rest_of(group, self._sock.sendmsg(group))

    def _wait(self, request: Request) -> None:
        """Until the request is done: by another thread that reads, or by reading ourselves."""
        while True:
            with self._changed:
                while self._reading and not request.done and not self.broken:
                    self._changed.wait()
                if request.done or self.broken:
                    return
                self._reading = True
            try:
                while not request.done:
                    self._read_reply()
            finally:
                with self._changed:
                    self._reading = False
                    self._changed.notify_all()

    def fail(self) -> None:
        """The connection is over; whoever waits wakes up."""
        with self._changed:
            self.broken = True
            self._requests.clear()
            self._changed.notify_all()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Say goodbye, if there is still somebody."""
        if not self.broken and not self._requests:
            with contextlib.suppress(OSError):
                self._sock.sendall(struct.pack(">IHHQQI", _REQUEST_MAGIC, 0, CMD_DISC, 0, 0, 0))
        self.fail()
        self._sock.close()

    # Replies

    def _read_reply(self) -> None:
        (magic,) = struct.unpack(">I", receive(self._sock, 4))
        if magic == _SIMPLE_MAGIC:
            error, cookie = struct.unpack(">IQ", receive(self._sock, 12))
            request = self._find(cookie)
            if request.kind == CMD_READ and self.export.structured:
                raise ProtocolError("a simple reply to a read")
            if error:
                self._set_error(request, error)
            elif request.kind == CMD_READ:
                self._receive_data(request, request.offset, request.length)
            self._finish(cookie, request)
        elif magic == _STRUCTURED_MAGIC and self.export.structured:
            flags, kind, cookie, length = struct.unpack(">HHQI", receive(self._sock, 16))
            request = self._find(cookie)
            self._read_chunk(request, kind, length)
            if flags & _DONE:
                if request.kind == CMD_READ and not request.error and request.covered < request.length:
                    raise ProtocolError("a read without all its data")
                self._finish(cookie, request)
        else:
            raise ProtocolError(f"reply magic 0x{magic:x}")

    def _find(self, cookie: int) -> Request:
        request = self._requests.get(cookie)
        if request is None:
            raise ProtocolError(f"a reply to no request (cookie {cookie})")
        return request

    def _finish(self, cookie: int, request: Request) -> None:
        with self._changed:
            self._requests.pop(cookie, None)
            request.done = True
            self._changed.notify_all()

    @staticmethod
    def _set_error(request: Request, error: int) -> None:
        request.error = _ERRORS.get(error, errno.EIO)

    def _read_chunk(self, request: Request, kind: int, length: int) -> None:
        if kind & _CHUNK_ERROR:
            if not 6 <= length <= _MAX_ERROR_CHUNK:
                raise ProtocolError(f"an error of {length} bytes")
            payload = receive(self._sock, length)
            self._set_error(request, int.from_bytes(payload[:4], "big"))
        elif kind == _CHUNK_DATA and request.kind == CMD_READ and length > 8:
            (offset,) = struct.unpack(">Q", receive(self._sock, 8))
            self._receive_data(request, offset, length - 8)
        elif kind == _CHUNK_HOLE and request.kind == CMD_READ and length == 12:
            offset, size = struct.unpack(">QI", receive(self._sock, 12))
            self._check_range(request, offset, size)
            for piece in request.slices(offset, size):
                piece[:] = bytes(len(piece))
        elif kind == _CHUNK_STATUS and request.kind == CMD_BLOCK_STATUS and 12 <= length <= _MAX_STATUS_CHUNK:
            context, size, flags = struct.unpack(">III", receive(self._sock, length)[:12])
            if context == self.export.allocation and size:
                request.status = size, flags
        elif kind != _CHUNK_NONE or length:
            raise ProtocolError(f"chunk of type {kind} with {length} bytes")

    def _check_range(self, request: Request, offset: int, length: int) -> None:
        if not request.offset <= offset <= offset + length <= request.offset + request.length:
            raise ProtocolError("data outside the request")
        request.covered += length

    def _receive_data(self, request: Request, offset: int, length: int) -> None:
        self._check_range(request, offset, length)
        for piece in request.slices(offset, length):
            receive_into(self._sock, piece)
