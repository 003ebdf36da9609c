"""Flow control of the chardev base and the fake media that device tests stand on."""

from __future__ import annotations

import errno

from qemupy.backends.block import BlockBackend, MemoryBlock
from qemupy.backends.chardev import OPENED, CharBackend, FakeChardev


def test_chardev_gives_no_more_than_the_frontend_takes() -> None:
    chardev = FakeChardev()
    backend: CharBackend = chardev
    got: list[bytes] = []
    events: list[str] = []
    room = 2
    backend.connect(got.append, lambda: room if len(got) < 1 else 0, events.append)
    assert chardev.feed(b"hello") and got == [b"he"] and events == [OPENED]
    got.clear()
    backend.accept_input()
    assert got == [b"ll"]
    assert not chardev.feed(b"x" * 5000)


def test_memory_block() -> None:
    block = MemoryBlock(bytes(1024))
    backend: BlockBackend = block
    done: list[int] = []
    backend.write(512, b"abc", done.append)
    assert not done
    data = bytearray(3)
    backend.read(512, data, done.append)
    backend.read(1023, bytearray(2), done.append)
    block.run()
    assert data == b"abc" and done == [0, 0, errno.EINVAL]
    block.change(None)
    backend.read(0, data, done.append)
    block.run()
    assert done[-1] == errno.ENOMEDIUM and backend.length == 0
