"""HMP's block commands against what QEMU 7.2.22 printed for the same drives (auto-generated node names differ)."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from qemupy.backends.block.drive import Drive
from qemupy.backends.block.open import open_blockdev
from qemupy.config import Config, parse_drive
from qemupy.monitor.attach import attach_monitors
from qemupy.options import parse
from tests.monitor.conftest import Bench


@pytest.fixture
def mon() -> Iterator[Bench]:
    made = Bench(Config(ram=1 << 20))
    yield made
    made.vm.close()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in "abc":
        (tmp_path / f"{name}.img").write_bytes(name.encode() * (1 << 20))
    return tmp_path


def add(mon: Bench, text: str, path: str = "") -> Drive:
    drive = mon.vm.add_drive(parse_drive(text, []))
    if path:
        drive.attach(path)
    return drive


def test_info_block(mon: Bench, images: Path) -> None:
    add(mon, f"id=d0,file={images}/a.img,format=raw", "dev0")
    add(mon, f"id=d1,file={images}/b.img,format=raw,cache=none,detect-zeroes=unmap,discard=unmap,node-name=nn", "/x")
    add(mon, "id=cd,media=cdrom", "/cd")
    add(mon, f"id=nd,if=none,file={images}/c.img,format=raw,cache=writethrough")
    open_blockdev(parse("driver=null-co,node-name=nul"), mon.vm.graph)
    nul = mon.vm.drive_for("nul")
    assert nul is not None
    nul.attach("vv")
    assert mon("info block") == (
        f"d0 (#block101): {images}/a.img (raw)\n"
        "    Attached to:      dev0\n"
        "    Cache mode:       writeback\n"
        "\n"
        f"d1 (nn): {images}/b.img (raw)\n"
        "    Attached to:      /x\n"
        "    Cache mode:       writeback, direct\n"
        "    Detect zeroes:    unmap\n"
        "\n"
        "cd: [not inserted]\n"
        "    Attached to:      /cd\n"
        "    Removable device: not locked, tray closed\n"
        "\n"
        f"nd (#block104): {images}/c.img (raw)\n"
        "    Removable device: not locked, tray closed\n"
        "    Cache mode:       writethrough\n"
        "\n"
        "nul: null-co:// (null-co)\n"
        "    Attached to:      vv\n"
        "    Cache mode:       writeback\n"
    )
    assert mon("info block nosuch") == ""
    assert mon("info block nn") == (
        f"\nnn: {images}/b.img (raw)\n    Cache mode:       writeback, direct\n    Detect zeroes:    unmap\n"
    )
    assert mon("info block -n").startswith(
        "nul: null-co:// (null-co)\n    Cache mode:       writeback\n\n"
        f"#block104: {images}/c.img (raw)\n    Cache mode:       writeback\n\n"
        f"#block105: {images}/c.img (file)\n"
    )
    assert mon("info block -v d0") == (
        f"\nd0 (#block101): {images}/a.img (raw)\n"
        "    Attached to:      dev0\n"
        "    Cache mode:       writeback\n"
        "\n"
        "Images:\n"
        f"image: {images}/a.img\n"
        "file format: raw\n"
        "virtual size: 1 MiB (1048576 bytes)\n"
        "disk size: 1 MiB\n"
    )
    zero = " rd_operations=0 wr_operations=0 flush_operations=0 wr_total_time_ns=0 rd_total_time_ns=0"
    assert mon("info blockstats").startswith(f"d0: rd_bytes=0 wr_bytes=0{zero} flush_total_time_ns=0 rd_merged=0 wr_m")


def test_backing_files_of_a_temporary_snapshot(mon: Bench, images: Path) -> None:
    add(mon, f"id=d0,file={images}/a.img,format=raw,snapshot=on", "dev0")
    lines = mon("info block -v").splitlines()
    assert "    Cache mode:       writeback, ignore flushes" in lines
    assert f"    Backing file:     {images}/a.img (chain depth: 1)" in lines
    assert [line for line in lines if line.startswith("image: ")][1] == f"image: {images}/a.img"
    assert mon("info block -n").count(", read-only)") == 2, "the image and its file"


def test_commit(mon: Bench, images: Path) -> None:
    drive = add(mon, f"id=d0,file={images}/a.img,format=raw,snapshot=on", "dev0")
    add(mon, f"id=d1,if=none,file={images}/b.img,format=raw")
    errors: list[int] = []
    with mon.vm.bql:
        drive.write(4096, b"new" * 1000, errors.append)
    assert mon("commit nosuch") == "Device 'nosuch' not found\n"
    assert mon("commit d1") == "'commit' error for 'd1': Operation not supported\n"
    assert mon("info block-jobs") == "No active jobs\n"
    assert mon("commit all") == "" and errors == [0]
    assert (images / "a.img").read_bytes()[4096:7096] == b"new" * 1000
    assert mon("commit d0") == ""


def test_requests_wait_while_commit_runs(mon: Bench, images: Path) -> None:
    """The monitor answers meanwhile; what the guest asks for comes after."""
    drive = add(mon, f"id=d0,file={images}/a.img,format=raw,snapshot=on", "dev0")
    vm = mon.vm
    done: list[str] = []
    vm.loop.run_until(lambda: not drive.in_flight)
    with vm.bql:
        drive.write(0, b"X" * (1 << 20), lambda error: done.append(f"write {error}"))
    vm.loop.run_until(lambda: bool(done))
    with vm.bql:
        mon.hmp.run("commit d0", lambda out: done.append(f"commit {out}"))
        drive.read(0, bytearray(512), lambda error: done.append(f"read {error}"))
        drive.write(0, b"Y" * 512, lambda error: done.append(f"second write {error}"))
    assert mon("info block-jobs").startswith("Type commit, device d0: Completed ")
    assert mon("eject d0") == "Error: 'eject' is not possible while 'commit' is running\n"
    vm.loop.run_until(lambda: len(done) == 4)
    assert done[:2] == ["write 0", "commit "] and sorted(done[2:]) == ["read 0", "second write 0"]
    assert (images / "a.img").read_bytes() == b"X" * (1 << 20)


def test_commit_says_why_it_cannot(mon: Bench, images: Path) -> None:
    add(mon, f"id=d0,file={images}/a.img,format=raw,snapshot=on", "dev0")
    reader = add(mon, f"id=d1,file={images}/a.img,format=raw,readonly=on", "dev1")
    assert mon("commit d0").startswith("'commit' error for 'd0': Failed to get \"write\" lock")
    reader.detach()
    assert mon("commit d0") == ""


def test_media(mon: Bench, images: Path) -> None:
    add(mon, f"id=d1,file={images}/b.img,format=raw", "dev1")
    add(mon, "id=cd,media=cdrom", "cd")
    for line, answer in (
        ("eject -f d1", "Error: Device 'd1' is not removable\n"),
        ("eject cd", ""),
        ("change cd /nonexist", "Error: Could not open '/nonexist': No such file or directory\n"),
        (f"change cd {images}/a.img raw", ""),
        (f"change cd {images}/a.img raw foo", "Error: invalid parameter value: foo\n"),
        (f"change d1 {images}/a.img", "Error: Device 'd1' is not removable\n"),
        ("eject nosuch", "Error: Device 'nosuch' not found\n"),
        ("change nosuch foo", "Error: Device 'nosuch' not found\n"),
        ("block_resize nosuch 1M", "Error: Cannot find device='nosuch' nor node-name=''\n"),
        ("block_resize cd 1M", "Error: Image is read-only\n"),
        ("block_resize d1 2", ""),
        ("block_resize d1 2x", "Error: Parameter 'size' expects a non-negative number below 2^64 with an optional "
         "suffix k, M, G, T, P or E, not '2x'\n"),
    ):  # fmt: skip
        assert mon(line) == answer, line
    assert "(raw, read-only)" in mon("info block cd")
    assert mon(f"change cd {images}/c.img raw read-write") == "" and "(raw)" in mon("info block cd")
    assert mon.vm.drives["d1"].length == 2 << 20 == (images / "b.img").stat().st_size


def test_drives_come_and_go(mon: Bench, images: Path) -> None:
    add(mon, f"id=d1,file={images}/b.img,format=raw", "dev1")
    for line, answer in (
        (f"drive_add 0 if=none,id=new,file={images}/a.img,format=raw", "OK\n"),
        (f"drive_add 0 if=none,id=new,file={images}/a.img,format=raw", "Duplicate ID 'new' for drive\n"),
        ("drive_del new", ""),
        ("drive_del new", "Device 'new' not found\n"),
        (f"drive_add 0 file={images}/a.img,format=raw,if=ide", "Can't hot-add drive to type 1\n"),
        ("drive_add -n 0 node-name=xx,driver=null-co", ""),
        ("drive_add -n 0 node-name=xx,driver=null-co", "Error: Duplicate nodes with node-name='xx'\n"),
        ("info block -n xx", "xx: null-co:// (null-co)\n    Cache mode:       writeback\n"),
        ("drive_del xx", ""),
        ("drive_del xx", "Device 'xx' not found\n"),
        ("drive_add 0 if=none,file=nosuch,id=z", "Error: Could not open 'nosuch': No such file or directory\n"),
        ("drive_del d1", ""),
        ("info block", "dev1: [not inserted]\n    Attached to:      dev1\n"),
        ("info block -n", ""),
    ):
        assert mon(line) == answer, line


def test_the_machine_ends_with_a_commit_under_way(images: Path) -> None:
    mon = Bench(Config(ram=1 << 20))
    drive = add(mon, f"id=d0,file={images}/a.img,format=raw,snapshot=on", "dev0")
    outcome: list[str] = []
    with mon.vm.bql:
        drive.write(0, b"X" * (1 << 20), lambda error: None)
        mon.hmp.run("commit d0", outcome.append)
    mon.vm.close()
    assert outcome and not mon.vm.graph.nodes


def test_ctrl_a_s_commits(mon: Bench, images: Path) -> None:
    drive = add(mon, f"id=d0,file={images}/a.img,format=raw,snapshot=on", "dev0")
    vm = mon.vm
    vm.chardevs.add("ringbuf,id=r,mux=on")
    attach_monitors(vm)
    errors: list[int] = []
    with vm.bql:
        drive.write(0, b"Z" * 512, errors.append)
    vm.loop.run_until(lambda: bool(errors))
    with vm.bql:
        vm.chardevs.muxes["r"]._command("s")
    vm.loop.run_until(lambda: vm.jobs.current is None)
    assert (images / "a.img").read_bytes()[:513] == b"Z" * 512 + b"a"


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
@pytest.mark.parametrize("created", ["", "compat=0.10", "lazy_refcounts=on,refcount_bits=8", "cluster_size=128k"])
def test_images_are_described_as_qemu_img_does(mon: Bench, tmp_path: Path, created: str) -> None:
    base, top = tmp_path / "base.qcow2", tmp_path / "top.qcow2"

    def qemu_img(*words: object) -> str:
        return subprocess.run(["qemu-img", *map(str, words)], check=True, capture_output=True, text=True).stdout

    options = ["-o", created] if created else []
    qemu_img("create", "-f", "qcow2", *options, base, "1M")
    qemu_img("snapshot", "-c", "one", base)
    qemu_img("snapshot", "-c", "another one", base)
    if "0.10" not in created:
        qemu_img("bitmap", "--add", base, "bm")
    qemu_img("create", "-f", "qcow2", *options, "-b", "base.qcow2", "-F", "qcow2", top)
    wanted = qemu_img("info", "--backing-chain", top).replace("\n\n", "\n")
    add(mon, f"id=d0,file={top},format=qcow2,readonly=on", "dev0")
    assert mon("info block -v d0").partition("Images:\n")[2] == wanted
