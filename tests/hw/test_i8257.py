"""8237A pair: programming, transfers in both directions, terminal count, autoinit, masks, page wrap."""

from __future__ import annotations

from fakes import round_trip

from qemupy.hw.core import FlatDma
from qemupy.hw.isa.i8257 import DmaPair

TO_MEMORY, FROM_MEMORY, VERIFY = 0x44, 0x48, 0x40


class Pc:
    def __init__(self) -> None:
        self.ram = FlatDma()
        self.dev = DmaPair(ram=self.ram)
        self.low, self.high, self.page = (self.dev.bank(n) for n in ("low", "high", "page"))
        self.high.write(0x1A, 1, 0)
        self.high.write(0x16, 1, 0xC0)
        self.high.write(0x14, 1, 0)

    def program(self, mode: int, address: int, count: int, channel: int = 2) -> None:
        self.low.write(0x0A, 1, 4 | channel)
        self.low.write(0x0C, 1, 0)
        self.low.write(0x0B, 1, mode & ~3 | channel)
        for register, value in ((2 * channel, address), (2 * channel + 1, count)):
            self.low.write(register, 1, value & 0xFF)
            self.low.write(register, 1, value >> 8 & 0xFF)
        self.page.write({2: 0, 3: 1, 1: 2, 0: 6}[channel], 1, address >> 16)
        self.low.write(0x0A, 1, channel)


def test_device_to_memory_in_pieces() -> None:
    pc = Pc()
    pc.program(TO_MEMORY, 0x21000, 511)
    assert pc.dev.ready(2)
    assert pc.dev.to_memory(2, b"a" * 512) == (512, True)
    assert not pc.dev.ready(2) and pc.ram.read(0x21000, 513) == b"a" * 512 + b"\0"
    assert pc.low.read(8, 1) == 0x04 and pc.low.read(8, 1) == 0
    pc.program(TO_MEMORY, 0x30000, 99)
    assert pc.dev.to_memory(2, b"b" * 60) == (60, False)
    assert pc.dev.to_memory(2, b"c" * 60) == (40, True)
    assert pc.ram.read(0x30000, 101) == b"b" * 60 + b"c" * 40 + b"\0"


def test_memory_to_device_and_registers_count() -> None:
    pc = Pc()
    pc.ram.write(0x4500, b"hello world")
    pc.program(FROM_MEMORY, 0x4500, 10)
    assert pc.dev.from_memory(2, 5) == (b"hello", False)
    pc.low.write(0x0C, 1, 0)
    assert pc.low.read(4, 1) | pc.low.read(4, 1) << 8 == 0x4505
    assert pc.low.read(5, 1) | pc.low.read(5, 1) << 8 == 5
    assert pc.dev.from_memory(2, 99) == (b" world", True)


def test_verify_moves_nothing() -> None:
    pc = Pc()
    pc.program(VERIFY, 0x5000, 3)
    assert pc.dev.to_memory(2, b"abcd") == (4, True) and pc.ram.read(0x5000, 4) == bytes(4)


def test_autoinit() -> None:
    pc = Pc()
    pc.program(TO_MEMORY | 0x10, 0x6000, 3)
    assert pc.dev.to_memory(2, b"abcd") == (4, True) and pc.dev.ready(2)
    assert pc.dev.to_memory(2, b"ABCD") == (4, True) and pc.ram.read(0x6000, 5) == b"ABCD\0"


def test_downwards_and_wrap() -> None:
    pc = Pc()
    pc.program(TO_MEMORY | 0x20, 0x7003, 3)
    pc.dev.to_memory(2, b"abcd")
    assert pc.ram.read(0x7000, 4) == b"dcba"
    pc.program(TO_MEMORY, 0x1FFFE, 3)
    pc.dev.to_memory(2, b"wxyz")
    assert pc.ram.read(0x1FFFE, 2) == b"wx" and pc.ram.read(0x10000, 2) == b"yz"


def test_word_channel() -> None:
    pc = Pc()
    pc.high.write(0x18, 1, 0)
    pc.high.write(0x16, 1, TO_MEMORY | 1)
    for register, value in ((0x04, 0x8000), (0x06, 1)):
        pc.high.write(register, 1, value & 0xFF)
        pc.high.write(register, 1, value >> 8)
    pc.page.write(0x0A, 1, 0x03)
    pc.high.write(0x14, 1, 1)
    assert pc.dev.to_memory(5, b"abcdef") == (4, True)
    assert pc.ram.read(0x30000, 5) == b"abcd\0"


def test_waiting_device_is_told() -> None:
    pc = Pc()
    told: list[int] = []
    pc.dev.connect(2, lambda: told.append(1))
    pc.low.write(0x0F, 1, 0x0F)
    pc.dev.request(2, True)
    assert not told and pc.low.read(8, 1) == 0x40
    pc.low.write(0x0A, 1, 2)
    assert told == [1]
    pc.low.write(8, 1, 4)
    assert not pc.dev.ready(2)
    pc.low.write(0x0D, 1, 0)
    assert not pc.dev.ready(2) and pc.low.read(0x0F, 1) == 0xFF
    pc.low.write(0x0E, 1, 0)
    assert told == [1, 1] and pc.dev.ready(2)


def test_spare_page_ports_and_round_trip() -> None:
    pc = Pc()
    pc.page.write(4, 1, 0x5A)
    pc.program(TO_MEMORY, 0x21000, 511)
    pc.low.write(4, 1, 1)
    fresh = round_trip(pc.dev, lambda: DmaPair(ram=pc.ram))
    assert fresh.bank("page").read(4, 1) == 0x5A and fresh.bank("page").read(0, 1) == 2
    assert fresh.to_memory(2, b"x" * 600) == (512, True)
