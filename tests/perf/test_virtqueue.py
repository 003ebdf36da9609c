"""What a virtio disk request costs: the ring alone, and everything on the device's side of it, in process time."""

from __future__ import annotations

import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "hw"))
from virtio_guest import NEXT, WRITE, Board, Driver, start_modern

from qemupy.backends.block.base import MemoryBlock
from qemupy.hw.block.virtio_blk import VirtioBlk, VirtioBlkPci
from qemupy.hw.virtio import regs

DEPTH, ROUNDS = 64, 100
RING_LIMIT, REQUEST_LIMIT = 8e-6, 60e-6  # seconds a request
HEADERS, DATA = 0x100000, 0x200000


@pytest.fixture
def board() -> Iterator[Board]:
    block = MemoryBlock(bytes(1 << 20))

    def parts(host: Any) -> tuple[VirtioBlk, VirtioBlkPci]:
        device = VirtioBlk(host=host, block=block)
        return device, VirtioBlkPci(device=device)

    board = Board(parts)
    board.medium = block  # type: ignore[attr-defined]
    board.map_bars()
    board.enable_msix(2)
    yield board
    board.close()


def fill(driver: Driver) -> None:
    """DEPTH reads of 4 KiB, three descriptors each."""
    for n in range(DEPTH):
        header = HEADERS + 32 * n
        driver.board.store(header, struct.pack("<IIQ", 0, 0, 8 * n))
        driver.describe(3 * n, header, 16, NEXT, 3 * n + 1)
        driver.describe(3 * n + 1, DATA + 4096 * n, 4096, NEXT | WRITE, 3 * n + 2)
        driver.describe(3 * n + 2, header + 16, 1, WRITE)
        driver.offer(3 * n)


def test_ring(board: Board) -> None:
    driver = start_modern(board, regs.F_EVENT_IDX, size=256)
    ring = board.device.queues[0].ring
    best = 1.0
    for _ in range(ROUNDS):
        fill(driver)
        begin = time.process_time()
        count = 0
        while chains := ring.pop(16):
            for chain in chains:
                ring.push(chain.head, 4097)
                count += 1
        best = min(best, (time.process_time() - begin) / count)
        assert count == DEPTH
    print(f"{best * 1e6:.2f} us for pop and push of a request of three descriptors")
    assert best < RING_LIMIT


def test_request(board: Board) -> None:
    driver = start_modern(board, regs.F_EVENT_IDX, size=256)
    medium: MemoryBlock = board.medium  # type: ignore[attr-defined]
    best = 1.0
    for _ in range(ROUNDS):
        fill(driver)
        board.device.notify(0)
        begin = time.process_time()
        board.host.turn()
        medium.run()
        best = min(best, (time.process_time() - begin) / DEPTH)
        assert len(driver.answers()) == DEPTH
    print(f"{best * 1e6:.2f} us for a read of 4 KiB out of memory, ring and device")
    assert best < REQUEST_LIMIT
