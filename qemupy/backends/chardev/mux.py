"""The multiplexer: several frontends share one backend; Ctrl-a is the escape key, as in QEMU.

Input goes to the frontend with the focus; `Ctrl-a c` moves the focus on. Output of all frontends goes out. `quit` and
`commit` are what `Ctrl-a x` and `Ctrl-a s` do; the owner of the machine sets them.
"""

from __future__ import annotations

from collections.abc import Callable

from qemupy.backends.chardev.base import BREAK, CLOSED, MUX_IN, MUX_OUT, OPENED, CanReceive, Chardev, Event, Receive

ESCAPE = 0x01

_HELP = (
    ("h", "print this help"),
    ("x", "exit emulator"),
    ("s", "save disk data back to file (if -snapshot)"),
    ("t", "toggle console timestamps"),
    ("b", "send break (magic sysrq)"),
    ("c", "switch between console and monitor"),
    ("C-a", "sends C-a"),
)


class MuxFrontend(Chardev):
    """One user of the mux; for a device or monitor it is the backend."""

    def __init__(self, mux: Mux) -> None:
        super().__init__(mux.label, "mux")
        self._mux = mux

    def connect(self, receive: Receive, can_receive: CanReceive, event: Event | None = None) -> None:
        super().connect(receive, can_receive, event)
        self._mux.resume()

    def write(self, data: bytes) -> None:
        self._mux.write_stamped(data)

    def _resume_input(self) -> None:
        self._mux.resume()


class Mux:
    """Sits on `backend` as its only frontend. The first frontend added has the focus at the start."""

    def __init__(self, backend: Chardev, now: Callable[[], int]) -> None:
        self.label = backend.label
        backend.label += "-base"
        self.backend = backend
        self.frontends: list[MuxFrontend] = []
        self.focus = 0
        self.quit: Callable[[], None] | None = None
        self.commit: Callable[[], None] | None = None
        self._now = now
        self._escaped = False
        self._stamps = False
        self._stamp_start = 0
        self._line_start = True
        backend.connect(self._receive, self._room, self._on_event)

    def frontend(self) -> MuxFrontend:
        made = MuxFrontend(self)
        made.open = self.backend.open
        self.frontends.append(made)
        return made

    def set_focus(self, n: int) -> None:
        self.frontends[self.focus].send_event(MUX_OUT)
        self.focus = n
        self.frontends[n].send_event(MUX_IN)
        self.frontends[n].accept_input()

    def resume(self) -> None:
        self.backend.accept_input()

    def _room(self) -> int:
        return Chardev.PENDING_LIMIT if self.frontends else 0

    def _receive(self, data: bytes) -> None:
        plain = bytearray()
        for byte in data:
            if self._escaped:
                self._escaped = False
                if byte == ESCAPE:
                    plain.append(byte)
                    continue
                self._feed(plain)
                plain = bytearray()
                self._command(chr(byte))
            elif byte == ESCAPE:
                self._escaped = True
            else:
                plain.append(byte)
        self._feed(plain)

    def _feed(self, data: bytearray) -> None:
        """Beyond the limit input is dropped, or a guest that never reads would keep the escape key from working."""
        if data and self.frontends and len(self.frontends[self.focus]._pending) < Chardev.PENDING_LIMIT:
            self.frontends[self.focus].feed(bytes(data))

    def _command(self, key: str) -> None:
        if key in "h?":
            lines = "".join(f"C-a {k:<5}{text}\n\r" for k, text in _HELP)
            self.backend.write(("\n\r" + lines).encode())
        elif key == "x":
            self.backend.write(b"QEMU: Terminated\n\r")
            if self.quit is not None:
                self.quit()
        elif key == "s" and self.commit is not None:
            self.commit()
        elif key == "b":
            self.frontends[self.focus].send_event(BREAK)
        elif key == "c" and len(self.frontends) > 1:
            self.set_focus((self.focus + 1) % len(self.frontends))
        elif key == "t":
            self._stamps = not self._stamps
            self._stamp_start = self._now()
            self._line_start = False

    def write_stamped(self, data: bytes) -> None:
        if not self._stamps:
            self.backend.write(data)
            return
        out = bytearray()
        for byte in data:
            if self._line_start:
                ms = (self._now() - self._stamp_start) // 1_000_000
                s = ms // 1000
                out += f"[{s // 3600:02d}:{s // 60 % 60:02d}:{s % 60:02d}.{ms % 1000:03d}] ".encode()
                self._line_start = False
            out.append(byte)
            self._line_start = byte == 0x0A
        self.backend.write(bytes(out))

    def _on_event(self, event: str) -> None:
        if event in (OPENED, CLOSED):
            for frontend in self.frontends:
                frontend.send_event(event)
        elif self.frontends:
            self.frontends[self.focus].send_event(event)
