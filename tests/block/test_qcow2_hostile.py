"""Images that lie: one line of error in QEMU's words, no traceback of another kind, no hang, nothing overwritten."""

from __future__ import annotations

import contextlib
import random
import struct
from collections.abc import Callable

import pytest

from qemupy.backends.block.qcow2 import Qcow2Image, create
from qemupy.errors import BackendError
from tests.block.files import MemoryFile
from tests.block.qcow2_images import in_memory, read

MIB = 1 << 20


def made(**options: int | str) -> bytearray:
    file = MemoryFile()
    create(file, 64 * MIB, **options)  # type: ignore[arg-type]
    return file.data


def put(form: str, at: int, *values: int) -> Callable[[bytearray], None]:
    return lambda data: struct.pack_into(form, data, at, *values)


def cut_to(length: int) -> Callable[[bytearray], None]:
    def cut(data: bytearray) -> None:
        del data[length:]

    return cut


@pytest.mark.parametrize(("damage", "message"), [
    (put(">Q", 72, 1 << 40 | 1 << 7), "Unsupported qcow2 feature(s): Unknown incompatible feature: 10000000080"),
    (put(">Q", 72, 1 << 7 | 1 << 8), "Unsupported qcow2 feature(s): Unknown incompatible feature: 180"),
    (put(">Q", 72, 1 << 1), "qcow2: Image is corrupt; cannot be opened read/write"),
    (put(">Q", 72, 1 << 2), "external data file"),
    (put(">Q", 72, 1 << 3), "Compression type incompatible feature bit must not be set"),
    (put(">B", 104, 1), "Compression type incompatible feature bit must be set"),
    (put(">B", 104, 5), "qcow2: unknown compression type: 5"),
    (put(">I", 4, 4), "Unsupported qcow2 version 4"),
    (put(">I", 20, 8), "Unsupported cluster size: 2^8"),
    (put(">I", 20, 22), "Unsupported cluster size: 2^22"),
    (put(">I", 32, 1), "Unsupported encryption method 1 (AES)"),
    (put(">I", 32, 2), "Unsupported encryption method 2 (LUKS)"),
    (put(">I", 36, 0), "L1 table is too small"),
    (put(">I", 36, 0xFFFFFFFF), "Active L1 table too large"),
    (put(">Q", 40, 5), "Active L1 table offset invalid"),
    (put(">I", 56, 0xFFFFFF), "Reference count table too large"),
    (put(">I", 56, 0), "Image does not contain a reference count table"),
    (put(">Q", 48, 5), "Reference count table offset invalid"),
    (put(">I", 60, 0xFFFFFF), "Snapshot table too large"),
    (put(">IQ", 60, 5, 5), "Snapshot table offset invalid"),
    (put(">I", 96, 7), "Reference count entry width too large; may not exceed 64 bits"),
    (put(">I", 100, 70000), "qcow2 header exceeds cluster size"),
    (put(">I", 100, 90), "qcow2 header too short"),
    (put(">QI", 8, 0x200, 2000), "Backing file name too long"),
    (put(">QI", 8, 0x20000, 4), "Invalid backing file offset"),
    (put(">Q", 24, 1 << 63), "Image is too big"),
    (put(">II", 112, 0x12345678, 0x7FFFFFFF), "Header extension too large"),
    (cut_to(60), "Image is not in qcow2 format"),
    (cut_to(100), "qcow2 header too short"),
])  # fmt: skip
def test_headers(damage: Callable[[bytearray], None], message: str) -> None:
    data = made()
    damage(data)
    file = MemoryFile(data)
    with pytest.raises(BackendError) as error:
        in_memory(file)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert file.data == data


def test_an_unknown_feature_goes_by_its_name() -> None:
    """The image's own table names it."""
    data = made()
    struct.pack_into(">BB46s", data, 120, 0, 40, b"time travel")
    struct.pack_into(">Q", data, 72, 1 << 40)
    with pytest.raises(BackendError, match=r"^Unsupported qcow2 feature\(s\): time travel$"):
        in_memory(MemoryFile(data))


def test_snapshot_tables() -> None:
    data = made()
    data.extend(bytes(-len(data) % 65536 + 65536))
    at = len(data) - 65536
    struct.pack_into(">IQ", data, 60, 1, at)
    struct.pack_into(">I", data, at + 36, 2000)
    with pytest.raises(BackendError, match="Too much extra metadata in snapshot table entry 0"):
        in_memory(MemoryFile(data))
    struct.pack_into(">I", data, at + 36, 16)
    struct.pack_into(">QI", data, at, 1 << 62, 1)
    image = in_memory(MemoryFile(data))
    assert len(image.snapshots()) == 1
    for use in (lambda: image.snapshot_apply(""), lambda: image.snapshot_delete("")):
        with pytest.raises(OSError, match="Snapshot L1 table offset invalid"):
            use()
    image.write(0, b"usable all the same")
    image.close()


