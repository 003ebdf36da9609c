"""Snapshots and live migration, ours beside QEMU's: the same guest, one after the other.

    build/venv/bin/python tests/perf/snapshots.py [--accel NAME] [--only qemupy|qemu] [--rounds N]

The guest has 512 MiB, of which 100 MiB hold random bytes, and an empty qcow2 disk. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "boot"), str(ROOT / "tests" / "migration")]

from machine import Machine  # noqa: E402
from process import Monitor  # noqa: E402

from qemupy_setup import guests, initramfs  # noqa: E402

RANDOM_MIB = 100


class Guest(Machine):
    """A Linux guest of one of the two programs, with a monitor."""

    def __init__(self, program: list[str], folder: Path, *more: str) -> None:
        guest = guests.linux("linux-image-cloud-amd64")
        self.socket = folder / "monitor"
        for path in (self.socket, Path(f"{self.socket}-2")):
            path.unlink(missing_ok=True)
        self.begun = time.monotonic()
        disk = f"file={folder}/disk.qcow2,format=qcow2"
        words = ["-m", "512", "-display", "none", "-serial", "stdio", "-net", "none", "-kernel", guest.kernel,
                 "-initrd", guest.initrd, "-append", "console=ttyS0 quiet", "-drive", disk,
                 "-monitor", f"unix:{self.socket},server=on,wait=off",
                 "-monitor", f"unix:{self.socket}-2,server=on,wait=off", *more]  # fmt: skip
        self.program = program
        super().__init__("", *words, log=folder / "console.log")
        self.monitor = Monitor(self.socket)
        self.watcher = Monitor(Path(f"{self.socket}-2"))

    def timed(self, command: str) -> float:
        """Milliseconds from the command to the next prompt."""
        begin = time.perf_counter()
        answer = self.monitor.run(command)
        used = (time.perf_counter() - begin) * 1000
        if answer:
            raise SystemExit(f"{self.program[0]}: {command}: {answer}")
        return used

    def paused(self, command: str) -> tuple[float, float]:
        """Like `timed`, and the longest time for which a second monitor did not say that the guest runs."""
        seen, over = [time.perf_counter()], threading.Event()

        def watch() -> None:
            while not over.is_set():
                if "running" in self.watcher.run("info status"):
                    seen.append(time.perf_counter())
                time.sleep(0.0005)

        watcher = threading.Thread(target=watch)
        watcher.start()
        used = self.timed(command)
        over.set()
        watcher.join()
        seen.append(time.perf_counter())
        return used, max(after - before for before, after in pairwise(seen)) * 1000


def start(program: list[str], folder: Path, *more: str) -> Guest:
    os.environ["QEMUPY_BIN"] = " ".join(program)
    import machine

    machine.REFERENCE = os.environ["QEMUPY_BIN"]
    return Guest(program, folder, *more)


def fill(guest: Guest) -> None:
    guest.expect(initramfs.PROMPT, 300)
    guest.run("mkdir -p /fill; mount -t tmpfs tmpfs /fill")
    guest.run(f"dd if=/dev/urandom of=/fill/r bs=1M count={RANDOM_MIB} 2>&1", 600)
    guest.idle(2)


def stored(guest: Guest) -> int:
    """Bytes of the machine's state, as `info snapshots` rounds them."""
    found = re.search(r"ready +([\d.]+) (Mi|Gi)B", guest.monitor.run("info snapshots"))
    assert found
    return int(float(found.group(1)) * (1 << 20 if found.group(2) == "Mi" else 1 << 30))


def work(guest: Guest, job: str) -> str:
    """Pages and clusters of the last savevm or loadvm; QEMU does not say."""
    found = re.search(rf"^{job}: (.*)$", guest.monitor.run("info snapshot-work"), re.M)
    return found.group(1) if found else "not told"


def dd_ms(folder: Path, size: int) -> float:
    """`dd conv=fdatasync` of as many random bytes."""
    source, target = folder / "random", folder / "copy"
    source.write_bytes(os.urandom(1 << 20) * (size >> 20))
    source.read_bytes()
    os.sync()
    begin = time.perf_counter()
    subprocess.run(["dd", f"if={source}", f"of={target}", "bs=1M", "conv=fdatasync"], check=True, capture_output=True)
    used = (time.perf_counter() - begin) * 1000
    source.unlink()
    target.unlink()
    return used


