"""Every chardev against a real host peer."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from qemupy.backends.chardev import BREAK, CLOSED, OPENED
from qemupy.backends.chardev.base import Chardev
from qemupy.backends.chardev.options import Chardevs, parse_short
from qemupy.errors import BackendError, ConfigError
from qemupy.main_loop.loop import MainLoop


class Front:
    """A frontend that takes everything unless `room` says otherwise."""

    def __init__(self, backend: Chardev) -> None:
        self.got, self.events, self.room = bytearray(), list[str](), 100
        self.backend = backend
        backend.connect(self.receive, lambda: self.room, self.events.append)

    def receive(self, data: bytes) -> None:
        self.got += data


@pytest.fixture
def loop() -> Iterator[MainLoop]:
    made = MainLoop()
    yield made
    made.close()


@pytest.fixture
def chardevs(loop: MainLoop) -> Iterator[Chardevs]:
    made = Chardevs(loop)
    yield made
    made.close()


def front(chardevs: Chardevs, text: str) -> Front:
    return Front(chardevs.frontend(chardevs.add(text)))


def test_file_and_ringbuf(chardevs: Chardevs, tmp_path: Path) -> None:
    out = front(chardevs, f"file,id=f,path={tmp_path}/out")
    out.backend.write(b"hello")
    assert (tmp_path / "out").read_bytes() == b"hello"
    ring = front(chardevs, "ringbuf,id=r,size=4")
    ring.backend.write(b"abcdef")
    assert ring.backend.take(3) == b"cde" and ring.backend.take(9) == b"f"  # type: ignore[attr-defined]
    assert chardevs.describe() == ["f: filename=file", "r: filename=ringbuf"]


def test_pipe_both_ways(chardevs: Chardevs, loop: MainLoop, tmp_path: Path) -> None:
    for end in (".in", ".out"):
        os.mkfifo(f"{tmp_path}/p{end}")
    dev = front(chardevs, f"pipe,id=p,path={tmp_path}/p")
    peer_in, peer_out = os.open(f"{tmp_path}/p.in", os.O_WRONLY), os.open(f"{tmp_path}/p.out", os.O_RDONLY)
    os.write(peer_in, b"to guest")
    assert loop.run_until(lambda: dev.got == b"to guest")
    dev.backend.write(b"from guest")
    assert os.read(peer_out, 99) == b"from guest"
    os.close(peer_in)
    os.close(peer_out)


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_socket_server_takes_one_peer_after_another(
    chardevs: Chardevs, loop: MainLoop, tmp_path: Path, kind: str
) -> None:
    place = f"path={tmp_path}/s" if kind == "unix" else "host=127.0.0.1,port=0"
    dev = front(chardevs, f"socket,id=s,{place},server=on,wait=off")
    assert dev.backend.filename.startswith(f"disconnected:{kind}:") and dev.events == []
    port = dev.backend.filename.split(":")[-1].split(",")[0]
    for turn in (1, 2):
        peer = socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET)
        peer.connect(f"{tmp_path}/s" if kind == "unix" else ("127.0.0.1", int(port)))
        peer.send(b"in%d" % turn)
        assert loop.run_until(lambda turn=turn: dev.got.endswith(b"in%d" % turn))  # type: ignore[misc]
        dev.backend.write(b"out")
        assert peer.recv(9) == b"out" and "server=on" in dev.backend.filename
        peer.close()
        assert loop.run_until(lambda: dev.events[-1] == CLOSED)
    assert dev.events == [OPENED, CLOSED, OPENED, CLOSED]


def test_socket_flow_control_both_ways(chardevs: Chardevs, loop: MainLoop, tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{tmp_path}/s")
    listener.listen(1)
    dev = front(chardevs, f"socket,id=s,path={tmp_path}/s")
    peer = listener.accept()[0]
    dev.room = 0
    peer.sendall(b"x" * 20000)
    loop.run_until(lambda: False, 0.1)
    assert not dev.got
    dev.room = 7

    def pump() -> bool:
        dev.backend.accept_input()
        return len(dev.got) == 20000

    assert loop.run_until(pump)
    data = os.urandom(600_000)
    dev.backend.write(data)
    received = bytearray()
    peer.setblocking(False)

    def drain() -> bool:
        try:
            received.extend(peer.recv(65536))
        except BlockingIOError:
            pass
        return len(received) == len(data)

    assert loop.run_until(drain) and received == data
    peer.close()
    listener.close()


def test_telnet(chardevs: Chardevs, loop: MainLoop) -> None:
    dev = front(chardevs, "socket,id=s,host=127.0.0.1,port=0,server,nowait,telnet")
    port = int(dev.backend.filename.split(":")[-1].split(",")[0])
    peer = socket.create_connection(("127.0.0.1", port))
    peer.send(b"a\xff\xfd")
    assert loop.run_until(lambda: dev.got == b"a")
    peer.send(b"\x03b\xff\xffc\xff\xf3\xff\xfa\x18\x00\xff\xf0d")
    assert loop.run_until(lambda: dev.got == b"ab\xffcd") and BREAK in dev.events
    dev.backend.write(b"1\xff2")
    assert peer.recv(99).endswith(b"1\xff\xff2")
    peer.close()


def test_pty(chardevs: Chardevs, loop: MainLoop, capfd: pytest.CaptureFixture[str]) -> None:
    dev = front(chardevs, "pty,id=p")
    path = dev.backend.filename.removeprefix("pty:")
    assert capfd.readouterr().out == f"char device redirected to {path} (label p)\n"
    slave = os.open(path, os.O_RDWR | os.O_NOCTTY)
    dev.backend.write(b"login:")
    assert os.read(slave, 99) == b"login:" and dev.events == [OPENED]
    os.write(slave, b"root\r")
    assert loop.run_until(lambda: dev.got == b"root\r")
    os.close(slave)
    assert loop.run_until(lambda: dev.events[-1] == CLOSED)


def test_mux_escapes(chardevs: Chardevs, loop: MainLoop) -> None:
    label = chardevs.add("ringbuf,id=m,mux=on,size=4096")
    serial, monitor = Front(chardevs.frontend(label)), Front(chardevs.frontend(label))
    quits: list[int] = []
    chardevs.on_quit = lambda: quits.append(1)
    backend = chardevs.backends["m"]
    backend.feed(b"ls\x01c")
    backend.feed(b"info\x01")
    backend.feed(b"c\x01\x01\x01b")
    assert serial.got == b"ls\x01" and monitor.got == b"info"
    assert serial.events == [OPENED, "mux_out", "mux_in", BREAK]
    assert monitor.events == [OPENED, "mux_in", "mux_out"]
    serial.backend.write(b"out")
    assert backend.take(99) == b"out"  # type: ignore[attr-defined]
    backend.feed(b"\x01h\x01x")
    shown = backend.take(999)  # type: ignore[attr-defined]
    assert b"C-a x    exit emulator\n\r" in shown and shown.endswith(b"QEMU: Terminated\n\r") and quits == [1]
    assert chardevs.describe() == ["m: filename=mux", "m-base: filename=ringbuf"]
    backend.feed(b"\x01t")
    serial.backend.write(b"\nline")
    assert backend.take(99).startswith(b"\n[00:00:00.0")  # type: ignore[attr-defined]


def test_mux_escape_works_while_the_guest_does_not_read(chardevs: Chardevs) -> None:
    label = chardevs.add("ringbuf,id=m,mux=on")
    serial, monitor = Front(chardevs.frontend(label)), Front(chardevs.frontend(label))
    serial.room = 0
    backend = chardevs.backends["m"]
    for _ in range(10):
        backend.feed(b"x" * 3000)
    backend.feed(b"\x01cquit")
    assert monitor.got == b"quit"


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("stdio", {"backend": "stdio"}),
        ("mon:stdio", {"backend": "stdio", "signal": "off", "mux": "on"}),
        ("file:/a:b", {"backend": "file", "path": "/a:b"}),
        ("tcp::4444,server,nowait", {"backend": "socket", "host": "", "port": "4444", "server": "on", "wait": "off"}),
        ("unix:/x,server=on", {"backend": "socket", "path": "/x", "server": "on"}),
        ("telnet:h:1,server", {"backend": "socket", "host": "h", "port": "1", "telnet": "on", "server": "on"}),
    ],
)
def test_short_forms(text: str, want: dict[str, str]) -> None:
    assert parse_short(text) == want


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("foo,id=a", "'foo' is not a valid char driver name"),
        ("nul,id=a", r"did you mean 'null'\?"),
        ("null", "chardev: no id specified"),
        ("file,id=a", "chardev: file: no filename given"),
        ("file,id=a,path=/no/such/x", "Could not open '/no/such/x': No such file or directory"),
        ("null,id=a,xyz=1", "Invalid parameter 'xyz'"),
        ("socket,id=a,host=127.0.0.1,port=1", "Failed to connect to '127.0.0.1:1': Connection refused"),
        ("ringbuf,id=a,size=3", "power of two"),
    ],
)
def test_bad_options(chardevs: Chardevs, text: str, message: str) -> None:
    with pytest.raises((ConfigError, BackendError), match=message):
        chardevs.add(text)
