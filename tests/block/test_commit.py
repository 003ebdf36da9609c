"""commit: from an image into its backing image, whatever the formats; judged by qemu-img."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from qemupy.backends.block.commit import commit_node, commit_slices
from tests.block.conftest import Host

MIB = 1 << 20
pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")


def qemu_img(*words: object) -> str:
    return subprocess.run(["qemu-img", *map(str, words)], check=True, capture_output=True, text=True).stdout


def content(path: Path, image_format: str) -> bytes:
    raw = path.with_suffix(".check")
    qemu_img("convert", "-f", image_format, "-O", "raw", path, raw)
    return raw.read_bytes()


def make_base(tmp_path: Path, image_format: str, data: bytes) -> Path:
    raw, base = tmp_path / "base.raw", tmp_path / f"base.{image_format}"
    raw.write_bytes(data)
    if image_format != "raw":
        qemu_img("convert", "-f", "raw", "-O", image_format, raw, base)
    return base


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_commit_into_a_smaller_base(host: Host, tmp_path: Path, image_format: str) -> None:
    data = bytearray(os.urandom(4 * MIB))
    base = make_base(tmp_path, image_format, bytes(data))
    top = tmp_path / "top.qcow2"
    qemu_img("create", "-f", "qcow2", "-b", base, "-F", image_format, top, "6M")
    drive = host.drive(f"file={top},format=qcow2")
    data += bytes(2 * MIB)
    calls = []
    for offset, size in ((0, 512), (100_000, 300_000), (MIB - 1, 2), (5 * MIB, 65536)):
        piece = os.urandom(size)
        data[offset : offset + size] = piece
        calls.append((drive.write, offset, piece))
    calls.append((drive.write_zeroes, 2 * MIB, MIB, True))
    data[2 * MIB : 3 * MIB] = bytes(MIB)
    assert set(host.wait(*calls)) == {0}
    assert drive.node is not None
    steps = list(commit_slices(drive.node))
    assert steps == sorted(steps) and steps[-1] == 6 * MIB and len(steps) > 5
    buffer = bytearray(6 * MIB)
    assert host.wait((drive.read, 0, buffer)) == [0] and buffer == data
    assert drive.node.children()["backing"].readonly
    assert all(not drive.node.block_status(at, 65536).allocated for at in range(0, 6 * MIB, 65536))
    assert host.wait((drive.write, 12345, b"afterwards"), (drive.flush,)) == [0, 0]
    host.close_drives()
    assert content(base, image_format) == data
    data[12345:12355] = b"afterwards"
    assert content(top, "qcow2") == data and "No errors" in qemu_img("check", top)


def test_commit_goes_one_step_down_a_chain(host: Host, tmp_path: Path) -> None:
    base = make_base(tmp_path, "raw", b"0" * MIB)
    middle, top = tmp_path / "middle.qcow2", tmp_path / "top.qcow2"
    qemu_img("create", "-f", "qcow2", "-b", base, "-F", "raw", middle)
    qemu_img("create", "-f", "qcow2", "-b", middle, "-F", "qcow2", top)
    drive = host.drive(f"file={top},format=qcow2")
    assert host.wait((drive.write, 0, b"1" * 512)) == [0]
    assert drive.node is not None
    commit_node(drive.node)
    host.close_drives()
    assert base.read_bytes() == b"0" * MIB
    assert content(middle, "qcow2")[:1024] == b"1" * 512 + b"0" * 512


def test_an_interrupted_commit_loses_nothing(host: Host, tmp_path: Path) -> None:
    base = make_base(tmp_path, "raw", b"0" * (4 * MIB))
    top = tmp_path / "top.qcow2"
    qemu_img("create", "-f", "qcow2", "-b", base, "-F", "raw", top)
    drive = host.drive(f"file={top},format=qcow2")
    assert host.wait((drive.write, MIB, b"1" * (2 * MIB))) == [0]
    assert drive.node is not None
    slices = commit_slices(drive.node)
    next(slices)
    next(slices)
    slices.close()  # type: ignore[attr-defined]
    assert drive.node.children()["backing"].readonly
    buffer = bytearray(4 * MIB)
    assert host.wait((drive.read, 0, buffer)) == [0]
    assert buffer == b"0" * MIB + b"1" * (2 * MIB) + b"0" * MIB
    commit_node(drive.node)
    host.close_drives()
    assert base.read_bytes() == buffer


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_a_base_that_others_read_stays_as_it_was(host: Host, tmp_path: Path, image_format: str) -> None:
    base = make_base(tmp_path, image_format, b"0" * MIB)
    top = tmp_path / "top.qcow2"
    qemu_img("create", "-f", "qcow2", "-b", base, "-F", image_format, top)
    drive = host.drive(f"file={top},format=qcow2")
    reader = host.drive(f"file={base},format={image_format},readonly=on,id=r")
    assert host.wait((drive.write, 0, b"1" * 512)) == [0]
    assert drive.node is not None
    for _ in range(2):
        with pytest.raises(OSError, match='Failed to get "write" lock'):
            commit_node(drive.node)
    buffer = bytearray(1024)
    assert host.wait((drive.read, 0, buffer)) == [0] and buffer == b"1" * 512 + b"0" * 512
    reader.close()
    commit_node(drive.node)
    host.close_drives()
    assert content(base, image_format)[:1024] == buffer
