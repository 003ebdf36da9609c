"""Internal snapshots: our table in qemu-img, qemu-img's here, the machine's state, pinned clusters, cheap resets."""

from __future__ import annotations

import os
import random
import re
import threading
from pathlib import Path

import pytest

from qemupy.backends.block.qcow2 import Qcow2Image, SnapshotInfo, create
from qemupy.backends.block.qcow2.driver import Qcow2Node
from tests.block.conftest import Host
from tests.block.files import LocalFile, MemoryFile
from tests.block.qcow2_images import (
    assert_clean,
    assert_content,
    content,
    in_memory,
    needs_qemu_img,
    opened,
    qemu_img,
    qemu_io,
    read,
)

MIB = 1 << 20


def made(path: Path, size: int = 8 * MIB, cluster_size: int = 65536) -> Path:
    file = LocalFile(path)
    create(file, size, cluster_size=cluster_size)
    file.close()
    return path


def in_memory_image(cluster_size: int = 4096) -> tuple[MemoryFile, Qcow2Image]:
    file = MemoryFile()
    create(file, MIB, cluster_size=cluster_size)
    return file, in_memory(file)


@needs_qemu_img
def test_qemu_img_lists_applies_and_deletes_ours(tmp_path: Path) -> None:
    path = made(tmp_path / "image.qcow2")
    with opened(path) as image:
        image.write(MIB, b"\1" * MIB)
        image.vmstate_begin()
        image.vmstate_write(0, b"state" * 50_000)
        first = image.snapshot_create("first", 1_600_000_000, 5, 3_723_004_000_000, 250_000)
        image.write(MIB, b"\2" * MIB)
        second = image.snapshot_create("second", 1_600_000_100, 0, 0, 0, icount=77)
        image.write(MIB, b"\3" * MIB)
    assert first == SnapshotInfo("1", "first", 250_000, 1_600_000_000, 5, 3_723_004_000_000, -1, 8 * MIB)
    assert second.id == "2"
    listed = qemu_img("snapshot", "-l", path)
    assert re.search(r"^1 +first +244 KiB +2020-09-1\d .* 01:02:03\.004\b", listed, re.M), listed
    assert re.search(r"^2 +second +0 B +2020-09-1\d .* 00:00:00\.000 +77$", listed, re.M), listed
    qemu_img("snapshot", "-a", "first", path)
    qemu_io(path, "read -P 1 1M 1M")
    assert_clean(path)
    qemu_img("snapshot", "-d", "first", path)
    assert_clean(path)
    with opened(path) as image:
        assert image.snapshots() == [second] and read(image, MIB, MIB) == b"\1" * MIB
        image.snapshot_apply("2")
        assert read(image, MIB, MIB) == b"\2" * MIB
    assert_clean(path)


@needs_qemu_img
def test_we_list_apply_and_delete_those_of_qemu_img(tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "4M")
    for name, pattern in (("a", 1), ("b", 2), ("c", 3)):
        qemu_io(path, f"write -P {pattern} 0 2M")
        qemu_img("snapshot", "-c", name, path)
    with opened(path) as image:
        assert [(s.id, s.name, s.disk_size) for s in image.snapshots()] == [
            ("1", "a", 4 * MIB), ("2", "b", 4 * MIB), ("3", "c", 4 * MIB),
        ]  # fmt: skip
        image.snapshot_apply("b")
        assert read(image, 0, 2 * MIB) == b"\2" * 2 * MIB
        image.snapshot_delete("b")
        image.snapshot_delete("1")
        image.write(MIB, b"\4" * 512)
        assert image.snapshot_create("d", 0, 0, 0, 0).id == "4"
    assert_clean(path)
    assert_content(path, b"\2" * MIB + b"\4" * 512 + b"\2" * (MIB - 512) + bytes(2 * MIB), tmp_path)
    assert re.findall(r"^(\d) +(\w)", qemu_img("snapshot", "-l", path), re.M) == [("3", "c"), ("4", "d")]


