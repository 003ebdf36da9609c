"""Power cuts and kills: whatever of the unflushed writes reached the disk, the image is sound; nothing flushed is lost.

The image lies in a `MemoryFile`, which knows what has not been flushed. At random moments, also in the middle of an
operation, the disk is rebuilt from some of the unflushed sectors; qemu-img must find it clean, repair leaks, or set
COPIED flags that a snapshot had changed (no order of writes can avoid that, and until then the data are right anyway).
"""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from qemupy.backends.block.qcow2 import Qcow2Image, create
from tests.block.files import LocalFile, MemoryFile
from tests.block.qcow2_images import assert_clean, check, content, in_memory, needs_qemu_img, opened, qemu_img, read

pytestmark = needs_qemu_img
SECTOR = 512


class Story:
    """A random sequence of operations on an image, with what must be found after a power cut at any moment of it."""

    def __init__(self, seed: int, folder: Path, cuts: int) -> None:
        self.rng, self.folder, self.cuts = random.Random(seed), folder, cuts
        self.size = self.rng.choice([300, 700]) * 1024
        self.file = MemoryFile()
        create(self.file, self.size, cluster_size=1 << self.rng.choice([9, 9, 10, 12, 16]),
               refcount_bits=self.rng.choice([16, 16, 64]))  # fmt: skip
        self.image = in_memory(self.file)
        self.model = bytearray(self.size)
        self.flushed = bytes(self.size)
        self.doubtful: set[int] = set()  # sectors written since the last flush
        self.snapshots: dict[str, tuple[bytes, bytes]] = {}
        self.unsure: dict[str, tuple[bytes, bytes]] = {}  # being taken or deleted: right if they are there
        self.ever_shared = False
        self.file.before = self._moment

    def run(self) -> None:
        while self.cuts:
            self._step()

    def _moment(self) -> None:
        if self.cuts and self.rng.random() < 0.03:
            self.cuts -= 1
            self.power_cut()

    def _step(self) -> None:
        rng = self.rng
        offset = rng.randrange(self.size // SECTOR) * SECTOR
        length = min(rng.choice([512, 4096, rng.randrange(1, 100) * SECTOR]), self.size - offset)
        kind = rng.random()
        if kind < 0.6:
            self._change(offset, rng.randbytes(length), lambda data: self.image.write(offset, data))
        elif kind < 0.7:
            unmap = rng.random() < 0.5
            self._change(offset, bytes(length), lambda _: self.image.write_zeroes(offset, length, unmap))
        elif kind < 0.8:
            self.image.flush()
            self._all_flushed()
        elif kind < 0.86 and len(self.snapshots) < 4:
            self._take_snapshot(f"s{rng.random()}")
        elif kind < 0.91 and self.snapshots:
            name = rng.choice(list(self.snapshots))
            self.doubtful.update(range(self.size // SECTOR))
            self.image.snapshot_apply(name)
            self.model[:] = self.snapshots[name][0]
        elif kind < 0.95 and self.snapshots:
            name = rng.choice(list(self.snapshots))
            self.unsure = {name: self.snapshots.pop(name)}
            self.image.snapshot_delete(name)
            self.unsure = {}
        elif kind > 0.98:
            self.image.close()
            self._all_flushed()
            self.image = in_memory(self.file)

    def _change(self, offset: int, data: bytes, act: Callable[[bytes], None]) -> None:
        self.doubtful.update(range(offset // SECTOR, (offset + len(data)) // SECTOR))
        act(data)
        self.model[offset : offset + len(data)] = data

    def _all_flushed(self) -> None:
        self.flushed = bytes(self.model)
        self.doubtful.clear()

    def _take_snapshot(self, name: str) -> None:
        state = self.rng.randbytes(self.rng.randrange(30_000))
        self.image.vmstate_begin()
        shared = self._share_state()
        self.image.vmstate_write(len(shared), state)
        state = shared + state
        self.unsure, self.ever_shared = {name: (bytes(self.model), state)}, True
        self.image.snapshot_create(name, 0, 0, 0, len(state))
        self.snapshots.update(self.unsure)
        self.unsure = {}
        self._all_flushed()

    def _share_state(self) -> bytes:
        """Sometimes, as savevm does: the begin of the new state is that of an earlier snapshot's, in its clusters."""
        if not self.snapshots or self.rng.random() < 0.5:
            return b""
        name, size = self.rng.choice(list(self.snapshots)), self.image.cluster_size
        state = self.snapshots[name][1]
        length = self.rng.randrange(len(state) // size + 1) * size
        self.image.vmstate_share(name, 0, 0, length)
        return state[:length]

    def power_cut(self) -> None:
        path = self.folder / "after.qcow2"
        path.write_bytes(self.file.after_power_cut(self.rng))
        verdict = check(path)
        flags = re.findall(r"^ERROR OFLAG_COPIED", verdict["messages"], re.M)
        assert verdict.get("corruptions", 0) == len(flags), verdict
        assert not flags or self.ever_shared, verdict
        with opened(path) as image:
            self._verify(image)
        qemu_img("check", "-q", "-r", "all", path)
        assert_clean(path)

    def _verify(self, image: Qcow2Image) -> None:
        found = content(image)
        for sector in set(range(self.size // SECTOR)) - self.doubtful:
            at = sector * SECTOR
            assert found[at : at + SECTOR] == self.flushed[at : at + SECTOR], f"flushed data at {at:#x} are lost"
        names = {snapshot.name for snapshot in image.snapshots()}
        assert set(self.snapshots) <= names <= {*self.snapshots, *self.unsure}
        for name in names:
            disk, state = {**self.snapshots, **self.unsure}[name]
            image.snapshot_apply(name)
            data = bytearray(len(state))
            image.vmstate_read(0, memoryview(data))
            assert content(image) == disk and data == state


@pytest.mark.parametrize("seed", range(4))
def test_power_cuts(tmp_path: Path, seed: int) -> None:
    Story(seed, tmp_path, cuts=6).run()


@pytest.mark.long
def test_five_hundred_power_cuts(tmp_path: Path) -> None:
    for seed in range(100, 150):
        Story(seed, tmp_path, cuts=10).run()


WRITER = """
import random, sys
from pathlib import Path
from tests.block.files import LocalFile
from qemupy.backends.block.qcow2 import Qcow2Image
seed, path = int(sys.argv[1]), sys.argv[2]
rng = random.Random(seed)
image = Qcow2Image(LocalFile(path), path, readonly=False, discard=True)
for number in range(1, 1 << 20):
    for _ in range(rng.randrange(20)):
        image.write(rng.randrange(4096, 16384) * 512, bytes([number % 251 + 1]) * rng.choice([512, 70000]))
    if number % 5 == 0:
        image.vmstate_begin()
        image.vmstate_write(0, b"state" * 20000)
        image.snapshot_create("s%d" % number, 0, 0, 0, 100000)
        if number % 10 == 0:
            image.snapshot_delete("s%d" % (number - 5))
    image.write(0, number.to_bytes(512, "big"))
    image.flush()
    print(number, flush=True)
"""


def kill_a_writer(path: Path, seed: int) -> None:
    """A process writes, flushes, takes and deletes snapshots, and says how far it has come; it is killed on the way."""
    file = LocalFile(path)
    create(file, 16 << 20, cluster_size=4096)
    file.close()
    words = [sys.executable, "-c", WRITER, str(seed), str(path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout is not None and process.stdout.readline() == "1\n"
        time.sleep(random.Random(seed).random() * 0.5)
        process.send_signal(signal.SIGKILL)
        reached = int(([1, *process.stdout.read().split()])[-1])
    verdict = check(path)
    assert verdict.get("corruptions", 0) == len(re.findall("OFLAG_COPIED", verdict["messages"])), verdict
    with opened(path) as image:
        assert int.from_bytes(read(image, 0, 512), "big") >= reached
        names = [snapshot.name for snapshot in image.snapshots()]
        for name in names:
            image.snapshot_apply(name)
            state = bytearray(100_000)
            image.vmstate_read(0, memoryview(state))
            assert state == b"state" * 20_000
    assert len(names) >= (reached // 5) - (reached // 10) - 1
    qemu_img("check", "-q", "-r", "all", path)
    assert_clean(path)


@pytest.mark.parametrize("seed", range(3))
def test_kill(tmp_path: Path, seed: int) -> None:
    kill_a_writer(tmp_path / "image.qcow2", seed)


@pytest.mark.long
def test_a_hundred_kills(tmp_path: Path) -> None:
    for seed in range(100, 200):
        path = tmp_path / f"{seed}.qcow2"
        kill_a_writer(path, seed)
        path.unlink()


COMMITTER = """
import sys
from qemupy.backends.block.commit import commit_slices
from qemupy.backends.block.opening import Flags, Graph
node = Graph().open({"driver": "qcow2"}, Flags(discard=True), sys.argv[1])
print("begins", flush=True)
for _ in commit_slices(node):
    print("slice", flush=True)
"""


def kill_a_commit(folder: Path, seed: int) -> None:
    """Whenever a commit is killed, overlay and backing image together still hold the data."""
    rng = random.Random(seed)
    base, top = folder / "base.qcow2", folder / "top.qcow2"
    for path, backing in ((base, ""), (top, "base.qcow2")):
        file = LocalFile(path)
        create(file, 16 << 20, cluster_size=4096, backing_file=backing, backing_format="qcow2" if backing else "")
        file.close()
    expected = bytearray(16 << 20)
    with opened(base) as below, opened(top) as above:
        above.set_backing(below)
        for image in (below, above):
            for _ in range(60):
                at, data = rng.randrange(30_000) * 512, rng.randbytes(rng.choice([4096, 300_000]))
                image.write(at, data)
                expected[at : at + len(data)] = data
    words = [sys.executable, "-c", COMMITTER, str(top)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout is not None and process.stdout.readline() == "begins\n"
        time.sleep(rng.random() * 0.1)
        process.send_signal(signal.SIGKILL)
    for path in (base, top):
        qemu_img("check", "-q", "-r", "leaks", path)
        assert_clean(path)
    raw = folder / "expected.raw"
    raw.write_bytes(expected)
    qemu_img("compare", "-f", "qcow2", "-F", "raw", top, raw)


@pytest.mark.parametrize("seed", range(2))
def test_kill_during_commit(tmp_path: Path, seed: int) -> None:
    kill_a_commit(tmp_path, seed)


@pytest.mark.long
def test_a_hundred_kills_during_commit(tmp_path: Path) -> None:
    for seed in range(100, 200):
        kill_a_commit(tmp_path, seed)


def test_a_full_disk(tmp_path: Path) -> None:
    """Writes fail at one place after the other; what was there before is there afterwards, and space heals it."""
    for limit in range(0, 60, 3):
        file = MemoryFile()
        create(file, 1 << 20, cluster_size=512)
        image = in_memory(file)
        image.write(0, b"\1" * 100_000)
        image.flush()
        file.fail_after = file.writes + limit
        failed = False
        for act in (lambda image=image: image.write(50_000, b"\2" * 100_000), image.flush,
                    lambda image=image: image.snapshot_create("new", 0, 0, 0, 0), image.flush,
                    lambda image=image: image.write(200_000, b"\3" * 30_000), image.flush):  # fmt: skip
            try:
                act()
            except OSError as e:
                assert e.errno == 28
                failed = True
        file.fail_after = None
        assert failed or limit > 20
        assert content(image)[:50_000] == b"\1" * 50_000
        image.write(0, b"\4" * 200_000)
        image.close()
        path = tmp_path / "image.qcow2"
        path.write_bytes(file.data)
        assert_clean(path)
        with opened(path) as again:
            assert content(again)[:200_000] == b"\4" * 200_000
            for snapshot in again.snapshots():
                again.snapshot_apply(snapshot.id)
                assert content(again)[:50_000] == b"\1" * 50_000
