"""An ATA hard disk, `ide-hd` (ATA/ATAPI-6 clause 8; TRIM from ACS-2 7.5).

Requests are handled in chunks of up to 256 sectors: a PIO read fetches a whole chunk from the backend and then hands
out DRQ blocks without waiting. If a chunk fails it is tried again sector by sector, so that the guest gets all good
sectors and then the address of the bad one.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable

from qemupy.hw.block import ata_regs as ata
from qemupy.hw.block.ata_identify import MULTIPLE_MAX, identify_disk
from qemupy.hw.block.ata_smart import SmartMixin
from qemupy.hw.block.ide import BUFFER, DMA_IN, DMA_OUT, IDLE, PIO_IN, PIO_OUT, DmaEngine, Transfer
from qemupy.hw.core import boolean, transient, u8, u16, u32, u64
from qemupy.hw.core.registry import register

SECTOR = 512
CHUNK = BUFFER // SECTOR
DMA_CHUNK = (1 << 20) // SECTOR  # needs no buffer of ours


def guess_geometry(sectors: int) -> tuple[int, int, int]:
    """Cylinders, heads, sectors per track of a disk that does not say."""
    return min(max(sectors // (16 * 63), 2), 16383), 16, 63


@register("ide-hd", bus="IDE", help="virtual IDE disk")
class AtaDisk(SmartMixin):
    lba: int = u64()  # next sector to transfer
    remaining: int = u32()  # sectors left of the command, this chunk included
    chunk: int = u32()  # sectors of the chunk under way
    per_block: int = u8(reset=1)  # sectors of a DRQ block
    is_48bit: bool = boolean()
    one_by_one: bool = boolean()  # a chunk failed
    force_unit_access: bool = boolean()
    multiple: int = u8(reset=MULTIPLE_MAX)
    heads: int = u8(reset=16)
    per_track: int = u8(reset=63)
    mwdma: int = u16(reset=0x00)
    udma: int = u16(reset=0x20)
    write_cache: bool = boolean(reset=True)
    _buffer: bytearray = transient(factory=bytearray)

    @property
    def sectors(self) -> int:
        return self.block.length // SECTOR

    @property
    def geometry(self) -> tuple[int, int, int]:
        """In force now, as INITIALIZE DEVICE PARAMETERS may have set it."""
        size = self.heads * self.per_track
        return min(max(self.sectors // size, 1), 16383 if size == 16 * 63 else 0xFFFF), self.heads, self.per_track

    def execute(self, command: int) -> None:
        handler = COMMANDS.get(command)
        if handler is None:
            self.abort()
            return
        self.error = 0
        handler(self)

    # -- addresses ----------------------------------------------------------------------------------------------------

    def _load_address(self, is_48bit: bool) -> None:
        """Sector and count from the registers."""
        self.is_48bit = is_48bit
        low = self.lba_low | self.lba_mid << 8 | self.lba_high << 16
        if is_48bit:
            self.lba = low | self.hob_low << 24 | self.hob_mid << 32 | self.hob_high << 40
            self.remaining = (self.count | self.hob_count << 8) or 0x10000
            return
        self.remaining = self.count or 0x100
        if self.device & ata.DEV_LBA:
            self.lba = low | (self.device & 0xF) << 24
        else:
            cylinder, head, sector = self.lba_mid | self.lba_high << 8, self.device & 0xF, self.lba_low
            if sector == 0 or sector > self.per_track or head >= self.heads:
                self.lba = self.sectors  # no such sector
            else:
                self.lba = (cylinder * self.heads + head) * self.per_track + sector - 1

    def _store_address(self, lba: int) -> None:
        if self.is_48bit:
            for name, shift in (("lba_low", 0), ("lba_mid", 8), ("lba_high", 16), ("hob_low", 24), ("hob_mid", 32),
                                ("hob_high", 40)):  # fmt: skip
                setattr(self, name, lba >> shift & 0xFF)
        elif self.device & ata.DEV_LBA:
            self.lba_low, self.lba_mid, self.lba_high = lba & 0xFF, lba >> 8 & 0xFF, lba >> 16 & 0xFF
            self.device = self.device & 0xF0 | lba >> 24 & 0xF
        else:
            track, sector = divmod(lba, self.per_track)
            cylinder, head = divmod(track, self.heads)
            self.lba_low, self.lba_mid, self.lba_high = sector + 1, cylinder & 0xFF, cylinder >> 8 & 0xFF
            self.device = self.device & 0xF0 | head

    def _begin_transfer(self, is_48bit: bool) -> bool:
        self._load_address(is_48bit)
        self.one_by_one = False
        self.data.clear()
        self.position = self.stop = 0
        if self.lba + self.remaining > self.sectors:
            self.abort(ata.IDNF)
            return False
        return True

    def _fail(self, error: int) -> None:
        """The sector at `lba` cannot be transferred."""
        self._store_address(self.lba)
        self.count = self.remaining & 0xFF
        reading = self.phase in (PIO_IN, DMA_IN)
        self.abort(ata.UNC if reading and error != errno.ENOMEDIUM else ata.ABRT)

    def _next_chunk(self, most: int = CHUNK) -> int:
        self.chunk = min(self.remaining, 1 if self.one_by_one else most)
        return self.chunk

    def _retry_or_fail(self, error: int, again: Callable[[], None]) -> None:
        if self.chunk > 1 and not self.one_by_one:
            self.one_by_one = True
            again()
        else:
            self._fail(error)

    def _advance_chunk(self, sectors: int) -> None:
        self.lba += sectors
        self.remaining -= sectors
        if not self.remaining:
            self._store_address(self.lba - 1 if sectors else self.lba)
            self.count = self.hob_count = 0

    # -- PIO ----------------------------------------------------------------------------------------------------------

    def read_pio(self, is_48bit: bool, per_block: int) -> None:
        if self._begin_transfer(is_48bit):
            self.per_block, self.phase = per_block, PIO_IN
            self._fetch()

    def _fetch(self) -> None:
        self.status = ata.DRDY | ata.DSC | ata.BSY
        self._buffer = bytearray(self._next_chunk() * SECTOR)
        self.block.read(self.lba * SECTOR, self._buffer, self.guarded(self._fetched))

    def _fetched(self, error: int) -> None:
        if error:
            self._retry_or_fail(error, self._fetch)
            return
        self.data[:] = self._buffer
        self.position = 0
        self._next_block_in()

    def _next_block_in(self) -> None:
        left = len(self.data) - self.position
        self.begin_pio(PIO_IN, min(left, self.per_block * SECTOR))

    def write_pio(self, is_48bit: bool, per_block: int, fua: bool = False) -> None:
        if self._begin_transfer(is_48bit):
            self.force_unit_access = fua
            self.per_block = per_block
            self._next_block_out(interrupt=False)

    def _next_block_out(self, *, interrupt: bool) -> None:
        self.chunk = min(self.remaining, self.per_block)
        self.data.clear()
        self.position = 0
        self.begin_pio(PIO_OUT, self.chunk * SECTOR, interrupt=interrupt)

    def pio_done(self) -> None:
        if self.phase == PIO_OUT:
            self._block_arrived()
        elif self.command in (ata.IDENTIFY, ata.SMART):
            self.phase, self.status = IDLE, ata.READY
        elif self.position < len(self.data):
            self._next_block_in()
        else:
            self._advance_chunk(self.chunk)
            if self.remaining:
                self._fetch()
            else:
                self.phase, self.status = IDLE, ata.READY

    def _block_arrived(self) -> None:
        self.status = ata.READY | ata.BSY
        self.block.write(self.lba * SECTOR, bytes(self.data), self.guarded(self._block_written))

    def _block_written(self, error: int) -> None:
        if error:
            self._fail(error)
            return
        self._advance_chunk(self.chunk)
        if self.remaining:
            self._next_block_out(interrupt=True)
        else:
            self._end_of_write()

    def _end_of_write(self) -> None:
        """Without a write cache, and for forced unit access, the data must be on the medium by now."""
        if self.write_cache and not self.force_unit_access:
            self.finish()
        else:
            self.flush()

    # -- DMA ----------------------------------------------------------------------------------------------------------

    def start_dma(self, phase: int, is_48bit: bool, fua: bool = False) -> None:
        if self._begin_transfer(is_48bit):
            self.force_unit_access = fua
            self.begin_dma(phase)

    def run_dma(self, engine: DmaEngine) -> None:
        trim = self.command == ata.DSM
        size = (self.count if trim else self.remaining) * SECTOR
        room = engine.open(size)
        if trim:
            self._trim(engine, room)
        elif room < size:
            # Descriptors too short: the engine stops, and there is no interrupt (as on PIIX; QEMU does the same).
            engine.close()
            self.phase, self.status = IDLE, ata.READY
        else:
            self._dma_step()

    def _dma_step(self) -> None:
        self.status = ata.READY | ata.DRQ | ata.BSY
        assert self.channel is not None and self.channel.engine is not None
        transfer = self.channel.engine.transfer(self._next_chunk(DMA_CHUNK) * SECTOR, self.phase == DMA_IN)
        if self.phase == DMA_IN and self.chunk == self.remaining and self.block.read_now(self.lba * SECTOR,
                                                                                         transfer.views):  # fmt: skip
            transfer.landed()
            self._dma_done(transfer, 0)
            return
        done = self.landing(transfer, lambda error: self._dma_done(transfer, error))
        if self.phase == DMA_IN:
            self.block.readv(self.lba * SECTOR, transfer.views, done)
        else:
            self.block.writev(self.lba * SECTOR, transfer.views, done)

    def _dma_done(self, transfer: Transfer, error: int) -> None:
        assert self.channel is not None and self.channel.engine is not None
        engine = self.channel.engine
        if error:
            self._retry_or_fail(error, self._dma_step)
            if not self.remaining or self.phase == IDLE:
                engine.close()
            return
        transfer.advance()
        self._advance_chunk(self.chunk)
        if self.remaining:
            self._dma_step()
            return
        engine.close()
        if self.phase == DMA_OUT:
            self._end_of_write()
        else:
            self.finish()

    def _trim(self, engine: DmaEngine, room: int) -> None:
        """DATA SET MANAGEMENT: ranges of 48-bit sector number and 16-bit count."""
        ranges = engine.read_memory(room)
        engine.close()
        pending: list[tuple[int, int]] = []
        for (entry,) in struct.iter_unpack("<Q", ranges[: len(ranges) & ~7]):
            start, length = entry & (1 << 48) - 1, entry >> 48
            if start + length > self.sectors:
                self.abort(ata.IDNF)
                return
            if length:
                pending.append((start * SECTOR, length * SECTOR))
        self.status = ata.READY | ata.BSY
        self._discard_next(pending)

    def _discard_next(self, pending: list[tuple[int, int]]) -> None:
        def done(error: int) -> None:
            if error:
                self.abort()
            else:
                self._discard_next(pending)

        if pending:
            self.block.discard(*pending.pop(0), self.guarded(done))
        else:
            self.finish()

    # -- commands without data ----------------------------------------------------------------------------------------

    def flush(self) -> None:
        self.status = ata.READY | ata.BSY
        self.block.flush(self.guarded(lambda error: self.abort() if error else self.finish()))

    def verify(self, is_48bit: bool) -> None:
        if self._begin_transfer(is_48bit):
            self._advance_chunk(self.remaining)
            self.finish()

    def native_max(self, is_48bit: bool) -> None:
        self.is_48bit = is_48bit
        top = self.sectors - 1
        self._store_address(top if is_48bit else min(top, (1 << 28) - 1))
        self.finish()

    def set_multiple(self) -> None:
        if self.count > MULTIPLE_MAX or self.count & (self.count - 1):
            self.abort()
        else:
            self.multiple = self.count
            self.finish()

    def read_multiple(self, is_48bit: bool) -> None:
        if self.multiple:
            self.read_pio(is_48bit, self.multiple)
        else:
            self.abort()

    def write_multiple(self, is_48bit: bool, fua: bool = False) -> None:
        if self.multiple:
            self.write_pio(is_48bit, self.multiple, fua)
        else:
            self.abort()

    def init_parameters(self) -> None:
        if self.count:
            self.heads, self.per_track = (self.device & 0xF) + 1, self.count
            self.finish()
        else:
            self.abort()

    def identify(self) -> None:
        names = (self.serial or f"QM{self.unit + 1:05}", self.ver, self.model or "QEMU HARDDISK")
        self.data[:] = identify_disk(
            geometry=self.geometry, sectors=self.sectors, multiple=self.multiple, modes=(self.mwdma, self.udma),
            write_cache=self.write_cache, names=names, defaults=guess_geometry(self.sectors),
        )  # fmt: skip
        self.position = 0
        self.begin_pio(PIO_IN, SECTOR)

    def set_features(self) -> None:
        code = self.features
        if code == 0x02:
            self.write_cache = True
        elif code == 0x82:
            self.write_cache = False
            self.flush()
            return
        elif code == 0x03:
            if not self._set_transfer_mode(self.count):
                self.abort()
                return
        elif code not in ACCEPTED_FEATURES:
            self.abort()
            return
        self.finish()

    def _set_transfer_mode(self, mode: int) -> bool:
        kind, number = mode >> 3, mode & 7
        if kind == 4 and number <= 2:
            self.mwdma, self.udma = 1 << number, 0
        elif kind == 8 and number <= 5:
            self.mwdma, self.udma = 0, 1 << number
        else:
            return kind <= 1
        return True

    def check_power(self) -> None:
        self.count = 0xFF  # active or idle
        self.finish()

    def data_set_management(self) -> None:
        if self.features & 1 and self.count | self.hob_count << 8:
            self.data.clear()
            self.begin_dma(DMA_OUT)
        else:
            self.abort()


# Read look-ahead, acoustic and power management levels, reverting to defaults: accepted, without effect here
ACCEPTED_FEATURES = {0x05, 0x85, 0x42, 0xC2, 0x55, 0xAA, 0x66, 0xCC, 0x67, 0x96, 0x9A, 0x69}

COMMANDS: dict[int, Callable[[AtaDisk], None]] = {
    **dict.fromkeys((*range(16, 32), *range(112, 128)), AtaDisk.finish),  # RECALIBRATE, SEEK
    **dict.fromkeys((148, 149, 150, 151, 153), AtaDisk.finish),  # power commands under their first codes
    **dict.fromkeys((ata.STANDBY_NOW, ata.IDLE_NOW, ata.STANDBY, ata.IDLE, ata.SLEEP), AtaDisk.finish),
    **{code: lambda d: d.read_pio(False, 1) for code in (ata.READ, ata.READ_ONCE)},
    **{code: lambda d: d.write_pio(False, 1) for code in (ata.WRITE, ata.WRITE_ONCE, ata.WRITE_VERIFY)},
    **{code: lambda d: d.verify(False) for code in (ata.VERIFY, ata.VERIFY_ONCE)},
    **{code: lambda d: d.start_dma(DMA_IN, False) for code in (ata.READ_DMA, ata.READ_DMA_ONCE)},
    **{code: lambda d: d.start_dma(DMA_OUT, False) for code in (ata.WRITE_DMA, ata.WRITE_DMA_ONCE)},
    ata.READ_EXT: lambda d: d.read_pio(True, 1),
    ata.WRITE_EXT: lambda d: d.write_pio(True, 1),
    ata.VERIFY_EXT: lambda d: d.verify(True),
    ata.READ_MULTIPLE: lambda d: d.read_multiple(False),
    ata.READ_MULTIPLE_EXT: lambda d: d.read_multiple(True),
    ata.WRITE_MULTIPLE: lambda d: d.write_multiple(False),
    ata.WRITE_MULTIPLE_EXT: lambda d: d.write_multiple(True),
    ata.WRITE_MULTIPLE_FUA_EXT: lambda d: d.write_multiple(True, True),
    ata.READ_DMA_EXT: lambda d: d.start_dma(DMA_IN, True),
    ata.WRITE_DMA_EXT: lambda d: d.start_dma(DMA_OUT, True),
    ata.WRITE_DMA_FUA_EXT: lambda d: d.start_dma(DMA_OUT, True, True),
    ata.READ_NATIVE_MAX: lambda d: d.native_max(False),
    ata.READ_NATIVE_MAX_EXT: lambda d: d.native_max(True),
    ata.SET_MULTIPLE: AtaDisk.set_multiple,
    ata.INIT_PARAMETERS: AtaDisk.init_parameters,
    ata.CHECK_POWER: AtaDisk.check_power,
    ata.FLUSH: AtaDisk.flush,
    ata.FLUSH_EXT: AtaDisk.flush,
    ata.IDENTIFY: AtaDisk.identify,
    ata.SET_FEATURES: AtaDisk.set_features,
    ata.SMART: AtaDisk.smart,
    ata.DSM: AtaDisk.data_set_management,
}
