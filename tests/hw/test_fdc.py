"""Floppy controller: reset, seeks, reading and writing by DMA, error results, geometries."""

from __future__ import annotations

import struct

import pytest

from qemupy.backends.block.base import MemoryBlock
from qemupy.hw.block.fdc import Fdc
from qemupy.hw.block.floppy_media import FORMATS, RATE_1M, geometry
from qemupy.hw.core import FlatDma, IrqLine
from qemupy.hw.isa.i8257 import DmaPair


def sector(n: int) -> bytes:
    return struct.pack("<I", n) * 128


class Rig:
    def __init__(self, drives: int = 1) -> None:
        self.image = MemoryBlock(b"".join(sector(n) for n in range(2880)))
        self.ram = FlatDma()
        self.dma = DmaPair(ram=self.ram)
        self.dma.channels[4].masked = False
        self.irq = IrqLine(lambda n, level: None)
        self.fdc = Fdc(irq=self.irq, dma=self.dma, media=[self.image, None])
        self.bank = self.fdc.bank()

    def start(self) -> None:
        """Reset as a driver does it."""
        self.bank.write(2, 1, 0)
        self.bank.write(2, 1, 0x1C)
        assert self.irq.level
        for unit in range(4):
            assert self.command(8) == bytes((0xC0 | unit, 0))
        assert not self.irq.level

    def command(self, *parts: int) -> bytes:
        for part in parts:
            assert self.bank.read(4, 1) & 0xC0 == 0x80
            self.bank.write(5, 1, part)
        self.image.run()
        return self.result()

    def result(self) -> bytes:
        got = bytearray()
        while self.bank.read(4, 1) & 0xD0 == 0xD0:
            got.append(self.bank.read(5, 1))
        return bytes(got)

    def set_dma(self, address: int, size: int, to_memory: bool) -> None:
        low, page = self.dma.bank("low"), self.dma.bank("page")
        low.write(12, 1, 0)
        low.write(11, 1, 0x46 if to_memory else 0x4A)
        for value in (address & 0xFF, address >> 8 & 0xFF):
            low.write(4, 1, value)
        for value in (size - 1 & 0xFF, size - 1 >> 8):
            low.write(5, 1, value)
        page.write(0, 1, address >> 16)
        low.write(10, 1, 2)

    def seek(self, cylinder: int, head: int = 0) -> None:
        self.command(0x0F, head << 2, cylinder)
        assert self.irq.level
        assert self.command(8) == bytes((0x20 | head << 2, cylinder))


@pytest.fixture
def rig() -> Rig:
    made = Rig()
    made.start()
    return made


def test_identity(rig: Rig) -> None:
    assert rig.command(0x10) == b"\x90" and rig.command(0x18) == b"\x41"
    assert rig.command(0x1F) == b"\x80", "invalid command"
    assert rig.command(8) == b"\x80", "no interrupt to sense"


def test_read_by_dma(rig: Rig) -> None:
    rig.seek(3)
    rig.set_dma(0x5000, 1024, True)
    result = rig.command(0xE6, 0x00, 3, 0, 5, 2, 18, 0x1B, 0xFF)
    assert result == bytes((0, 0, 0, 3, 0, 7, 2))
    first = 3 * 36 + 4
    assert rig.ram.read(0x5000, 1536) == sector(first) + sector(first + 1) + bytes(512)


def test_multi_track_read_goes_on_with_the_other_head(rig: Rig) -> None:
    rig.seek(0)
    rig.set_dma(0x5000, 36 * 512, True)
    result = rig.command(0xE6, 0x00, 0, 0, 1, 2, 18, 0x1B, 0xFF)
    assert result == bytes((0, 0, 0, 1, 0, 1, 2))
    assert rig.ram.read(0x5000, 36 * 512) == b"".join(sector(n) for n in range(36))


def test_end_of_cylinder_without_terminal_count(rig: Rig) -> None:
    rig.seek(0)
    rig.set_dma(0x5000, 4096, True)
    result = rig.command(0x46, 0x00, 0, 0, 17, 2, 18, 0x1B, 0xFF)
    assert result[:2] == b"\x40\x80" and rig.ram.read(0x5000, 1024) == sector(16) + sector(17)


