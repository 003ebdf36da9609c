"""The CD-ROM drive: packets by PIO and DMA, sense data, medium changes."""

from __future__ import annotations

import errno
import struct

import pytest

from qemupy.backends.block.base import MemoryBlock
from qemupy.hw.block import ata_regs as ata
from qemupy.hw.block import mmc
from qemupy.hw.block.atapi import AtapiDrive
from qemupy.hw.block.ide import IdeChannel
from qemupy.hw.block.piix_ide import PiixIde
from qemupy.hw.core import FlatDma, IrqLine

SECTORS = 300


def sector(n: int) -> bytes:
    return struct.pack("<I", n) * 512


class Rig:
    def __init__(self) -> None:
        self.image = MemoryBlock(b"".join(sector(n) for n in range(SECTORS)), readonly=True)
        self.channels = [IdeChannel(irq=IrqLine(lambda n, level: None)) for _ in range(2)]
        self.channel = self.channels[1]
        self.cd = AtapiDrive(block=self.image)
        self.channel.attach(self.cd, 0)
        self.dma = FlatDma()
        self.ide = PiixIde(dma=self.dma, channels=self.channels)
        self.ide.config[4] |= 5
        self.regs = self.channel.bank("command")

    def packet(self, *cdb: int, limit: int = 0xFFFE, features: int = 0) -> None:
        self.regs.write(6, 1, 0xA0)
        for reg, value in ((1, features), (4, limit & 0xFF), (5, limit >> 8), (7, ata.PACKET)):
            self.regs.write(reg, 1, value)
        assert self.regs.read(7, 1) == ata.READY | ata.DRQ and self.regs.read(2, 1) == 1
        self.regs.write_string(0, 2, bytes(cdb).ljust(12, b"\0"))

    def reply(self, *cdb: int, limit: int = 0xFFFE) -> bytes:
        """Run a packet by PIO; its data, or an AssertionError if it fails."""
        self.packet(*cdb, limit=limit)
        got = b""
        while True:
            self.image.run()
            status = self.regs.read(7, 1)
            assert not status & (ata.ERR | ata.BSY), self.sense_now()
            if not status & ata.DRQ:
                assert self.regs.read(2, 1) == 3
                return got
            assert self.regs.read(2, 1) == 2
            size = self.regs.read(4, 1) | self.regs.read(5, 1) << 8
            assert 0 < size <= limit
            got += self.regs.read_string(0, 2, (size + 1) // 2)[:size]

    def sense_now(self) -> tuple[int, int]:
        return self.cd.sense_key, self.cd.asc

    def refused(self, *cdb: int) -> tuple[int, int]:
        self.packet(*cdb)
        self.image.run()
        assert self.regs.read(7, 1) == ata.READY | ata.ERR
        data = self.reply(mmc.REQUEST_SENSE, 0, 0, 0, 18)
        return data[2], data[12]


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_signature_and_identify(rig: Rig) -> None:
    assert (rig.regs.read(4, 1), rig.regs.read(5, 1)) == (0x14, 0xEB)
    rig.regs.write(7, 1, ata.IDENTIFY)
    assert rig.regs.read(7, 1) & ata.ERR and rig.regs.read(5, 1) == 0xEB
    rig.regs.write(7, 1, ata.IDENTIFY_PACKET)
    words = struct.unpack("<256H", rig.regs.read_string(0, 2, 256))
    assert words[0] == 0x85C0 and words[49] == 0x300
    assert struct.pack(">20H", *words[27:47]).rstrip() == b"QEMU DVD-ROM"


def test_inquiry_and_capacity(rig: Rig) -> None:
    data = rig.reply(mmc.INQUIRY, 0, 0, 0, 36)
    assert data[0] == 5 and data[8:32] == b"QEMU    QEMU DVD-ROM    " and len(data) == 36
    assert rig.reply(mmc.INQUIRY, 0, 0, 0, 5) == data[:5]
    assert rig.reply(mmc.READ_CAPACITY) == struct.pack(">II", SECTORS - 1, 2048)
    assert rig.reply(mmc.TEST_UNIT_READY) == b""


@pytest.mark.parametrize("limit", [2048, 0xFFFE, 3000])
def test_pio_read(rig: Rig, limit: int) -> None:
    data = rig.reply(mmc.READ_10, 0, 0, 0, 0, 7, 0, 0, 100, limit=limit)
    assert data == b"".join(sector(n) for n in range(7, 107))
    assert rig.reply(mmc.READ_12, 0, 0, 0, 0, 1, 0, 0, 0, 1, limit=limit) == sector(1)


def test_dma_read(rig: Rig) -> None:
    rig.packet(mmc.READ_10, 0, 0, 0, 0, 3, 0, 0, 70, features=1)
    bm = rig.ide.bank("bmdma")
    rest = 70 * 2048 - 0x20000
    rig.dma.write(0x1000, struct.pack("<6I", 0x10000, 0, 0x20000, 0, 0x30000, 0x80000000 | rest))
    bm.write(12, 4, 0x1000)
    bm.write(8, 1, 9)
    rig.image.run()
    assert rig.channel.irq.level and bm.read(10, 1) == 4 and rig.regs.read(7, 1) == ata.READY
    assert rig.dma.read(0x10000, 70 * 2048) == b"".join(sector(n) for n in range(3, 73))


def test_dma_of_a_small_answer(rig: Rig) -> None:
    rig.packet(mmc.READ_CAPACITY, features=1)
    bm = rig.ide.bank("bmdma")
    rig.dma.write(0x1000, struct.pack("<II", 0x5000, 0x80000008))
    bm.write(12, 4, 0x1000)
    bm.write(8, 1, 9)
    assert rig.dma.read(0x5000, 8) == struct.pack(">II", SECTORS - 1, 2048) and bm.read(10, 1) == 4


def test_errors(rig: Rig) -> None:
    assert rig.refused(mmc.READ_10, 0, 0, 0, 1, 44, 0, 0, 1) == (5, 0x21)
    assert rig.refused(0xFF) == (5, 0x20)
    assert rig.refused(mmc.MODE_SENSE_10, 0, 0xC1, 0, 0, 0, 0, 0, 200) == (5, 0x39)
    rig.image.fail_next = errno.EIO
    assert rig.refused(mmc.READ_10, 0, 0, 0, 0, 1, 0, 0, 1) == (3, 0x11)
    assert rig.reply(mmc.REQUEST_SENSE, 0, 0, 0, 18)[2] == 0, "sense is reported once"


def test_change_of_medium(rig: Rig) -> None:
    rig.image.change(None)
    assert rig.refused(mmc.TEST_UNIT_READY) == (2, 0x3A)
    rig.image.change(sector(9) * 10)
    assert rig.refused(mmc.TEST_UNIT_READY) == (2, 0x3A)
    assert rig.refused(mmc.TEST_UNIT_READY) == (6, 0x28)
    assert rig.reply(mmc.READ_CAPACITY)[3] == 9
    assert rig.reply(mmc.INQUIRY, 0, 0, 0, 36)


def test_toc_and_configuration(rig: Rig) -> None:
    toc = rig.reply(mmc.READ_TOC, 0, 0, 0, 0, 0, 0, 0, 100)
    assert toc == bytes.fromhex("0012 0101 00140100 00000000 0016aa00 0000012c")
    assert rig.reply(mmc.READ_TOC, 2, 0, 0, 0, 0, 0, 0, 100)[8:12] == bytes((0, 0, 2, 0))
    assert len(rig.reply(mmc.READ_TOC, 0, 0, 0, 0, 0, 0, 0, 12)) == 12
    assert rig.refused(mmc.READ_TOC, 0, 0, 0, 0, 0, 5, 0, 100) == (5, 0x24)
    config = rig.reply(mmc.GET_CONFIGURATION, 0, 0, 0, 0, 0, 0, 1, 0)
    assert struct.unpack(">IHH", config[:8]) == (len(config) - 4, 0, 8)
    page = rig.reply(mmc.MODE_SENSE_10, 0, 0x2A, 0, 0, 0, 0, 0, 200)
    assert struct.unpack(">H", page[:2])[0] == len(page) - 2 == 26 and page[8] == 0x2A


def test_tray_and_lock(rig: Rig) -> None:
    rig.reply(mmc.PREVENT_ALLOW, 0, 0, 0, 1)
    assert rig.refused(mmc.START_STOP, 0, 0, 0, 2) == (2, 0x53)
    rig.reply(mmc.PREVENT_ALLOW)
    rig.reply(mmc.START_STOP, 0, 0, 0, 2)
    assert rig.refused(mmc.TEST_UNIT_READY) == (2, 0x3A)
    event = rig.reply(mmc.GET_EVENT_STATUS, 1, 0, 0, 0x10, 0, 0, 0, 8)
    assert event[2] == 4 and event[5] == 1
    rig.reply(mmc.START_STOP, 0, 0, 0, 3)
    rig.reply(mmc.TEST_UNIT_READY)


def test_raw_sectors(rig: Rig) -> None:
    data = rig.reply(mmc.READ_CD, 0, 0, 0, 0, 4, 0, 0, 2, 0xF8)
    assert len(data) == 2 * 2352 and data[:16] == b"\0" + b"\xff" * 10 + b"\0" + bytes((0, 2, 4, 1))
    assert data[16 : 16 + 2048] == sector(4)


def test_device_reset_and_save(rig: Rig) -> None:
    rig.packet(mmc.READ_10, 0, 0, 0, 0, 7, 0, 0, 2, limit=2048)
    rig.image.run()
    first = rig.regs.read_string(0, 2, 1024)
    other = Rig()
    other.cd.load(rig.cd.save())
    other.channel.load(rig.channel.save())
    assert first == sector(7) and other.regs.read_string(0, 2, 1024) == sector(8)
    rig.regs.write(7, 1, ata.DEVICE_RESET)
    assert rig.regs.read(7, 1) == 0 and rig.regs.read(5, 1) == 0xEB and rig.regs.read(1, 1) == 1
