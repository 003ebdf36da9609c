"""Snapshots again and again of a guest that is busy with memory, disk and timer and checks all three (busy.S)."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.migration import busy
from tests.migration.process import PROGRAM, SCALE, Process, counting_guest

MIB = 1 << 20
RAM, PAGE = 16 * MIB, 4096
WARM_UP = 5  # cycles after which nothing may grow any more
MEMORY_GROWTH, MAPPINGS_GROWTH = 16 * MIB, 200  # RAM of the guest itself can come in, and scatter over its snapshot
# The disk's 16 MiB, two states of 13 MiB each (the old one goes when the new one is there), and metadata.
IMAGE_LIMIT = 48 * MIB


@pytest.fixture(scope="module")
def floppy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return counting_guest(tmp_path_factory.mktemp("guest"), "busy")


class Cycles:
    """savevm, then loadvm: half of the times where it was saved, half in a new process."""

    def __init__(self, folder: Path, floppy: Path) -> None:
        self.folder, self.floppy = folder, floppy
        self.disk = busy.create(folder / "disk.qcow2")
        self.sizes: list[int] = []

    def run(self, count: int) -> None:
        with ExitStack() as stack:
            process = stack.enter_context(busy.machine(self.folder, self.floppy, self.disk))
            process.wait_passes(2)
            used = [self._in_place(process) for _ in range(count // 2)]
            self._check_growth(used)
            for _ in range(count - count // 2):
                process = self._in_a_new_process(process, stack)
            process.wait_passes(20)
            assert process.mon.run("delvm cycle") == ""
            process.mon.send("quit")
            assert process.wait() == 0
        subprocess.run(["qemu-img", "check", "-q", self.disk], check=True)
        print(f"image after {WARM_UP} cycles {self.sizes[WARM_UP - 1]}, at most {max(self.sizes)}")
        assert max(self.sizes) < IMAGE_LIMIT, self.sizes
        assert self.disk.stat().st_blocks * 512 < self.sizes[-1]  # the snapshot's space is given back

    def _in_place(self, process: Process) -> tuple[int, int]:
        assert process.mon.run("savevm cycle") == ""
        process.wait_passes(2)
        assert process.mon.run("loadvm cycle") == ""
        process.wait_passes(2)
        self.sizes.append(self.disk.stat().st_blocks * 512)
        return busy.memory(process)

    def _in_a_new_process(self, process: Process, stack: ExitStack) -> Process:
        assert process.mon.run("savevm cycle") == ""
        process.mon.send("quit")
        assert process.wait() == 0
        process.passes()
        made = busy.machine(self.folder, self.floppy, self.disk, "-loadvm", "cycle")
        stack.enter_context(made)
        made.wait_passes(2)
        self.sizes.append(self.disk.stat().st_blocks * 512)
        return made

    def _check_growth(self, used: list[tuple[int, int]]) -> None:
        begin = used[min(WARM_UP, len(used) - 1)]
        highest = tuple(max(column) for column in zip(*used, strict=True))
        print(f"{len(used)} cycles in one process; memory and mappings after {WARM_UP} {begin}, at most {highest}")
        for memory, mappings in used[WARM_UP:]:
            assert memory <= begin[0] + MEMORY_GROWTH and mappings <= begin[1] + MAPPINGS_GROWTH, used


@pytest.mark.boot
def test_ten_cycles(tmp_path: Path, floppy: Path) -> None:
    Cycles(tmp_path, floppy).run(10)


@pytest.mark.long
def test_two_hundred_cycles(tmp_path: Path, floppy: Path) -> None:
    Cycles(tmp_path, floppy).run(200)


class Line:
    """The guest's COM2: a named pipe, which holds what is typed before anybody reads."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "line"
        os.mkfifo(self.path)
        self._fd = os.open(self.path, os.O_RDWR)
        self.option = ("-serial", f"pipe:{self.path}")

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def close(self) -> None:
        os.close(self._fd)


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    made = Line(tmp_path)
    yield made
    made.close()