def test_write_by_dma(rig: Rig) -> None:
    rig.seek(1)
    rig.ram.write(0x6000, b"\x5a" * 512)
    rig.set_dma(0x6000, 512, False)
    result = rig.command(0xC5, 0x04, 1, 1, 2, 2, 18, 0x1B, 0xFF)
    assert result == bytes((4, 0, 0, 1, 1, 3, 2))
    at = (36 + 18 + 1) * 512
    assert rig.image.data[at - 512 : at + 1024] == sector(54) + b"\x5a" * 512 + sector(56)
    rig.image.readonly = True
    assert rig.command(0xC5, 0x04, 1, 1, 2, 2, 18, 0x1B, 0xFF)[:2] == b"\x44\x02"


def test_transfer_waits_for_the_dma_channel(rig: Rig) -> None:
    rig.seek(0)
    rig.dma.bank("low").write(10, 1, 6)
    assert rig.command(0x46, 0, 0, 0, 1, 2, 18, 0x1B, 0xFF) == b"" and not rig.irq.level
    rig.set_dma(0x5000, 512, True)
    assert rig.irq.level and rig.result()[:2] == b"\0\0" and rig.ram.read(0x5000, 512) == sector(0)


@pytest.mark.parametrize("to_memory", [True, False])
def test_memory_that_cannot_be_read_is_waited_for(rig: Rig, to_memory: bool) -> None:
    rig.seek(1)
    rig.ram.write(0x5000, b"\x5a" * 512)
    rig.set_dma(0x5000, 512, to_memory)
    rig.ram.unreadable = range(0x5000, 0x6000)
    assert rig.command(0x46 if to_memory else 0x45, 0, 1, 0, 1, 2, 18, 0x1B, 0xFF) == b"" and not rig.irq.level
    rig.ram.resume()
    rig.image.run()
    assert rig.irq.level and rig.result() == bytes((0, 0, 0, 1, 0, 2, 2))
    assert (rig.ram.read(0x5000, 512) if to_memory else rig.image.data[36 * 512 : 37 * 512]) == (
        sector(36) if to_memory else b"\x5a" * 512
    )


def test_missing_addresses(rig: Rig) -> None:
    rig.seek(0)
    assert rig.command(0x46, 0, 0, 0, 19, 2, 18, 0x1B, 0xFF)[:2] == b"\x40\x04"
    assert rig.command(0x46, 0, 5, 0, 1, 2, 18, 0x1B, 0xFF)[:2] == b"\x40\x04", "not on this cylinder"
    assert rig.command(0x4A, 4) == bytes((4, 0, 0, 0, 1, 1, 2))
    rig.bank.write(7, 1, 2)
    assert rig.command(0x4A, 0)[:2] == b"\x40\x01", "250 kbit/s does not read a 1.44 MB floppy"
    assert rig.command(0x4A, 1)[:2] == b"\x41\x01", "no such drive"


def test_disk_change(rig: Rig) -> None:
    assert rig.bank.read(7, 1) == 0x80
    rig.seek(1)
    assert rig.bank.read(7, 1) == 0
    rig.image.change(bytes(737280))
    assert rig.bank.read(7, 1) == 0x80
    rig.bank.write(7, 1, 2)
    rig.seek(0)
    assert rig.command(0x4A, 0)[:2] == b"\0\0"
    rig.image.change(None)
    rig.seek(1)
    assert rig.bank.read(7, 1) == 0x80


def test_format_track(rig: Rig) -> None:
    rig.seek(2)
    assert rig.command(0x4D, 0, 2, 18, 0x54, 0xF6)[:2] == b"\0\0"
    assert rig.image.data[72 * 512 : 91 * 512] == b"\xf6" * 18 * 512 + sector(90)


def test_geometries() -> None:
    assert len({g.size for g in FORMATS}) == len(FORMATS)
    assert geometry(1474560).sectors == 18 and geometry(2949120).rate == RATE_1M
    assert geometry(1000000).sectors == 15 and geometry(0).sectors == 9 and geometry(10 << 20).sectors == 18


def test_save_and_load(rig: Rig) -> None:
    rig.seek(3)
    for part in (0xE6, 0, 3, 0, 5):
        rig.bank.write(5, 1, part)
    other = Rig()
    other.fdc.load(rig.fdc.save())
    other.dma.load(rig.dma.save())
    other.set_dma(0x5000, 512, True)
    assert other.command(2, 18, 0x1B, 0xFF)[:2] == b"\0\0"
    assert other.ram.read(0x5000, 512) == sector(3 * 36 + 4)
