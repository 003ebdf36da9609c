"""virtio-blk over PCI: registers as QEMU 7.2 has them, requests by both interfaces, saving, hostile rings."""

from __future__ import annotations

import errno
import hashlib
import random
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from virtio_guest import (
    BAR_IO,
    BAR_MODERN,
    INDIRECT,
    NEXT,
    WRITE,
    Board,
    Driver,
    common,
    set_common,
    start_legacy,
    start_modern,
)  # fmt: skip

from qemupy.backends.block.base import MemoryBlock
from qemupy.errors import ConfigError
from qemupy.hw.block import virtio_blk as blk
from qemupy.hw.virtio import regs

MEDIUM = 1 << 20
HEADER, DATA, STATUS = 0x100000, 0x110000, 0x101000
BAD = 1 << 40  # no RAM there

Make = Callable[..., Board]


@pytest.fixture
def make() -> Iterator[Make]:
    boards: list[Board] = []

    def build(medium: MemoryBlock | None = None, function: dict[str, Any] | None = None,
              cls: type[blk.VirtioBlkPci] = blk.VirtioBlkPci, **props: Any) -> Board:  # fmt: skip
        block = medium or MemoryBlock(random.Random(1).randbytes(MEDIUM))

        def parts(host: Any) -> tuple[blk.VirtioBlk, blk.VirtioBlkPci]:
            device = blk.VirtioBlk(host=host, block=block, **props)
            return device, cls(device=device, **function or {})

        board = Board(parts)
        board.medium = block  # type: ignore[attr-defined]
        board.map_bars()
        boards.append(board)
        return board

    yield build
    for board in boards:
        board.close()


def medium(board: Board) -> MemoryBlock:
    block: MemoryBlock = board.medium  # type: ignore[attr-defined]
    return block


def ask(driver: Driver, kind: int, sector: int, data: list[tuple[int, int, int]], slot: int = 0) -> None:
    """One request; `data` are (gpa, length, flags). Slots of 8 descriptors keep requests apart."""
    at = HEADER + 0x20 * slot
    driver.board.store(at, struct.pack("<IIQ", kind, 0, sector))
    parts = [(at, 16, 0), *data, (STATUS + slot, 1, WRITE)]
    driver.board.store(STATUS + slot, b"\xee")
    for n, (gpa, length, flags) in enumerate(parts):
        last = n == len(parts) - 1
        driver.describe(8 * slot + n, gpa, length, flags | (0 if last else NEXT), 0 if last else 8 * slot + n + 1)
    driver.offer(8 * slot)


def ring(board: Board, queue: int = 0) -> None:
    """A doorbell as a register access; the main loop serves it."""
    board.memory.write(BAR_MODERN + 0x3000 + 4 * queue, 2, queue)
    board.host.turn()
    medium(board).run()
    board.host.turn()


def status(board: Board, slot: int = 0) -> int:
    return board.read(STATUS + slot, 1)[0]


def test_identity_is_that_of_qemu(make: Make) -> None:
    board = make(MemoryBlock(bytes(64 << 20)))
    words = [board.config(at, 4) for at in (0x00, 0x08, 0x2C, 0x34)]
    assert words == [0x10011AF4, 0x01000000, 0x00021AF4, 0x98]
    assert [board.config(at, 4) for at in range(0x40, 0xA4, 4)] == [
        0x01100009, 4, 0, 0x1000, 0x03104009, 4, 0x1000, 0x1000, 0x04105009, 4, 0x2000, 0x1000,
        0x02146009, 4, 0x3000, 0x1000, 4, 0x05147009, 0, 0, 0, 0, 0x00018411, 1, 0x801,
    ]  # fmt: skip
    for at, mask in ((0x10, 0xFFFFFF81), (0x14, 0xFFFFF000), (0x20, 0xFFFFC00C), (0x24, 0xFFFFFFFF)):
        board.set_config(at, 4, 0xFFFFFFFF)
        assert board.config(at, 4) == mask
    board.set_config(0x98, 4, 0xFFFFFFFF)
    assert board.config(0x98, 4) == 0xC0018411
    board.set_config(0x98, 4, 0)
    board.map_bars()
    set_common(board, 0, 4, 0)
    assert common(board, 4, 4) == 0x30006E54
    set_common(board, 0, 4, 1)
    assert common(board, 4, 4) == 0x101
    set_common(board, 0, 4, 2)
    assert common(board, 4, 4) == 0
    config = bytes(board.memory.read(BAR_MODERN + 0x2000 + at, 1) for at in range(57))
    assert config == bytes.fromhex(
        "0000020000000000 00000000 fe000000 8200103f 00020000 00000000 00000000 01000100 ffff3f00 01000000 01000000"
        "ffff3f00 01000000 01")
    assert board.ports.read(BAR_IO, 4) == 0x79006E54
    assert board.ports.read(BAR_IO + 12, 2) == 256
    assert board.ports.read(BAR_IO + 20, 4) == 0x20000


