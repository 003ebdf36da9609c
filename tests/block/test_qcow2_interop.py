"""Images made by qemu-img read right here, and ours there: backing chains, compression, geometry, drives."""

from __future__ import annotations

import errno
import json
import random
import zlib
from pathlib import Path

import pytest

from qemupy.backends.block.commit import commit_node, commit_slices
from qemupy.backends.block.qcow2 import Qcow2Image, create
from qemupy.backends.block.qcow2.bitmaps import read_directory
from qemupy.backends.block.qcow2.driver import Qcow2Node
from qemupy.errors import BackendError, ConfigError
from tests.block.conftest import Host
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
MIB = 1 << 20


def mixed_data(seed: int, length: int) -> bytes:
    """Random, repetitive and empty stretches."""
    rng, parts = random.Random(seed), []
    while sum(map(len, parts)) < length:
        size = rng.randrange(1, 200_000)
        parts.append(rng.choice([rng.randbytes(size), bytes([rng.randrange(256)]) * size, bytes(size)]))
    return b"".join(parts)[:length]


@pytest.mark.parametrize("options", [
    "compat=0.10", "cluster_size=512", "cluster_size=2M", "refcount_bits=1", "refcount_bits=64", "lazy_refcounts=on",
    "preallocation=metadata", "cluster_size=4k,refcount_bits=2",
    "extended_l2=on", "extended_l2=on,cluster_size=2M",
])  # fmt: skip
def test_images_by_qemu_img(tmp_path: Path, options: str) -> None:
    data = mixed_data(1, 3 * MIB)
    raw, path = tmp_path / "data.raw", tmp_path / "image.qcow2"
    raw.write_bytes(data)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", "-o", options, raw, path)
    with opened(path) as image:
        assert content(image) == data
        image.write(12345 * 64, b"ours" * 1000)
    assert_content(path, data[: 12345 * 64] + b"ours" * 1000 + data[12345 * 64 + 4000 :], tmp_path)
    assert_clean(path)


@pytest.mark.parametrize("method", ["zlib", "zstd"])
@pytest.mark.parametrize("cluster_size", ["4k", "64k", "2M"])
def test_compressed(tmp_path: Path, method: str, cluster_size: str) -> None:
    if method == "zstd":
        pytest.importorskip("zstandard", reason="the package zstandard is not installed")
    data = mixed_data(2, 5 * MIB)
    raw, path = tmp_path / "data.raw", tmp_path / "image.qcow2"
    raw.write_bytes(data)
    options = f"compression_type={method},cluster_size={cluster_size}"
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, raw, path)
    with opened(path) as image:
        assert content(image) == data
        image.write(MIB + 512, b"plain" * 512)  # takes clusters out of the compressed ones around
        image.discard(2 * MIB, 2 * MIB)
        now = content(image)
    assert now[MIB + 512 : MIB + 3072] == b"plain" * 512 and now[2 * MIB : 4 * MIB] == bytes(2 * MIB)
    assert_content(path, now, tmp_path)
    assert_clean(path)


def test_zstd_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "image.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "compression_type=zstd", path, "1M")
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    with pytest.raises(BackendError, match="zstd compression, which needs the Python package zstandard"), opened(path):
        pass


def test_broken_compressed_cluster(tmp_path: Path) -> None:
    raw, path = tmp_path / "data.raw", tmp_path / "image.qcow2"
    raw.write_bytes(b"compress me " * 10_000)
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", raw, path)
    with opened(path, readonly=True) as image:
        place, length = image.mapping.compressed_place(image.runs(0, 65536)[0].host)
    data = bytearray(path.read_bytes())
    assert zlib.decompressobj(-12).decompress(data[place : place + length])[:12] == b"compress me "
    data[place : place + 30] = b"\xff" * 30
    path.write_bytes(data)
    with opened(path, readonly=True) as image, pytest.raises(OSError, match="broken compressed cluster"):
        read(image, 0, 512)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("bits", range(9, 22, 3))
def test_our_images_in_qemu(tmp_path: Path, version: int, bits: int) -> None:
    path = tmp_path / "image.qcow2"
    file = LocalFile(path)
    create(file, 40 * MIB, cluster_size=1 << bits, version=version)
    file.close()
    qemu_io(path, "write -P 7 1M 3M", "write -z 2M 64k")
    with opened(path) as image:
        assert read(image, MIB, MIB) == b"\7" * MIB and read(image, 2 * MIB, 65536) == bytes(65536)
        image.write(30 * MIB, b"\x55" * 300_000)
    qemu_io(path, "read -P 7 1M 1M", "read -P 85 30M 300000", "read -P 0 10M 20M")
    info = json.loads(qemu_img("info", "--output=json", path))
    assert info["virtual-size"] == 40 * MIB and info["cluster-size"] == 1 << bits
    assert_clean(path)


