"""The NBD client against qemu-nbd and nbdkit, against servers that vanish, and against a hostile one."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qemupy.backends.block.nbd.address import parse_filename
from qemupy.errors import BackendError, QemupyError
from qemupy.vm import RunState
from tests.block.conftest import Host, Machine

MIB = 1 << 20


def ready(path: Path) -> bool:
    """A server listens a moment after its socket has appeared."""
    if not path.is_socket():
        return path.exists()
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(str(path)) == 0


@contextlib.contextmanager
def server(command: list[str], path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Runs until the end of the block; `path` is the socket it makes."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        for _ in range(2000):
            if ready(path) or process.poll() is not None:
                break
            time.sleep(0.01)
        assert process.poll() is None, command
        yield process
    finally:
        process.kill()
        process.wait()


def qemu_nbd(path: Path, image: Path, *options: str) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    return server(["qemu-nbd", "-t", "-e", "8", "-f", "raw", "-k", str(path), *options, str(image)], path)


def nbdkit(path: Path, *options: str) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    return server(["nbdkit", "-f", "-U", str(path), *options], path)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(4 * MIB))
    return path


def patterns(host: Host, text: str, content: bytearray) -> None:
    """Reads and writes of many shapes, several under way; `content` is what the disk holds before and after."""
    drive = host.drive(text)
    assert drive.length == -(-len(content) // 512) * 512
    calls = []
    buffers = []
    for offset, length in ((0, 512), (100, 3000), (MIB - 7, 20000), (2 * MIB, MIB), (len(content) - 512, 512)):
        buffer = bytearray(length)
        buffers.append((offset, buffer))
        calls.append((drive.read, offset, buffer))
    assert set(host.wait(*calls)) == {0}
    for offset, buffer in buffers:
        assert buffer == content[offset : offset + len(buffer)]
    calls = []
    for offset, length in ((512, 1024), (5000, 70000), (MIB, 300001), (3 * MIB + 1, 511)):
        data = os.urandom(length)
        content[offset : offset + length] = data
        calls.append((drive.write, offset, data))
    assert set(host.wait(*calls)) == {0}
    vector = [memoryview(os.urandom(4096)) for _ in range(40)]
    content[2 * MIB : 2 * MIB + 163840] = b"".join(vector)
    assert host.wait((drive.writev, 2 * MIB, vector)) == [0]
    assert host.wait((drive.write_zeroes, 65536, 131072, True), (drive.discard, 3 * MIB, 65536)) == [0, 0]
    content[65536 : 65536 + 131072] = bytes(131072)
    whole = bytearray(len(content))
    view = memoryview(whole)
    parts = [view[at : at + 8192] for at in range(0, len(whole), 8192)]
    assert host.wait((drive.flush,), (drive.readv, 0, parts)) == [0, 0]
    content[3 * MIB : 3 * MIB + 65536] = whole[3 * MIB : 3 * MIB + 65536]  # after a discard anything goes
    assert whole == content


def test_qemu_nbd(host: Host, disk: Path, tmp_path: Path) -> None:
    content = bytearray(disk.read_bytes())
    with qemu_nbd(tmp_path / "s", disk, "--discard=unmap"):
        patterns(host, f"file=nbd:unix:{tmp_path}/s,format=raw,discard=unmap", content)
        host.close_drives()
    assert disk.read_bytes()[: 3 * MIB] == content[: 3 * MIB]


def test_export_names_tcp_and_options(host: Host, disk: Path, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pid = tmp_path / "pid"
    command = ["qemu-nbd", "-t", "-f", "raw", "-x", "exp", "-b", "127.0.0.1", "-p", str(port), "--pid-file", str(pid)]
    with server([*command, str(disk)], pid):
        for text in (
            f"file=nbd:127.0.0.1:{port}:exportname=exp",
            f"file=nbd://127.0.0.1:{port}/exp",
            f"driver=raw,file.driver=nbd,file.server.type=inet,file.server.host=127.0.0.1,file.server.port={port},"
            "file.export=exp",
            f"driver=nbd,host=127.0.0.1,port={port},export=exp",
        ):
            drive = host.drive(text)
            buffer = bytearray(100)
            assert host.wait((drive.read, MIB, buffer)) == [0] and buffer == disk.read_bytes()[MIB : MIB + 100]
            assert drive.node is not None and drive.node.filename == f"nbd://127.0.0.1:{port}/exp"
            host.close_drives()
        with pytest.raises(BackendError, match="Requested export not available: 'other'"):
            host.drive(f"file=nbd://127.0.0.1:{port}/other,format=raw")


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--no-sr",),
        ("--mask-handshake=0",),
        ("--filter=blocksize-policy", "blocksize-minimum=4096", "blocksize-maximum=65536", "blocksize-preferred=4096",
         "blocksize-error-policy=error"),
        ("--filter=noextents", "--filter=nozero", "--filter=delay", "rdelay=2ms"),
    ],
    ids=["plain", "simple-replies", "by-name", "block-sizes", "slow"],
)  # fmt: skip
def test_nbdkit(host: Host, disk: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    content = bytearray(disk.read_bytes())
    flags = [o for o in options if o.startswith("--")]
    with nbdkit(tmp_path / "s", *flags, "file", str(disk), *(o for o in options if not o.startswith("--"))):
        patterns(host, f"file=nbd+unix:///?socket={tmp_path}/s,format=raw,discard=unmap", content)
        host.close_drives()
    assert disk.read_bytes()[: 3 * MIB] == content[: 3 * MIB]


def test_sparse_exports_tell_their_holes(host: Host, tmp_path: Path) -> None:
    with nbdkit(tmp_path / "s", "memory", "1M"):
        drive = host.drive(f"file=nbd:unix:{tmp_path}/s,format=raw")
        assert host.wait((drive.write, 65536, b"x" * 65536)) == [0]
        node = drive.node
        assert node is not None
        first, second = node.block_status(0, MIB), node.block_status(65536, MIB - 65536)
        assert first[:3] == (65536, False, True) and second[:3] == (65536, True, False)


def test_odd_size_and_read_only(host: Host, tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    odd.write_bytes(b"o" * 700)
    with nbdkit(tmp_path / "s", "-r", "file", str(odd)):
        drive = host.drive(f"file=nbd:unix:{tmp_path}/s,format=raw")
        buffer = bytearray(b"?" * 1024)
        assert drive.readonly and drive.length == 1024
        assert host.wait((drive.read, 0, buffer)) == [0] and buffer == b"o" * 700 + bytes(324)
        with pytest.raises(BackendError, match="request for write access to read-only export"):
            host.graph.open({"driver": "nbd", "path": f"{tmp_path}/s"})


def test_forced_unit_access(host: Host, tmp_path: Path) -> None:
    """cache=writethrough: each write is durable by itself, not through a flush."""
    log = tmp_path / "log"
    with nbdkit(tmp_path / "s", "--filter=log", "memory", "1M", f"logfile={log}"):
        drive = host.drive(f"file=nbd:unix:{tmp_path}/s,format=raw,cache=writethrough")
        assert host.wait((drive.write, 0, b"x" * 512)) == [0]
        assert "fua=1" in log.read_text() and "Flush" not in log.read_text()


def test_server_errors_arrive(host: Host, tmp_path: Path) -> None:
    with nbdkit(tmp_path / "s", "--filter=error", "memory", "1M", "error-pwrite=ENOSPC", "error-pwrite-rate=100%"):
        drive = host.drive(f"file=nbd:unix:{tmp_path}/s,format=raw,werror=report")
        assert host.wait((drive.write, 0, b"x" * 512), (drive.read, 0, bytearray(512))) == [errno.ENOSPC, 0]


# Servers that vanish


def test_a_vanished_server_is_an_error_and_comes_back(host: Host, disk: Path, tmp_path: Path) -> None:
    drive = None
    with qemu_nbd(tmp_path / "s", disk) as process:
        drive = host.drive(f"file=nbd:unix:{tmp_path}/s,format=raw")
        assert host.wait((drive.read, 0, bytearray(512))) == [0]
        process.kill()
        process.wait()
        assert set(host.wait(*((drive.read, n * 512, bytearray(512)) for n in range(5)))) == {errno.EIO}
        assert host.wait((drive.flush,)) == [errno.EIO]
    (tmp_path / "s").unlink()
    with qemu_nbd(tmp_path / "s", disk):
        buffer = bytearray(512)
        assert host.wait((drive.read, 512, buffer)) == [0] and buffer == disk.read_bytes()[512:1024]
        host.close_drives()


def test_requests_under_way_when_the_server_vanishes(host: Host, tmp_path: Path) -> None:
    with nbdkit(tmp_path / "s", "--filter=delay", "memory", "1M", "rdelay=30") as process:
        drive = host.drive(f"driver=raw,file.driver=nbd,file.path={tmp_path}/s")
        errors: list[int] = []
        for n in range(4):
            drive.read(n * 4096, bytearray(4096), errors.append)
        time.sleep(0.1)
        process.kill()
        assert host.loop.run_until(lambda: len(errors) == 4) and errors == [errno.EIO] * 4


def test_the_machine_waits_for_the_server(machine: Machine, disk: Path, tmp_path: Path) -> None:
    """werror=stop: paused while the server is away; after cont nothing is lost."""
    with qemu_nbd(tmp_path / "s", disk) as process:
        drive = machine.drive(f"file=nbd:unix:{tmp_path}/s,format=raw,werror=stop,rerror=stop")
        process.kill()
        process.wait()
        machine.write(drive, "lost?", 4096, b"kept" * 128)
        machine.wait_for(RunState.IO_ERROR)
    (tmp_path / "s").unlink()
    with qemu_nbd(tmp_path / "s", disk):
        machine("cont")
        assert machine.wait("lost?") == [0] and disk.read_bytes()[4096:4608] == b"kept" * 128
        with machine.vm.bql:
            drive.close()


def test_open_timeout(host: Host, tmp_path: Path) -> None:
    """The server starts a moment later than we."""
    if shutil.which("nbdkit") is None:
        pytest.skip("nbdkit is not installed")
    process = subprocess.Popen(["sh", "-c", f"sleep 0.4; exec nbdkit -f -U {tmp_path}/s memory 1M"])
    try:
        drive = host.drive(f"driver=raw,file.driver=nbd,file.path={tmp_path}/s,file.open-timeout=10")
        assert drive.length == MIB
        host.close_drives()
    finally:
        process.kill()
        process.wait()


def test_reconnect_delay(host: Host, disk: Path, tmp_path: Path) -> None:
    """With reconnect-delay a request waits that long for the server instead of failing."""
    with qemu_nbd(tmp_path / "s", disk) as process:
        drive = host.drive(f"driver=raw,file.driver=nbd,file.path={tmp_path}/s,file.reconnect-delay=10")
        process.kill()
        process.wait()
        (tmp_path / "s").unlink()
        assert host.wait((drive.read, 0, bytearray(512))) == [errno.EIO], "what was under way fails"
        errors: list[int] = []
        drive.read(0, bytearray(512), errors.append)
        host.loop.run_until(lambda: bool(errors), 0.3)
        assert not errors
    with qemu_nbd(tmp_path / "s", disk):
        assert host.loop.run_until(lambda: bool(errors)) and errors == [0]
        host.close_drives()


def test_the_end_does_not_wait_for_a_server_that_hangs(tmp_path: Path) -> None:
    with nbdkit(tmp_path / "s", "--filter=delay", "memory", "1M", "rdelay=1000"):
        machine = Machine()
        machine.vm.DRAIN_SECONDS = 0.3  # type: ignore[misc]
        drive = machine.drive(f"driver=raw,file.driver=nbd,file.path={tmp_path}/s")
        with machine.vm.bql:
            for n in range(20):
                drive.read(n * 512, bytearray(512), lambda error: None)
        began = time.monotonic()
        machine.vm.close()
        assert time.monotonic() - began < 5


# Names and options


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("nbd:h:1:exportname=a:b", {"server.type": "inet", "server.host": "h", "server.port": "1", "export": "a:b"}),
        ("nbd:unix:/a:exportname=x", {"server.type": "unix", "server.path": "/a", "export": "x"}),
        ("nbd:[::1]:7", {"server.type": "inet", "server.host": "::1", "server.port": "7"}),
        ("nbd://h", {"server.type": "inet", "server.host": "h", "server.port": "10809"}),
        ("nbd+tcp://[::1]:3/a%20b", {"server.type": "inet", "server.host": "::1", "server.port": "3", "export": "a b"}),
        ("nbd+unix:///e/f?socket=/s", {"server.type": "unix", "server.path": "/s", "export": "e/f"}),
    ],
)
def test_file_names(name: str, found: dict[str, str]) -> None:
    assert parse_filename(name) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file=nbd:foo", "error parsing address 'foo'"),
        ("file=nbd+unix:///exp", "No valid URL specified"),
        ("file=nbd://:3/x", "No valid URL specified"),
        ("file=nbd://h:x/", "No valid URL specified"),
        ("file=nbd+foo://x", "Unknown protocol 'nbd.foo'"),
        ("file=nbd:unix:/nonexistent", "Failed to connect to '/nonexistent': No such file or directory"),
        ("file=nbd:127.0.0.1:1", "Failed to connect to '127.0.0.1:1': Connection refused"),
        ("driver=nbd", "one of path and host must be specified"),
        ("driver=nbd,path=a,host=b", "path and host may not be used at the same time"),
        ("driver=nbd,server.type=fd", "Parameter 'server.type' does not accept value 'fd'"),
        ("driver=nbd,server.type=inet,server.host=h", "Parameter 'server.port' is missing"),
        ("driver=nbd,path=/a,tls-creds=t", "TLS for NBD .* is not supported"),
    ],
)
def test_bad_names_and_options(host: Host, text: str, message: str) -> None:
    with pytest.raises(QemupyError, match=message):
        host.drive(text)


# A hostile server

INIT = struct.pack(">QQH", 0x4E42444D41474943, 0x49484156454F5054, 3)
OPTION_REPLY = 0x0003E889045565A9


def reply(option: int, kind: int, payload: bytes = b"") -> bytes:
    return struct.pack(">QIII", OPTION_REPLY, option, kind, len(payload)) + payload


def good_start(structured: bool) -> bytes:
    """Up to the transmission phase, for an export of 1 MiB."""
    export = struct.pack(">HQH", 0, MIB, 1)
    first = reply(8, 1) + reply(10, 1) if structured else reply(8, (1 << 31) + 1)
    return INIT + first + reply(7, 3, export) + reply(7, 1)


class Evil:
    """Says what it was told to say, whatever it hears."""

    def __init__(self, path: Path, *speeches: bytes) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._speeches = speeches
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            peer, _ = self._listener.accept()
            with peer:
                for speech in self._speeches:
                    peer.sendall(speech)
                peer.settimeout(2)
                while peer.recv(65536):
                    pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exc: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()


@pytest.mark.parametrize(
    ("speech", "message"),
    [
        (b"", "does not answer|Failed to read"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(16), "Bad initial magic received: 0x485454502f312e31"),
        (struct.pack(">QQ", 0x4E42444D41474943, 0x00420281861253) + bytes(200), "only oldstyle negotiation"),
        (struct.pack(">QQ", 0x4E42444D41474943, 7), "Bad server magic"),
        (INIT + struct.pack(">QIII", 1, 8, 1, 0), "Unexpected option reply"),
        (INIT + struct.pack(">QIII", OPTION_REPLY, 8, 1, 0xFFFFFFFF), "option reply of 4294967295 bytes is too long"),
        (INIT + reply(8, 4) * 200, "does not come to an end"),
        (INIT + reply(8, (1 << 31) + 5, b"go away"), "Server requires TLS.*go away"),
        (INIT + reply(8, (1 << 31) + 1) + reply(7, 1), "does not tell the size"),
        (INIT + reply(8, (1 << 31) + 1) + reply(7, 3, struct.pack(">HQH", 0, 1 << 63, 1)) + reply(7, 1), "beyond 2.63"),
        (INIT + reply(8, (1 << 31) + 1) + reply(7, 3, struct.pack(">HIII", 3, 3, 512, 1 << 20)) + reply(7, 1),
         "minimum block size 3 that is not a power of two"),
        (INIT + reply(8, (1 << 31) + 1) + reply(7, 3, struct.pack(">HIII", 3, 1, 512, 3)) + reply(7, 1),
         "maximum payload size 3"),
    ],
)  # fmt: skip
def test_hostile_handshakes(host: Host, tmp_path: Path, speech: bytes, message: str,
                            monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr("qemupy.backends.block.nbd.node.CONNECT_SECONDS", 0.3)
    with Evil(tmp_path / "s", speech), pytest.raises(BackendError, match=message):
        host.drive(f"driver=nbd,path={tmp_path}/s")


def chunk(kind: int, payload: bytes, flags: int = 1, cookie: int = 1) -> bytes:
    return struct.pack(">IHHQI", 0x668E33EF, flags, kind, cookie, len(payload)) + payload


def simple(error: int, cookie: int, data: bytes = b"") -> bytes:
    return struct.pack(">IIQ", 0x67446698, error, cookie) + data


@pytest.mark.parametrize(
    ("structured", "speech"),
    [
        (False, simple(0, 7, b"x" * 512)),
        (False, b"garbage!" * 4),
        (False, chunk(1, bytes(520))),
        (True, simple(0, 1, b"x" * 512)),
        (True, chunk(0, b"")),
        (True, chunk(0, b"x")),
        (True, chunk(1, struct.pack(">Q", 4096) + b"x" * 512)),
        (True, chunk(1, struct.pack(">Q", 0) + b"x" * 513)),
        (True, struct.pack(">IHHQI", 0x668E33EF, 1, 1, 1, 0xFFFFFFFF) + bytes(100)),
        (True, struct.pack(">IHHQI", 0x668E33EF, 1, 0x8001, 1, 0xFFFFFFFF) + bytes(100)),
        (True, chunk(2, struct.pack(">QI", 1 << 40, 512))),
        (True, chunk(5, bytes(12))),
        (True, chunk(99, b"")),
    ],
)
def test_hostile_replies(host: Host, tmp_path: Path, structured: bool, speech: bytes) -> None:
    """The request fails, the connection ends, and nothing outside its buffer changes."""
    with Evil(tmp_path / "s", good_start(structured), speech):
        drive = host.drive(f"driver=nbd,path={tmp_path}/s")
        memory = bytearray(b"?" * 1536)
        assert host.wait((drive.readv, 0, [memoryview(memory)[512:1024]])) == [errno.EIO]
        assert memory[:512] == memory[1024:] == b"?" * 512


def test_errors_by_number(host: Host, tmp_path: Path) -> None:
    first = chunk(0x8001, struct.pack(">IH", 28, 0), cookie=1)
    second = chunk(0x8001, struct.pack(">IH", 12345, 3) + b"why", cookie=2)
    with Evil(tmp_path / "s", good_start(True), first, second):
        drive = host.drive(f"driver=nbd,path={tmp_path}/s,werror=report")
        assert host.wait((drive.read, 0, bytearray(512))) == [errno.ENOSPC]
        assert host.wait((drive.read, 0, bytearray(512))) == [errno.EIO]
        host.close_drives()
