"""A stream gives back what was written and refuses every kind of damage before it uses a byte of it."""

import io
import random
import struct
import zlib

import pytest

from qemupy.errors import StateError
from qemupy.memory import PyCoreMemory
from qemupy.memory.core import DirtyClient
from qemupy.migration.pages import PageSender, pieces, runs
from qemupy.migration.stream import END, MAX_PAGES, PAGE, PAGES, StreamReader, StreamWriter

RAM_SIZE = 64 * PAGE


def make_memory() -> PyCoreMemory:
    memory = PyCoreMemory()
    memory.alloc("pc.ram", RAM_SIZE)
    memory.store(3 * PAGE, b"\1")
    memory.store(4 * PAGE + 5, b"\2")
    memory.store(RAM_SIZE - 1, b"\3")
    return memory


def write(memory: PyCoreMemory) -> bytes:
    file = io.BytesIO()
    writer = StreamWriter(lambda data: file.write(data) and None)
    writer.table("machine", {"memory": RAM_SIZE})
    PageSender(memory, writer).everything()
    writer.end()
    return file.getvalue()


def read(data: bytes, size: int = RAM_SIZE) -> tuple[dict[str, object], bytearray]:
    reader = StreamReader(io.BytesIO(data).read, "test")
    machine = reader.table(reader.next())
    ram = bytearray(size)
    while (section := reader.next()).kind != END:
        if section.kind != PAGES:
            raise StateError("no pages")
        for offset, length, content in reader.pages(section, size):
            ram[offset : offset + length] = bytes(length) if content is None else content
    return machine, ram


def test_round_trip_keeps_every_byte_and_drops_zero_pages() -> None:
    memory = make_memory()
    data = write(memory)
    assert read(data) == ({"memory": RAM_SIZE}, bytearray(memory.view(0, RAM_SIZE)))
    assert len(data) < 4 * PAGE


def test_a_page_that_became_zero_is_sent_as_zero_later() -> None:
    memory = make_memory()
    sections: list[bytes] = []
    writer = StreamWriter(sections.append)
    sender = PageSender(memory, writer)
    memory.stores.clear()
    sender.everything()
    assert (sender.normal, sender.duplicate, sender.remaining) == (3, 61, 0)
    memory.store(3 * PAGE, b"\0")
    sender.add(memory.dirty_fetch(DirtyClient.MIGRATION))
    assert sender.remaining == 1
    before = writer.sent
    sender.everything()
    assert writer.sent - before < 100
    reader = StreamReader(io.BytesIO(b"".join(sections)).read, "test")
    reader.pages(reader.next(), RAM_SIZE)
    assert list(reader.pages(reader.next(), RAM_SIZE)) == [(3 * PAGE, PAGE, None)]


def test_stretches_and_their_pieces() -> None:
    marks = bytes((0, 1, 1, 0, 1))
    assert list(runs(marks)) == [(PAGE, 2 * PAGE), (4 * PAGE, PAGE)]
    assert list(pieces(iter([(0, 3 * MAX_PAGES + PAGE)])))[-1] == (3 * MAX_PAGES, PAGE)


def test_pages_beyond_the_memory_are_refused_with_both_sizes() -> None:
    with pytest.raises(StateError, match=r"0x3f000\+0x1000 out of place, RAM has 0x20000"):
        read(write(make_memory()), RAM_SIZE // 2)


def section(payload: bytes) -> bytes:
    return struct.pack("<BHQ", PAGES, 0, len(payload)) + payload + struct.pack("<I", zlib.crc32(payload))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        struct.pack("<I", 0xFFFFFFFF),
        struct.pack("<IQQ", 1, 0, PAGE),  # no bytes
        struct.pack("<IQQ", 1, 0, PAGE + 1) + bytes(PAGE + 1),
        struct.pack("<IQQ", 1, 1 << 63, PAGE) + bytes(PAGE),
        struct.pack("<IQQ", 1, 1, 1 << 62),
        struct.pack("<IQQ", 1, 0, 0),
    ],
)
def test_lists_of_pages_with_good_checksums_and_bad_contents(payload: bytes) -> None:
    data = b"QEMUPYVM" + struct.pack("<I", 2) + section(payload)
    reader = StreamReader(io.BytesIO(data).read, "test")
    with pytest.raises(StateError):
        list(reader.pages(reader.next(), RAM_SIZE))


def test_a_length_is_not_believed() -> None:
    data = b"QEMUPYVM" + struct.pack("<I", 2) + struct.pack("<BHQ", PAGES, 0, 1 << 60) + bytes(100)
    reader = StreamReader(io.BytesIO(data).read, "test")
    with pytest.raises(StateError, match="limit"):
        reader.pages(reader.next(), RAM_SIZE)


def test_truncation_anywhere_is_refused() -> None:
    data = write(make_memory())
    for cut in [*range(200), *range(200, len(data), 97), len(data) - 1]:
        with pytest.raises(StateError):
            read(data[:cut])


def test_any_flipped_bit_is_noticed() -> None:
    data = write(make_memory())
    rng = random.Random(3)
    for _ in range(2000):
        bad = bytearray(data)
        at = rng.randrange(len(bad))
        bad[at] ^= 1 << rng.randrange(8)
        with pytest.raises(StateError):
            read(bytes(bad))