def test_names_choose_the_interfaces(make: Make) -> None:
    modern = make(cls=blk.VirtioBlkPciNonTransitional)
    assert [modern.config(at, 4) for at in (0, 8, 0x10, 0x2C)] == [0x10421AF4, 0x01000001, 0, 0x11001AF4]
    legacy = make(function={"disable_modern": True})
    assert [legacy.config(at, 4) for at in (0, 0x34, 0x40)] == [0x10011AF4, 0x40, 0x00010011]
    with pytest.raises(ConfigError, match="neither modern nor legacy"):
        make(function={"disable_modern": True, "disable_legacy": "on"})


@pytest.mark.parametrize("props", [
    {"num_queues": 0}, {"queue_size": 100}, {"queue_size": 2048}, {"logical_block_size": 1000},
    {"logical_block_size": 4096, "physical_block_size": 512},
])  # fmt: skip
def test_impossible_properties(make: Make, props: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        make(**props)


def test_reads_and_writes(make: Make) -> None:
    board = make()
    board.enable_msix(2)
    driver = start_modern(board, 0, size=64)
    before = bytes(medium(board).data)
    ask(driver, blk.IN, 8, [(DATA, 512, WRITE), (DATA + 0x2000, 1024, WRITE)])
    board.store(DATA + 0x4000, b"new bytes".ljust(512, b"."))
    ask(driver, blk.OUT, 100, [(DATA + 0x4000, 512, 0)], slot=1)
    ring(board)
    assert [status(board, n) for n in range(2)] == [0, 0]
    assert board.read(DATA, 512) + board.read(DATA + 0x2000, 1024) == before[4096:5632]
    assert bytes(medium(board).data[51200:51712]) == b"new bytes".ljust(512, b".")
    assert driver.answers() == [(0, 1537), (8, 1)]
    assert board.vectors_seen() == [1, 1]


def test_data_in_guest_memory_is_announced(make: Make) -> None:
    """What the device wrote shows in dirty logs."""
    from qemupy.memory.core import DirtyClient

    board = make()
    driver = start_modern(board, 0)
    ask(driver, blk.IN, 0, [(DATA, 8192, WRITE)])
    board.accel.memory.dirty_log(DirtyClient.MIGRATION, True)
    ring(board)
    dirty = board.accel.memory.dirty_fetch(DirtyClient.MIGRATION)
    pages = {DATA >> 12, (DATA >> 12) + 1, STATUS >> 12, driver.used >> 12}
    assert {n for n, byte in enumerate(dirty) if byte} == pages


def test_cached_reads_are_answered_in_the_same_turn_up_to_a_limit(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is copied while nobody else is served is bounded; the rest goes the usual way."""
    monkeypatch.setattr(blk, "AT_ONCE", 3072)
    board = make()
    driver = start_modern(board, 0, size=64)
    medium(board).cached = True
    for slot in range(3):
        ask(driver, blk.IN, 2 * slot, [(DATA + 4096 * slot, 1024 * (slot + 1), WRITE)], slot)
    board.memory.write(BAR_MODERN + 0x3000, 2, 0)
    board.host.turn()
    assert [status(board, slot) for slot in range(3)] == [blk.OK, blk.OK, 0xEE] and len(medium(board).queue) == 1
    medium(board).run()
    for slot in range(3):
        assert board.read(DATA + 4096 * slot, 1024 * (slot + 1)) == medium(board).data[
            1024 * slot : 1024 * slot + 1024 * (slot + 1)]  # fmt: skip
    assert driver.answers() == [(0, 1025), (8, 2049), (16, 3073)]


def test_neighbouring_requests_become_one(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only of one kind, in order, without gaps, and up to a limit; what lies between starts them."""
    monkeypatch.setattr(blk, "MERGED", 2048)
    board = make()
    driver = start_modern(board, 0, size=128)
    seen: list[tuple[str, int, int, int]] = []
    block = medium(board)
    readv, writev = block.readv, block.writev
    monkeypatch.setattr(block, "readv", lambda at, data, done, merged=0: (
        seen.append(("r", at, data.size, merged)), readv(at, data, done)))  # fmt: skip
    monkeypatch.setattr(block, "writev", lambda at, data, done, merged=0: (
        seen.append(("w", at, data.size, merged)), writev(at, data, done)))  # fmt: skip
    content = random.Random(2).randbytes(16 * 512)
    board.store(DATA, content)
    requests = [(blk.OUT, 4), (blk.OUT, 5), (blk.OUT, 6), (blk.OUT, 7), (blk.OUT, 8), (blk.OUT, 10), (blk.IN, 11),
                (blk.IN, 12), (blk.FLUSH, 0), (blk.IN, 13), (blk.OUT, 14)]  # fmt: skip
    for slot, (kind, at) in enumerate(requests):
        ask(driver, kind, at, [(DATA + 512 * at, 512, WRITE if kind == blk.IN else 0)] if at else [], slot)
    ring(board)
    assert seen == [("w", 2048, 2048, 3), ("w", 4096, 512, 0), ("w", 5120, 512, 0), ("r", 5632, 1024, 1),
                    ("r", 6656, 512, 0), ("w", 7168, 512, 0)]  # fmt: skip
    assert [status(board, slot) for slot in range(len(requests))] == [blk.OK] * len(requests)
    assert block.data[2048:4608] == content[2048:4608] and block.data[5120:5632] == content[5120:5632]
    assert board.read(DATA + 5632, 1536) == block.data[5632:7168]
    assert sorted(driver.answers()) == [(8 * n, 513 if kind == blk.IN else 1) for n, (kind, _) in enumerate(requests)]


def test_of_neighbouring_requests_the_bad_one_fails(make: Make) -> None:
    board = make()
    driver = start_modern(board, 0, size=64)
    block = medium(board)
    writev = block.writev

    def broken(at: int, data: Any, done: Callable[[int], None], merged: int = 0) -> None:
        if at <= 5 * 512 < at + data.size:
            block.queue.append((done, errno.EIO))
        else:
            writev(at, data, done)

    block.writev = broken  # type: ignore[method-assign]
    board.store(DATA, b"w" * 1536)
    for slot in range(3):
        ask(driver, blk.OUT, 4 + slot, [(DATA + 512 * slot, 512, 0)], slot)
    ring(board)
    assert [status(board, slot) for slot in range(3)] == [blk.OK, blk.IOERR, blk.OK]
    assert block.data[2048:2560] == block.data[3072:3584] == b"w" * 512 != block.data[2560:3072]


def test_indirect_descriptors_and_odd_layouts(make: Make) -> None:
    """Header and status share descriptors with data, and are cut in two (ANY_LAYOUT)."""
    board = make()
    driver = start_modern(board, regs.F_INDIRECT_DESC)
    table = 0x180000
    header = struct.pack("<IIQ", blk.OUT, 0, 3)
    board.store(HEADER, header[:5])
    board.store(DATA, header[5:] + b"x" * 500)
    board.store(DATA + 0x1000, b"y" * 12)
    parts = [(HEADER, 5, 0), (DATA, 511, 0), (DATA + 0x1000, 12, 0), (STATUS, 1, WRITE)]
    for n, (gpa, length, flags) in enumerate(parts):
        driver.describe(n, gpa, length, flags | (NEXT if n < 3 else 0), n + 1, at=table)
    driver.describe(5, table, 64, INDIRECT)
    driver.offer(5)
    board.store(HEADER + 0x100, struct.pack("<IIQ", blk.IN, 0, 3))
    driver.describe(6, HEADER + 0x100, 16, NEXT, 7)
    driver.describe(7, DATA + 0x2000, 513, WRITE)
    driver.offer(6)
    ring(board)
    assert status(board) == 0
    assert bytes(medium(board).data[1536:2048]) == b"x" * 500 + b"y" * 12
    assert board.read(DATA + 0x2000, 513) == b"x" * 500 + b"y" * 12 + b"\0"
    assert sorted(driver.answers()) == [(5, 1), (6, 513)]


def test_event_index_and_interrupts(make: Make) -> None:
    board = make()
    board.enable_msix(2)
    driver = start_modern(board, regs.F_EVENT_IDX, size=64)
    driver.used_event(1)  # after the second answer
    for slot in range(2):
        ask(driver, blk.FLUSH, 0, [], slot=slot)
    ring(board)
    board.vectors_seen()  # the first answer after set-up always tells
    driver.used_event(4)
    for slot in range(4):
        ask(driver, blk.FLUSH, 0, [], slot=slot)
        ring(board)
        assert board.vectors_seen() == ([1] if slot == 2 else [])
    assert driver.avail_event() == 6  # notify when the next one is there


def test_without_event_index_the_flags_count(make: Make) -> None:
    board = make()
    driver = start_modern(board, 0)
    board.store(driver.avail, b"\1\0")  # no interrupts
    ask(driver, blk.FLUSH, 0, [])
    ring(board)
    assert driver.answers() and not any(board.levels)
    board.store(driver.avail, b"\0\0")
    ask(driver, blk.FLUSH, 0, [])
    ring(board)
    assert board.levels[-1] and board.memory.read(BAR_MODERN + 0x1000, 1) == 1
    assert not board.levels[-1] and board.memory.read(BAR_MODERN + 0x1000, 1) == 0
    assert board.read(driver.used, 2) == b"\0\0"  # the guest shall notify


def test_legacy_interface(make: Make) -> None:
    board = make()
    driver = start_legacy(board, 0)
    ask(driver, blk.IN, 1, [(DATA, 512, WRITE)])
    assert {(b.address, b.size, b.value) for b in board.watcher.bells} == {(BAR_IO + 16, 2, 0)}
    board.ports.write(BAR_IO + 16, 2, 0)
    board.host.turn()
    medium(board).run()
    assert board.read(DATA, 512) == bytes(medium(board).data[512:1024])
    assert board.levels[-1]
    assert board.ports.read(BAR_IO + 19, 1) == 1 and not board.levels[-1]
    board.ports.write(BAR_IO + 8, 4, 0)
    assert board.ports.read(BAR_IO + 18, 1) == 0 and not board.watcher.bells


def test_doorbells_follow_the_bar(make: Make) -> None:
    board = make(num_queues=3)
    start_modern(board, blk.F_MQ)
    start_modern(board, blk.F_MQ, queue=2, base=0x40000)
    assert {b.address for b in board.watcher.bells} == {BAR_MODERN + 0x3000, BAR_MODERN + 0x3008}
    board.set_config(0x20, 4, BAR_MODERN + 0x100000)
    assert {b.address for b in board.watcher.bells} == {BAR_MODERN + 0x103000, BAR_MODERN + 0x103008}
    board.set_config(4, 2, 0)
    assert not board.watcher.bells


def test_other_requests(make: Make) -> None:
    board = make(serial="disk-0815")
    driver = start_modern(board, blk.F_DISCARD | blk.F_WRITE_ZEROES, size=256)
    ask(driver, blk.GET_ID, 0, [(DATA, 20, WRITE)])
    board.store(DATA + 0x1000, struct.pack("<QII", 2, 2, 0))
    ask(driver, blk.DISCARD, 0, [(DATA + 0x1000, 16, 0)], slot=1)
    board.store(DATA + 0x1010, struct.pack("<QII", 8, 1, 1))
    ask(driver, blk.WRITE_ZEROES, 0, [(DATA + 0x1010, 16, 0)], slot=2)
    ask(driver, 77, 0, [(DATA, 16, WRITE)], slot=3)
    ask(driver, blk.IN, MEDIUM // 512, [(DATA + 0x3000, 512, WRITE)], slot=4)
    ask(driver, blk.IN, 0, [(DATA + 0x3000, 500, WRITE)], slot=5)
    ask(driver, blk.IN, (1 << 64) - 1, [(DATA + 0x3000, 512, WRITE)], slot=6)
    board.store(DATA + 0x1020, struct.pack("<QII", 2, 2, 1))
    ask(driver, blk.DISCARD, 0, [(DATA + 0x1020, 16, 0)], slot=7)
    ring(board)
    assert [status(board, n) for n in range(8)] == [0, 0, 0, 2, 1, 1, 1, 2]
    assert board.read(DATA, 20) == b"disk-0815".ljust(20, b"\0")
    assert not any(medium(board).data[1024:2048]) and not any(medium(board).data[4096:4608])
    assert any(medium(board).data[4608:4620])


def test_errors_and_read_only(make: Make) -> None:
    board = make(MemoryBlock(bytes(MEDIUM), readonly=True))
    driver = start_modern(board, 0, size=64)
    set_common(board, 0, 4, 0)
    assert common(board, 4, 4) & blk.F_RO
    ask(driver, blk.OUT, 0, [(DATA, 512, 0)])
    ring(board)
    medium(board).fail_next = errno.EIO
    ask(driver, blk.IN, 0, [(DATA, 512, WRITE)], slot=1)
    ring(board)
    assert [status(board, n) for n in range(2)] == [blk.IOERR, blk.IOERR]


def test_write_cache_off_means_flush(make: Make) -> None:
    board = make()
    driver = start_modern(board, blk.F_CONFIG_WCE | blk.F_FLUSH, size=64)
    ask(driver, blk.OUT, 0, [(DATA, 512, 0)])
    ring(board)
    assert medium(board).flushes == 0
    board.memory.write(BAR_MODERN + 0x2000 + 32, 1, 0)
    assert board.memory.read(BAR_MODERN + 0x2000 + 32, 1) == 0
    ask(driver, blk.OUT, 0, [(DATA, 512, 0)], slot=1)
    ring(board)
    assert medium(board).flushes == 1 and status(board, 1) == 0


def test_reset_waits_for_requests(make: Make) -> None:
    board = make()
    driver = start_modern(board, 0)
    ask(driver, blk.IN, 0, [(DATA, 512, WRITE)])
    board.memory.write(BAR_MODERN + 0x3000, 2, 0)
    board.host.turn()
    set_common(board, 20, 1, 0)
    assert common(board, 20, 1) != 0
    medium(board).run()
    assert common(board, 20, 1) == 0 and common(board, 28, 2) == 0


def test_one_queue_is_reset(make: Make) -> None:
    board = make(num_queues=2)
    start_modern(board, regs.F_RING_RESET)
    start_modern(board, regs.F_RING_RESET, queue=1, base=0x40000)
    set_common(board, 58, 2, 1)
    assert (common(board, 58, 2), common(board, 28, 2)) == (0, 0)
    set_common(board, 22, 2, 0)
    assert common(board, 28, 2) == 1
    driver = start_modern(board, regs.F_RING_RESET, queue=1, base=0x80000)
    ask(driver, blk.FLUSH, 0, [])
    ring(board, 1)
    assert driver.answers() == [(0, 1)]


def test_nothing_is_taken_while_the_machine_stands(make: Make) -> None:
    board = make()
    driver = start_modern(board, 0)
    board.host.running = False
    ask(driver, blk.FLUSH, 0, [])
    ring(board)
    assert driver.answers() == []
    board.host.resume()
    board.host.turn()
    medium(board).run()
    assert driver.answers() == [(0, 1)]


def test_save_and_load_with_a_request_in_flight(make: Make) -> None:
    """A disk error stopped the machine: the chain it holds is taken again by the machine that goes on."""
    old = make()
    old.enable_msix(2)
    driver = start_modern(old, regs.F_EVENT_IDX, size=64)
    for slot in range(3):
        ask(driver, blk.FLUSH, 0, [], slot=slot)
        ring(old)
    ask(driver, blk.IN, 5, [(DATA, 512, WRITE)], slot=3)
    old.memory.write(BAR_MODERN + 0x3000, 2, 0)
    old.host.turn()  # the medium does not answer
    state = old.save()
    assert state["queue0"]["taken"] == struct.pack("<H", 24)
    new = make(MemoryBlock(medium(old).data))
    new.store(0, old.read(0, 8 << 20))
    new.load(state)
    again = new.save()
    assert again == state
    assert {b.address for b in new.watcher.bells} == {b.address for b in old.watcher.bells}
    medium(new).run()
    driver.board = new
    assert driver.answers()[-1] == (24, 513)
    assert new.read(DATA, 512) == bytes(medium(new).data[2560:3072])
    assert new.vectors_seen() == [1]
    ask(driver, blk.FLUSH, 0, [], slot=4)
    ring(new)
    assert driver.answers() == [(32, 1)]


def test_resize_tells_the_driver(make: Make) -> None:
    board = make()
    board.enable_msix(2)
    start_modern(board, 0)
    generation = common(board, 21, 1)
    medium(board).change(bytes(2 << 20))
    assert board.vectors_seen() == [0]
    assert common(board, 21, 1) != generation
    assert board.memory.read(BAR_MODERN + 0x2000, 4) == (2 << 20) // 512


def test_masked_vectors_are_pending(make: Make) -> None:
    board = make()
    board.enable_msix(2)
    driver = start_modern(board, 0)
    board.memory.write(0xFE000000 + 16 + 12, 4, 1)
    ask(driver, blk.FLUSH, 0, [])
    ring(board)
    assert board.vectors_seen() == [] and board.memory.read(0xFE000800, 4) == 2
    board.memory.write(0xFE000000 + 16 + 12, 4, 0)
    assert board.vectors_seen() == [1] and board.memory.read(0xFE000800, 4) == 0


def test_access_through_configuration_space(make: Make) -> None:
    board = make()
    at = board.capability(0x09, 5)
    for offset, size, value in ((4, 1, 4), (8, 4, 18), (12, 4, 2)):
        board.set_config(at + offset, size, value)
    assert board.config(at + 16, 4) == 1  # num_queues
    board.set_config(at + 8, 4, 20)
    board.set_config(at + 12, 4, 1)
    board.set_config(at + 16, 4, regs.ACKNOWLEDGE)
    assert common(board, 20, 1) == regs.ACKNOWLEDGE
    board.set_config(at + 8, 4, 0xFFFFFFFC)
    assert isinstance(board.config(at + 16, 4), int)


HOSTILE: dict[str, Callable[[Driver], None]] = {
    "head out of range": lambda d: d.offer(999),
    "index ran away": lambda d: d.board.store(d.avail + 2, struct.pack("<H", 500)),
    "loop": lambda d: (d.describe(0, DATA, 16, NEXT, 1), d.describe(1, DATA, 16, NEXT, 0), d.offer(0))[-1],
    "loop of itself": lambda d: (d.describe(0, DATA, 16, NEXT, 0), d.offer(0))[-1],
    "next out of range": lambda d: (d.describe(0, DATA, 16, NEXT, 60000), d.offer(0))[-1],
    "no RAM": lambda d: (d.describe(0, BAD, 16), d.offer(0))[-1],
    "end of everything": lambda d: (d.describe(0, (1 << 64) - 8, 16), d.offer(0))[-1],
    "over the end of RAM": lambda d: (d.describe(0, (8 << 20) - 8, 16), d.offer(0))[-1],
    "empty buffer": lambda d: (d.describe(0, DATA, 0), d.offer(0))[-1],
    "wrong order": lambda d: (d.describe(0, DATA, 16, NEXT | WRITE, 1), d.describe(1, DATA, 16), d.offer(0))[-1],
    "no header": lambda d: (d.describe(0, DATA, 16, WRITE), d.offer(0))[-1],
    "short header": lambda d: (d.describe(0, DATA, 8, NEXT, 1), d.describe(1, DATA, 1, WRITE), d.offer(0))[-1],
    "no status": lambda d: (d.describe(0, DATA, 16), d.offer(0))[-1],
    "odd indirect table": lambda d: (d.describe(0, DATA, 17, INDIRECT), d.offer(0))[-1],
    "indirect in indirect": lambda d: (
        d.describe(0, DATA, 32, INDIRECT), d.describe(0, DATA, 32, INDIRECT, at=DATA), d.offer(0))[-1],
    "indirect table outside": lambda d: (d.describe(0, BAD, 32, INDIRECT), d.offer(0))[-1],
    "long indirect loop": lambda d: (
        d.describe(0, DATA, 16 << 20, INDIRECT), d.describe(0, HEADER, 16, NEXT, 0, at=DATA), d.offer(0))[-1],
    "same chain twice": lambda d: (ask(d, blk.FLUSH, 0, []), d.offer(0))[-1],
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_broken_rings_break_the_device_only(make: Make, name: str) -> None:
    board = make()
    board.enable_msix(2)
    driver = start_modern(board, regs.F_INDIRECT_DESC)
    HOSTILE[name](driver)
    ring(board)
    assert board.device.broken and common(board, 20, 1) & regs.NEEDS_RESET
    assert 0 in board.vectors_seen()  # configuration change
    ring(board)
    set_common(board, 20, 1, 0)
    driver = start_modern(board, 0)
    assert not board.device.broken
    ask(driver, blk.IN, 0, [(DATA, 512, WRITE)])
    ring(board)
    assert status(board) == 0 and driver.answers() == [(0, 513)]


@pytest.mark.parametrize("offset", [32, 40, 48])
@pytest.mark.parametrize("address", [BAD, (8 << 20) - 16, 0xFFFFFFFFFFFFF000, 0x10003])
def test_rings_outside_of_memory(make: Make, offset: int, address: int) -> None:
    board = make()
    driver = start_modern(board, 0, size=256)
    set_common(board, 58, 2, 1)
    set_common(board, 20, 1, 0)
    driver = start_modern(board, 0, size=256)
    set_common(board, 20, 1, 0)
    set_common(board, 20, 1, 3)
    set_common(board, 12, 4, 0)
    for at, gpa in ((32, driver.desc), (40, driver.avail), (48, driver.used)):
        set_common(board, at, 8, address if at == offset else gpa)
    set_common(board, 28, 2, 1)
    set_common(board, 20, 1, 7)
    ring(board)
    assert board.device.broken


@pytest.mark.parametrize("seed", range(6))
def test_random_rings(make: Make, seed: int) -> None:
    """Whatever lies in the ring, the device ends up answering or broken; and works after a reset."""
    rng = random.Random(seed)
    board = make()
    for _ in range(40):
        driver = start_modern(board, rng.choice((0, regs.F_EVENT_IDX, regs.F_INDIRECT_DESC)), size=16)
        for index in range(16):
            gpa = rng.choice((HEADER + 64 * index, DATA + 4096 * index, DATA, driver.desc, driver.used, BAD, 0))
            length = rng.choice((0, 1, 16, 16, 512, 513, 4096, 0xFFFFFFFF))
            flags, following = rng.choice((0, 1, 1, 2, 3, 4, 5, 7)), rng.choice((index + 1, index, 99))
            driver.describe(index, gpa, length, flags, following)
            header = struct.pack("<IIQ", rng.choice((0, 1, 4, 8, 11, 13, 99)), 0, rng.randrange(4000))
            board.store(HEADER + 64 * index, header)
        for _ in range(rng.randrange(1, 20)):
            driver.offer(rng.randrange(18))
        ring(board)
        if rng.random() < 0.3:
            board.load(board.save())
        set_common(board, 20, 1, 0)
        medium(board).run()
        assert common(board, 20, 1) == 0
    driver = start_modern(board, 0)
    ask(driver, blk.IN, 7, [(DATA, 4096, WRITE)])
    ring(board)
    want = hashlib.sha256(medium(board).data[3584:7680]).digest()
    assert status(board) == 0 and hashlib.sha256(board.read(DATA, 4096)).digest() == want
