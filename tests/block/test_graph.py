"""The node graph: options and file names to nodes, references, probing, locks between processes and between nodes."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qemupy.backends.block.drivers import probe
from qemupy.backends.block.open import drive_on_node, open_blockdev
from qemupy.errors import BackendError, ConfigError, QemupyError
from qemupy.options import parse
from tests.block.conftest import Host


def test_raw_over_file_with_offset_and_size(host: Host, image: Path) -> None:
    drive = host.drive(f"driver=raw,file.driver=file,file.filename={image},offset=1024,size=4096,node-name=part")
    assert drive.length == 4096 and list(host.graph.nodes) == ["#block101", "part"]
    buffer = bytearray(10)
    assert host.wait((drive.read, 0, buffer), (drive.write, 4090, b"abcdef"), (drive.write, 4096, b"x")) == [
        0, 0, errno.EINVAL,
    ]  # fmt: skip
    assert image.read_bytes()[5114:5121] == b"abcdef\0" and buffer == bytes(range(10))
    assert drive.node is not None
    with pytest.raises(OSError, match="fixed-size"):
        drive.node.truncate(8192)


def test_blockdev_with_references(host: Host, image: Path) -> None:
    open_blockdev(parse(f"driver=file,filename={image},node-name=bottom"), host.graph)
    nested = {"driver": "raw", "node-name": "top", "file": "bottom", "read-only": False, "cache": {"direct": False}}
    top = open_blockdev(parse(json.dumps(nested)), host.graph)
    assert top.children()["file"] is host.graph.nodes["bottom"] and host.graph.nodes["bottom"].references == 2
    drive = drive_on_node("top", host.loop, host.workers, host.graph)
    host.drives.append(drive)
    drive.attach("disk")
    assert host.wait((drive.write, 0, b"through")) == [0] and image.read_bytes()[:7] == b"through"
    with pytest.raises(BackendError, match="already used by another device"):
        drive_on_node("top", host.loop, host.workers, host.graph)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("node-name=a", "Parameter 'driver' is missing"),
        ("driver=raw,file=b", "'node-name' must be specified for the root node"),
        ("driver=raw,node-name=a,file=nowhere", "Cannot find device='' nor node-name='nowhere'"),
        ("driver=raw,node-name=a", 'A block device must be specified for "file"'),
        ("driver=file,node-name=a", "Parameter 'filename' is missing"),
        ("driver=null-co,node-name=taken", "Duplicate nodes with node-name='taken'"),
        ('{"driver": "raw", "node-name": "a", "file": {"driver": "file"', "JSON parse error"),
    ],
)
def test_bad_blockdevs(host: Host, text: str, message: str) -> None:
    open_blockdev({"driver": "null-co", "node-name": "taken"}, host.graph)
    with pytest.raises(QemupyError, match=message):
        open_blockdev(parse(text), host.graph)
    assert list(host.graph.nodes) == ["taken"]


def test_json_file_names(host: Host, image: Path) -> None:
    name = json.dumps({"driver": "raw", "offset": 512, "file": {"driver": "file", "filename": str(image)}})
    node = host.graph.open({}, filename="json:" + name)
    assert node.length == 65024
    host.graph.release(node)
    with pytest.raises(BackendError, match="JSON"):
        host.graph.open({}, filename="json:{")


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("qcow", b"QFI\xfb\0\0\0\1"), ("vmdk", b"KDMV"), ("vhdx", b"vhdxfile"), ("vpc", b"conectix"),
        ("vdi", b"<<< Oracle VM VirtualBox Disk Image >>>\n".ljust(64, b"\0") + b"\x7f\x10\xda\xbe"),
        ("luks", b"LUKS\xba\xbe"), ("qed", b"QED\0"), ("parallels", b"WithoutFreeSpace"),
    ],
)  # fmt: skip
def test_foreign_formats_are_refused_unless_raw_is_meant(host: Host, tmp_path: Path, name: str, head: bytes) -> None:
    path = tmp_path / "image"
    path.write_bytes(head.ljust(4096, b"\0"))
    assert probe(head) == name
    with pytest.raises(BackendError, match=f"is an image in {name} format"):
        host.drive(f"file={path}")
    drive = host.drive(f"file={path},format=raw")
    assert drive.length == 4096 and not host.graph.warnings


def test_a_probed_raw_image_cannot_become_another_format(host: Host, image: Path) -> None:
    drive = host.drive(f"file={image}")
    assert "probing guessed raw" in host.graph.warnings[0]
    evil = b"QFI\xfb\0\0\0\3" + bytes(504)
    assert host.wait((drive.write, 0, evil), (drive.write, 0, b"fine"), (drive.write, 512, evil)) == [errno.EPERM, 0, 0]
    assert host.wait((drive.writev, 0, [memoryview(evil)[:3], memoryview(evil)[3:]])) == [errno.EPERM]
    assert image.read_bytes()[:4] == b"fine"


def test_auto_read_only(host: Host, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that we may not write is opened for reading by -drive; -blockdev asks for auto-read-only=on."""
    really_open = os.open

    def no_writing(path: str, flags: int, *rest: int) -> int:
        if flags & os.O_ACCMODE == os.O_RDWR:
            raise PermissionError(errno.EACCES, "Permission denied")
        return really_open(path, flags, *rest)

    monkeypatch.setattr(os, "open", no_writing)
    drive = host.drive(f"file={image},format=raw")
    assert drive.readonly and host.wait((drive.write, 0, b"x")) == [errno.EROFS]
    with pytest.raises(BackendError, match="Permission denied"):
        host.graph.open({"driver": "file", "filename": str(image)})


# Locks