def with_data(cluster_size: int = 4096) -> MemoryFile:
    file = MemoryFile()
    create(file, MIB, cluster_size=cluster_size)
    image = in_memory(file)
    image.write(0, b"\1" * 100_000)
    image.close()
    return file


@pytest.mark.parametrize(("entry", "message"), [
    (1 << 63 | 0x1200, "Cluster allocation offset 0x1200 unaligned"),
    (1 << 63 | 0x1001, "Preventing invalid write on metadata"),
])  # fmt: skip
def test_bad_entries_mark_the_image_corrupt(entry: int, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    file = with_data()
    image = in_memory(file)
    table = image.meta.l2_to_read(0)
    assert table is not None
    struct.pack_into(">Q", file.data, table.offset, entry)
    image = in_memory(file)
    with pytest.raises(OSError, match="cluster"):
        image.write(0, b"x")
    assert f"qcow2: Marking image as corrupt: {message}" in capfd.readouterr().err
    with pytest.raises(OSError, match="the image is corrupt"):
        image.read(70_000, memoryview(bytearray(1)))
    image.close()
    with pytest.raises(BackendError, match="Image is corrupt; cannot be opened read/write"):
        in_memory(file)
    assert Qcow2Image(file, "memory", readonly=True).length == MIB


def test_a_free_metadata_cluster_is_not_handed_out(capfd: pytest.CaptureFixture[str]) -> None:
    """All counts are zero: the header would be the first free cluster."""
    file = with_data()
    file.data[8192:12288] = bytes(4096)
    image = in_memory(file)
    before = bytes(file.data[:4096])
    with pytest.raises(OSError, match="metadata cluster"):
        image.write(500_000, b"x")
    assert "Preventing invalid allocation of cluster at offset 0x0" in capfd.readouterr().err
    assert file.data[:72] == before[:72] and file.data[80:4096] == before[80:]


def use_everything(file: MemoryFile) -> None:
    image = in_memory(file)
    rng = random.Random(1)
    with contextlib.suppress(OSError):
        read(image, 0, min(image.length, MIB))
    for _ in range(12):
        at = rng.randrange(min(image.length, MIB) // 512 or 1) * 512
        with contextlib.suppress(OSError):
            image.write(at, b"new" * 3000 if at + 9000 < image.length else b"new")
        with contextlib.suppress(OSError):
            image.discard(at, 20_000 if at + 20_000 < image.length else 512)
    for snapshot in image.snapshots()[:5]:
        with contextlib.suppress(OSError):
            image.snapshot_apply(snapshot.id)
        with contextlib.suppress(OSError):
            image.snapshot_delete(snapshot.id)
    with contextlib.suppress(OSError):
        image.snapshot_create("again", 0, 0, 0, 0)
    with contextlib.suppress(OSError):
        image.close()


def damaged(data: bytes, rng: random.Random) -> bytearray:
    """Some bits flipped, some words replaced, in the metadata at the front and anywhere."""
    out = bytearray(data)
    for _ in range(rng.randrange(1, 8)):
        at = rng.randrange(rng.choice([112, 600, 5 * 512, len(out)]))
        if rng.random() < 0.5:
            out[at] ^= 1 << rng.randrange(8)
        else:
            words = [0, 1, 1 << 62, 1 << 63, (1 << 64) - 1, rng.randrange(1 << 20) * 512, rng.getrandbits(64)]
            word = rng.choice(words)
            out[at : at + 8] = word.to_bytes(8, "big")
    return out[: len(data)]


def fuzz(seeds: range, extended: bool) -> None:
    file = MemoryFile()
    create(file, 300 * 1024, cluster_size=16384 if extended else 512, extended_l2=extended)
    image = in_memory(file)
    image.write(0, bytes(range(256)) * 300)
    image.vmstate_write(0, b"state" * 500)
    image.snapshot_create("one", 0, 0, 0, 2500)
    image.write(10_000, b"changed" * 900)
    image.close()
    for seed in seeds:
        data = damaged(file.data, random.Random(seed))
        with contextlib.suppress(BackendError):
            use_everything(MemoryFile(data))


@pytest.mark.parametrize("extended", [False, True])
def test_damaged_images(extended: bool) -> None:
    fuzz(range(100), extended)


@pytest.mark.long
@pytest.mark.parametrize("extended", [False, True])
def test_many_damaged_images(extended: bool) -> None:
    fuzz(range(1000, 11_000), extended)
