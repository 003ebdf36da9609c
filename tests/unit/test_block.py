"""Drives over real files: data, errors, snapshots, locks, foreign formats."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qemupy.backends.block.drive import Drive
from qemupy.backends.block.media import Overlay, RawFile, foreign_format
from qemupy.backends.block.open import open_drive
from qemupy.config import DriveConfig, parse_drive
from qemupy.errors import BackendError, ConfigError, QemupyError
from qemupy.main_loop.loop import MainLoop
from qemupy.main_loop.workers import Workers


class Host:
    def __init__(self) -> None:
        self.loop = MainLoop()
        self.workers = Workers(self.loop)

    def drive(self, path: Path, **options: object) -> Drive:
        return open_drive(DriveConfig("d", file=str(path), **options), self.loop, self.workers)  # type: ignore[arg-type]

    def wait(self, *calls: tuple[Any, ...]) -> list[int]:
        """Run (method, args...) requests to their end; the errors in order of the calls."""
        errors: dict[int, int] = {}
        for n, call in enumerate(calls):
            call[0](*call[1:], lambda e, n=n: errors.__setitem__(n, e))
            assert n not in errors, "completed inside the call"
        assert self.loop.run_until(lambda: len(errors) == len(calls))
        return [errors[n] for n in range(len(calls))]


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host()
    yield made
    made.workers.stop()
    made.loop.close()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(range(256)) * 256)
    return path


def test_read_write_flush(host: Host, image: Path) -> None:
    drive = host.drive(image)
    buffer = bytearray(1000)
    assert host.wait((drive.read, 256, buffer), (drive.write, 10000, b"hello"), (drive.flush,)) == [0, 0, 0]
    assert buffer == (bytes(range(256)) * 5)[:1000] and image.read_bytes()[10000:10005] == b"hello"
    assert host.wait((drive.read, 65000, bytearray(1000)), (drive.write, -1, b"x")) == [errno.EINVAL] * 2
    drive.close()


def test_readonly_and_odd_length(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "odd"
    path.write_bytes(b"x" * 700)
    drive = host.drive(path, readonly=True)
    buffer = bytearray(b"?" * 1024)
    assert drive.length == 1024 and host.wait((drive.read, 0, buffer), (drive.write, 0, b"y")) == [0, errno.EROFS]
    assert buffer == b"x" * 700 + bytes(324)


def test_snapshot_leaves_the_image_alone_until_commit(host: Host, image: Path) -> None:
    before = image.read_bytes()
    drive = host.drive(image, snapshot=True)
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
    assert isinstance(drive.medium, Overlay) and drive.commit() == errno.EROFS
    drive.close()
    overlay = Overlay(RawFile(str(image), readonly=False))
    overlay.write(4000, b"new")
    overlay.commit()
    assert image.read_bytes()[3999:4004] == before[3999:4000] + b"new" + before[4003:4004]
    overlay.close()


def test_two_writers_are_refused(image: Path) -> None:
    first = RawFile(str(image), readonly=False)
    with pytest.raises(BackendError, match='Failed to get "write" lock'):
        RawFile(str(image), readonly=False)
    first.close()
    readers = [RawFile(str(image), readonly=True) for _ in range(2)]
    with pytest.raises(BackendError, match="lock"):
        RawFile(str(image), readonly=False)
    for reader in readers:
        reader.close()
    RawFile(str(image), readonly=False).close()


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("qcow2", b"QFI\xfb\0\0\0\3"), ("vmdk", b"KDMV"), ("vhdx", b"vhdxfile"), ("vpc", b"conectix"),
        ("vdi", b"<<< Oracle VM VirtualBox Disk Image >>>\n".ljust(64, b"\0") + b"\x7f\x10\xda\xbe"),
        ("luks", b"LUKS\xba\xbe"), ("qed", b"QED\0"), ("parallels", b"WithoutFreeSpace"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("image_format", [None, "raw"])
def test_foreign_formats_are_refused(
    host: Host, tmp_path: Path, name: str, head: bytes, image_format: str | None
) -> None:
    path = tmp_path / "image"
    path.write_bytes(head.ljust(4096, b"\0"))
    assert foreign_format(head) == name
    with pytest.raises(BackendError, match=f"is an image in {name} format"):
        host.drive(path, format=image_format)


def test_host_mistakes_are_one_line(host: Host, tmp_path: Path) -> None:
    for path, message in (
        (tmp_path, "to be a regular file"),
        (tmp_path / "none", "No such file or directory"),
        (Path("/dev/zero"), "to be a regular file"),
    ):
        with pytest.raises(BackendError, match=message) as e:
            host.drive(path)
        assert "\n" not in str(e.value)


def test_empty_drive_and_media_change(host: Host, image: Path) -> None:
    drive = open_drive(DriveConfig("cd", media="cdrom"), host.loop, host.workers)
    assert not drive.inserted and host.wait((drive.read, 0, bytearray(1)), (drive.flush,)) == [errno.ENOMEDIUM] * 2
    changes: list[int] = []
    drive.on_media_change(lambda: changes.append(drive.length))
    drive.change(RawFile(str(image), readonly=True))
    drive.change(None)
    assert changes == [65536, 0]


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
        (("file=a,fromat=raw",), "Invalid parameter 'fromat'; did you mean 'format'"),
        (("file=a,index=4",), "no drive with index=4"),
        (("file=a,index=x",), "expects a number"),
        (("file=a,id=x", "file=a,id=x"), "Duplicate ID 'x' for drive"),
        (("file=a,cache=zz",), "invalid cache option"),
    ],
)
def test_bad_drive_options(texts: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_all(*texts)


def test_unknown_format(host: Host, image: Path) -> None:
    with pytest.raises(QemupyError, match="Unknown driver 'zz'"):
        host.drive(image, format="zz")
