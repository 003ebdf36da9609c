"""An NBD server that logs: its disk is a `MemoryFile`, which knows what has not been flushed.

Only what a client needs that is told of nothing: NBD_OPT_GO and simple replies. Source: the NBD project's doc/proto.md.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from pathlib import Path
from typing import Self

from tests.block.files import MemoryFile

_MAGIC, _OPTION, _OPTION_REPLY = 0x4E42444D41474943, 0x49484156454F5054, 0x3E889045565A9
_REQUEST, _REPLY = 0x25609513, 0x67446698
_GO, _ABORT = 7, 2
_ACK, _INFO, _UNSUPPORTED = 1, 3, 1 << 31 | 1
_READ, _WRITE, _DISCONNECT, _FLUSH, _TRIM, _WRITE_ZEROES = 0, 1, 2, 3, 4, 6
_FLAGS = 1 | 1 << 2 | 1 << 5 | 1 << 6  # has flags, flush, trim, write zeroes


class LoggingServer:
    """Serves `file`, which does not grow, to one client after the other at a Unix socket."""

    def __init__(self, path: Path, file: MemoryFile) -> None:
        self.file = file
        self.error: BaseException | None = None  # the client is cut off then
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._peer: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        for end in (self._listener, self._peer):
            if end is not None:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()
        self._thread.join()

    def _serve(self) -> None:
        while self.error is None:
            try:
                self._peer, _ = self._listener.accept()
                with self._peer:
                    if self._handshake():
                        while self._request():
                            pass
            except (EOFError, ConnectionError):
                continue
            except OSError:
                return  # closed
            except BaseException as e:
                self.error = e

    def _receive(self, size: int) -> bytes:
        assert self._peer is not None
        data = self._peer.recv(size, socket.MSG_WAITALL)
        if len(data) < size:
            raise EOFError
        return data

    def _send(self, data: bytes) -> None:
        assert self._peer is not None
        self._peer.sendall(data)

    def _handshake(self) -> bool:
        self._send(struct.pack(">QQH", _MAGIC, _OPTION, 3))
        self._receive(4)
        while True:
            _, option, length = struct.unpack(">QII", self._receive(16))
            self._receive(length)
            if option == _GO:
                self._answer(option, _INFO, struct.pack(">HQH", 0, self.file.length, _FLAGS))
                self._answer(option, _ACK)
                return True
            self._answer(option, _ACK if option == _ABORT else _UNSUPPORTED)
            if option == _ABORT:
                return False

    def _answer(self, option: int, kind: int, data: bytes = b"") -> None:
        self._send(struct.pack(">QIII", _OPTION_REPLY, option, kind, len(data)) + data)

    def _request(self) -> bool:
        _, _, kind, cookie, offset, length = struct.unpack(">IHHQQI", self._receive(28))
        answer = b""
        if kind == _READ:
            data = bytearray(length)
            self.file.read(offset, memoryview(data))
            answer = bytes(data)
        elif kind == _WRITE:
            self.file.write(offset, self._receive(length))
        elif kind == _WRITE_ZEROES:
            self.file.write_zeroes(offset, length)
        elif kind == _TRIM:
            self.file.discard(offset, length)
        elif kind == _FLUSH:
            self.file.flush()
        elif kind == _DISCONNECT:
            return False
        self._send(struct.pack(">IIQ", _REPLY, 0, cookie) + answer)
        return True
