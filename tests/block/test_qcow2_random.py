"""Long random sequences of operations: against a model in memory, and the same sequence done by qemu-io."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest

from qemupy.backends.block.qcow2 import Qcow2Image, create
from qemupy.backends.block.qcow2.mapping import Kind, Run
from tests.block.files import LocalFile
from tests.block.qcow2_images import (
    assert_clean,
    assert_content,
    content,
    needs_qemu_img,
    opened,
    qemu_img,
    qemu_io,
    read,
)

pytestmark = needs_qemu_img
QEMU_IO_BATCH = 500


def same_sequence(tmp_path: Path, seed: int, count: int, cluster_size: int) -> None:
    """`count` operations by us and by qemu-io, on an image each: reads agree on the way, content agrees at the end."""
    rng, size = random.Random(seed), 24 << 20
    ours, theirs = tmp_path / "ours.qcow2", tmp_path / "theirs.qcow2"
    for path in (ours, theirs):
        qemu_img("create", "-q", "-f", "qcow2", "-o", f"cluster_size={cluster_size}", path, str(size))
    commands: list[str] = []
    with opened(ours) as image:
        for _ in range(count):
            offset = rng.randrange(size // 512) * 512
            length = min(rng.choice([512, 4096, 65536, 512 * rng.randrange(1, 2000)]), size - offset)
            commands.append(one_operation(image, rng, offset, length))
    for at in range(0, count, QEMU_IO_BATCH):
        qemu_io(theirs, *commands[at : at + QEMU_IO_BATCH])
    assert_clean(ours)
    qemu_img("compare", "-f", "qcow2", "-F", "qcow2", ours, theirs)


def one_operation(image: Qcow2Image, rng: random.Random, offset: int, length: int) -> str:
    """Do one on our image; the command for qemu-io to do the same."""
    kind, pattern = rng.choice("wwwwwzzudrrf"), rng.randrange(1, 256)
    if kind == "w":
        image.write(offset, bytes([pattern]) * length)
        return f"write -P {pattern} {offset} {length}"
    if kind in "zu":
        image.write_zeroes(offset, length, unmap=kind == "u")
        return f"write -z {'-u ' if kind == 'u' else ''}{offset} {length}"
    if kind == "d":
        offset, length = offset & -65536, -(-length // 65536) * 65536
        length = min(length, image.length - offset)
        image.discard(offset, length)
        return f"discard {offset} {length}"
    if kind == "f":
        image.flush()
        return "flush"
    data = read(image, offset, 512)
    assert data == data[:1] * 512
    return f"read -P {data[0]} {offset} 512"


def test_the_same_sequence_as_qemu_io(tmp_path: Path) -> None:
    same_sequence(tmp_path, 1, 300, 65536)


@pytest.mark.long
@pytest.mark.parametrize("cluster_size", [512, 4096, 65536, 2 << 20])
def test_ten_thousand_operations(tmp_path: Path, cluster_size: int) -> None:
    same_sequence(tmp_path, cluster_size, 10_000, cluster_size)


def test_a_range_is_looked_up_as_its_clusters_are(tmp_path: Path) -> None:
    """Rows of neighbours, broken in all ways: holes, zeros, compressed clusters, shared ones, the file's order."""
    path, rng = tmp_path / "rows.qcow2", random.Random(7)
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=4096", path, "6M")
    qemu_io(path, "write -c -P 3 1M 64k")
    with opened(path) as image:
        image.write(2 << 20, b"a" * (3 << 20))
        image.snapshot_create("s", 0, 0, 0, 0)
        for _ in range(150):
            offset = rng.randrange(6 << 20 >> 12) << 12
            one_operation(image, rng, offset, min(rng.choice([4096, 8192, 1 << 18]), image.length - offset))
        singly = [image.runs(offset, 4096)[0] for offset in range(0, image.length, 4096)]
        for _ in range(200):
            first, last = sorted(rng.choices(range(len(singly) + 1), k=2))
            runs = image.runs(first * 4096, (last - first) * 4096)
            assert [part for run in runs for part in clusters(run)] == singly[first:last]
            assert all(clusters(a)[-1] != follower(b) for a, b in pairwise(runs))


def clusters(run: Run) -> list[Run]:
    return [Run(run.kind, run.host and run.host + at, 4096) for at in range(0, run.length, 4096)]