def migration_ms(guest: Guest, program: list[str], folder: Path) -> tuple[float, float]:
    """Downtime and total of a live migration to a second process, as `info migrate` tells; the guest goes on here."""
    target_folder = folder / "target"
    target_folder.mkdir(exist_ok=True)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", target_folder / "disk.qcow2", "1G"], check=True)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with start(program, target_folder, "-incoming", f"tcp:127.0.0.1:{port}"):
        guest.monitor.run("migrate_set_parameter max-bandwidth 10G")
        guest.monitor.run(f"migrate tcp:127.0.0.1:{port}")
        info = guest.monitor.run("info migrate")
    guest.monitor.run("cont")
    guest.idle(0.3)
    numbers = {key: int(n) for key, n in re.findall(r"^(downtime|total time): (\d+) ms$", info, re.M)}
    return numbers["downtime"], numbers["total time"]


def until_running_ms(program: list[str], folder: Path) -> float:
    """From the start of a process with -loadvm until its monitor says that it runs."""
    with start(program, folder, "-loadvm", "ready") as guest:
        while "VM status: running" not in guest.monitor.run("info status"):
            time.sleep(0.001)
        return (time.monotonic() - guest.begun) * 1000


def spread(times: list[float]) -> str:
    return f"{statistics.median(times):.0f} ({min(times):.0f}-{max(times):.0f})"


def measure_first(program: list[str], rounds: int) -> dict[str, str]:
    """The first savevm of fresh guests with fresh images, `dd` beside each. What was written or deleted before is on
    the disk by then: to pass on the discards of deleted files takes the host as long as the savevm."""
    saves, pauses, dds, results = [], [], [], {}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="snapshots-", dir=os.environ.get("TMPDIR", "/var/tmp")) as name:
            folder = Path(name)
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", folder / "disk.qcow2", "1G"], check=True)
            with start(program, folder) as guest:
                fill(guest)
                os.sync()
                first, pause = guest.paused("savevm ready")
                size = stored(guest)
                results = {"state": f"{size >> 20} MiB", "first savevm, work": work(guest, "savevm")}
                saves.append(first)
                pauses.append(pause)
                dds.append(dd_ms(folder, size))
    return {
        "dd fdatasync ms": spread(dds),
        "first savevm ms": spread(saves),
        "of it the guest stood ms": spread(pauses),
        **results,
    }


def measure(program: list[str], rounds: int) -> dict[str, str]:
    folder = Path(tempfile.mkdtemp(prefix="snapshots-", dir=os.environ.get("TMPDIR", "/var/tmp")))
    results = measure_first(program, rounds)
    try:
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", folder / "disk.qcow2", "1G"], check=True)
        with start(program, folder) as guest:
            fill(guest)
            guest.timed("savevm ready")
            saves = [guest.timed("savevm ready") for _ in range(rounds)]
            results["savevm again ms"] = spread(saves)
            results["savevm again, work"] = work(guest, "savevm")
            guest.idle(0.2)
            guest.timed("savevm other")
            results["loadvm ms"] = f"{guest.timed('loadvm ready'):.1f}"
            results["loadvm, work"] = work(guest, "loadvm")
            repeated = []
            for _ in range(20 * rounds):
                repeated.append(guest.timed("loadvm ready"))
            results["loadvm again ms"] = f"{statistics.median(repeated):.2f} ({min(repeated):.2f}-{max(repeated):.2f})"
            results["loadvm again, work"] = work(guest, "loadvm")
            guest.monitor.run("delvm other")
            downtimes, totals = zip(*(migration_ms(guest, program, folder) for _ in range(rounds)), strict=True)
            results["migration downtime ms"] = spread(list(downtimes))
            results["migration total ms"] = spread(list(totals))
            guest.monitor.send("quit")
            guest.wait(20)
        fresh = [until_running_ms(program, folder) for _ in range(rounds)]
        results["new process ms"] = spread(fresh)
    finally:
        shutil.rmtree(folder)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--accel", default="dbt")
    parser.add_argument("--only", choices=("qemupy", "qemu"))
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    beside = Path(sys.executable).with_name("qemupy")
    programs = {
        "qemu": ["qemu-system-x86_64", "-accel", "tcg"],
        "qemupy": [str(beside), "-accel", given.accel],
    }
    for name, program in programs.items():
        if given.only in (None, name):
            for key, value in measure(program, given.rounds).items():
                print(f"{name:<8} {key:<24} {value}", flush=True)


if __name__ == "__main__":
    main()