HOLD = """
import sys
from qemupy.backends.block.opening import Graph
from qemupy.backends.block.permissions import Permission, Use
node = Graph().open({"driver": "raw", "file.filename": sys.argv[1], "read-only": sys.argv[2]})
P = Permission
used = P.CONSISTENT_READ if sys.argv[2] == "on" else P.CONSISTENT_READ | P.WRITE
shared = P.CONSISTENT_READ | P.WRITE_UNCHANGED | P.RESIZE | (P.WRITE if sys.argv[3] == "share" else P(0))
node.add_use(Use("us", "root", used, shared))
print("held", flush=True)
sys.stdin.read()
"""


class Holder:
    """Another process that has the image open."""

    def __init__(self, path: Path, readonly: str, share: str) -> None:
        command = [sys.executable, "-c", HOLD, str(path), readonly, share]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "held\n"

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exc: object) -> None:
        self.process.communicate()


@pytest.mark.parametrize(
    ("readonly", "share", "options", "share_rw", "word"),
    [
        ("off", "alone", "", False, "write"),
        ("off", "alone", "readonly=on", False, 'shared "write"'),
        ("on", "alone", "", False, "write"),
        ("on", "alone", "readonly=on", False, None),
        ("off", "share", "", False, 'shared "write"'),
        ("off", "share", "", True, None),
        ("off", "alone", "file.locking=off", False, None),
    ],
)
def test_locks_between_processes(host: Host, image: Path, readonly: str, share: str, options: str, share_rw: bool,
                                 word: str | None) -> None:  # fmt: skip
    text = f"file={image},format=raw,{options}".rstrip(",")
    with Holder(image, readonly, share):
        if word is None:
            host.drive(text, share_rw=share_rw)
        else:
            drive = host.drive(text, attach=False)
            with pytest.raises(BackendError, match=f"Failed to get .*{word}.* lock: Is another process using the"):
                drive.attach("disk", share_rw=share_rw)
    if word is not None:
        drive.attach("disk")  # the other one has ended


def test_two_drives_of_one_machine(host: Host, image: Path) -> None:
    host.drive(f"file={image},format=raw")
    second = host.drive(f"file={image},format=raw,id=b,if=none", attach=False)
    with pytest.raises(BackendError, match='Failed to get "write" lock'):
        second.attach("disk")


def test_two_users_of_one_node(host: Host, image: Path) -> None:
    open_blockdev(parse(f"driver=file,filename={image},node-name=bottom"), host.graph)
    for name in ("one", "two"):
        open_blockdev(parse(f"driver=raw,file=bottom,node-name={name}"), host.graph)
        host.drives.append(drive_on_node(name, host.loop, host.workers, host.graph))
    host.drives[0].attach("disk0")
    with pytest.raises(
        BackendError, match="Permission conflict on node 'bottom': permissions 'write' are both required by node"
    ):
        host.drives[1].attach("disk1")
    assert not host.drives[1].attached_to
    host.drives[0].detach()
    host.drives[1].attach("disk1")


@pytest.mark.parametrize(("locking", "message"), [("auto", None), ("on", "Failed to lock"), ("off", None)])
def test_file_systems_without_locks(host: Host, image: Path, monkeypatch: pytest.MonkeyPatch, locking: str,
                                    message: str | None) -> None:  # fmt: skip
    def fcntl(fd: int, command: int, argument: bytes) -> bytes:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.fcntl", fcntl)
    drive = host.drive(f"file={image},format=raw,file.locking={locking}", attach=False)
    if message is None:
        drive.attach("disk")
    else:
        with pytest.raises(BackendError, match=message):
            drive.attach("disk")


def test_reopening_keeps_the_locks(host: Host, image: Path) -> None:
    drive = host.drive(f"file={image},format=raw,readonly=on")
    node = drive.node
    assert node is not None
    node.reopen(False)
    node.write(0, b"writable")
    node.reopen(True)
    assert node.readonly and image.read_bytes()[:8] == b"writable"
    second = host.drive(f"file={image},format=raw,id=b", attach=False)
    with pytest.raises(BackendError, match='Failed to get "write" lock'):
        second.attach("disk")


def qemu_io(*arguments: object) -> str:
    """What it says about a raw image."""
    done = subprocess.run(["qemu-io", "-f", "raw", *map(str, arguments)], capture_output=True, text=True)
    return done.stdout + done.stderr


def test_locks_agree_with_qemu(host: Host, image: Path) -> None:
    """qemu-img refuses what we hold."""
    if shutil.which("qemu-io") is None:
        pytest.skip("no qemu-io")
    host.drive(f"file={image},format=raw")
    assert 'Failed to get "write" lock' in qemu_io("-c", "write 0 512", image)
    assert "read 512/512" in qemu_io("-U", "-r", "-c", "read 0 512", image)


def test_unknown_keys_of_config(host: Host) -> None:
    with pytest.raises(ConfigError, match="does not support the option 'sizee'; did you mean 'size'"):
        host.graph.open({"driver": "null-co", "sizee": "1G"})


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_a_read_only_format_over_a_writable_file(host: Host, tmp_path: Path, image_format: str) -> None:
    path = tmp_path / "image"
    if image_format == "raw":
        path.write_bytes(bytes(4096))
    else:
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "4096"], check=True)
    before = path.read_bytes()
    open_blockdev(parse(f"driver=file,filename={path},node-name=bottom"), host.graph)
    open_blockdev(parse(f"driver={image_format},file=bottom,node-name=top,read-only=on"), host.graph)
    drive = drive_on_node("top", host.loop, host.workers, host.graph)
    host.drives.append(drive)
    with pytest.raises(BackendError, match="Block node is read-only"):
        drive.attach("disk", writable=True)
    drive.attach("cdrom")
    assert host.wait((drive.write, 0, b"x")) == [errno.EROFS]
    host.close_drives()
    assert path.read_bytes() == before
