"""Sequential disk speed in a guest, ours beside QEMU's: `python tests/perf/disk.py [--rounds N] [--size MiB] ...`

Each round boots the same Linux guest under both programs, with four empty disks: raw and qcow2, virtio-blk and IDE. In
them `seqio` writes each disk (which allocates its clusters), writes it once more and reads it, past the guest's page
cache and one request at a time, each step under one program and then under the other, so that what else the host does
meets both alike. Both use the host's page cache (`cache=writeback`, the default of both). What the flush after a write
takes is told apart, for it is the host's disk alone that is measured by it. Medians in MB/s, by the guest's clock.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import stat
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "boot")]

from machine import Machine  # noqa: E402

from qemupy_setup import guests, initramfs  # noqa: E402

Speeds = dict[tuple[str, str, str], list[float]]  # by step, bus and format
PROCESSOR = "processor seconds for 1 GB"
BUSES = {"virtio": "vd", "ide": "sd"}  # and how the guest calls their disks
FORMATS = ("raw", "qcow2")
STEPS = ("write, new", "write", "read")


def initrd(folder: Path) -> Path:
    """The busybox initramfs with disk drivers, and `seqio` in an archive behind it (the kernel takes several)."""
    program, path = folder / "seqio", folder / "initrd"
    subprocess.run(["gcc", "-O2", "-static", "-o", program, Path(__file__).with_name("seqio.c")], check=True)
    more = initramfs.cpio([initramfs.Entry("bin/seqio", stat.S_IFREG | 0o755, program.read_bytes())])
    base = guests.linux_with_disks().initrd.read_bytes()
    path.write_bytes(base + bytes(-len(base) % 4) + more)
    return path


def disks(folder: Path, buses: list[str], formats: list[str], size: int) -> list[tuple[str, str, str, list[str]]]:
    """Fresh images: (bus, format, the guest's name, options of it)."""
    found = []
    for bus in buses:
        for letter, kind in zip("abcd", formats, strict=False):
            image = folder / f"{bus}.{kind}"
            image.unlink(missing_ok=True)
            subprocess.run(["qemu-img", "create", "-q", "-f", kind, image, f"{size}M"], check=True)
            found.append((bus, kind, f"/dev/{BUSES[bus]}{letter}", ["-drive", f"file={image},format={kind},if={bus}"]))
    return found


def processor_seconds(pid: int) -> float:
    """User and system time of all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Guest:
    """One program with its booted guest and its disks."""

    def __init__(self, name: str, command: list[str], folder: Path, given: argparse.Namespace) -> None:
        self.folder = folder / name
        self.folder.mkdir(exist_ok=True)
        self.disks = disks(self.folder, given.bus or list(BUSES), given.format or list(FORMATS), given.size)
        arguments = ["-m", "256", "-nographic", "-kernel", guests.linux_with_disks().kernel, "-initrd",
                     folder / "initrd", "-append", "console=ttyS0 quiet",
                     *(word for disk in self.disks for word in disk[3])]  # fmt: skip
        self.machine = Machine("", *arguments, log=self.folder / "console.log", start=command)
        self.machine.expect(initramfs.READY, 300)
        self.machine.expect(initramfs.PROMPT, 60)

    def measure(self, disk: int, step: str, given: argparse.Namespace, speeds: Speeds) -> None:
        """One step on one disk; adds to `speeds`."""
        bus, kind, name, _ = self.disks[disk]
        os.sync()
        before = processor_seconds(self.machine.process.pid)
        verb = step.partition(",")[0]
        answer = self.machine.run(f"seqio {verb} {name} {given.block} {given.size}", 2400)
        used = processor_seconds(self.machine.process.pid) - before
        took, flushed = (int(word) / 1e9 for word in answer.split()[:2])
        megabytes = (given.size << 20) / 1e6
        speeds[step, bus, kind].append(megabytes / took)
        speeds[f"{step}: {PROCESSOR}", bus, kind].append(used / megabytes * 1000)
        if verb == "write":
            speeds[f"{step}, flushed", bus, kind].append(megabytes / (took + flushed))


def one_round(programs: dict[str, list[str]], folder: Path, given: argparse.Namespace, results: dict[str, Speeds],
              turned: bool) -> None:  # fmt: skip
    with contextlib.ExitStack() as stack:
        booted = {name: Guest(name, programs[name], folder, given) for name in results}
        for guest in booted.values():
            stack.enter_context(guest.machine)
        names = list(results)[:: -1 if turned else 1]
        for disk in range(len(booted[names[0]].disks)):
            for step in STEPS:
                for name in names:
                    booted[name].measure(disk, step, given, results[name])


def show(results: dict[str, Speeds]) -> None:
    names = list(results)
    print(f"\n{'MB/s':<55}" + "".join(f"{name:>20}" for name in names))
    for key in results[names[0]]:
        step, bus, kind = key
        row = f"{bus:<7} {kind:<6} {step:<40}"
        for name in names:
            found = results[name][key]
            digits = 2 if PROCESSOR in step else 0
            row += f"{statistics.median(found):.{digits}f} ({min(found):.{digits}f}-{max(found):.{digits}f})".rjust(20)
        print(row)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=1024, help="MiB of each image")
    parser.add_argument("--block", type=int, default=1024, help="KiB of each request of the guest's program")
    parser.add_argument("--bus", choices=tuple(BUSES), action="append")
    parser.add_argument("--format", choices=FORMATS, action="append")
    parser.add_argument("--only", choices=("qemupy", "qemu"))
    parser.add_argument("--accel", default="dbt", help="our accelerator")
    given = parser.parse_args()
    programs = {"qemupy": [str(Path(sys.executable).with_name("qemupy")), "-accel", given.accel],
                "qemu": ["qemu-system-x86_64", "-accel", "tcg"]}  # fmt: skip
    results: dict[str, Speeds] = {name: defaultdict(list) for name in programs if given.only in (None, name)}
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp"), prefix="disk-") as folder:
        initrd(Path(folder))
        for number in range(given.rounds):
            one_round(programs, Path(folder), given, results, number % 2 == 1)
    show(results)


if __name__ == "__main__":
    main()
