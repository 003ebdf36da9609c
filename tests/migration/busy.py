"""The guest of busy.S from outside: machines that run it, and what its disk must hold."""

from __future__ import annotations

import array
import json
import subprocess
import time
from itertools import pairwise
from pathlib import Path

from tests.migration.process import Process

BLOCKS, STRIDE, SECTOR, SECTORS = 1024, 16384, 512, 4
UNDER_WAY = 32  # writes that may have been done since the last report at most
REPORT = 5  # bytes: a dot and four digits


def machine(folder: Path, floppy: Path, disk: Path | str, *more: str) -> Process:
    boot = f"file={floppy},format=raw,if=floppy,readonly=on"
    return Process(folder, "-drive", boot, "-boot", "a", "-drive", f"file={disk},format=qcow2", *more)


def create(path: Path, *options: str, size: str = "64M") -> Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, path, size], check=True)
    return path


def flushed(process: Process) -> int:
    """Writes that were on stable storage when the guest last reported, counted from its first."""
    text = process.output.read_bytes()
    at = text.rfind(b".", 0, max(len(text) - REPORT + 1, 0))
    return int(text[at + 1 : at + REPORT], 16) if at >= 0 else 0


class Plan:
    """Which block each write goes to: the guest's own sequence."""

    def __init__(self, count: int) -> None:
        self.writes: list[list[int]] = [[] for _ in range(BLOCKS)]  # by block, ascending
        seed = 1
        for number in range(1, count + 1):
            seed = (seed * 1103515245 + 12345) & 0xFFFFFFFF
            self.writes[seed >> 16 & BLOCKS - 1].append(number)

    def check(self, disk: bytes, flushed: int) -> None:
        """Each block holds the last write that was flushed or, sector by sector, one that came later."""
        for block, writes in enumerate(self.writes):
            stable = max((number for number in writes if number <= flushed), default=0)
            later = [number for number in writes if flushed < number <= flushed + UNDER_WAY]
            if not stable:
                continue
            for sector in range(SECTORS):
                at = block * STRIDE + sector * SECTOR
                found = disk[at : at + SECTOR]
                good = [pattern(number, sector) for number in (stable, *later)]
                assert found in good, f"block {block}, sector {sector}: not the write {stable}, nor one of {later}"


def pattern(number: int, sector: int) -> bytes:
    first = number + 3 * sector * SECTOR // 2
    return array.array("H", [word & 0xFFFF for word in range(first, first + 3 * SECTOR // 2, 3)]).tobytes()


def check_image(image: Path) -> None:
    """Sound, or becomes so: space that a process left behind, and COPIED flags that a snapshot being made had taken off
    already, are all that may be wrong."""
    done = subprocess.run(["qemu-img", "check", "--output=json", image], capture_output=True, text=True)
    assert done.returncode in (0, 2, 3), done.stderr
    verdict = json.loads(done.stdout)
    assert verdict.get("corruptions", 0) == done.stderr.count("ERROR OFLAG_COPIED"), done.stdout + done.stderr
    if done.returncode:
        subprocess.run(["qemu-img", "check", "-q", "-r", "all", image], check=True, capture_output=True)
    subprocess.run(["qemu-img", "check", "-q", image], check=True)


def content(image: Path) -> bytes:
    """The part of the disk that the plan is about, as qemu-img reads it."""
    raw = image.with_suffix(".raw")
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, raw], check=True)
    with raw.open("rb") as file:
        return file.read(BLOCKS * STRIDE)


def tags(image: Path) -> list[str]:
    done = subprocess.run(["qemu-img", "info", "--output=json", image], check=True, capture_output=True, text=True)
    return [snapshot["name"] for snapshot in json.loads(done.stdout).get("snapshots", [])]


def duration(process: Process, command: str) -> float:
    begin = time.monotonic()
    assert process.mon.run(command) == ""
    return time.monotonic() - begin


def memory(process: Process) -> tuple[int, int]:
    """Bytes of a process that are its alone, page cache left out; and its mappings."""
    folder = Path("/proc") / str(process.process.pid)
    words = (folder / "smaps_rollup").read_text().split()
    anonymous = next(int(size) for name, size in pairwise(words) if name == "Pss_Anon:")
    return anonymous << 10, len((folder / "maps").read_text().splitlines())