@pytest.mark.parametrize("refcount_bits", [1, 2, 4, 8, 16, 32, 64])
def test_our_refcount_widths(tmp_path: Path, refcount_bits: int) -> None:
    """Small clusters and wide counts make many refcount blocks and move the refcount table."""
    path = tmp_path / "image.qcow2"
    file = LocalFile(path)
    create(file, 8 * MIB, cluster_size=512, refcount_bits=refcount_bits)
    file.close()
    data = mixed_data(3, 6 * MIB)
    with opened(path) as image:
        for at in range(0, len(data), 300_000):
            image.write(at, data[at : at + 300_000])
        image.discard(MIB, MIB)
    assert_content(path, data[:MIB] + bytes(MIB) + data[2 * MIB :] + bytes(2 * MIB), tmp_path)
    assert_clean(path)


def test_a_backing_chain(host: Host, tmp_path: Path) -> None:
    """Raw below qcow2 below qcow2, of different lengths, named relative to the image."""
    base, middle, top = tmp_path / "base.raw", tmp_path / "middle.qcow2", tmp_path / "sub" / "top.qcow2"
    top.parent.mkdir()
    base.write_bytes(b"\1" * MIB)
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", middle, "3M")
    qemu_io(middle, "write -P 2 512k 64k")
    file = LocalFile(top)
    create(file, 2 * MIB, backing_file="../middle.qcow2", backing_format="qcow2")
    file.close()
    drive = host.drive(f"file={top}")
    assert drive.length == 2 * MIB
    data = bytearray(2 * MIB)
    write = (drive.write, 512 * 1024 + 512, b"\3" * 512)
    assert host.wait(write) == [0] and host.wait((drive.read, 0, data), (drive.flush,)) == [0, 0]
    expected = b"\1" * (512 << 10) + b"\2" * 512 + b"\3" * 512 + b"\2" * 64512 + b"\1" * (448 << 10) + bytes(MIB)
    assert data == expected
    drive.close()
    assert_content(top, expected, tmp_path)
    assert_clean(top)