@needs_qemu_img
def test_narrow_reference_counts(tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "refcount_bits=2", path, "4M")
    with opened(path) as image:
        image.write(0, b"\1" * MIB)
        for name in ("one", "two"):
            image.snapshot_create(name, 0, 0, 0, 0)
        with pytest.raises(OSError, match="cannot exceed 3"):
            image.snapshot_create("three", 0, 0, 0, 0)
        image.write(0, b"\2" * 70_000)
    assert_clean(path)
    assert qemu_img("snapshot", "-l", path).count("two") == 1


def test_the_machines_state_lies_in_long_runs(tmp_path: Path) -> None:
    """Written in big pieces it can be mapped from the file; zeros that were skipped have no place."""
    path, data = made(tmp_path / "image.qcow2"), random.Random(1).randbytes(8 * MIB)
    with opened(path) as image:
        image.write(0, b"\1" * MIB)
        image.vmstate_begin()
        for at in range(0, len(data), MIB):
            image.vmstate_write(at + (64 << 20), data[at : at + MIB])
        image.snapshot_create("ram", 0, 0, 0, (64 << 20) + len(data))
        extents = image.vmstate_extents("ram", 0, (64 << 20) + len(data))
        assert extents is not None and extents[0] == (0, None, 64 << 20) and len(extents) <= 4
        fd = image.fileno()
        assert fd is not None
        for offset, host, length in extents[1:]:
            assert host is not None and host % 65536 == 0
            assert os.pread(fd, length, host) == data[offset - (64 << 20) : offset - (64 << 20) + length]


def test_the_state_of_any_snapshot_can_be_read() -> None:
    _, image = in_memory_image()
    for name in ("one", "two"):
        image.vmstate_begin()
        image.vmstate_write(0, name.encode() * 5000)
        image.snapshot_create(name, 0, 0, 0, 15000)
    data = bytearray(15000)
    image.vmstate_read(0, memoryview(data), image.snapshots()[0])
    assert data == b"one" * 5000
    image.snapshot_apply("two")
    image.vmstate_read(0, memoryview(data))
    assert data == b"two" * 5000
    image.truncate(2 * MIB)  # the area begins elsewhere now, but not for these
    image.vmstate_read(0, memoryview(data), "one")
    assert data == b"one" * 5000
    image.snapshot_apply("one")
    assert image.length == MIB


@needs_qemu_img
def test_state_shared_between_snapshots(tmp_path: Path) -> None:
    """A chain of snapshots: what has not changed is stored once."""
    path, data = made(tmp_path / "image.qcow2"), random.Random(1).randbytes(4 * MIB)
    with opened(path) as image:
        image.vmstate_begin()
        image.vmstate_write(65536, data)
        image.snapshot_create("one", 0, 0, 0, len(data) + 65536)
        image.vmstate_begin()
        image.vmstate_share("one", 65536, 0, len(data))
        image.vmstate_write(MIB + 100, b"changed")
        image.snapshot_create("two", 0, 0, 0, len(data))
        with pytest.raises(OSError, match="not multiples of 0x10000"):
            image.vmstate_share("one", 512, 0, 65536)
    assert path.stat().st_size < 6 * MIB
    assert_clean(path)
    with opened(path) as image:
        image.snapshot_delete("one")
        found = bytearray(len(data))
        image.vmstate_read(0, memoryview(found), "two")
        assert found == data[: MIB + 100] + b"changed" + data[MIB + 107 :]
    assert_clean(path)


