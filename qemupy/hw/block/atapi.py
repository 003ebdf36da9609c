"""An ATAPI CD/DVD-ROM drive, `ide-cd`: the PACKET protocol (ATA/ATAPI-6 9.8, 9.9) and reading sectors.

A packet either ends at once, or has data for the host, which go out in DRQ blocks of at most the byte count limit or
through the bus master. The answers to the other commands are put together in `mmc.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from qemupy.hw.block import ata_regs as ata
from qemupy.hw.block import mmc
from qemupy.hw.block.ata_identify import identify_cdrom
from qemupy.hw.block.ide import BUFFER, DMA_IN, IDLE, PIO_IN, PIO_OUT, DmaEngine, IdeDrive
from qemupy.hw.core import boolean, buffer, transient, u8, u16, u32
from qemupy.hw.core.registry import register

SECTOR = 2048
CHUNK = BUFFER // SECTOR
FEATURE_DMA = 0x01
POWER = {ata.IDLE_NOW, ata.STANDBY_NOW, ata.IDLE, ata.STANDBY, ata.SLEEP, ata.FLUSH}
COD, IO = 1, 2  # interrupt reason, in the count register


@register("ide-cd", bus="IDE", help="virtual IDE CD-ROM")
class AtapiDrive(IdeDrive):
    signature = ata.SIGNATURE_ATAPI

    packet: bytearray = buffer(12)
    use_dma: bool = boolean()
    limit: int = u16()  # byte count limit of a DRQ block
    lba: int = u32()
    remaining: int = u32()  # sectors still to be fetched
    raw: bool = boolean()  # READ CD of whole 2352-byte sectors
    sense_key: int = u8()
    asc: int = u8()
    changed: int = u8()  # 2: report "no medium" first, 1: report "may have changed"
    locked: bool = boolean()
    tray_open: bool = boolean()
    mwdma: int = u16()
    udma: int = u16(reset=0x20)
    _buffer: bytearray = transient(factory=bytearray)

    def realize(self) -> None:
        self.block.on_media_change(self._media_changed)
        self.status = self.reset_status()
        self.set_signature()

    def _media_changed(self) -> None:
        self.changed = 2
        self.tray_open = False

    def reset_status(self) -> int:
        return 0  # an ATAPI device becomes ready with its first packet (ATA/ATAPI-6 9.12)

    @property
    def sectors(self) -> int:
        return self.block.length // SECTOR

    @property
    def ready(self) -> bool:
        return self.block.inserted and not self.tray_open

    # -- ATA commands -------------------------------------------------------------------------------------------------

    def execute(self, command: int) -> None:
        self.error = 0
        if command == ata.PACKET:
            self._begin_packet()
        elif command == ata.IDENTIFY_PACKET:
            names = (self.serial or f"QM{self.unit + 1:05}", self.ver, self.model or "QEMU DVD-ROM")
            self.data[:] = identify_cdrom(modes=(self.mwdma, self.udma), names=names)
            self.position = 0
            self.begin_pio(PIO_IN, 512)
        elif command == ata.DEVICE_RESET:
            self.soft_reset(False)
        elif (command == ata.SET_FEATURES and self._set_features()) or command in (
            ata.IDLE_NOW,
            ata.STANDBY_NOW,
            ata.IDLE,
            ata.STANDBY,
            ata.SLEEP,
            ata.FLUSH,
        ):
            self.finish()
        elif command == ata.CHECK_POWER:
            self.count = 0xFF
            self.finish()
        else:
            if command in (ata.IDENTIFY, ata.READ):
                self.set_signature()
            self.abort()

    def _set_features(self) -> bool:
        if self.features != 0x03:
            return self.features in (0x02, 0x82, 0x55, 0xAA, 0x66, 0xCC)
        kind, number = self.count >> 3, self.count & 7
        if kind == 4 and number <= 2:
            self.mwdma, self.udma = 1 << number, 0
        elif kind == 8 and number <= 5:
            self.mwdma, self.udma = 0, 1 << number
        return kind <= 1 or (kind == 4 and number <= 2) or (kind == 8 and number <= 5)

    def _begin_packet(self) -> None:
        self.use_dma = bool(self.features & FEATURE_DMA)
        self.limit = self.lba_mid | self.lba_high << 8
        self.count = COD
        self.data.clear()
        self.position = 0
        self.begin_pio(PIO_OUT, 12, interrupt=False)

    # -- packets ------------------------------------------------------------------------------------------------------

    def pio_done(self) -> None:
        if self.phase == PIO_OUT:
            self.packet[:] = self.data
            self.data.clear()
            self.position = self.stop = 0
            self.phase = IDLE
            self._run_packet()
        elif self.command != ata.PACKET:
            self.phase, self.status = IDLE, ata.READY
        elif self.position < len(self.data):
            self._next_block()
        elif self.remaining:
            self._fetch()
        else:
            self.succeed()

    def _run_packet(self) -> None:
        operation = self.packet[0]
        found = mmc.COMMANDS.get(operation)
        if found is None and operation not in READS:
            self.fail(mmc.ILLEGAL_REQUEST, mmc.INVALID_OPCODE)
            return
        needs_medium = found is None or found.needs_medium
        if self.changed and operation not in mmc.ALWAYS:
            self._report_change()
        elif needs_medium and not self.ready:
            self.fail(mmc.NOT_READY, mmc.MEDIUM_NOT_PRESENT)
        elif found is None:
            READS[operation](self)
        else:
            answer = found.run(self, bytes(self.packet))
            if isinstance(answer, bytes):
                self._reply(answer)
            elif answer is None:
                self.succeed()
            else:
                self.fail(*answer)

    def _report_change(self) -> None:
        """A change of medium is told in two steps, so that drivers which look for one of them see it."""
        if self.changed == 2:
            self.changed = 1
            self.fail(mmc.NOT_READY, mmc.MEDIUM_NOT_PRESENT)
        else:
            self.changed = 0
            self.fail(mmc.UNIT_ATTENTION, mmc.MEDIUM_CHANGED)

    def succeed(self) -> None:
        self.error = 0
        self.sense_key = self.asc = 0
        self.count = IO | COD
        self.data.clear()
        self.position = self.stop = 0
        self.finish()

    def fail(self, key: int, asc: int) -> None:
        self.sense_key, self.asc = key, asc
        self.count = IO | COD
        self.remaining = 0
        self.abort(key << 4)

    def _reply(self, data: bytes) -> None:
        if not data:
            self.succeed()
            return
        self.data[:] = data
        self.position = 0
        self.remaining = 0
        self._send()

    def _send(self) -> None:
        if self.use_dma:
            self.begin_dma(DMA_IN)
        else:
            self._next_block()

    def _next_block(self) -> None:
        """A DRQ block of at most the byte count limit, which must be even unless it holds the rest."""
        left = len(self.data) - self.position
        limit = self.limit or 0xFFFE
        size = left if left <= limit else limit & ~1 or 2
        self.lba_mid, self.lba_high = size & 0xFF, size >> 8
        self.count = IO
        self.begin_pio(PIO_IN, size)

    def run_dma(self, engine: DmaEngine) -> None:
        if not self.data:
            if not engine.open(self.remaining * self._sector_size):
                engine.close()
            self._fetch()
            return
        engine.open(len(self.data))
        engine.write_memory(self.data)
        engine.close()
        self.succeed()

    # -- sectors ------------------------------------------------------------------------------------------------------

    @property
    def _sector_size(self) -> int:
        return 2352 if self.raw else SECTOR

    def read_10(self) -> None:
        self._read(int.from_bytes(self.packet[2:6], "big"), int.from_bytes(self.packet[7:9], "big"))

    def read_12(self) -> None:
        self._read(int.from_bytes(self.packet[2:6], "big"), int.from_bytes(self.packet[6:10], "big"))

    def read_cd(self) -> None:
        wanted = self.packet[9] & 0xF8
        count = int.from_bytes(self.packet[6:9], "big")
        if wanted == 0:
            self.succeed()
        elif wanted in (0x10, 0xF8):
            self._read(int.from_bytes(self.packet[2:6], "big"), count, raw=wanted == 0xF8)
        else:
            self.fail(mmc.ILLEGAL_REQUEST, mmc.INVALID_FIELD)

    def _read(self, lba: int, count: int, raw: bool = False) -> None:
        if lba + count > self.sectors:
            self.fail(mmc.ILLEGAL_REQUEST, mmc.LBA_OUT_OF_RANGE)
            return
        if not count:
            self.succeed()
            return
        self.lba, self.remaining, self.raw = lba, count, raw
        self.data.clear()
        self.position = self.stop = 0
        if self.use_dma:
            self.begin_dma(DMA_IN)
        else:
            self.phase = PIO_IN
            self._fetch()

    def _fetch(self) -> None:
        self.status = ata.READY | ata.BSY
        chunk = min(self.remaining, BUFFER // 2352 if self.raw else CHUNK)
        self._buffer = bytearray(chunk * SECTOR)
        self.block.read(self.lba * SECTOR, self._buffer, self.guarded(self._fetched))

    def _fetched(self, error: int) -> None:
        if error:
            self._close_engine()
            if self.ready:
                self.fail(mmc.MEDIUM_ERROR, mmc.READ_ERROR)
            else:
                self.fail(mmc.NOT_READY, mmc.MEDIUM_NOT_PRESENT)
            return
        sectors = len(self._buffer) // SECTOR
        data = mmc.raw_sectors(self._buffer, self.lba) if self.raw else self._buffer
        self.lba += sectors
        self.remaining -= sectors
        if not self.use_dma:
            self.data[:] = data
            self.position = 0
            self._next_block()
            return
        assert self.channel is not None and self.channel.engine is not None
        self.channel.engine.write_memory(data)
        if self.remaining:
            self._fetch()
        else:
            self._close_engine()
            self.succeed()

    def _close_engine(self) -> None:
        if self.use_dma and self.channel is not None and self.channel.engine is not None:
            self.channel.engine.close()


READS: dict[int, Callable[[AtapiDrive], None]] = {
    mmc.READ_10: AtapiDrive.read_10,
    mmc.READ_12: AtapiDrive.read_12,
    mmc.READ_CD: AtapiDrive.read_cd,
}