def follower(run: Run) -> Run:
    """The cluster that would have belonged to the same run."""
    return Run(run.kind, run.host - 4096 if run.host and run.kind is not Kind.COMPRESSED else run.host, 4096)


@dataclass
class Model:
    """What an image must hold."""

    disk: bytearray
    snapshots: dict[str, tuple[bytes, bytes]] = field(default_factory=dict)  # name -> disk, machine state


def random_life(path: Path, seed: int, count: int, tmp_path: Path) -> None:
    """An image of random geometry goes through writes, snapshots and reopenings; qemu-img agrees in the end."""
    rng = random.Random(seed)
    cluster_size = 1 << rng.choice([9, 10, 12, 16, 16, 16, 17, 21])
    version = rng.choice([2, 3, 3, 3])
    refcount_bits = 1 << rng.randint(0, 6) if version == 3 else 16
    model = Model(bytearray(rng.choice([1, 3, 7]) * 1000 * 1024))
    file = LocalFile(path)
    extended = version == 3 and cluster_size >= 16384 and rng.random() < 0.3
    create(file, len(model.disk), cluster_size=cluster_size, refcount_bits=refcount_bits, version=version,
           extended_l2=extended)  # fmt: skip
    image = Qcow2Image(file, str(path), readonly=False, discard=True)
    for number in range(count):
        if rng.random() < 0.75:
            data_step(image, model, rng)
        elif rng.random() < 0.9:
            snapshot_step(image, model, rng, f"s{number}", few=refcount_bits < 16)
        else:
            image.close()
            image = Qcow2Image(file, str(path), readonly=False, discard=True)
    assert content(image) == model.disk
    image.close()
    file.close()
    verify(path, model, tmp_path)


def data_step(image: Qcow2Image, model: Model, rng: random.Random) -> None:
    size = len(model.disk)
    offset = rng.randrange(size // 512) * 512
    length = min(rng.choice([512, 4096, 65536, rng.randrange(1, 600) * 512]), size - offset)
    kind = rng.choice("wwwwwwzdrrf")
    if kind == "w":
        data = rng.randbytes(length)
        image.write(offset, data)
        model.disk[offset : offset + length] = data
    elif kind == "z":
        image.write_zeroes(offset, length, unmap=rng.random() < 0.5)
        model.disk[offset : offset + length] = bytes(length)
    elif kind == "d":
        before = bytes(model.disk[offset : offset + length])
        image.discard(offset, length)
        model.disk[offset : offset + length] = after = read(image, offset, length)
        assert all(a in (b, 0) for a, b in zip(after, before, strict=True))
    elif kind == "f":
        image.flush()
    else:
        assert read(image, offset, length) == model.disk[offset : offset + length]


def snapshot_step(image: Qcow2Image, model: Model, rng: random.Random, name: str, few: bool) -> None:
    known = list(model.snapshots)
    if len(known) < (1 if few else 6) and rng.random() < 0.5 and image.meta.refcounts.maximum > 1:
        state = rng.randbytes(rng.randrange(1, 300) * 1000)
        image.vmstate_begin()
        image.vmstate_write(0, state)
        image.snapshot_create(name, 1, 2, 3, len(state))
        model.snapshots[name] = (bytes(model.disk), state)
    elif known and rng.random() < 0.7:
        name = rng.choice(known)
        image.snapshot_apply(name)
        model.disk[:], state = model.snapshots[name]
        found = bytearray(len(state))
        image.vmstate_read(0, memoryview(found))
        assert found == state and image.changed_since(name) == 0
    elif known:
        image.snapshot_delete(known[0])
        del model.snapshots[known[0]]


def verify(path: Path, model: Model, tmp_path: Path) -> None:
    assert_clean(path)
    assert_content(path, model.disk, tmp_path)
    for name, (disk, _state) in model.snapshots.items():
        qemu_img("snapshot", "-a", name, path)
        assert_content(path, disk, tmp_path)
    assert_clean(path)


@pytest.mark.parametrize("seed", [0, 2, 5, 6, 7])  # among them 512-byte clusters, version 2, extended entries
def test_random_life(tmp_path: Path, seed: int) -> None:
    random_life(tmp_path / "life.qcow2", seed, 100, tmp_path)


@pytest.mark.long
def test_many_random_lives(tmp_path: Path) -> None:
    for seed in range(100, 300):
        path = tmp_path / f"{seed}.qcow2"
        random_life(path, seed, 250, tmp_path)
        path.unlink()
