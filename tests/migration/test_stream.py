"""A stream gives back what was written, maps its RAM page-aligned, and refuses every kind of damage."""

import io
import random

import pytest

from qemupy.errors import StateError
from qemupy.migration.stream import END, PAGE, RAM, StreamReader, StreamWriter, nonzero_runs

RAM_SIZE = 64 * PAGE


def make_ram() -> bytearray:
    ram = bytearray(RAM_SIZE)
    ram[3 * PAGE] = 1
    ram[4 * PAGE + 5] = 2
    ram[-1] = 3
    return ram


def write(ram: bytearray) -> bytes:
    file = io.BytesIO()
    writer = StreamWriter(file)
    writer.table("machine", {"memory": RAM_SIZE})
    writer.ram("pc.ram", memoryview(ram))
    writer.end()
    return file.getvalue()


def read(data: bytes, size: int = RAM_SIZE) -> tuple[dict[str, object], bytearray]:
    reader = StreamReader(io.BytesIO(data), "test")
    machine = reader.table(reader.next())
    pages = reader.table(reader.next())
    ram = bytearray(b"\xaa" * size)
    section = reader.next()
    if section.kind != RAM:
        raise StateError("no RAM")
    reader.ram(section, pages, memoryview(ram))
    if reader.next().kind != END:
        raise StateError("no end")
    return machine, ram


def test_round_trip_keeps_every_byte_and_drops_zero_pages() -> None:
    ram = make_ram()
    data = write(ram)
    assert read(data) == ({"memory": RAM_SIZE}, ram)
    assert len(data) < 5 * PAGE


def test_ram_lies_on_a_page_boundary() -> None:
    data = write(make_ram())
    assert data[PAGE] == 1 and data[2 * PAGE + 5] == 2


def test_runs_cross_scanning_chunks() -> None:
    ram = bytearray(3 << 20)
    ram[(1 << 20) - PAGE : (1 << 20) + PAGE] = b"x" * (2 * PAGE)
    assert list(nonzero_runs(memoryview(ram))) == [((1 << 20) - PAGE, 2 * PAGE)]


def test_wrong_memory_size_names_both() -> None:
    with pytest.raises(StateError, match=f"{RAM_SIZE}.*{2 * RAM_SIZE}"):
        read(write(make_ram()), 2 * RAM_SIZE)


def test_truncation_anywhere_is_refused() -> None:
    data = write(make_ram())
    for cut in [*range(200), *range(200, len(data), 97), len(data) - 1]:
        with pytest.raises(StateError):
            read(data[:cut])


def test_any_flipped_bit_is_noticed() -> None:
    data = write(make_ram())
    rng = random.Random(3)
    for _ in range(2000):
        bad = bytearray(data)
        at = rng.randrange(len(bad))
        bad[at] ^= 1 << rng.randrange(8)
        with pytest.raises(StateError):
            read(bytes(bad))
