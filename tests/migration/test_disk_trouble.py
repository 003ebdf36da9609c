"""Disks that are full, read-only or not there any more, seen from the monitor of a busy guest (busy.S): an error, or
a machine that pauses, nothing lost, and all goes on when the disk is well again."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.block.files import fill, small_disk
from tests.migration import busy
from tests.migration.process import SCALE, Process, counting_guest

pytestmark = pytest.mark.boot
KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture(scope="module")
def floppy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return counting_guest(tmp_path_factory.mktemp("guest"), "busy")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "small", "size=48m") as folder:
        yield folder


def wait_for_status(process: Process, status: str) -> None:
    deadline = time.monotonic() + 20 * SCALE
    while (now := process.mon.run("info status")) != f"VM status: {status}":
        assert time.monotonic() < deadline, now


def good(image: Path) -> None:
    subprocess.run(["qemu-img", "check", "-q", image], check=True)


def test_a_full_disk(tmp_path: Path, floppy: Path, small: Path) -> None:
    disk = busy.create(small / "disk.qcow2")
    with busy.machine(tmp_path, floppy, disk) as process:
        run = process.mon.run
        process.wait_passes(3)
        assert run("savevm one") == ""
        ballast = fill(small, 64 * KIB)
        full = "No space left on device"
        answer = run("savevm two")
        assert answer in (
            f"Error: Error while writing VM state: {full}",
            f"Error: Could not create snapshot 'two' on 'ide0-hd0': {full}",
        )
        wait_for_status(process, "paused (io-error)")
        assert full in run("savevm two")
        assert run("cont") == ""
        wait_for_status(process, "paused (io-error)")
        ballast.unlink()
        assert run("cont") == ""
        process.wait_passes(10)
        assert run("info status") == "VM status: running"
        assert run("savevm two") == ""
        for tag in ("one", "two"):
            assert run(f"loadvm {tag}") == ""
            process.wait_passes(5)
        process.mon.send("quit")
        assert process.wait() == 0
    good(disk)
    assert busy.tags(disk) == ["one", "two"]


def test_a_snapshot_can_be_loaded_in_place_of_requests_that_wait(tmp_path: Path, floppy: Path, small: Path) -> None:
    """The machine that waited for space is gone, and with it what it wanted to write."""
    disk = busy.create(small / "disk.qcow2")
    with busy.machine(tmp_path, floppy, disk) as process:
        run = process.mon.run
        process.wait_passes(3)
        assert run("savevm one") == ""
        ballast = fill(small, 0)
        wait_for_status(process, "paused (io-error)")
        assert run("loadvm one") == "" and run("info status") == "VM status: paused"
        ballast.unlink()
        assert run("cont") == ""
        process.wait_passes(10)


@pytest.fixture
def layered(tmp_path: Path, small: Path) -> tuple[Path, Path]:
    """A backing image on the small file system, an overlay on another."""
    base = busy.create(small / "base.qcow2")
    return base, busy.create(tmp_path / "top.qcow2", "-b", str(base), "-F", "qcow2", "-o", "cluster_size=4k")


def test_commit_to_a_full_disk(tmp_path: Path, floppy: Path, layered: tuple[Path, Path], small: Path) -> None:
    base, top = layered
    with busy.machine(tmp_path, floppy, top) as process:
        run = process.mon.run
        process.wait_passes(20)
        ballast = fill(small, 128 * KIB)
        assert run("commit ide0-hd0") == "'commit' error for 'ide0-hd0': No space left on device"
        process.wait_passes(5)
        ballast.unlink()
        assert run("commit ide0-hd0") == ""
        process.wait_passes(20)
        process.mon.send("quit")
        assert process.wait() == 0
        busy.Plan(5000).check(busy.content(top), busy.flushed(process))
    good(base)
    good(top)


def test_commit_to_a_file_that_has_vanished(tmp_path: Path, floppy: Path, layered: tuple[Path, Path]) -> None:
    """Its data can still be read, for the file is open; to write it would have to be opened again."""
    base, top = layered
    with busy.machine(tmp_path, floppy, top) as process:
        run = process.mon.run
        process.wait_passes(20)
        base.rename(elsewhere := base.with_name("elsewhere"))
        answer = run("commit ide0-hd0")
        assert "base.qcow2" in answer and answer.endswith("No such file or directory"), answer
        process.wait_passes(5)
        elsewhere.rename(base)
        assert run("commit ide0-hd0") == ""
        process.wait_passes(5)
        process.mon.send("quit")
        assert process.wait() == 0
    good(base)
    with busy.machine(tmp_path, floppy, top) as process:
        process.wait_passes(1)
        base.unlink()
        process.wait_passes(5)
    with busy.machine(tmp_path, floppy, top) as process:
        assert process.wait() == 1
        assert "base.qcow2" in process.stderr and "No such file or directory" in process.stderr
        assert process.stderr.count("\n") == 1


def test_no_snapshots_on_read_only_disks(tmp_path: Path, floppy: Path, small: Path) -> None:
    """QEMU's IDE disks must be writable, its virtio disks need not be."""
    disk = busy.create(small / "disk.qcow2")
    with busy.machine(tmp_path, floppy, disk) as process:
        process.wait_passes(1)
        assert process.mon.run("savevm one") == ""
        process.mon.send("quit")
        assert process.wait() == 0
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
    with busy.machine(tmp_path, floppy, disk) as process:
        assert process.wait() == 1 and process.stderr.count("\n") == 1
        assert "disk.qcow2" in process.stderr and "Read-only file system" in process.stderr
    drive = f"file={disk},format=qcow2,if=virtio,readonly=on"
    with Process(tmp_path, "-drive", f"file={floppy},format=raw,if=floppy,readonly=on", "-drive", drive) as process:
        for command in ("savevm two", "loadvm one", "delvm one"):
            assert process.mon.run(command) == "Error: no block device can store vmstate for snapshot"
        assert process.mon.run("info status") == "VM status: running"
