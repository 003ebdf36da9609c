"""kill -9 while a busy guest writes, while its machine is saved, while its disk is committed: the images are sound,
what the guest flushed is there, and every snapshot that there was can be loaded; its guest finds memory and disk right.

One pair of images lives through all kills of a test; the moments follow the seed.
"""

from __future__ import annotations

import random
import subprocess
import time
from pathlib import Path

import pytest

from tests.migration import busy
from tests.migration.process import Process, counting_guest

POOL = ("first", "second", "third")


@pytest.fixture(scope="module")
def floppy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return counting_guest(tmp_path_factory.mktemp("guest"), "busy")


@pytest.fixture(scope="module")
def plan() -> busy.Plan:
    return busy.Plan(20_000)


class Kills:
    """`what` is going on when the process is killed: "writes", "savevm" or "commit"."""

    def __init__(self, folder: Path, floppy: Path, plan: busy.Plan, what: str, seed: int) -> None:
        self.folder, self.floppy, self.plan, self.what = folder, floppy, plan, what
        self.rng = random.Random(seed)
        self.base = busy.create(folder / "base.qcow2", "-o", "cluster_size=4k")
        subprocess.run(["qemu-io", "-c", "write -P 7 32M 16M", self.base], check=True, capture_output=True)
        subprocess.run(["qemu-img", "snapshot", "-c", "old", self.base], check=True)
        cluster = "64k" if what == "savevm" else "4k"  # small clusters: much metadata
        layout = ("-b", "base.qcow2", "-F", "qcow2", "-o", f"cluster_size={cluster}")
        self.disk = busy.create(folder / "top.qcow2", *layout)
        self.longest = self._prepare()

    def _prepare(self) -> float:
        """A first snapshot, and how long what will be killed takes."""
        with busy.machine(self.folder, self.floppy, self.disk) as process:
            process.wait_passes(10)
            assert process.mon.run(f"savevm {POOL[0]}") == ""
            process.wait_passes(10)
            if self.what == "writes":
                return 0.4
            return busy.duration(process, "savevm first" if self.what == "savevm" else "commit all")

    def once(self) -> None:
        before = busy.tags(self.disk)
        with busy.machine(self.folder, self.floppy, self.disk, "-loadvm", self.rng.choice(before)) as process:
            process.wait_passes(2)
            for tag in sorted(set(before)):
                assert process.mon.run(f"loadvm {tag}") == ""
                process.wait_passes(2)
            reported, new = self._kill(process)
        for image in (self.base, self.disk):
            busy.check_image(image)
        after = busy.tags(self.disk)
        assert set(before) <= set(after) <= {*before, new}, f"snapshots {before} became {after}"
        assert busy.tags(self.base) == ["old"]
        self.plan.check(busy.content(self.disk), reported)

    def _kill(self, process: Process) -> tuple[int, str]:
        new = ""
        if self.what == "savevm":
            new = self.rng.choice(POOL)
            process.mon.send(f"savevm {new}")
        elif self.what == "commit":
            process.mon.send("commit all")
        time.sleep(self.rng.uniform(0, 1.2 * self.longest))
        process.process.kill()
        process.process.wait()
        return busy.flushed(process), new

    def finish(self) -> None:
        """What the backing image's own snapshot holds has not changed."""
        subprocess.run(["qemu-img", "snapshot", "-a", "old", self.base], check=True)
        done = subprocess.run(["qemu-io", "-c", "read -P 7 32M 16M", "-c", "read -P 0 0 32M", self.base], check=True,
                              capture_output=True, text=True)  # fmt: skip
        assert "failed" not in done.stdout


def kill(folder: Path, floppy: Path, plan: busy.Plan, what: str, count: int, seed: int) -> None:
    kills = Kills(folder, floppy, plan, what, seed)
    for number in range(count):
        try:
            kills.once()
        except BaseException as e:
            e.add_note(f"kill number {number} of seed {seed}; images in {folder}")
            raise
    kills.finish()


@pytest.mark.boot
@pytest.mark.parametrize(("what", "count"), [("writes", 5), ("savevm", 5), ("commit", 5)])
def test_five_kills(tmp_path: Path, floppy: Path, plan: busy.Plan, what: str, count: int) -> None:
    kill(tmp_path, floppy, plan, what, count, seed=1)


@pytest.mark.long
@pytest.mark.parametrize("what", ["writes", "savevm", "commit"])
def test_a_hundred_kills(tmp_path: Path, floppy: Path, plan: busy.Plan, what: str) -> None:
    kill(tmp_path, floppy, plan, what, 100, seed=2)