def test_going_back_costs_what_was_written() -> None:
    """A thousand resets without a flush: nothing is read or written, and the file does not grow."""
    file, image = in_memory_image(65536)
    image.write(0, b"\1" * MIB)
    image.snapshot_create("here", 0, 0, 0, 0)
    image.snapshot_apply("here")
    image.write(0, b"\2" * 512)
    image.snapshot_apply("here")
    length, writes, flushes = file.length, file.writes, file.flushes
    for number in range(1000):
        image.write(number % 16 * 65536, b"\2" * 512)
        assert image.changed_since("here") == 65536
        image.snapshot_apply("here")
    assert (file.writes - writes, file.flushes - flushes, file.length) == (1000, 0, length)
    assert content(image) == b"\1" * MIB and image.changed_since("here") == 0


@needs_qemu_img
def test_going_back_with_flushes_between_does_not_leak(tmp_path: Path) -> None:
    path = made(tmp_path / "image.qcow2")
    with opened(path) as image:
        image.write(0, b"\1" * MIB)
        image.snapshot_create("here", 0, 0, 0, 0)
        for number in range(30):
            image.snapshot_apply("here")
            image.write(number * 65536, b"\2" * 200_000)
            image.flush()
    assert_clean(path)
    assert path.stat().st_size < 4 * MIB


def test_pinned_clusters_are_evicted_before_they_are_freed() -> None:
    """At the moment of the call their content is still there; it is made once; unpinned ones are not asked for."""
    file, image = in_memory_image()
    seen: list[bytes] = []
    for name in ("keep", "drop"):
        image.vmstate_begin()
        image.vmstate_write(0, name.encode() * 4096)
        image.snapshot_create(name, 0, 0, 0, 4 * 4096)
    places = {name: image.vmstate_extents(name, 0, 4 * 4096) or [] for name in ("keep", "drop")}

    def evict() -> None:
        seen.append(b"".join(bytes(file.data[host : host + size]) for _, host, size in places["drop"] if host))

    image.pin([(host, size) for _, host, size in places["drop"] if host is not None], evict)
    image.pin([(host, size) for _, host, size in places["keep"] if host is not None], lambda: seen.append(b"keep"))
    image.write(0, b"x" * MIB)
    image.vmstate_begin()
    image.vmstate_write(0, b"other" * 4096)
    assert seen == []
    image.snapshot_delete("drop")
    image.write(0, b"y" * MIB)
    assert seen == [b"drop" * 4096]
    image.unpin(evict)
    assert not any(evict in callbacks for callbacks in image.meta.pins.values()) and image.meta.pins


@needs_qemu_img
def test_a_state_of_more_than_four_gigabytes(tmp_path: Path) -> None:
    path = made(tmp_path / "image.qcow2", cluster_size=2 * MIB)
    with opened(path) as image:
        image.vmstate_begin()
        image.vmstate_write(5 << 30, b"far" * 1000)
        image.snapshot_create("big", 0, 0, 0, (5 << 30) + 3000)
    with opened(path) as image:
        assert image.snapshots()[0].vm_state_size == (5 << 30) + 3000
        data = bytearray(3000)
        image.vmstate_read(5 << 30, memoryview(data), "big")
        assert data == b"far" * 1000
    assert "5 GiB" in qemu_img("snapshot", "-l", path)
    assert_clean(path)


def test_a_deleted_snapshot_gives_its_space_back(host: Host, tmp_path: Path) -> None:
    for option, kept in (("", False), ("pass-discard-snapshot=off,", True)):
        path = made(tmp_path / f"image{kept}.qcow2")
        drive = host.drive(f"{option}file={path}")
        assert isinstance(drive.node, Qcow2Node)
        image = drive.node.image
        image.vmstate_begin()
        image.vmstate_write(0, b"x" * 4 * MIB)
        image.snapshot_create("one", 0, 0, 0, 4 * MIB)
        assert path.stat().st_blocks * 512 > 4 * MIB
        image.snapshot_delete("one")
        assert (path.stat().st_blocks * 512 > 4 * MIB) == kept
        drive.close()


