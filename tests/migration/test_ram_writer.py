"""The order in which RAM goes into a state area, and that nothing is missing from it."""

from __future__ import annotations

from typing import Any

from qemupy.memory import PyCoreMemory
from qemupy.migration.vmstate import GRANULE, RAM_BASE, RamWriter

SIZE = 64 << 20


class Memory(PyCoreMemory):
    def __init__(self, log: list[str]) -> None:
        super().__init__()
        self.log = log
        self.alloc("ram", SIZE)

    def nonzero(self, offset: int, size: int, granule: int = 4096) -> bytes:
        self.log.append("scan")
        return super().nonzero(offset, size, granule)


class Image:
    def __init__(self, log: list[str]) -> None:
        self.log, self.state = log, bytearray(SIZE)

    def fileno(self) -> int | None:
        return None

    def vmstate_begin(self) -> None:
        pass

    def vmstate_write(self, offset: int, data: bytes | memoryview) -> None:
        self.log.append("write")
        self.state[offset - RAM_BASE : offset - RAM_BASE + len(data)] = data

    def vmstate_push(self) -> None:
        self.log.append("push")

    def vmstate_share(self, snapshot: Any, source: int, offset: int, length: int) -> None:
        raise AssertionError

    def vmstate_read(self, offset: int, data: memoryview, snapshot: Any = None) -> None:
        raise AssertionError

    def vmstate_extents(self, snapshot: Any, offset: int, length: int) -> list[tuple[int, int | None, int]] | None:
        return None


def test_the_disk_works_while_memory_is_looked_at() -> None:
    log: list[str] = []
    memory, image = Memory(log), Image(log)
    used = [(0, 3), (5 * GRANULE, 2 * GRANULE), (20 << 20, 21 << 20), (SIZE - 9, 9)]
    for at, length in used:
        memory.view(at, length)[:] = bytes([at >> 20 | 1]) * length
    writer = RamWriter(memory, image)
    writer.everything()
    assert image.state == memory.view(0, SIZE)
    first = log.index("write")
    assert "push" in log[first : first + 5] and "scan" in log[first:]
    assert log[-1] == "push" and log.count("scan") == log.count("push")
    assert writer.stored == [0, GRANULE, 5 * GRANULE, 2 * GRANULE, 20 << 20, 21 << 20, SIZE - GRANULE, GRANULE]
    assert writer.bytes_written == sum(writer.stored[1::2])


def test_cancelled_it_writes_no_more() -> None:
    log: list[str] = []
    memory, image = Memory(log), Image(log)
    memory.view(0, SIZE)[:] = b"1" * SIZE
    writer = RamWriter(memory, image)
    image.vmstate_push = lambda: setattr(writer, "cancelled", True)  # type: ignore[method-assign]
    writer.everything()
    assert log.count("write") == 1 and writer.bytes_written < SIZE
