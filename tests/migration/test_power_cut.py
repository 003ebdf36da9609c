"""Power cuts under a whole machine: a busy guest (busy.S) writes, its machine is saved, loaded and deleted, and its
disk is rebuilt at random moments from what was flushed and some of what was not, in any order.

The disk is an NBD server of the test's own, which sees each write and flush and holds the machine while it looks.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qemupy.migration.vmstate import RAM_BASE
from tests.block.files import MemoryFile
from tests.block.nbd_log import LoggingServer
from tests.block.qcow2_images import in_memory, read
from tests.migration import busy
from tests.migration.process import SCALE, Process, counting_guest

MIB = 1 << 20
SIZE, RAM = 96 * MIB, 16 * MIB  # the file cannot grow: up to four versions of 16 MiB of disk, and 13 MiB of memory
POOL = ("first", "second")


@pytest.fixture(scope="module")
def floppy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return counting_guest(tmp_path_factory.mktemp("guest"), "busy")


def look_into(data: bytes | bytearray) -> tuple[bytes, dict[str, tuple[str, str]]]:
    """What the disk of an image holds; by id, each snapshot's name and a digest of its disk and machine."""
    image = in_memory(MemoryFile(data))
    size, found = busy.BLOCKS * busy.STRIDE, {}
    active = read(image, 0, size)
    for snapshot in image.snapshots():
        state = bytearray(RAM_BASE + RAM)
        image.vmstate_read(0, memoryview(state), snapshot)
        image.snapshot_apply(snapshot.id)
        digest = hashlib.sha1(state)
        digest.update(read(image, 0, size))
        found[snapshot.id] = (snapshot.name, digest.hexdigest())
    return active, found


class Cuts:
    """A machine and its disk. `left` moments are looked at in the server's thread."""

    def __init__(self, folder: Path, floppy: Path, seed: int, left: int) -> None:
        self.folder, self.floppy, self.left = folder, floppy, left
        self.rng, self.moments = random.Random(seed), random.Random(seed + 1)
        self.plan = busy.Plan(20_000)
        self.image = busy.create(folder / "disk.qcow2", "-o", "cluster_size=16k")
        self.file = MemoryFile(self.image.read_bytes().ljust(SIZE, b"\0"))
        self.file.LIMIT = SIZE
        self.process: Process | None = None
        self.known: dict[str, tuple[str, str]] = {}
        self.changing: str | None = None  # the tag of the command that runs
        self.reports_count = True  # what the guest reported is about the disk as it is now
        self.loads = 0

    def run(self) -> None:
        server = LoggingServer(self.folder / "nbd", self.file)
        with server, self._machine() as self.process:
            self.process.wait_passes(2)
            self.file.before = self._moment
            try:
                while self.left > 0 and server.error is None:
                    self._step(self.process)
            except (AssertionError, OSError):
                if server.error is None:
                    raise
            self.file.before = lambda: None
            if server.error is not None:
                raise server.error
        assert self.loads

    def _machine(self) -> Process:
        """Its disk makes it wait while a cut is looked at, each for seconds where the cores are shared."""
        process = busy.machine(self.folder, self.floppy, f"nbd:unix:{self.folder}/nbd")
        process.patience *= 10
        return process

    def _step(self, process: Process) -> None:
        kind, tag = self.rng.random(), self.rng.choice(POOL)
        names = {name for name, _ in self.known.values()}
        if kind < 0.4 or not names:
            with self._change(tag):
                assert process.mon.run(f"savevm {tag}") == ""
        elif kind < 0.6:
            tag = self.rng.choice(sorted(names))
            self.reports_count = False
            assert process.mon.run(f"loadvm {tag}") == ""
            process.wait_passes(2)  # its first flush was after that
            self.reports_count = True
        elif kind < 0.7:
            with self._change(tag):
                assert process.mon.run(f"delvm {tag}") == ""
        process.wait_passes(self.rng.randrange(1, 6))

    @contextmanager
    def _change(self, tag: str) -> Iterator[None]:
        self.changing = tag
        yield
        _, found = look_into(self.file.data)
        for id, digest in self.known.items():
            assert found.get(id, digest) == digest
        self.known, self.changing = found, None

    def _moment(self) -> None:
        if self.left > 0 and self.moments.random() < 0.04:
            self.left -= 1
            self._power_cut()

    def _power_cut(self) -> None:
        assert self.process is not None
        reported = busy.flushed(self.process) if self.reports_count else 0
        data, path = self.file.after_power_cut(self.moments), self.folder / "after.qcow2"
        path.write_bytes(data)
        busy.check_image(path)
        active, found = look_into(data)
        self.plan.check(active, reported)
        needed = {id for id, (name, _) in self.known.items() if name != self.changing}
        assert needed <= found.keys(), f"{self.known} became {found} while {self.changing} changes"
        for id, digest in found.items():
            assert self.known.get(id, digest) == digest
            assert id in self.known or digest[0] == self.changing
        if found and (not self.loads or self.moments.random() < 0.1):
            self._load(path, self.moments.choice(sorted(found.values()))[0])

    def _load(self, path: Path, tag: str) -> None:
        """What our reader finds in it is a machine that runs."""
        self.loads += 1
        with busy.machine(self.folder, self.floppy, path, "-loadvm", tag) as process:
            deadline = time.monotonic() + 20 * SCALE
            while not process.output.exists():
                assert process.process.poll() is None and time.monotonic() < deadline, process.stderr
            process.wait_passes(2)


@pytest.mark.boot
def test_ten_power_cuts(tmp_path: Path, floppy: Path) -> None:
    Cuts(tmp_path, floppy, 3, 10).run()


@pytest.mark.long
@pytest.mark.parametrize("seed", range(5))
def test_five_hundred_power_cuts(tmp_path: Path, floppy: Path, seed: int) -> None:
    Cuts(tmp_path, floppy, seed, 100).run()