@pytest.fixture
def saved(tmp_path: Path, floppy: Path, line: Line) -> Path:
    """A disk with the snapshot `tag`."""
    disk = busy.create(tmp_path / "disk.qcow2")
    with busy.machine(tmp_path, floppy, disk, *line.option) as process:
        process.wait_passes(10)
        assert process.mon.run("savevm tag") == ""
        process.mon.send("quit")
        assert process.wait() == 0
    return disk


def ram(process: Process, path: Path) -> bytes:
    assert process.mon.run(f'pmemsave 0 {RAM:#x} "{path}"') == ""
    return path.read_bytes()


@pytest.mark.boot
@pytest.mark.parametrize("commands", [("delvm tag",), ("savevm tag",), ("savevm tag", "delvm tag")])
def test_ram_outlives_the_clusters_it_lay_in(
    tmp_path: Path, floppy: Path, line: Line, saved: Path, commands: tuple[str, ...]
) -> None:
    """The snapshot goes that RAM is mapped from, then the guest fills its disk, also where RAM lay. A new snapshot of
    the same name shares what did not change, so that its space is not free yet."""
    with busy.machine(tmp_path, floppy, saved, *line.option, "-loadvm", "tag") as process:
        run = process.mon.run
        process.wait_passes(1)
        assert run("stop") == ""
        before = ram(process, tmp_path / "ram")
        for command in commands:
            assert run(command) == "" and ram(process, tmp_path / "ram") == before
        size = saved.stat().st_size
        assert run("cont") == ""
        line.type("w" * 14)
        process.wait_passes(18)
        assert run("stop") == ""
        if "delvm tag" in commands:
            assert saved.stat().st_size - size < 10 * MIB, "the disk did not grow into what the snapshot had"
        after = ram(process, tmp_path / "ram")
        changed = [at for at in range(0, RAM, PAGE) if after[at : at + PAGE] != before[at : at + PAGE]]
        assert max(changed) < MIB, "memory that the guest only reads has changed"
        assert run("cont") == ""
        process.wait_passes(200)  # the guest's own sums over all of it
    subprocess.run(["qemu-img", "check", "-q", saved], check=True)


def echoed(process: Process, text: str) -> None:
    process.wait_passes(len(text) + 1)  # one character in each
    assert re.sub(r"\.[0-9a-f]{0,4}", "", process.output.read_text()) == text


@pytest.mark.boot
def test_what_is_typed_before_the_machine_is_loaded_reaches_its_guest(
    tmp_path: Path, floppy: Path, line: Line, saved: Path
) -> None:
    line.type("xyz")
    with busy.machine(tmp_path, floppy, saved, *line.option, "-loadvm", "tag") as process:
        echoed(process, "xyz")
        assert process.mon.run("stop") == "" and process.mon.run(f"migrate file:{tmp_path}/state") == ""
        process.mon.send("quit")
        assert process.wait() == 0
    line.type("vu")
    with busy.machine(tmp_path, floppy, saved, *line.option, "-incoming", "defer") as process:
        line.type("t")
        assert process.mon.run("info status") == "VM status: paused (inmigrate)"
        assert process.mon.run(f"migrate_incoming file:{tmp_path}/state") == ""
        while "inmigrate" in process.mon.run("info status"):
            pass
        assert process.mon.run("cont") == ""
        echoed(process, "vut")


@pytest.mark.boot
def test_monitor_commands_wait_for_loadvm(tmp_path: Path, floppy: Path, line: Line, saved: Path) -> None:
    """As in QEMU, a script's first command meets the loaded machine."""
    boot = f"file={floppy},format=raw,if=floppy,readonly=on"
    done = subprocess.run(
        [PROGRAM, "-m", "16", "-display", "none", "-net", "none", "-nodefaults", "-serial", "none", *line.option,
         "-chardev", f"file,id=e9,path={tmp_path}/e9", "-device", "isa-debugcon,chardev=e9,id=e9", "-drive", boot,
         "-drive", f"file={saved},format=qcow2", "-loadvm", "tag", "-monitor", "stdio"],
        input="savevm again\nquit\n", capture_output=True, text=True, timeout=60 * SCALE,
    )  # fmt: skip
    assert done.returncode == 0 and "Error" not in done.stdout, done.stdout + done.stderr
    assert sorted(busy.tags(saved)) == ["again", "tag"]
