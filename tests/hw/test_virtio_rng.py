"""virtio-rng: identity, and buffers that come back full."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from virtio_guest import BAR_MODERN, WRITE, Board, start_legacy, start_modern

from qemupy.hw.misc.virtio_rng import VirtioRng, VirtioRngPci

DATA = 0x110000


@pytest.fixture
def board() -> Iterator[Board]:
    def parts(host: Any) -> tuple[VirtioRng, VirtioRngPci]:
        device = VirtioRng(host=host, entropy=lambda size: bytes(n * 7 & 0xFF for n in range(size)))
        return device, VirtioRngPci(device=device)

    board = Board(parts)
    board.map_bars()
    yield board
    board.close()


def test_identity_is_that_of_qemu(board: Board) -> None:
    words = [board.config(at, 4) for at in (0x00, 0x08, 0x2C)]
    assert words == [0x10051AF4, 0x00FF0000, 0x00041AF4]
    board.set_config(0x10, 4, 0xFFFFFFFF)
    assert board.config(0x10, 4) == 0xFFFFFFE1


def test_buffers_are_filled(board: Board) -> None:
    driver = start_modern(board, 0, size=8)
    driver.describe(0, DATA, 300, WRITE)
    driver.offer(0)
    driver.describe(1, DATA + 0x1000, 0x20000, WRITE)  # more than is given at once
    driver.offer(1)
    board.memory.write(BAR_MODERN + 0x3000, 2, 0)
    board.host.turn()
    assert driver.answers() == [(0, 300), (1, 0x10000)]
    assert board.read(DATA, 301) == bytes(n * 7 & 0xFF for n in range(300)) + b"\0"
    assert not any(board.read(DATA + 0x11000, 64))


def test_legacy_driver(board: Board) -> None:
    driver = start_legacy(board, 0)
    driver.describe(0, DATA, 16, WRITE)
    driver.offer(0)
    board.ports.write(0xC010, 2, 0)
    board.host.turn()
    assert driver.answers() == [(0, 16)]
