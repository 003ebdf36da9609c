"""Scatter-gather lists over the memory of a real core: joined, cut, read and written, announced."""

import os
import re
import struct
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from qemupy._core import lib

from qemupy.memory import AddressSpace, GuestRam, MemoryRegion
from qemupy.memory.core import DirtyClient
from qemupy.scatter import Scatter, as_table, cut, descriptors, pairs, table, total
from qemupy.vcpu.interp import InterpAccel

PAGE = 4096
RAM = 64 * PAGE


class Memory:
    def __init__(self) -> None:
        self.accel = InterpAccel(RAM)
        self.owns_bql = not lib.qpy_bql_held()  # there is one for the process
        if self.owns_bql:
            self.accel.bql.acquire()
        self.core = self.accel.memory
        root = MemoryRegion("system", 1 << 48)
        root.add(MemoryRegion.ram("ram", self.core.alloc("ram", RAM)), 0)
        self.dma = GuestRam(AddressSpace("memory", root, self.core))

    def close(self) -> None:
        self.accel.close()
        if self.owns_bql:
            self.accel.bql.release()

    def scatter(self, *pieces: tuple[int, int]) -> Scatter:
        views = self.dma.views(table(pieces), True)
        assert isinstance(views, Scatter)
        return views


@pytest.fixture
def memory() -> Iterator[Memory]:
    found = Memory()
    yield found
    found.close()


def test_neighbours_are_one_piece(memory: Memory) -> None:
    found = memory.scatter((0, 512), (512, 512), (PAGE, PAGE), (PAGE * 4, 8))
    assert [len(piece) for piece in found] == [1024, PAGE, 8] and total(found) == found.size == 1024 + PAGE + 8
    found[1][:4] = b"page"
    assert memory.dma.read(PAGE, 4) == b"page"
    assert [len(piece) for piece in found[1:]] == [PAGE, 8] and len(found[-1]) == 8


def test_what_is_not_ram_has_stand_ins(memory: Memory) -> None:
    pieces = table([(RAM - 8, 16)])
    views = memory.dma.views(pieces, True)
    assert not isinstance(views, Scatter) and [len(view) for view in views] == [8, 8]
    memory.dma.landed(pieces, views)


def test_cuts(memory: Memory) -> None:
    whole = memory.scatter((0, 100), (PAGE, 200), (PAGE * 2, 300))
    for start, length, sizes in ((0, 600, [100, 200, 300]), (100, 200, [200]), (50, 100, [50, 50]), (299, 2, [1, 1]),
                                 (600, 5, []), (590, 50, [10]), (10, 0, [])):  # fmt: skip
        part = cut(whole, start, length)
        assert [len(piece) for piece in part] == sizes and total(part) == sum(sizes)
        assert [len(piece) for piece in cut(list(whole), start, length)] == sizes


@pytest.mark.parametrize("count", [3, 1500])  # a system call takes 1024 pieces
def test_files(memory: Memory, tmp_path: Path, count: int) -> None:
    """Scattered backwards, so that nothing is joined; a read beyond the end of the file gives zeros."""
    found = memory.scatter(*((16 * n, 8) for n in reversed(range(count))))
    data = os.urandom(8 * count)
    path = tmp_path / "file"
    path.write_bytes(b"head" + data)
    with path.open("r+b", buffering=0) as file:
        found.read_from(file.fileno(), 4)
        assert b"".join(found) == data
        found.write_to(file.fileno(), 4 + len(data))
        assert path.read_bytes() == b"head" + data + data
        found.read_from(file.fileno(), 8 + len(data))
        assert b"".join(found) == data[4:] + bytes(4)
        with pytest.raises(OSError, match="Bad file descriptor"):
            found.read_from(-1, 0)
    with path.open("rb") as file, pytest.raises(OSError, match="Bad file descriptor"):
        found.write_to(file.fileno(), 0)


def test_a_write_takes_a_megabyte_at_a_time(tmp_path: Path) -> None:
    """Counted by the kernel. The boundaries lie within pieces."""
    data = os.urandom((3 << 20) + 5)
    pieces = [memoryview(data)[start:end] for start, end in pairwise((0, 7, 7, 1 << 19, (5 << 19) + 1, len(data)))]
    with (tmp_path / "file").open("w+b", buffering=0) as file:
        before = system_calls()
        as_table(pieces).write_to(file.fileno(), 3)
        assert system_calls() - before == 4
        assert os.pread(file.fileno(), len(data) + 4, 0) == bytes(3) + data


def system_calls() -> int:
    """Writes of this thread so far."""
    found = re.search(r"^syscw: (\d+)$", Path("/proc/thread-self/io").read_text(), re.M)
    assert found
    return int(found.group(1))


def test_landing_marks_pages(memory: Memory) -> None:
    pieces = table([(PAGE * 3, PAGE), (PAGE * 4, 1), (PAGE * 9 + 5, 1)])
    views = memory.dma.views(pieces, True)
    memory.core.dirty_log(DirtyClient.MIGRATION, True)
    memory.dma.landed(pieces, views)
    dirty = memory.core.dirty_fetch(DirtyClient.MIGRATION)
    assert [n for n, flag in enumerate(dirty) if flag] == [3, 4, 9]
    assert list(pairs(pieces))[1] == (PAGE * 4, 1)


def test_descriptors_of_a_bus_master() -> None:
    """Reserved bits do not count; a count of 0 is 64 KiB."""
    words = struct.pack("<IIIIIIII", 0x1001, 0x200, 0x2000, 0x7FFF0001, 0x3000, 0x80000010, 0x4000, 0x20)
    found, room, ended = descriptors(words, 1 << 20)
    assert list(pairs(found)) == [(0x1000, 0x200), (0x2000, 0x10000), (0x3000, 0x10)]
    assert room == 0x10210 and ended
    found, room, ended = descriptors(words, 0x201)
    assert list(pairs(found)) == [(0x1000, 0x200), (0x2000, 0x10000)] and room == 0x10200 and not ended
    assert descriptors(words[:8], 1 << 20) == (table([(0x1000, 0x200)]), 0x200, False)
    assert descriptors(words[24:], 0x20) == (table([(0x4000, 0x20)]), 0x20, False)
