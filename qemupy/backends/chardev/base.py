"""The Protocol between a character device (frontend) and its host side (backend), and the two simplest backends.

A frontend calls `connect(receive, can_receive, event)` once in its `realize`. The backend calls `receive(data)` with at
most `can_receive()` bytes, in the main loop with the BQL held; when the frontend has room again it calls
`accept_input()`. `write` never blocks: what the host does not take at once is queued and sent later.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

OPENED = "opened"
CLOSED = "closed"
BREAK = "break"
MUX_IN = "mux_in"  # a mux gave this frontend the focus
MUX_OUT = "mux_out"

Receive = Callable[[bytes], None]
CanReceive = Callable[[], int]
Event = Callable[[str], None]


class CharBackend(Protocol):
    def connect(self, receive: Receive, can_receive: CanReceive, event: Event | None = None) -> None: ...

    def write(self, data: bytes) -> None: ...

    def accept_input(self) -> None:
        """The frontend can receive again."""


class Chardev:
    """Common part of all backends: the frontend's callbacks and the input waiting for it.

    `describe` is what `info chardev` prints; `close` must leave the host as it was found.
    """

    PENDING_LIMIT = 4096

    def __init__(self, label: str, filename: str) -> None:
        self.label = label
        self.filename = filename
        self.open = False
        self.taken = False  # a frontend was given to somebody
        self.held = False  # input waits: the frontend is about to become another one
        self._pending = bytearray()
        self._receive: Receive | None = None
        self._can_receive: CanReceive = lambda: 0
        self._event: Event | None = None

    def connect(self, receive: Receive, can_receive: CanReceive, event: Event | None = None) -> None:
        self._receive, self._can_receive, self._event = receive, can_receive, event
        if self.open and event is not None:
            event(OPENED)
        self.accept_input()

    @property
    def connected(self) -> bool:
        return self._receive is not None

    def write(self, data: bytes) -> None:
        raise NotImplementedError

    def accept_input(self) -> None:
        self._deliver()
        if not self._pending:
            self._resume_input()

    def feed(self, data: bytes) -> bool:
        """Input from the host. False asks the backend to stop reading until `_resume_input`."""
        self._pending += data
        self._deliver()
        return len(self._pending) < self.PENDING_LIMIT

    def _deliver(self) -> None:
        while self._pending and self._receive is not None and not self.held:
            room = self._can_receive()
            if room <= 0:
                return
            data = bytes(self._pending[:room])
            del self._pending[:room]
            self._receive(data)

    def _resume_input(self) -> None:
        """Start reading from the host again."""

    def send_event(self, event: str) -> None:
        if event in (OPENED, CLOSED):
            self.open = event == OPENED
        if self._event is not None:
            self._event(event)

    def describe(self) -> str:
        return f"{self.label}: filename={self.filename}"

    def close(self) -> None:
        """Release host resources; queued output has been given its chance by `drain`."""

    def drain(self) -> None:
        """Try once more to send queued output, blocking briefly."""


class NullChardev(Chardev):
    """Swallows everything."""

    def __init__(self, label: str = "null") -> None:
        super().__init__(label, "null")
        self.open = True

    def write(self, data: bytes) -> None:
        pass


class FakeChardev(Chardev):
    """For device tests: `output` collects what the guest wrote, `feed` types."""

    def __init__(self, label: str = "fake") -> None:
        super().__init__(label, "fake")
        self.open = True
        self.output = bytearray()

    def write(self, data: bytes) -> None:
        self.output += data
