"""Chardevs on host descriptors: stdio, files, named pipes, ptys.

Output is written at once, without blocking, on the thread of the writer (a system call costs less than waking the main
loop); what the host does not take is queued and sent by the main loop when the descriptor becomes writable.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import time
from typing import Any

from qemupy.backends.chardev.base import CLOSED, OPENED, Chardev
from qemupy.errors import BackendError
from qemupy.main_loop.loop import MainLoop


class StreamChardev(Chardev):
    """Reads `fd_in`, writes `fd_out`; either may be -1, both may be the same."""

    OUTPUT_LIMIT = 1 << 20

    def __init__(self, loop: MainLoop, label: str, filename: str, fd_in: int, fd_out: int) -> None:
        super().__init__(label, filename)
        self._loop = loop
        self._in, self._out = fd_in, fd_out
        self._reading = False
        self._queue = bytearray()
        for fd in {fd_in, fd_out} - {-1}:
            os.set_blocking(fd, False)

    def start(self) -> None:
        self.send_event(OPENED)
        self._resume_input()

    def _resume_input(self) -> None:
        if self._in >= 0 and self.open and self.connected and not self._reading:
            self._reading = True
            self._update_watch()

    def _update_watch(self) -> None:
        read = self._on_readable if self._reading else None
        write = self._on_writable if self._queue else None
        if self._in == self._out:
            self._loop.watch(self._in, read, write)
            return
        if self._in >= 0:
            self._loop.watch(self._in, read)
        if self._out >= 0:
            self._loop.watch(self._out, None, write)

    def _on_readable(self) -> None:
        try:
            data = os.read(self._in, 4096)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._reading = False
            self._update_watch()
            self.on_eof()
        elif not self.feed(data):
            self._reading = False
            self._update_watch()

    def on_eof(self) -> None:
        """The host's side ended: there is no more input; output may still go out."""
        self._loop.unwatch(self._in)
        if self._in != self._out:
            self._in = -1
        self.send_event(CLOSED)

    def write(self, data: bytes) -> None:
        if self._out < 0:
            return
        if not self._queue:
            data = data[self._send(data) :]
            if not data:
                return
            self._queue += data
            self._update_watch()
        elif len(self._queue) < self.OUTPUT_LIMIT:
            self._queue += data

    def _send(self, data: bytes | bytearray) -> int:
        try:
            return os.write(self._out, data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            return len(data)  # nobody listens: the bytes are lost, as on an open serial line

    def _on_writable(self) -> None:
        del self._queue[: self._send(self._queue)]
        if not self._queue:
            self._update_watch()

    def drain(self) -> None:
        end = time.monotonic() + 1.0
        while self._queue and self._out >= 0 and time.monotonic() < end:
            select.select([], [self._out], [], 0.1)
            del self._queue[: self._send(self._queue)]

    def close(self) -> None:
        self.drain()
        for fd in {self._in, self._out} - {-1}:
            self._loop.unwatch(fd)
            if fd > 2:
                os.close(fd)
        self._in = self._out = -1
        self._reading = False


class StdioChardev(StreamChardev):
    """The terminal qemupy was started on, in raw mode; signals from the keyboard stay on unless `signals` is off."""

    in_use = False

    def __init__(self, loop: MainLoop, label: str, signals: bool = True) -> None:
        if StdioChardev.in_use:
            raise BackendError("cannot use stdio by multiple character devices")
        StdioChardev.in_use = True
        sys.stdout.flush()
        self._blocking = {fd: os.get_blocking(fd) for fd in (0, 1)}
        super().__init__(loop, label, "stdio", 0, 1)
        self._saved: list[Any] | None = None
        with contextlib.suppress(termios.error):
            self._saved = termios.tcgetattr(0)
            termios.tcsetattr(0, termios.TCSANOW, _raw(self._saved, signals))

    def close(self) -> None:
        super().close()
        if StdioChardev.in_use:
            StdioChardev.in_use = False
            if self._saved is not None:
                termios.tcsetattr(0, termios.TCSANOW, self._saved)
            for fd, blocking in self._blocking.items():
                os.set_blocking(fd, blocking)


def _raw(attributes: list[Any], signals: bool) -> list[Any]:
    """As QEMU sets its terminal: no echo, no line editing, output processing kept."""
    raw = list(attributes)
    raw[0] &= ~(
        termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP | termios.INLCR | termios.IGNCR
        | termios.ICRNL | termios.IXON
    )  # fmt: skip
    raw[1] |= termios.OPOST
    raw[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.IEXTEN)
    if not signals:
        raw[3] &= ~termios.ISIG
    raw[2] = raw[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    raw[6] = list(raw[6])
    raw[6][termios.VMIN], raw[6][termios.VTIME] = 1, 0
    return raw


class PtyChardev(StreamChardev):
    """The guest's line on a new pseudo terminal. While nobody has the slave side open, output is lost and the master
    would report hang-up without end, so it is looked at only once a second."""

    POLL_NS = 1_000_000_000

    def __init__(self, loop: MainLoop, label: str) -> None:
        try:
            master, slave = os.openpty()
        except OSError as e:
            raise BackendError(f"Failed to create PTY: {e.strerror}") from None
        self.path = os.ttyname(slave)
        attributes = termios.tcgetattr(slave)
        raw = _raw(attributes, signals=False)
        raw[1] &= ~termios.OPOST
        termios.tcsetattr(slave, termios.TCSANOW, raw)
        os.close(slave)
        super().__init__(loop, label, f"pty:{self.path}", master, master)
        self._retry = loop.realtime.timer(self._look)
        self._retry.mod(loop.realtime.now())

    def start(self) -> None:
        pass  # opened when somebody opens the slave side

    def _look(self) -> None:
        poll = select.poll()
        poll.register(self._in, select.POLLIN)
        if any(events & select.POLLHUP for _, events in poll.poll(0)):
            self._retry.mod(self._loop.realtime.now() + self.POLL_NS)
        elif not self.open:
            self.send_event(OPENED)
            self._resume_input()

    def write(self, data: bytes) -> None:
        if not self.open:
            self._look()
        if self.open:
            super().write(data)

    def on_eof(self) -> None:
        self._queue.clear()
        self._loop.unwatch(self._in)
        self.send_event(CLOSED)
        self._retry.mod(self._loop.realtime.now() + self.POLL_NS)

    def close(self) -> None:
        self._retry.cancel()
        super().close()


def open_file(loop: MainLoop, label: str, path: str, append: bool = False) -> StreamChardev:
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_APPEND if append else os.O_TRUNC)
    return StreamChardev(loop, label, "file", -1, _open(path, flags))


def open_pipe(loop: MainLoop, label: str, path: str) -> StreamChardev:
    """`path.in` and `path.out` where both exist, else `path` for both ways; opened so that no peer is needed."""
    if os.path.exists(path + ".in") and os.path.exists(path + ".out"):
        fd_in, fd_out = _open(path + ".in", os.O_RDWR | os.O_CLOEXEC), _open(path + ".out", os.O_RDWR | os.O_CLOEXEC)
    else:
        fd_in = fd_out = _open(path, os.O_RDWR | os.O_CLOEXEC)
    return StreamChardev(loop, label, "pipe", fd_in, fd_out)


def open_device(loop: MainLoop, label: str, path: str) -> StreamChardev:
    """A host serial line or another terminal."""
    fd = _open(path, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    with contextlib.suppress(termios.error):
        raw = _raw(termios.tcgetattr(fd), signals=False)
        raw[1] &= ~termios.OPOST
        termios.tcsetattr(fd, termios.TCSANOW, raw)
    return StreamChardev(loop, label, "serial", fd, fd)


def _open(path: str, flags: int) -> int:
    if path.startswith("/dev/fdset/"):
        raise BackendError(f"Could not open '{path}': fd sets are not supported")
    try:
        return os.open(path, flags, 0o666)
    except OSError as e:
        raise BackendError(f"Could not open '{path}': {e.strerror}") from None
