"""Where a machine goes to and comes from: `migrate URI` and `-incoming URI`.

    file:PATH             a file, there whole or not at all
    exec:COMMAND          a shell command's input, or output
    unix:PATH             a Unix socket
    tcp:HOST:PORT         TCP
    fd:NUMBER             a descriptor this process was started with

All calls here block and run on workers; `abort` makes them fail, from any thread. Over sockets the destination answers
with a line when it has taken the machine over, or why it cannot, so that the source can go on.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from typing import TYPE_CHECKING

from qemupy.errors import BackendError, ConfigError

if TYPE_CHECKING:
    import socket  # imported where it is used, as subprocess is: most machines never migrate

_POLL_MS = 50
_CHUNK = 1 << 20
_ANSWER_LIMIT = 1024
READY, CAUGHT_UP = b"ready\n", b"so far\n"
PROTOCOLS = ("file", "exec", "unix", "tcp", "fd")


class Channel:
    """A byte stream in one direction, over a descriptor."""

    def __init__(self, fd: int, what: str, finish: Callable[[], None] | None = None,
                 discard: Callable[[], None] | None = None, answers: bool = False) -> None:  # fmt: skip
        self.fd, self.what, self.answers = fd, what, answers
        self._finish, self._discard = finish, discard
        self._aborted = False
        self._buffer = memoryview(b"")
        os.set_blocking(fd, False)

    def _wait(self, events: int) -> None:
        poll = select.poll()
        poll.register(self.fd, events)
        while not self._aborted:
            if poll.poll(_POLL_MS):
                return
        raise BackendError(f"{self.what}: cancelled")

    def write(self, data: bytes) -> None:
        """All of it. BackendError: the other side is gone, or the disk is full; with its answer if there is one."""
        view = memoryview(data)
        while view:
            if self._aborted:
                raise BackendError(f"{self.what}: cancelled")
            try:
                view = view[os.write(self.fd, view) :]
            except BlockingIOError:
                self._wait(select.POLLOUT)
            except OSError as e:
                self._refused()
                raise BackendError(f"Unable to write to {self.what}: {e.strerror}") from None

    def read(self, size: int) -> bytes:
        """`size` bytes, fewer at the end of the stream; memory is taken as they come."""
        got = bytearray()
        while len(got) < size:
            if not self._buffer:
                self._buffer = memoryview(self._receive())
                if not self._buffer:
                    break
            part = self._buffer[: size - len(got)]
            got += part
            self._buffer = self._buffer[len(part) :]
        return bytes(got)

    def _receive(self) -> bytes:
        while True:
            try:
                return os.read(self.fd, _CHUNK)
            except BlockingIOError:
                self._wait(select.POLLIN)
            except OSError as e:
                raise BackendError(f"Unable to read from {self.what}: {e.strerror}") from None

    def _refused(self) -> None:
        """After a write failed: what the destination said, if it said something."""
        if self.answers:
            try:
                answer = os.read(self.fd, _ANSWER_LIMIT)
            except OSError:
                return
            self._check_answer(answer)

    def _check_answer(self, answer: bytes, good: bytes = READY) -> None:
        if answer != good:
            text = answer.decode("utf-8", "replace").strip()
            raise BackendError(f"the destination refuses: {text}" if text else "the destination has gone")

    def _answer_line(self) -> bytes:
        answer = b""
        while not answer.endswith(b"\n") and (part := self._receive()) and len(answer) < _ANSWER_LIMIT:
            answer += part
        return answer

    def catch_up(self) -> None:
        """Wait until the destination says that it has taken all so far: what lies in sockets would add to the time the
        guest stands."""
        self._check_answer(self._answer_line(), CAUGHT_UP)

    def caught_up(self) -> None:
        """The destination's part of that."""
        if self.answers:
            self.write(CAUGHT_UP)

    def finish(self) -> None:
        """Everything was written: make it lasting, or wait until the destination has taken over."""
        if self.answers:
            self._check_answer(self._answer_line())
        if self._finish is not None:
            finish, self._finish, self._discard = self._finish, None, None
            finish()

    def answer(self, error: str = "") -> None:
        """The destination's word to the source."""
        if self.answers:
            self._aborted = False
            self.write(error.encode()[: _ANSWER_LIMIT - 1] + b"\n" if error else READY)

    def abort(self) -> None:
        self._aborted = True

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        if self._discard is not None:
            discard, self._discard = self._discard, None
            discard()


def split(uri: str) -> tuple[str, str]:
    """Protocol and the rest of a URI that is well formed."""
    kind, colon, rest = uri.partition(":")
    if kind not in PROTOCOLS or not colon or not rest:
        raise ConfigError(f"unknown migration protocol: {uri}")
    if kind == "fd" and not rest.isdigit():
        raise ConfigError(f"File descriptor named '{rest}' has not been found")
    if kind == "tcp":
        _host_port(rest)
    return kind, rest


