"""Socket chardevs: TCP and UNIX, server or client, optionally speaking telnet. One peer at a time."""

from __future__ import annotations

import contextlib
import os
import socket
import sys

from qemupy.backends.chardev.base import BREAK, CLOSED, OPENED
from qemupy.backends.chardev.stream import StreamChardev
from qemupy.errors import BackendError
from qemupy.main_loop.loop import MainLoop

# RFC 854: IAC and the commands met; RFC 857, 858, 1184, 856 for the options
_IAC, _DONT, _DO, _WONT, _WILL, _SB, _SE, _BREAK = 255, 254, 253, 252, 251, 250, 240, 243
_BINARY, _ECHO, _SUPPRESS_GO_AHEAD, _LINEMODE = 0, 1, 3, 34
_TELNET_HELLO = bytes(
    [_IAC, _WILL, _ECHO, _IAC, _WILL, _SUPPRESS_GO_AHEAD, _IAC, _WILL, _BINARY, _IAC, _DO, _BINARY]
)  # fmt: skip


class Address:
    """Where to listen or connect, and how `info chardev` writes it."""

    def __init__(self, host: str = "", port: str = "", path: str = "", fd: int = -1) -> None:
        self.host, self.port, self.path, self.fd = host, port, path, fd

    def __str__(self) -> str:
        if self.fd >= 0:
            return f"fd:{self.fd}"
        return f"unix:{self.path}" if self.path else f"tcp:{self.host}:{self.port}"

    def listen(self) -> socket.socket:
        try:
            if self.fd >= 0:
                return socket.socket(fileno=self.fd)
            if self.path:
                listener = socket.socket(socket.AF_UNIX)
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.path)
                listener.bind(self.path)
                listener.listen(1)
                return listener
            return socket.create_server((self.host, int(self.port or "0")), reuse_port=False)
        except (OSError, OverflowError, ValueError) as e:
            raise BackendError(f"Failed to listen on '{self}': {_reason(e)}") from None

    def connect(self) -> socket.socket:
        try:
            if self.fd >= 0:
                return socket.socket(fileno=self.fd)
            if self.path:
                peer = socket.socket(socket.AF_UNIX)
                peer.connect(self.path)
                return peer
            return socket.create_connection((self.host or "127.0.0.1", int(self.port or "0")), 30)
        except (OSError, OverflowError, ValueError) as e:
            place = self.path or f"{self.host}:{self.port}"
            raise BackendError(f"Failed to connect to '{place}': {_reason(e)}") from None


def _reason(e: Exception) -> str:
    return getattr(e, "strerror", None) or str(e)


class SocketChardev(StreamChardev):
    def __init__(self, loop: MainLoop, label: str, address: Address, *, server: bool = False, wait: bool = True,
                 telnet: bool = False, nodelay: bool = False, reconnect: int = 0) -> None:  # fmt: skip
        super().__init__(loop, label, "", -1, -1)
        self._address, self._server, self._telnet, self._nodelay = address, server, telnet, nodelay
        self._peer: socket.socket | None = None
        self._listener: socket.socket | None = None
        self._reconnect_ns = reconnect * 1_000_000_000
        self._retry = loop.realtime.timer(self._try_connect)
        self._telnet_state = b""
        if server:
            self._listener = self._address.listen()
            if not address.path and address.fd < 0:
                address.port = str(self._listener.getsockname()[1])
            self._name()
            if wait:
                sys.stderr.write(f"qemupy: info: QEMU waiting for connection on: {self.filename}\n")
                self._adopt(self._listener.accept()[0])
            else:
                self._listener.setblocking(False)
                self._watch_listener()
        elif reconnect:
            self._name()
            self._retry.mod(0)
        else:
            self._adopt(address.connect())

    def start(self) -> None:
        """Opened by `_adopt`."""

    def _name(self) -> None:
        """QEMU's form: `disconnected:unix:/path,server=on`, `tcp:127.0.0.1:99,server=on <-> 127.0.0.1:4711`."""
        text = f"{'telnet' if self._telnet and not self._address.path else ''}{self._address}"
        if self._telnet and not self._address.path:
            text = str(self._address).replace("tcp:", "telnet:", 1)
        text += ",server=on" if self._server else ""
        if self._peer is None:
            text = "disconnected:" + text
        elif self._peer.family != socket.AF_UNIX:
            host, port = self._peer.getpeername()[:2]
            text += f" <-> {host}:{port}"
        self.filename = text

    def _watch_listener(self) -> None:
        assert self._listener is not None
        self._loop.watch(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            peer = self._listener.accept()[0]
        except OSError:
            return
        self._loop.unwatch(self._listener.fileno())
        self._adopt(peer)

    def _try_connect(self) -> None:
        try:
            self._adopt(self._address.connect())
        except BackendError:
            self._retry.mod(self._loop.realtime.now() + self._reconnect_ns)

    def _adopt(self, peer: socket.socket) -> None:
        self._peer = peer
        peer.setblocking(False)
        if self._nodelay and peer.family != socket.AF_UNIX:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._in = self._out = peer.fileno()
        self._name()
        self._telnet_state = b""
        if self._telnet and self._server:
            super().write(_TELNET_HELLO)
        self.send_event(OPENED)
        self._resume_input()

    def on_eof(self) -> None:
        self._drop_peer()
        self.send_event(CLOSED)
        if self._listener is not None:
            self._listener.setblocking(False)
            self._watch_listener()
        elif self._reconnect_ns:
            self._retry.mod(self._loop.realtime.now() + self._reconnect_ns)

    def _drop_peer(self) -> None:
        if self._peer is not None:
            self._queue.clear()
            self._reading = False
            self._loop.unwatch(self._in)
            self._peer.close()
            self._peer = None
            self._in = self._out = -1
            self._name()

    def write(self, data: bytes) -> None:
        super().write(data.replace(b"\xff", b"\xff\xff") if self._telnet else data)

    def feed(self, data: bytes) -> bool:
        return super().feed(self._strip_telnet(data) if self._telnet else data)

    def _strip_telnet(self, data: bytes) -> bytes:
        """Take out commands; a sequence cut by the end of `data` waits for the rest."""
        data = self._telnet_state + data
        out, at = bytearray(), 0
        while at < len(data):
            if data[at] != _IAC:
                out.append(data[at])
                at += 1
                continue
            length = _command_length(data[at:])
            if length == 0:
                break
            command = data[at + 1]
            if command == _IAC:
                out.append(_IAC)
            elif command == _BREAK:
                self.send_event(BREAK)
            at += length
        self._telnet_state = data[at:]
        return bytes(out)

    def close(self) -> None:
        self._retry.cancel()
        self.drain()
        self._drop_peer()
        if self._listener is not None:
            self._loop.unwatch(self._listener.fileno())
            self._listener.close()
            self._listener = None
            if self._address.path:
                with contextlib.suppress(OSError):
                    os.unlink(self._address.path)


def _command_length(data: bytes) -> int:
    """Bytes of the telnet command at the start of `data`, 0 when it is not complete."""
    if len(data) < 2:
        return 0
    if data[1] in (_DO, _DONT, _WILL, _WONT):
        return 3 if len(data) >= 3 else 0
    if data[1] == _SB:
        end = data.find(bytes([_IAC, _SE]))
        return end + 2 if end > 0 else (len(data) if len(data) > 512 else 0)
    return 2
