"""Monitors on chardevs: prompt, echo, editing, completion, the mux."""

from __future__ import annotations

from qemupy.backends.chardev import CLOSED, OPENED, FakeChardev
from qemupy.monitor.hmp import HmpSession
from qemupy.monitor.readline import Readline
from tests.monitor.conftest import Bench

BANNER = b"QEMU 7.2.22 monitor - type 'help' for more information\r\n(qemu) "


def session(mon: Bench) -> FakeChardev:
    chardev = FakeChardev()
    HmpSession(mon.vm, chardev)
    assert bytes(chardev.output) == BANNER
    chardev.output.clear()
    return chardev


def test_prompt_echo_and_answer(mon: Bench) -> None:
    chardev = session(mon)
    with mon.vm.bql:
        chardev.feed(b"info name\n")
    assert bytes(chardev.output) == b"info name\r\nfoo\r\n(qemu) "


def test_a_new_peer_gets_a_fresh_line(mon: Bench) -> None:
    chardev = session(mon)
    chardev.feed(b"half a comm")
    chardev.send_event(CLOSED)
    chardev.output.clear()
    chardev.send_event(OPENED)
    with mon.vm.bql:
        chardev.feed(b"info name\r\n")
    assert bytes(chardev.output) == BANNER + b"info name\r\nfoo\r\n(qemu) "


def test_mux_switches_between_guest_and_monitor(mon: Bench) -> None:
    label = mon.vm.chardevs.add("ringbuf,id=m,mux=on")
    serial = mon.vm.chardevs.frontend(label)
    typed: list[bytes] = []
    serial.connect(typed.append, lambda: 100)
    HmpSession(mon.vm, mon.vm.chardevs.frontend(label))
    backend = mon.vm.chardevs.backends["m"]
    take = backend.take  # type: ignore[attr-defined]
    assert take(999) == b""
    with mon.vm.bql:
        backend.feed(b"ls\r\x01c")
        assert take(999) == BANNER and typed == [b"ls\r"]
        backend.feed(b"info name\r")
        assert take(999) == b"info name\r\nfoo\r\n(qemu) "
        backend.feed(b"\x01cpwd\r")
    assert typed == [b"ls\r", b"pwd\r"]


class Editor:
    """A Readline with a one-line terminal behind it."""

    def __init__(self, *words: str) -> None:
        self.out, self.lines = "", list[str]()
        self.readline = Readline(self._write, "> ", self.lines.append, lambda t: [w for w in words if w.startswith(t)])

    def _write(self, text: str) -> None:
        self.out += text

    def type(self, text: str) -> str:
        """What stands on the line after typing."""
        self.readline.feed(text.encode())
        cells: list[str] = []
        at = 0
        for char in self.out.rpartition("\n")[2].replace("\x1b[K", "\0"):
            if char == "\b":
                at -= 1
            elif char == "\0":
                del cells[at:]
            else:
                cells[at : at + 1] = [char]
                at += 1
        return "".join(cells)


def test_editing_keys_show_what_is_entered() -> None:
    editor = Editor()
    assert editor.type("helo\x1b[Dl") == "hello"
    assert editor.type("\x01X\x05Y") == "XhelloY"
    assert editor.type("\x7f\x1b[H\x1b[3~") == "hello"
    assert editor.type("\x05 big world\x17") == "hello big "
    assert editor.type("\x02\x02\x02\x02\x0b") == "hello "
    editor.type("\r")
    assert editor.lines == ["hello "]


def test_history() -> None:
    editor = Editor()
    editor.type("one\rtwo\rtwo\r")
    assert editor.type("\x1b[A") == "two" and editor.type("\x1b[A") == "one" and editor.type("\x1b[B\x1b[B") == ""
    editor.type("\x10\x10\r")
    assert editor.lines == ["one", "two", "two", "one"]


def test_tab_completes_and_lists() -> None:
    editor = Editor("system_reset", "system_powerdown", "stop")
    assert editor.type("sy\t") == "system_"
    assert editor.type("\t") == "> system_" and "system_powerdown" in editor.out
    editor.type("r\t\r")
    assert editor.lines == ["system_reset "]


def test_no_prompt_after_quit(mon: Bench) -> None:
    chardev = session(mon)
    with mon.vm.bql:
        chardev.feed(b"quit\n")
    assert bytes(chardev.output) == b"quit\r\n"