def test_listing_does_not_wait_for_one_being_taken() -> None:
    file, image = in_memory_image()
    image.write(0, b"x" * MIB)
    image.snapshot_create("one", 0, 0, 0, 0)
    listed: list[int] = []

    def ask() -> None:
        thread = threading.Thread(target=lambda: listed.append(len(image.snapshots())))
        thread.start()
        thread.join(10)
        assert not thread.is_alive()

    image.write(0, b"y" * 4096)
    file.before = ask
    before = file.flushes
    image.snapshot_create("two", 0, 0, 0, 0)
    assert listed and set(listed) <= {1, 2} and file.flushes == before + 3


def test_unknown_names() -> None:
    _, image = in_memory_image()
    for use in (image.snapshot_apply, image.snapshot_delete, image.changed_since):
        with pytest.raises(OSError, match="snapshot 'none' does not exist"):
            use("none")


@needs_qemu_img
def test_threads_write_side_by_side(tmp_path: Path) -> None:
    """Writers in the same clusters, with flushes, discards and snapshots meanwhile."""
    path = made(tmp_path / "image.qcow2", 2 * MIB, 65536)
    errors: list[BaseException] = []
    with opened(path) as image:

        def write(stripe: int) -> None:
            rng = random.Random(stripe)
            try:
                for number in range(150):
                    sector = rng.randrange(512) * 8 + stripe  # sectors of this thread alone, in clusters of all
                    data = bytes([stripe * 16 + number % 16 + 1]) * 512
                    image.write(sector * 512, data)
                    assert read(image, sector * 512, 512) == data
                    if number % 40 == stripe:
                        image.flush()
            except BaseException as e:
                errors.append(e)

        threads = [threading.Thread(target=write, args=(stripe,)) for stripe in range(6)]
        for thread in threads:
            thread.start()
        for number in range(5):
            image.snapshot_create(f"s{number}", 0, 0, 0, 0)
            image.discard(0, 0)
        for thread in threads:
            thread.join()
        assert not errors, errors
        now = content(image)
    assert_content(path, now, tmp_path)
    assert_clean(path)
    written = {number * 512: now[number * 512 : number * 512 + 512] for number in range(4096)}
    assert all(data == data[:1] * 512 and (not data[0] or (data[0] - 1) // 16 == at // 512 % 8)
               for at, data in written.items())  # fmt: skip


@needs_qemu_img
@pytest.mark.parametrize("cluster_size", [512, 65536])
def test_snapshots_under_load(tmp_path: Path, cluster_size: int) -> None:
    """Threads use the disk while snapshots are taken, applied and deleted, with caches of a few tables."""
    path = made(tmp_path / "image.qcow2", 8 * MIB, cluster_size)
    file = LocalFile(path)
    image = Qcow2Image(file, str(path), readonly=False, discard=True, caches=(16384, 16384))
    stop = threading.Event()
    errors: list[BaseException] = []

    def use(seed: int) -> None:
        rng = random.Random(seed)
        try:
            while not stop.is_set():
                at = rng.randrange(8 * MIB // 512 - 200) * 512
                length = rng.choice([512, 4096, 100_000])
                kind = rng.choice("wwwrrdzfc")
                if kind == "w":
                    image.write(at, rng.randbytes(length))
                elif kind == "r":
                    read(image, at, length)
                elif kind == "d":
                    image.discard(at, length)
                elif kind == "z":
                    image.write_zeroes(at, length, unmap=length == 4096)
                elif kind == "f":
                    image.flush()
                else:
                    image.read_cached(at, [memoryview(bytearray(512))])
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for number in range(12):
        image.vmstate_begin()
        image.vmstate_write(0, b"state" * 40_000)
        image.snapshot_create(f"s{number}", 0, 0, 0, 200_000)
        image.snapshot_apply(image.snapshots()[number % 2 if number else 0].id)
        if number > 2:
            image.snapshot_delete(image.snapshots()[-2].id)
    stop.set()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    image.close()
    file.close()
    assert not errors, errors
    assert_clean(path)
