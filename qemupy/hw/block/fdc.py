"""82077AA floppy disk controller with up to two drives (Intel 82077AA datasheet, 290166).

A command is collected byte by byte in `command`; reads and writes then wait for their DMA channel, move through one
buffer of up to two tracks, and end at terminal count or at the last sector. Transfers without DMA are not modelled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol

from qemupy.backends.block.base import BlockBackend
from qemupy.errors import PageInError
from qemupy.hw.block.floppy_media import Geometry, geometry
from qemupy.hw.core import (
    Device,
    IrqLine,
    State,
    array,
    boolean,
    fifo,
    log_guest_error,
    log_unimp,
    nested_list,
    on_read,
    on_write,
    transient,
    u8,
    u32,
)
from qemupy.hw.core.registry import register

SECTOR = 512
BUFFER = 2 * 36 * SECTOR
DMA_CHANNEL = 2

DOR_RESET, DOR_DMA, DOR_MOTOR0 = 0x04, 0x08, 0x10
DSR_RESET = 0x80
MSR_READY, MSR_TO_HOST, MSR_BUSY = 0x80, 0x40, 0x10
DIR_CHANGED = 0x80
# Status registers 0, 1, 2 and 3 of the result phase
ABNORMAL, INVALID, CHANGED, SEEK_END, EQUIPMENT = 0x40, 0x80, 0xC0, 0x20, 0x10
MISSING_ADDRESS, WRITE_PROTECT, NO_DATA, OVERRUN, DATA_ERROR, END_OF_CYLINDER = 0x01, 0x02, 0x04, 0x10, 0x20, 0x80
ST3_TWO_SIDED, ST3_TRACK0, ST3_READY, ST3_PROTECTED = 0x08, 0x10, 0x20, 0x40
MULTI_TRACK = 0x80
IDLE, COLLECTING, EXECUTING, RESULT = range(4)


class IsaDma(Protocol):
    def connect(self, n: int, ready: Callable[[], None]) -> None: ...

    def request(self, n: int, level: bool) -> None: ...

    def ready(self, n: int) -> bool: ...

    def to_memory(self, n: int, data: bytes | bytearray | memoryview) -> tuple[int, bool]: ...

    def from_memory(self, n: int, size: int) -> tuple[bytes, bool]: ...

    def later(self, call: Callable[[], None]) -> None: ...


class FloppyDrive(State):
    cylinder: int = u8()
    changed: bool = boolean(reset=True)


@register("isa-fdc", bus="ISA", help="virtual floppy controller")
class Fdc(Device):
    """The bank lies at 3F0h; its offset 6 belongs to the IDE channel."""

    irq: IrqLine
    dma: IsaDma
    media: list[BlockBackend | None]
    drives: list[FloppyDrive] = nested_list(FloppyDrive, 2)
    dor: int = u8(reset=DOR_RESET | DOR_DMA)
    tape: int = u8()
    rate: int = u8()
    phase: int = u8()
    command: bytearray = fifo(16)
    result: bytearray = fifo(16)
    interrupt: bool = boolean()
    st0: int = u8()
    polls: int = u8()  # drives still to be reported after a reset
    seeks: int = u8()  # drives whose seek has ended and was not sensed yet
    config: list[int] = array(8, 3)
    specify: list[int] = array(8, 2)
    locked: bool = boolean()
    writing: bool = boolean()
    head: int = u8()
    cylinder: int = u8()
    sector: int = u8()
    last_sector: int = u8()
    waiting: bool = boolean()  # for the DMA channel
    moved: int = u32()
    data: bytearray = fifo(BUFFER)
    epoch: int = transient(0)
    _buffer: bytearray = transient(factory=bytearray)

    def realize(self) -> None:
        self.dma.connect(DMA_CHANNEL, self.dma_ready)
        for n, medium in enumerate(self.media):
            if medium is not None:
                medium.on_media_change(lambda n=n: setattr(self.drives[n], "changed", True))  # type: ignore[misc]

    def reset(self) -> None:
        super().reset()
        self.epoch += 1
        self.irq.set(False)

    def post_load(self) -> None:
        self.irq.set(self.interrupt)

    # -- helpers ------------------------------------------------------------------------------------------------------

    @property
    def unit(self) -> int:
        return self.command[1] & 1 if len(self.command) > 1 else self.dor & 1

    def medium(self, unit: int) -> BlockBackend | None:
        found = self.media[unit] if unit < len(self.media) else None
        return found if found is not None and found.inserted else None

    def geometry(self, unit: int) -> Geometry:
        medium = self.medium(unit)
        return geometry(medium.length if medium is not None else 0)

    def _raise(self) -> None:
        self.interrupt = True
        self.irq.set(True)

    def _lower(self) -> None:
        if self.interrupt:
            self.interrupt = False
            self.irq.set(False)

    def _controller_reset(self) -> None:
        """By DOR or DSR: ends with the interrupt of drive polling (5.2)."""
        self.epoch += 1
        self.phase, self.waiting = IDLE, False
        self.command.clear()
        self.result.clear()
        self.data.clear()
        self.seeks = 0
        self.dma.request(DMA_CHANNEL, False)
        if not self.locked:
            self.config[:] = [0, 0, 0]
        self.polls = 4
        self._raise()

    def _finish(self, *result: int, interrupt: bool = False) -> None:
        self.phase = RESULT if result else IDLE
        self.result[:] = bytes(result)
        self.command.clear()
        if interrupt:
            self._raise()

    # -- registers ----------------------------------------------------------------------------------------------------

    @on_read(0)
    def read_status_a(self) -> int:
        return 0x80 if self.interrupt else 0

    @on_read(1)
    def read_status_b(self) -> int:
        return 0xC0 | self.dor >> 4 & 3 | (0x20 if self.dor & 1 else 0)

    @on_write(0, 1)
    def write_status(self, value: int) -> None:
        """Read-only."""

    @on_read(2)
    def read_dor(self) -> int:
        return self.dor

    @on_write(2)
    def write_dor(self, value: int) -> None:
        before, self.dor = self.dor, value
        if not value & DOR_RESET:
            self._lower()
            self.epoch += 1
            self.phase = IDLE
        elif not before & DOR_RESET:
            self._controller_reset()

    @on_read(3)
    def read_tape(self) -> int:
        return self.tape

    @on_write(3)
    def write_tape(self, value: int) -> None:
        self.tape = value & 3

    @on_read(4)
    def read_main_status(self) -> int:
        if not self.dor & DOR_RESET:
            return 0
        if self.phase == IDLE:
            return MSR_READY
        if self.phase == COLLECTING:
            return MSR_READY | MSR_BUSY
        return MSR_BUSY if self.phase == EXECUTING else MSR_READY | MSR_TO_HOST | MSR_BUSY

    @on_write(4)
    def write_rate_select(self, value: int) -> None:
        self.rate = value & 3
        if value & DSR_RESET:
            self._controller_reset()

    @on_read(7)
    def read_input(self) -> int:
        unit = self.dor & 1
        lit = self.dor & DOR_MOTOR0 << unit
        present = unit < len(self.media) and self.media[unit] is not None
        return DIR_CHANGED if lit and present and self.drives[unit].changed else 0

    @on_write(7)
    def write_configuration(self, value: int) -> None:
        self.rate = value & 3

    @on_read(5)
    def read_fifo(self) -> int:
        if self.phase != RESULT:
            log_guest_error("fdc: read of the FIFO in phase %d", self.phase)
            return 0
        self._lower()
        value = self.result.pop(0)
        if not self.result:
            self.phase = IDLE
        return value

    @on_write(5)
    def write_fifo(self, value: int) -> None:
        if self.phase not in (IDLE, COLLECTING) or not self.dor & DOR_RESET:
            log_guest_error("fdc: write of %#x to the FIFO in phase %d", value, self.phase)
            return
        if self.phase == IDLE:
            self.command.clear()
            self.phase = COLLECTING
        self.command.append(value)
        length, handler = self._lookup(self.command[0])
        if len(self.command) >= length:
            self.phase = EXECUTING
            handler(self)

    def _lookup(self, code: int) -> tuple[int, Callable[[Fdc], None]]:
        found = self.EXACT.get(code) or self.TRANSFERS.get(code & 0x1F)
        return found if found is not None else (1, Fdc.invalid)

    # -- commands -----------------------------------------------------------------------------------------------------

    def invalid(self) -> None:
        self._finish(INVALID)

    def do_specify(self) -> None:
        self.specify[:] = list(self.command[1:3])
        if self.command[2] & 1:
            log_unimp("fdc: transfers without DMA")
        self._finish()

    def sense_drive(self) -> None:
        unit = self.unit
        st3 = ST3_TWO_SIDED | ST3_READY | self.command[1] & 7
        if self.drives[unit].cylinder == 0:
            st3 |= ST3_TRACK0
        medium = self.medium(unit)
        self._finish(st3 | ST3_PROTECTED if medium is not None and medium.readonly else st3)

    def recalibrate(self) -> None:
        self._seek(self.command[1] & 3, 0)

    def seek(self) -> None:
        self._seek(self.command[1] & 3, self.command[2])

    def _seek(self, unit: int, cylinder: int) -> None:
        present = unit < len(self.media) and self.media[unit] is not None
        self.st0 = SEEK_END | self.command[1] & 7
        if present:
            drive = self.drives[unit]
            drive.cylinder = min(cylinder, 83)
            if self.medium(unit) is not None:
                drive.changed = False
        elif cylinder == 0:
            self.st0 |= ABNORMAL | EQUIPMENT
        self.seeks |= 1 << unit
        self._finish(interrupt=True)

    def sense_interrupt(self) -> None:
        if self.polls:
            unit = 4 - self.polls
            self.polls -= 1
            self._lower()
            self._finish(CHANGED | unit, self.drives[unit & 1].cylinder)
        elif self.interrupt or self.seeks:
            self._lower()
            unit = self.st0 & 3
            self.seeks = 0
            self._finish(self.st0, self.drives[unit & 1].cylinder)
        else:
            self._finish(INVALID)

    def report_version(self) -> None:
        self._finish(0x90)

    def part_id(self) -> None:
        self._finish(0x41)

    def configure(self) -> None:
        self.config[:] = list(self.command[1:4])
        self._finish()

    def lock(self) -> None:
        self.locked = bool(self.command[0] & 0x80)
        self._finish(0x10 if self.locked else 0)

    def perpendicular(self) -> None:
        self._finish()

    def dump_registers(self) -> None:
        self._finish(
            self.drives[0].cylinder, self.drives[1].cylinder, 0, 0, *self.specify, self.last_sector,
            0x80 if self.locked else 0, self.config[1], self.config[2],
        )  # fmt: skip

    def read_id(self) -> None:
        unit, head = self.unit, self.command[1] >> 2 & 1
        self.cylinder, self.head, self.sector = self.drives[unit].cylinder, head, 1
        self._end_transfer(*self._address_problem(unit, check_sector=False))

    # -- transfers ----------------------------------------------------------------------------------------------------

    def _address_problem(self, unit: int, check_sector: bool = True) -> tuple[int, int]:
        """ST0 and ST1 bits for an address that is not there."""
        where = self.geometry(unit)
        if self.medium(unit) is None or self.rate != where.rate:
            return ABNORMAL, MISSING_ADDRESS
        if self.head >= where.heads or self.drives[unit].cylinder >= where.cylinders:
            return ABNORMAL, MISSING_ADDRESS
        if check_sector and (self.cylinder != self.drives[unit].cylinder or not 1 <= self.sector <= where.sectors):
            return ABNORMAL, NO_DATA
        return 0, 0

    def _begin(self, writing: bool) -> None:
        self.cylinder, self.head, self.sector = self.command[2], self.command[3] & 1, self.command[4]
        unit, drive = self.unit, self.drives[self.unit]
        self.writing, self.moved = writing, 0
        self.last_sector = self.command[6]
        if self.config[0] & 0x40:  # implied seek
            drive.cylinder = self.cylinder
        problem = self._address_problem(unit)
        medium = self.medium(unit)
        if not problem[0] and writing and medium is not None and medium.readonly:
            problem = ABNORMAL, WRITE_PROTECT
        if problem[0] or medium is None:
            self._end_transfer(*problem)
            return
        where = self.geometry(unit)
        both_sides = self.command[0] & MULTI_TRACK and self.head == 0 and where.heads == 2
        top = min(self.last_sector, where.sectors)
        if both_sides:
            top += where.sectors
        count = max(top - self.sector + 1, 1)
        if writing:
            self.data.clear()
            self.moved = count * SECTOR  # room
            self._wait_for_dma()
            return
        self._buffer = bytearray(count * SECTOR)
        start = where.lba(self.cylinder, self.head, self.sector) * SECTOR
        del self._buffer[max(medium.length - start, SECTOR) :]
        medium.read(start, self._buffer, self._guarded(self._fetched))

    def read_data(self) -> None:
        self._begin(False)

    def write_data(self) -> None:
        self._begin(True)

    def _guarded(self, then: Callable[[int], None]) -> Callable[[int], None]:
        epoch = self.epoch

        def done(error: int) -> None:
            if epoch == self.epoch:
                then(error)

        return done

    def _fetched(self, error: int) -> None:
        if error:
            self._end_transfer(ABNORMAL, DATA_ERROR)
            return
        self.data[:] = self._buffer
        self._wait_for_dma()

    def _wait_for_dma(self) -> None:
        self.waiting = True
        self.dma.request(DMA_CHANNEL, True)
        if self.waiting and self.dma.ready(DMA_CHANNEL):
            self.dma_ready()

    def dma_ready(self) -> None:
        """The DMA controller can serve the channel."""
        if not self.waiting:
            return
        try:
            if self.writing:
                data, ended = self.dma.from_memory(DMA_CHANNEL, self.moved)
            else:
                taken, ended = self.dma.to_memory(DMA_CHANNEL, self.data)
        except PageInError:
            self.dma.later(self.dma_ready)
            return
        self.waiting = False
        self.dma.request(DMA_CHANNEL, False)
        if self.writing:
            self._take_data(data, ended)
        else:
            self._after(-(-taken // SECTOR), ended)

    def _take_data(self, data: bytes, ended: bool) -> None:
        sectors = -(-len(data) // SECTOR)
        medium, unit = self.medium(self.unit), self.unit
        if medium is None:
            self._end_transfer(ABNORMAL, MISSING_ADDRESS)
            return

        def done(error: int) -> None:
            if error:
                self._end_transfer(ABNORMAL, DATA_ERROR)
            else:
                self._after(sectors, ended)

        start = self.geometry(unit).lba(self.cylinder, self.head, self.sector) * SECTOR
        medium.write(start, data.ljust(sectors * SECTOR, b"\0"), self._guarded(done))

    def _after(self, sectors: int, ended: bool) -> None:
        """The address behind the last sector; without terminal count the end of the cylinder stops the transfer."""
        where = self.geometry(self.unit)
        last = min(self.last_sector, where.sectors)
        for _ in range(sectors):
            self.sector += 1
            if self.sector > last:
                self.sector = 1
                if self.command[0] & MULTI_TRACK and where.heads == 2:
                    self.head ^= 1
                if not self.command[0] & MULTI_TRACK or self.head == 0 or where.heads == 1:
                    self.cylinder += 1
        self._end_transfer(0, 0) if ended else self._end_transfer(ABNORMAL, END_OF_CYLINDER)

    def _end_transfer(self, st0: int, st1: int) -> None:
        self.data.clear()
        head_bit = self.command[1] & 4
        self.st0 = st0 | head_bit | self.unit
        self._finish(self.st0, st1, 0, self.cylinder & 0xFF, self.head, self.sector, 2, interrupt=True)

    def format_track(self) -> None:
        """Fills the track with the filler byte; the sector addresses sent by DMA are those of the geometry anyway."""
        unit, medium = self.unit, self.medium(self.unit)
        self.head, self.cylinder, self.sector = self.command[1] >> 2 & 1, self.drives[unit].cylinder, 1
        problem = self._address_problem(unit)
        if medium is not None and medium.readonly and not problem[0]:
            problem = ABNORMAL, WRITE_PROTECT
        if problem[0] or medium is None:
            self._end_transfer(*problem)
            return
        where = self.geometry(unit)
        filler = bytes((self.command[5],)) * (where.sectors * SECTOR)
        start = where.lba(self.cylinder, self.head, 1) * SECTOR
        medium.write(
            start, filler, self._guarded(lambda e: self._end_transfer(ABNORMAL if e else 0, DATA_ERROR if e else 0))
        )

    EXACT: ClassVar[dict[int, tuple[int, Callable[[Fdc], None]]]] = {
        0x03: (3, do_specify),
        0x04: (2, sense_drive),
        0x07: (2, recalibrate),
        0x08: (1, sense_interrupt),
        0x0E: (1, dump_registers),
        0x0F: (3, seek),
        0x10: (1, report_version),
        0x12: (2, perpendicular),
        0x13: (4, configure),
        0x14: (1, lock),
        0x94: (1, lock),
        0x18: (1, part_id),
        0x4A: (2, read_id),
        0x4D: (6, format_track),
    }
    TRANSFERS: ClassVar[dict[int, tuple[int, Callable[[Fdc], None]]]] = {
        0x05: (9, write_data),
        0x06: (9, read_data),
        0x09: (9, write_data),
        0x0C: (9, read_data),
    }
