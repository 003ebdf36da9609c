"""Drives over real files: data, refusals, caches, zeroes and discards, temporary snapshots."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from qemupy.backends.block.commit import commit_node
from qemupy.backends.block.file import FileNode
from qemupy.config import DriveConfig, parse_drive
from qemupy.errors import BackendError, ConfigError, QemupyError
from tests.block.conftest import Host


def test_read_write_flush(host: Host, image: Path) -> None:
    drive = host.drive(f"file={image},format=raw")
    buffer = bytearray(1000)
    assert host.wait((drive.read, 256, buffer), (drive.write, 10000, b"hello"), (drive.flush,)) == [0, 0, 0]
    assert buffer == (bytes(range(256)) * 5)[:1000] and image.read_bytes()[10000:10005] == b"hello"
    assert host.wait((drive.read, 65000, bytearray(1000)), (drive.write, -1, b"x")) == [errno.EINVAL] * 2
    assert drive.counts.describe().startswith(
        "rd_bytes=1000 wr_bytes=5 rd_operations=1 wr_operations=1 flush_operations=1 wr_total_time_ns="
    )


def test_vectors(host: Host, image: Path) -> None:
    drive = host.drive(f"file={image},format=raw")
    memory = bytearray(8192)
    view = memoryview(memory)
    assert host.wait((drive.writev, 512, [memoryview(b"a" * 700), memoryview(b"b" * 324)])) == [0]
    assert host.wait((drive.readv, 500, [view[100:300], view[4096:5000], view[0:1]])) == [0]
    content = image.read_bytes()
    assert content[512:1536] == b"a" * 700 + b"b" * 324
    assert memory[100:300] == content[500:700] and memory[4096:5000] == content[700:1604] and memory[0] == content[1604]
    many = [memoryview(bytearray([n & 0xFF])) for n in range(3000)]
    assert host.wait((drive.writev, 10000, many)) == [0]
    back = [memoryview(bytearray(1)) for _ in range(3000)]
    assert host.wait((drive.readv, 10000, back)) == [0] and b"".join(back) == b"".join(many)


def test_merged_requests_are_counted_each(host: Host, image: Path) -> None:
    drive = host.drive(f"file={image},format=raw")
    assert host.wait((lambda done: drive.writev(0, [memoryview(b"x" * 1536)], done, 2),)) == [0]
    counts = drive.counts.describe()
    assert " wr_operations=3 " in counts and " wr_merged=2 " in counts and " rd_merged=0 " in counts


def test_reads_of_what_the_host_has_in_memory(host: Host, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Done when the call returns, and counted; refused where a request would fail, wait or be timed."""
    drive = host.drive(f"file={image},format=raw")
    try:
        with image.open("rb") as file:
            os.preadv(file.fileno(), [bytearray(len(image.read_bytes()))], 0, os.RWF_NOWAIT)
    except OSError:
        pytest.skip("this file system does not say what is in memory")
    first, second = bytearray(300), bytearray(200)
    with host.loop.bql:
        assert drive.read_now(100, [memoryview(first), memoryview(second)])
        assert first + second == image.read_bytes()[100:600]
        assert drive.counts.describe().startswith("rd_bytes=500 wr_bytes=0 rd_operations=1 ")
        assert not drive.read_now(drive.length - 100, [memoryview(first)])
        drive.hold()
        assert not drive.read_now(0, [memoryview(first)])
        drive.resume()
        monkeypatch.setattr(host.workers, "timed", True)
        assert not drive.read_now(0, [memoryview(first)])
    assert drive.counts.operations["rd"] == 1