def test_a_missing_backing_file(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "top.qcow2"
    file = LocalFile(path)
    create(file, MIB, backing_file="gone.img", backing_format="raw")
    file.close()
    with pytest.raises(BackendError, match=r"Could not open backing file: Could not open '.*gone\.img': No such file"):
        host.drive(f"file={path}")


def test_discard_and_zeros_over_a_backing_file(host: Host, tmp_path: Path) -> None:
    base, top = tmp_path / "base.raw", tmp_path / "top.qcow2"
    base.write_bytes(b"\1" * MIB)
    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", top)
    drive = host.drive(f"file={top},format=qcow2,discard=unmap")
    data = bytearray(MIB)
    assert host.wait((drive.discard, 0, 65536)) == [0]
    assert host.wait((drive.read, 0, data)) == [0]
    assert data == bytes(65536) + b"\1" * (MIB - 65536)
    drive.close()
    assert_content(top, data, tmp_path)


def test_autoclear_bits_are_cleared_and_extensions_kept(tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    data = bytearray(path.read_bytes())
    data[88:96] = (1 << 7).to_bytes(8, "big")
    table = data[112 : 112 + 8 + 0x180]
    data[112 + 8 + 0x180 : 112 + 24 + 0x180] = b"\x12\x34\x56\x78\0\0\0\5hello\0\0\0"
    path.write_bytes(data)
    with opened(path, readonly=True):
        pass
    assert path.read_bytes() == data
    with opened(path):
        pass
    now = path.read_bytes()
    assert now[88:96] == bytes(8) and table in now and b"\x12\x34\x56\x78\0\0\0\5hello" in now


def test_an_image_with_lazy_counts_left_dirty_is_repaired(tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on,cluster_size=4k", path, "64M")
    with opened(path) as image:
        image.write(0, b"\x09" * 20 * MIB)
        image.snapshot_create("kept", 0, 0, 0, 0)
        image.write(MIB, b"\x0a" * MIB)
        counts = [(block.offset, len(block.values)) for block in image.meta.refcounts.blocks]
    data = bytearray(path.read_bytes())
    data[79] |= 1  # dirty
    for offset, _ in counts:
        data[offset : offset + 4096] = bytes(4096)  # and no count is right
    path.write_bytes(data)
    with opened(path) as image:
        assert read(image, MIB, MIB) == b"\x0a" * MIB
        image.write(30 * MIB, b"\x0b" * MIB)
    assert path.read_bytes()[79] & 1 == 0
    assert_clean(path)
    qemu_io(path, "read -P 9 0 1M", "read -P 10 1M 1M", "read -P 11 30M 1M")


def test_bitmaps_stay_true(tmp_path: Path) -> None:
    """What we write is recorded in the bitmaps that other programs keep in the image."""
    path = tmp_path / "image.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "8M")
    qemu_img("bitmap", "--add", "-g", "64k", path, "watching")
    qemu_img("bitmap", "--add", "--disable", path, "resting")
    with opened(path) as image:
        image.write(3 * MIB + 512, b"x" * 70_000)
        image.discard(5 * MIB, 65536)
        assert path.read_bytes().count(b"watching") == 1
    info = json.loads(qemu_img("info", "--output=json", path))
    bitmaps = {b["name"]: b["flags"] for b in info["format-specific"]["data"]["bitmaps"]}
    assert bitmaps == {"watching": ["auto"], "resting": []}
    assert_clean(path)
    with opened(path, readonly=True) as image:
        watching = next(b for b in read_directory(image.meta) if b.name == "watching")
        table = int.from_bytes(path.read_bytes()[watching.table_offset : watching.table_offset + 8], "big")
        bits = int.from_bytes(path.read_bytes()[table : table + 16], "little")
    assert bits == 0b11 << 48 | 1 << 80


def test_a_bitmap_after_going_back_to_a_snapshot(tmp_path: Path) -> None:
    """All of the disk may have changed; a table entry says so without a cluster of ones."""
    path = tmp_path / "image.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=512", path, "256M")
    qemu_img("bitmap", "--add", "-g", "512", path, "watching")
    with opened(path) as image:
        image.snapshot_create("one", 0, 0, 0, 0)
        image.write(0, b"x" * 512)
        image.snapshot_apply("one")
    with opened(path, readonly=True) as image:
        bitmap = read_directory(image.meta)[0]
        table = path.read_bytes()[bitmap.table_offset : bitmap.table_offset + bitmap.table_size * 8]
    assert bitmap.table_size == 128 and table == (1).to_bytes(8, "big") * 128
    assert_clean(path)


def test_subclusters(host: Host, tmp_path: Path) -> None:
    """QEMU allocates and clears parts of clusters; we read that right, and write over it by whole clusters."""
    base, path = tmp_path / "base.raw", tmp_path / "image.qcow2"
    base.write_bytes(b"\1" * 4 * MIB)
    qemu_img("create", "-q", "-f", "qcow2", "-o", "extended_l2=on", "-b", base, "-F", "raw", path)
    rng, model = random.Random(1), bytearray(base.read_bytes())

    def mutate(count: int) -> None:
        commands = []
        for _ in range(count):
            at = rng.randrange(2 * MIB // 2048) * 2048
            length = rng.choice([2048, 4096, 65536])
            pattern = rng.randrange(256)
            commands.append(f"write -P {pattern} {at} {length}" if pattern else f"write -z {at} {length}")
            model[at : at + length] = bytes([pattern]) * length
        qemu_io(path, *commands, f"write -z {3 * MIB} 6144", f"write -z {3 * MIB + 65536} 64k")
        model[3 * MIB : 3 * MIB + 6144] = bytes(6144)
        model[3 * MIB + 65536 : 3 * MIB + 131072] = bytes(65536)

    for _ in range(3):
        mutate(60)
        with_backing = host.drive(f"file={path},discard=unmap")
        data = bytearray(4 * MIB)
        assert host.wait((with_backing.read, 0, data)) == [0] and data == model
        for _ in range(20):
            at = rng.randrange(2 * MIB // 512) * 512
            piece = rng.randbytes(rng.choice([512, 3000, 70_000]) // 512 * 512)
            assert host.wait((with_backing.write, at, piece)) == [0]
            model[at : at + len(piece)] = piece
        assert host.wait((with_backing.discard, 2 * MIB + 65536, 65536)) == [0]
        model[2 * MIB + 65536 : 2 * MIB + 131072] = bytes(65536)
        with_backing.close()
        assert_clean(path)
        assert_content(path, model, tmp_path)


def test_an_invalid_subcluster_bitmap(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "image.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "extended_l2=on", path, "1M")
    qemu_io(path, "write 0 2k")
    with opened(path) as image:
        table = image.meta.l2_to_read(0)
        assert table is not None
        place = table.offset + 8
    data = bytearray(path.read_bytes())
    assert data[place : place + 8] == bytes([0, 0, 0, 0, 0, 0, 0, 1])
    data[place + 3] = 1  # the first subcluster is zeros as well
    path.write_bytes(data)
    with opened(path, readonly=True) as image, pytest.raises(OSError, match="bad subcluster bitmap"):
        read(image, 0, 512)
    assert "Invalid subcluster bitmap 0x0000000100000001" in capfd.readouterr().err


def test_growing(tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    file = LocalFile(path)
    create(file, MIB, cluster_size=512)
    file.close()
    with opened(path) as image:
        image.write(0, b"\1" * MIB)
        image.truncate(300 * MIB)
        assert image.length == 300 * MIB
        image.write(299 * MIB, b"\2" * MIB)
        image.truncate(299 * MIB + 512)
    qemu_io(path, "read -P 1 0 1M", "read -P 0 1M 298M", "read -P 2 299M 512")
    assert_clean(path)
    assert json.loads(qemu_img("info", "--output=json", path))["virtual-size"] == 299 * MIB + 512


def test_a_probed_drive(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    drive = host.drive(f"file={path}")
    assert isinstance(drive.node, Qcow2Node) and isinstance(drive.node.image, Qcow2Image)
    assert not host.graph.warnings


def test_commit_into_a_raw_backing_file(host: Host, tmp_path: Path) -> None:
    base, top = tmp_path / "base.raw", tmp_path / "top.qcow2"
    base.write_bytes(b"\1" * MIB)
    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", top, "2M")
    qemu_io(top, "write -P 2 64k 128k", "write -z 512k 64k", "write -P 3 1536k 64k")
    expected = bytearray(b"\1" * MIB + bytes(MIB))
    expected[65536:196608] = b"\2" * 131072
    expected[524288:589824] = bytes(65536)
    expected[1572864:1638400] = b"\3" * 65536
    drive = host.drive(f"file={top}")
    assert drive.node is not None
    assert list(commit_slices(drive.node))[-1] == 2 * MIB
    assert base.read_bytes() == expected
    data = bytearray(2 * MIB)
    assert host.wait((drive.read, 0, data)) == [0] and data == expected
    drive.close()
    assert_clean(top)
    assert {e["depth"] for e in json.loads(qemu_img("map", "--output=json", top))} == {1}


def test_commit_into_a_qcow2_backing_file(host: Host, tmp_path: Path) -> None:
    """The backing image is opened again for writing, and read-only afterwards."""
    base, top = tmp_path / "base.qcow2", tmp_path / "top.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", base, "1M")
    qemu_io(base, "write -P 1 0 1M")
    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top)
    drive = host.drive(f"file={top}")
    assert drive.node is not None
    assert host.wait((drive.write, 4096, b"\2" * 70_000)) == [0]
    commit_node(drive.node)
    assert drive.node.children()["backing"].readonly
    data = bytearray(MIB)
    assert host.wait((drive.read, 0, data), (drive.write, 500_000, b"\3")) == [0, 0]
    drive.close()
    assert data[4096:74096] == b"\2" * 70_000 and data.count(1) == MIB - 70_000
    assert_content(base, data, tmp_path)
    assert_clean(base)
    assert_clean(top)


def test_a_temporary_snapshot_of_a_drive(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    qemu_io(path, "write -P 1 0 1M")
    before = path.read_bytes()
    drive = host.drive(f"file={path},snapshot=on")
    assert host.wait((drive.write, 0, b"\2" * 4096)) == [0]
    data = bytearray(MIB)
    assert host.wait((drive.read, 0, data)) == [0] and data[:4097] == b"\2" * 4096 + b"\1"
    drive.close()
    assert path.read_bytes() == before


def test_a_read_only_drive(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    before = path.read_bytes()
    drive = host.drive(f"file={path},readonly=on")
    assert drive.readonly and host.wait((drive.write, 0, b"x"), (drive.flush,)) == [errno.EROFS, 0]
    drive.close()
    assert path.read_bytes() == before
    with pytest.raises(ConfigError, match="does not support the option 'l2-cache'"):
        host.drive(f"file={path},l2-cache=1M")
    host.drive(f"file={path},l2-cache-size=1M,lazy-refcounts=on").close()
