"""IDE disks: PIO and DMA transfers, addressing, error paths, resets, device selection, save and load."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Sequence

import pytest

from qemupy.backends.block.base import MemoryBlock
from qemupy.hw.block import ata_regs as ata
from qemupy.hw.block.ata_disk import AtaDisk
from qemupy.hw.block.ide import IdeChannel
from qemupy.hw.block.piix_ide import PiixIde
from qemupy.hw.core import FlatDma, IrqLine

SECTORS = 2000


class Rig:
    def __init__(self, drives: int = 1) -> None:
        self.image = MemoryBlock(b"".join(struct.pack("<I", n) * 128 for n in range(SECTORS)))
        self.edges: list[bool] = []
        self.channels = [IdeChannel(irq=IrqLine(lambda n, level: self.edges.append(level))) for _ in range(2)]
        self.channel = self.channels[0]
        self.disk = AtaDisk(block=self.image)
        self.channel.attach(self.disk, 0)
        if drives > 1:
            self.second = AtaDisk(block=MemoryBlock(bytes(512 * 100)))
            self.channel.attach(self.second, 1)
        self.dma = FlatDma()
        self.ide = PiixIde(dma=self.dma, channels=self.channels)
        self.ide.config[4] |= 5
        self.regs, self.ctl = self.channel.bank("command"), self.channel.bank("control")
        self.bm = self.ide.bank("bmdma")

    def command(self, code: int, lba: int = 0, count: int = 1, *, ext: bool = False, dev: int = 0xE0) -> None:
        if ext:
            for reg, value in ((2, count >> 8), (3, lba >> 24), (4, lba >> 32), (5, lba >> 40)):
                self.regs.write(reg, 1, value & 0xFF)
            self.regs.write(6, 1, dev)
        else:
            self.regs.write(6, 1, dev | lba >> 24 & 0xF)
        for reg, value in ((2, count), (3, lba), (4, lba >> 8), (5, lba >> 16)):
            self.regs.write(reg, 1, value & 0xFF)
        self.regs.write(7, 1, code)

    def address(self) -> int:
        low, mid, high, dev = (self.regs.read(n, 1) for n in (3, 4, 5, 6))
        return low | mid << 8 | high << 16 | (dev & 0xF) << 24

    def data(self, count: int = 256) -> bytes:
        return self.regs.read_string(0, 2, count)

    def status(self) -> int:
        return self.regs.read(7, 1)

    def start_dma(self, pieces: list[tuple[int, int]], to_memory: bool) -> None:
        for n, (address, size) in enumerate(pieces):
            flags = 0x80000000 if n == len(pieces) - 1 else 0
            self.dma.write(0x1000 + 8 * n, struct.pack("<II", address, size & 0xFFFF | flags))
        self.bm.write(4, 4, 0x1000)
        self.bm.write(2, 1, 6)
        self.bm.write(0, 1, 8 if to_memory else 0)
        self.bm.write(0, 1, 9 if to_memory else 1)


def sector(n: int) -> bytes:
    return struct.pack("<I", n) * 128


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_identify(rig: Rig) -> None:
    rig.command(ata.IDENTIFY)
    assert rig.channel.irq.level and rig.ctl.read(0, 1) == ata.READY | ata.DRQ
    words = struct.unpack("<256H", rig.data())
    assert rig.status() == ata.READY and not rig.channel.irq.level
    assert words[60] | words[61] << 16 == SECTORS and words[100] == SECTORS
    assert words[1:7:2] == (2, 16, 0) or (words[1], words[3], words[6]) == (2, 16, 63)
    raw = struct.pack(">20H", *words[27:47])
    assert raw.rstrip() == b"QEMU HARDDISK" and struct.pack(">10H", *words[10:20]).strip() == b"QM00001"
    assert words[47] == 0x8010 and words[59] == 0x110 and words[88] == 0x203F


def test_pio_read_of_several_sectors(rig: Rig) -> None:
    rig.command(ata.READ, 5, 3)
    assert rig.status() & ata.BSY and not rig.channel.irq.level
    rig.image.run()
    for n in range(3):
        assert rig.channel.irq.level, "one interrupt for each DRQ block"
        assert rig.status() == ata.READY | ata.DRQ
        assert rig.data() == sector(5 + n)
    assert rig.status() == ata.READY and rig.address() == 7 and rig.regs.read(2, 1) == 0


def test_pio_by_words_dwords_and_single_access(rig: Rig) -> None:
    rig.command(ata.READ, 0x123)
    rig.image.run()
    assert rig.regs.read(0, 2) == 0x123 and rig.regs.read(0, 2) == 0
    assert rig.regs.read(0, 4) == 0x123
    assert rig.regs.read_string(0, 4, 126) == sector(0x123)[:504]
    assert rig.status() == ata.READY


def test_read_multiple_uses_larger_blocks(rig: Rig) -> None:
    rig.command(ata.SET_MULTIPLE, 0, 4)
    rig.command(ata.READ_MULTIPLE, 10, 6)
    rig.image.run()
    assert rig.data(1024) == b"".join(sector(n) for n in range(10, 14))
    assert rig.channel.irq.level and rig.data(512) == sector(14) + sector(15)
    assert rig.status() == ata.READY
    rig.command(ata.SET_MULTIPLE, 0, 3)
    assert rig.status() & ata.ERR and rig.regs.read(1, 1) == ata.ABRT


def test_long_read_goes_in_chunks(rig: Rig) -> None:
    rig.command(ata.READ_EXT, 100, 700, ext=True)
    got = b""
    while len(got) < 700 * 512:
        rig.image.run()
        got += rig.data()
    assert got == rig.image.data[100 * 512 : 800 * 512] and rig.status() == ata.READY


def test_pio_write(rig: Rig) -> None:
    rig.command(ata.WRITE, 7, 2)
    assert not rig.channel.irq.level and rig.status() == ata.READY | ata.DRQ
    rig.regs.write_string(0, 2, b"\xaa" * 512)
    assert rig.status() & ata.BSY
    rig.image.run()
    assert rig.channel.irq.level and rig.status() == ata.READY | ata.DRQ
    rig.regs.write_string(0, 4, b"\xbb" * 512)
    rig.image.run()
    assert rig.status() == ata.READY
    assert rig.image.data[7 * 512 : 10 * 512] == b"\xaa" * 512 + b"\xbb" * 512 + sector(9)
    assert rig.image.flushes == 0


def test_no_write_cache_flushes(rig: Rig) -> None:
    rig.regs.write(1, 1, 0x82)
    rig.command(ata.SET_FEATURES)
    rig.image.run()
    rig.command(ata.WRITE, 7)
    rig.regs.write_string(0, 2, bytes(512))
    rig.image.run()
    assert rig.image.flushes == 2
    rig.command(ata.FLUSH_EXT)
    assert rig.status() & ata.BSY
    rig.image.run()
    assert rig.image.flushes == 3 and rig.status() == ata.READY


def test_chs_addressing(rig: Rig) -> None:
    rig.command(ata.READ, 1 | 1 << 8, 1, dev=0xA2)  # cylinder 1, head 2, sector 1
    rig.image.run()
    assert rig.data() == sector((16 + 2) * 63)
    rig.command(ata.READ, 0, 1, dev=0xA0)  # there is no sector 0
    assert rig.status() & ata.ERR and rig.regs.read(1, 1) == ata.IDNF
    rig.command(ata.INIT_PARAMETERS, 0, 32, dev=0xA3)  # 4 heads of 32 sectors
    rig.command(ata.READ, 2 | 1 << 8, 1, dev=0xA1)
    rig.image.run()
    assert rig.data() == sector((4 + 1) * 32 + 1)


def test_out_of_range(rig: Rig) -> None:
    rig.command(ata.READ, SECTORS - 1, 2)
    assert rig.channel.irq.level
    assert rig.status() == ata.READY | ata.ERR and rig.regs.read(1, 1) == ata.IDNF


def test_read_error_names_the_sector(rig: Rig) -> None:
    plain = rig.image.read

    def read(offset: int, data: bytearray | memoryview, done: object) -> None:
        if offset <= 12 * 512 < offset + len(data):
            rig.image.fail_next = errno.EIO
        plain(offset, data, done)  # type: ignore[arg-type]

    rig.image.read = read  # type: ignore[method-assign]
    rig.command(ata.READ, 10, 5)
    rig.image.run()
    for n in (10, 11):
        assert rig.data() == sector(n)
        rig.image.run()
    assert rig.status() == ata.READY | ata.ERR and rig.regs.read(1, 1) == ata.UNC and rig.address() == 12
    rig.command(ata.READ_DMA, 10, 5)
    rig.start_dma([(0x4000, 5 * 512)], True)
    rig.image.run()
    assert rig.status() == ata.READY | ata.ERR and rig.address() == 12
    assert rig.dma.read(0x4000, 1024) == sector(10) + sector(11)


def test_dma_read_scatters(rig: Rig) -> None:
    rig.command(ata.READ_DMA, 20, 4)
    assert rig.status() == ata.READY | ata.DRQ and not rig.channel.irq.level
    rig.start_dma([(0x4000, 1000), (0x8000, 1048)], True)
    assert rig.bm.read(2, 1) == 1
    rig.image.run()
    assert rig.channel.irq.level and rig.bm.read(2, 1) == 4, "interrupt, no longer active"
    got = rig.dma.read(0x4000, 1000) + rig.dma.read(0x8000, 1048)
    assert got == b"".join(sector(n) for n in range(20, 24))
    rig.bm.write(0, 1, 8)
    rig.bm.write(2, 1, 4)
    assert rig.bm.read(2, 1) == 0 and rig.status() == ata.READY


def test_dma_write_gathers_and_may_start_before_the_command(rig: Rig) -> None:
    rig.dma.write(0x4000, b"\x11" * 512)
    rig.dma.write(0x6000, b"\x22" * 512)
    rig.start_dma([(0x4000, 512), (0x6000, 512)], False)
    rig.command(ata.WRITE_DMA_EXT, 33, 2, ext=True)
    rig.image.run()
    assert rig.image.data[33 * 512 : 36 * 512] == b"\x11" * 512 + b"\x22" * 512 + sector(35)
    assert rig.status() == ata.READY and rig.bm.read(2, 1) == 4


def test_dma_table_longer_or_shorter_than_the_transfer(rig: Rig) -> None:
    rig.command(ata.READ_DMA, 0, 1)
    rig.start_dma([(0x4000, 1024)], True)
    rig.image.run()
    assert rig.bm.read(2, 1) == 5, "interrupt while still active"
    rig.bm.write(0, 1, 0)
    rig.bm.write(2, 1, 6)
    assert rig.status() == ata.READY
    rig.command(ata.READ_DMA, 0, 4)
    rig.start_dma([(0x4000, 512)], True)
    rig.image.run()
    assert not rig.channel.irq.level and rig.bm.read(2, 1) == 0


def test_stopping_the_engine_abandons_the_transfer(rig: Rig) -> None:
    rig.command(ata.READ_DMA, 0, 1)
    rig.start_dma([(0x4000, 512)], True)
    rig.bm.write(0, 1, 0)
    rig.image.run()
    assert rig.dma.read(0x4000, 4) == bytes(4) and rig.status() == ata.READY and not rig.channel.irq.level


def test_trim(rig: Rig) -> None:
    rig.dma.write(0x4000, struct.pack("<QQ", 5 | 2 << 48, 9 | 1 << 48).ljust(512, b"\0"))
    rig.regs.write(1, 1, 1)
    rig.command(ata.DSM, 0, 1, ext=True)
    rig.start_dma([(0x4000, 512)], False)
    rig.image.run()
    assert rig.status() == ata.READY
    got = rig.image.data[4 * 512 : 11 * 512]
    assert got == sector(4) + bytes(1024) + sector(7) + sector(8) + bytes(512) + sector(10)


def test_nien_masks_and_srst_resets(rig: Rig) -> None:
    rig.ctl.write(0, 1, 2)
    rig.command(ata.IDENTIFY)
    assert not rig.channel.irq.level
    rig.ctl.write(0, 1, 0)
    assert rig.channel.irq.level, "still pending"
    rig.ctl.write(0, 1, 4)
    assert rig.status() & ata.BSY and not rig.channel.irq.level
    rig.ctl.write(0, 1, 0)
    assert [rig.regs.read(n, 1) for n in range(1, 6)] == [1, 1, 1, 0, 0] and rig.status() == ata.READY


def test_two_drives() -> None:
    rig = Rig(drives=2)
    rig.command(ata.IDENTIFY, dev=0xF0)
    assert struct.unpack("<256H", rig.data())[60] == 100
    rig.regs.write(2, 1, 0x55)
    rig.regs.write(6, 1, 0xA0)
    assert rig.regs.read(2, 1) == 0x55, "both drives see the register writes"
    rig.regs.write(7, 1, ata.DIAGNOSTIC)
    assert rig.channel.irq.level and rig.regs.read(1, 1) == 1


def test_missing_drives(rig: Rig) -> None:
    rig.regs.write(6, 1, 0xB0)
    rig.regs.write(3, 1, 0xAA)
    assert rig.status() == 0 and rig.regs.read(3, 1) == 0xAA and rig.regs.read(6, 1) == 0xB0
    rig.regs.write(7, 1, ata.IDENTIFY)
    assert not rig.channel.irq.level
    assert rig.channels[1].bank("command").read(7, 1) == 0


def test_unknown_command_aborts(rig: Rig) -> None:
    for code in (0x00, 0xA0, 0xA1, 0xF1):
        rig.command(code)
        assert rig.status() == ata.READY | ata.ERR and rig.regs.read(1, 1) == ata.ABRT


def test_smart(rig: Rig) -> None:
    rig.regs.write(1, 1, 0xD0)
    rig.command(ata.SMART, 0xC24F00)
    data = rig.data()
    assert sum(data) & 0xFF == 0 and data[2] == 1
    rig.regs.write(1, 1, 0xDA)
    rig.command(ata.SMART, 0xC24F00)
    assert rig.status() == ata.READY and rig.address() == 0xC24F00
    rig.command(ata.SMART, 0)
    assert rig.status() & ata.ERR


def test_readonly_image_fails_writes(rig: Rig) -> None:
    rig.image.readonly = True
    rig.command(ata.WRITE, 1)
    rig.regs.write_string(0, 2, bytes(512))
    rig.image.run()
    assert rig.status() & ata.ERR and rig.regs.read(1, 1) == ata.ABRT


def test_save_and_load_in_the_middle_of_a_read(rig: Rig) -> None:
    rig.command(ata.READ, 5, 2)
    rig.image.run()
    first = rig.data(100)
    other = Rig()
    other.disk.load(rig.disk.save())
    other.channel.load(rig.channel.save())
    other.ide.load(rig.ide.save())
    assert other.channel.irq.level
    assert first + other.data(156) == sector(5) and other.data() == sector(6)
    assert other.disk.save()["phase"] == 0


def test_dma_goes_straight_to_guest_memory(rig: Rig) -> None:
    """What the backend has put there is announced. (Neighbouring descriptors become one piece in the real memory.)"""
    seen: list[list[int]] = []
    plain = rig.image.readv

    def readv(offset: int, buffers: Sequence[memoryview], done: Callable[[int], None]) -> None:
        seen.append([len(b) for b in buffers])
        plain(offset, buffers, done)

    rig.image.readv = readv  # type: ignore[method-assign]
    rig.command(ata.READ_DMA, 10, 5)
    rig.start_dma([(0x4000, 512), (0x4200, 512), (0x6000, 1536)], True)
    assert not rig.dma.landings
    rig.image.run()
    assert seen == [[512, 512, 1536]] and rig.dma.landings == [(0x4000, 512), (0x4200, 512), (0x6000, 1536)]
    assert rig.dma.read(0x4000, 1024) + rig.dma.read(0x6000, 1536) == b"".join(sector(n) for n in range(10, 15))
    assert rig.status() == ata.READY


def test_the_drive_is_busy_until_abandoned_dma_is_over(rig: Rig) -> None:
    """After a reset the guest may use the memory for something else: not before the request has let go of it."""
    rig.command(ata.READ_DMA, 10, 5)
    rig.start_dma([(0x4000, 5 * 512)], True)
    rig.ctl.write(0, 1, ata.SRST)
    rig.ctl.write(0, 1, 0)
    assert rig.status() & ata.BSY and not rig.dma.landings
    rig.image.run()
    assert rig.status() == ata.READY and rig.dma.landings == [(0x4000, 5 * 512)]
    rig.command(ata.READ, 1, 1)
    rig.image.run()
    assert rig.data() == sector(1)
    rig.command(ata.READ_DMA, 10, 5)
    rig.start_dma([(0x4000, 5 * 512)], True)
    rig.bm.write(0, 1, 0)
    assert rig.status() & ata.BSY
    rig.image.run()
    assert rig.status() == ata.READY


def test_dma_of_cached_data_is_over_at_once(rig: Rig) -> None:
    """What the backend has in memory is there, announced, with its interrupt, when the engine has been started."""
    rig.image.cached = True
    rig.command(ata.READ_DMA, 10, 5)
    assert not rig.channel.irq.level
    rig.start_dma([(0x4000, 512), (0x6000, 2048)], True)
    assert not rig.image.queue and rig.channel.irq.level and rig.bm.read(2, 1) == 4
    assert rig.dma.landings == [(0x4000, 512), (0x6000, 2048)]
    assert rig.dma.read(0x4000, 512) + rig.dma.read(0x6000, 2048) == b"".join(sector(n) for n in range(10, 15))
    assert rig.status() == ata.READY and rig.address() & 0xFFFFFF == 14 and not rig.channel.irq.level
    rig.command(ata.WRITE_DMA, 20, 1)
    rig.start_dma([(0x4000, 512)], False)
    assert rig.status() & ata.BSY and len(rig.image.queue) == 1


def test_long_descriptor_tables(rig: Rig) -> None:
    """More descriptors than are read at once."""
    rig.command(ata.WRITE_DMA, 100, 128)
    for n in range(128):
        rig.dma.write(0x10000 + 1024 * n, bytes([n]) * 512)
    rig.start_dma([(0x10000 + 1024 * n, 512) for n in range(128)], False)
    rig.image.run()
    assert rig.image.data[100 * 512 : 228 * 512] == b"".join(bytes([n]) * 512 for n in range(128))