def _host_port(text: str) -> tuple[str, int]:
    """`host:port`, `[v6]:port`, `:port`; options behind a comma are not ours."""
    host, colon, port = text.split(",")[0].rpartition(":")
    if not colon or not port.isdigit() or int(port) > 0xFFFF:
        raise ConfigError(f"error parsing address '{text}'")
    return host.strip("[]"), int(port)


def connect(uri: str) -> Channel:
    """The way out."""
    import socket

    kind, rest = split(uri)
    if kind == "file":
        return _create(rest)
    if kind == "exec":
        return _command(rest, True)
    if kind == "fd":
        return Channel(_descriptor(rest), f"descriptor {rest}")
    try:
        if kind == "unix":
            peer = socket.socket(socket.AF_UNIX)
            peer.connect(rest)
        else:
            host, port = _host_port(rest)
            peer = socket.create_connection((host or "localhost", port), timeout=30)
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError as e:
        raise BackendError(f"Failed to connect to '{rest}': {e.strerror or e}") from None
    return Channel(peer.detach(), "socket", answers=True)


def _create(path: str) -> Channel:
    half = f"{path}.{os.getpid()}"
    try:
        fd = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise BackendError(f"cannot write {path}: {e.strerror}") from None

    def finish() -> None:
        try:
            os.fsync(fd)
            os.replace(half, path)
        except OSError as e:
            os.unlink(half)
            raise BackendError(f"cannot write {path}: {e.strerror}") from None

    return Channel(fd, path, finish, lambda: os.unlink(half))


def _command(text: str, write: bool) -> Channel:
    """The child has a process group of its own, so that a cancelled one ends with all it started."""
    import subprocess

    child = subprocess.Popen(
        ["/bin/sh", "-c", text],
        stdin=subprocess.PIPE if write else subprocess.DEVNULL,
        stdout=None if write else subprocess.PIPE,
        start_new_session=True,
    )
    pipe = child.stdin if write else child.stdout
    assert pipe is not None
    fd = os.dup(pipe.fileno())
    pipe.close()
    channel = Channel(fd, "command")

    def finish() -> None:
        os.close(channel.fd)
        channel.fd = -1
        if status := child.wait():
            raise BackendError(f"command exited with status {status}")

    def discard() -> None:
        import contextlib
        import signal

        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGTERM)
        child.wait()

    channel._finish, channel._discard = finish, discard
    return channel


def _descriptor(text: str) -> int:
    try:
        return os.dup(int(text))
    except OSError as e:
        raise BackendError(f"descriptor {text}: {e.strerror}") from None


class Listener:
    """The way in: bound at once, so that mistakes show; `accept` waits for the machine."""

    def __init__(self, uri: str) -> None:
        self._kind, self._rest = split(uri)
        self.what = uri
        self._aborted = False
        self._socket: socket.socket | None = None
        self._channel: Channel | None = None
        try:
            self._bind()
        except OSError as e:
            raise BackendError(f"{uri}: {e.strerror or e}") from None

    def _bind(self) -> None:
        import socket

        if self._kind == "file":
            self._channel = Channel(os.open(self._rest, os.O_RDONLY | os.O_CLOEXEC), self._rest)
        elif self._kind == "exec":
            self._channel = _command(self._rest, False)
        elif self._kind == "fd":
            self._channel = Channel(_descriptor(self._rest), self.what)
        elif self._kind == "unix":
            if os.path.exists(self._rest):
                os.unlink(self._rest)
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.bind(self._rest)
            self._socket.listen(1)
        else:
            host, port = _host_port(self._rest)
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._socket = socket.create_server(("" if host == "0" else host, port), family=family, backlog=1)

    @property
    def port(self) -> int:
        """The TCP port bound to, for those who asked for port 0."""
        return int(self._socket.getsockname()[1]) if self._socket is not None else 0

    def accept(self) -> Channel:
        if self._socket is not None:
            poll = select.poll()
            poll.register(self._socket, select.POLLIN)
            while not poll.poll(_POLL_MS):
                if self._aborted:
                    raise BackendError(f"{self.what}: cancelled")
            peer, _ = self._socket.accept()
            self._socket.close()
            self._channel = Channel(peer.detach(), "socket", answers=True)
        assert self._channel is not None
        return self._channel

    def abort(self) -> None:
        self._aborted = True
        if self._channel is not None:
            self._channel.abort()

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        if self._channel is not None:
            self._channel.close()