def test_memory_that_cannot_be_read_stops_the_machine_whatever_the_policy(
    host: Host, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request waits and is done when the machine goes on; the guest hears of no error."""
    drive = host.drive(f"file={image},format=raw,werror=ignore,rerror=report")
    stopped: list[int] = []
    drive.on_stop = lambda drive, error: stopped.append(error)
    errors: list[int] = []
    with monkeypatch.context() as patch:

        def fault(offset: int, buffers: object) -> None:
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))

        patch.setattr(drive.node, "readv", fault)
        patch.setattr(drive.node, "writev", fault)
        patch.setattr(drive.node, "read_cached", lambda offset, buffers: False)
        drive.read(0, bytearray(512), errors.append)
        drive.write(0, b"written", errors.append)
        assert host.loop.run_until(lambda: len(stopped) == 2)
    assert stopped == [errno.EFAULT] * 2 and not errors
    drive.retry()
    assert host.loop.run_until(lambda: len(errors) == 2) and errors == [0, 0]
    assert image.read_bytes()[:7] == b"written"


def test_readonly_and_odd_length(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "odd"
    path.write_bytes(b"x" * 700)
    drive = host.drive(f"file={path},format=raw,readonly=on")
    buffer = bytearray(b"?" * 1024)
    assert drive.length == 1024 and host.wait((drive.read, 0, buffer), (drive.write, 0, b"y")) == [0, errno.EROFS]
    assert buffer == b"x" * 700 + bytes(324)


@pytest.mark.parametrize("cache", ["none", "directsync"])
def test_past_the_page_cache(host: Host, tmp_path: Path, cache: str) -> None:
    """O_DIRECT takes requests of any shape; what is around a write stays."""
    path = tmp_path / "direct"
    want = bytearray(os.urandom(3 * 1024 * 1024 + 700))
    path.write_bytes(want)
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        pytest.skip("this file system has no O_DIRECT")
    drive = host.drive(f"file={path},format=raw,cache={cache}")
    requests = []
    for offset, length in ((1, 3), (510, 4), (4000, 200), (8192, 4096), (20000, 1_500_000), (3 * 1024 * 1024, 600)):
        data = os.urandom(length)
        want[offset : offset + length] = data
        requests.append((drive.write, offset, data))
    assert set(host.wait(*requests)) == {0}
    buffer = bytearray(len(want))
    assert host.wait((drive.read, 0, buffer)) == [0] and buffer == want
    aligned = memoryview(bytearray(70000))
    assert host.wait((drive.readv, 3, [aligned[1:10], aligned[20:69000]])) == [0]
    assert aligned[1:10] == want[3:12] and aligned[20:69000] == want[12:68992]
    assert path.read_bytes()[: len(want)] == want


def test_neighbouring_writes_in_one_block_do_not_lose_each_other(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "direct"
    path.write_bytes(bytes(65536))
    drive = host.drive(f"file={path},format=raw,cache=none")
    pieces = [(drive.write, n * 64, bytes([n & 0xFF]) * 64) for n in range(512)]
    assert set(host.wait(*pieces)) == {0}
    assert path.read_bytes()[:32768] == b"".join(bytes([n & 0xFF]) * 64 for n in range(512))


def allocated(path: Path) -> int:
    return os.stat(path).st_blocks * 512


def test_discard_and_zeroes(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    path.write_bytes(b"x" * (1 << 20))
    full = allocated(path)
    keep = host.drive(f"file={path},format=raw")
    assert host.wait((keep.discard, 0, 1 << 19)) == [0] and allocated(path) == full
    assert host.wait((keep.write_zeroes, 0, 4096, True)) == [0] and path.read_bytes()[:4097] == bytes(4096) + b"x"
    keep.close()
    drive = host.drive(f"file={path},format=raw,discard=unmap")
    assert host.wait((drive.discard, 1 << 19, 1 << 18)) == [0]
    assert allocated(path) <= full - (1 << 18) + 65536
    assert host.wait((drive.write_zeroes, 0, 1 << 19, True)) == [0]
    assert allocated(path) <= full - (1 << 19) - (1 << 17) and path.read_bytes()[: 3 << 18] == bytes(3 << 18)
    assert path.stat().st_size == 1 << 20


@pytest.mark.parametrize(("mode", "freed"), [("off", False), ("on", False), ("unmap", True)])
def test_detect_zeroes(host: Host, tmp_path: Path, mode: str, freed: bool) -> None:
    path = tmp_path / "sparse"
    path.write_bytes(b"x" * (1 << 20))
    full = allocated(path)
    drive = host.drive(f"file={path},format=raw,discard=unmap,detect-zeroes={mode}")
    assert host.wait((drive.write, 0, bytes(1 << 19)), (drive.write, 1 << 19, bytes(1000) + b"y" + bytes(23))) == [0, 0]
    assert (allocated(path) < full - (1 << 18)) == freed
    content = path.read_bytes()
    assert content[: 1 << 19] == bytes(1 << 19) and content[(1 << 19) + 1000] == ord("y")


def test_snapshot_leaves_the_image_alone_until_commit(host: Host, image: Path) -> None:
    before = image.read_bytes()
    drive = host.drive(f"file={image},format=raw,snapshot=on")
    want = bytearray(before)
    requests = []
    for offset, length in ((0, 10), (4090, 20), (8192, 4096), (20000, 9000), (65530, 6), (12288, 100), (16000, 384)):
        data = os.urandom(length)
        want[offset : offset + length] = data
        requests.append((drive.write, offset, data))
    assert set(host.wait(*requests)) == {0}
    buffer = bytearray(65536)
    assert host.wait((drive.read, 0, buffer), (drive.flush,)) == [0, 0]
    assert buffer == want and image.read_bytes() == before
    assert drive.node is not None
    commit_node(drive.node)
    assert image.read_bytes() == want and drive.node.children()["backing"].readonly
    assert host.wait((drive.read, 0, buffer)) == [0] and buffer == want


def test_host_mistakes_are_one_line(host: Host, tmp_path: Path) -> None:
    for path, message in (
        (str(tmp_path), "to be a regular file"),
        (f"{tmp_path}/none", "No such file or directory"),
        ("/dev/zero", "to be a regular file"),
        ("ftpx://a/b", "Unknown protocol 'ftpx'"),
    ):
        with pytest.raises(BackendError, match=message) as e:
            host.drive(f"file={path},format=raw")
        assert "\n" not in str(e.value)


def test_empty_drive_and_media_change(host: Host, image: Path) -> None:
    drive = host.drive("media=cdrom")
    assert not drive.inserted and host.wait((drive.read, 0, bytearray(1)), (drive.flush,)) == [errno.ENOMEDIUM] * 2
    changes: list[int] = []
    drive.on_media_change(lambda: changes.append(drive.length))
    drive.change(host.graph.open({"driver": "raw", "file.filename": str(image), "read-only": "on"}))
    drive.change(None)
    assert changes == [65536, 0] and not host.graph.nodes


def parse_all(*texts: str) -> list[DriveConfig]:
    drives: list[DriveConfig] = []
    for text in texts:
        drives.append(parse_drive(text, drives))
    return drives


def test_drive_indexes_and_names() -> None:
    drives = parse_all("file=a", "file=b", "media=cdrom,index=2", "file=c", "if=floppy", "if=none,file=d,id=x")
    assert [(d.id, d.index) for d in drives] == [
        ("ide0-hd0", 0), ("ide0-hd1", 1), ("ide1-cd0", 2), ("ide1-hd1", 3), ("floppy0", 0), ("x", 0),
    ]  # fmt: skip
    assert drives[2].readonly and parse_drive("file=a,,b,readonly", []).file == "a,b"


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (("file=a,index=0", "file=b,index=0"), r"drive with bus=0, unit=0 \(index=0\) exists"),
        (("file=a,if=zz",), "unsupported bus type 'zz'"),
        (("file=a,media=zz",), "'zz' invalid media"),
        (("format=raw",), "A block device must be specified"),
        (("file=a,index=4",), "no drive with index=4"),
        (("file=a,index=x",), "expects a number"),
        (("file=a,id=x", "file=a,id=x"), "Duplicate ID 'x' for drive"),
        (("file=a,cache=zz",), "invalid cache option"),
        (("file=a,werror=zz",), "'zz' invalid write error action"),
        (("file=a,rerror=enospc",), "'enospc' invalid read error action"),
        (("file=a,iops_rd=3",), r"I/O throttling is not supported \('iops_rd'\)"),
        (("file=a,format=raw,driver=raw",), "Cannot specify both 'driver' and 'format'"),
    ],
)
def test_bad_drive_options(texts: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_all(*texts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("format=zz", "Unknown driver 'zz'"),
        ("format=raw,fromat=x", "Block format 'raw' does not support the option 'fromat'; did you mean 'format'"),
        ("format=raw,file.x=1", "Block protocol 'file' does not support the option 'x'"),
        ("format=raw,discard=zz", "Invalid discard option"),
        ("format=raw,detect-zeroes=zz", "Parameter 'detect-zeroes' does not accept value 'zz'"),
        ("format=raw,detect-zeroes=unmap", "not allowed without setting discard operation to unmap"),
        ("format=raw,aio=native", "aio=native was specified, but it requires cache.direct=on"),
        ("format=raw,aio=zz", "Parameter 'aio' does not accept value 'zz'"),
        ("format=raw,node-name=1x", "Invalid node-name: '1x'"),
        ("format=raw,size=1000", "not multiple of 512"),
        ("format=raw,offset=1M", "cannot be greater than size of the containing file"),
        ("format=raw,offset=512,size=65536", "The sum of offset"),
        ("format=raw,backing=x", "does not support the option 'backing'"),
    ],
)
def test_bad_node_options(host: Host, image: Path, options: str, message: str) -> None:
    with pytest.raises(QemupyError, match=message):
        host.drive(f"file={image},{options}")
    assert not host.graph.nodes, "everything is closed again"
    FileNode(str(image)).close()


def test_short_writes_are_done_by_the_vcpu_that_asked(host: Host, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When it has left the device, and without the BQL; after one that took long they are the workers' again."""
    drive = host.drive(f"file={image},format=raw")
    node, callers, seen = drive.node, host.workers.callers, list[tuple[str, bool, bytes]]()
    assert node is not None
    write, pause = node.writev, 0.0

    def writev(offset: int, buffers: Sequence[memoryview]) -> None:
        held = threading.Thread(target=lambda: host.loop.bql.acquire() or host.loop.bql.release())
        held.start()
        held.join(5)
        write(offset, buffers)
        time.sleep(pause)
        seen.append((threading.current_thread().name, not held.is_alive(), bytes(buffers[0])))

    def enter_and_write(data: bytes) -> list[int]:
        errors: list[int] = []
        with host.loop.bql:
            callers.entered = True
            drive.write(512, data, errors.append)
            assert not errors
            callers.leave()
        assert host.loop.run_until(lambda: bool(errors))
        return errors

    assert host.wait((drive.write, 0, b"x")) == [0]
    monkeypatch.setattr(drive, "_last_write", 0)
    monkeypatch.setattr(node, "writev", writev)
    me = threading.current_thread().name
    assert enter_and_write(b"first") == [0] and seen[-1] == (me, True, b"first")
    monkeypatch.setattr(drive, "_last_write", 0)
    pause = 0.001
    assert enter_and_write(b"slow") == [0] and seen[-1] == (me, True, b"slow")
    pause = 0
    assert enter_and_write(b"next") == [0] and seen[-1][0] != me
    monkeypatch.setattr(drive, "_last_write", 0)
    assert host.wait((drive.write, 512, b"nobody")) == [0] and seen[-1][0] != me
    assert image.read_bytes()[512:518] == b"nobody"


def test_error_of_a_write_by_the_vcpu_comes_from_the_main_loop(
    host: Host, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drive = host.drive(f"file={image},format=raw")
    stopped: list[int] = []
    drive.on_stop = lambda drive, error: stopped.append(error)

    def full(offset: int, buffers: Sequence[memoryview]) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(drive.node, "writev", full)
    monkeypatch.setattr(drive, "_last_write", 0)
    with host.loop.bql:
        host.workers.callers.entered = True
        drive.write(512, b"lost", lambda error: pytest.fail("the guest was told"))
        host.workers.callers.leave()
        assert not stopped
    assert host.loop.run_until(lambda: bool(stopped)) and stopped == [errno.ENOSPC]


def test_writes_past_the_page_cache_are_for_workers(host: Host, image: Path) -> None:
    for cache, buffered in (("writeback", True), ("writethrough", True), ("none", False)):
        node = host.drive(f"file={image},format=raw,cache={cache}").node
        assert node is not None and node.buffered is buffered
        host.close_drives()
