"""An IDE channel and what its drives have in common: registers, interrupt, PIO and DMA phases, resets.

ATA/ATAPI-6 clause 7 (registers), 9.2 and 9.3 (resets), 9.5-9.10 (protocols). The host's writes reach both drives of
a channel; the one the device register selects executes commands, drives INTRQ and answers reads. Where that drive is
missing the other one answers, with a status of zero.

A drive is a state machine between three kinds of events: register accesses of the guest, completions of its backend,
and the start of the DMA engine. What it waits for is `phase`; requests under way are not saved (the machine is drained
before), all else is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol

from qemupy.backends.block.base import BlockBackend
from qemupy.errors import PageInError
from qemupy.hw.block import ata_regs as ata
from qemupy.hw.core import (
    Device,
    IrqLine,
    boolean,
    fifo,
    log_guest_error,
    on_read,
    on_read_burst,
    on_write,
    on_write_burst,
    prop,
    transient,
    u8,
    u32,
)

BUFFER = 256 * 512  # bytes of a request handled at a time
IDLE, PIO_IN, PIO_OUT, DMA_IN, DMA_OUT = range(5)


class Transfer(Protocol):
    """Guest memory that a backend reads or fills."""

    views: Sequence[memoryview]

    def landed(self) -> None:
        """The backend is done with the views, whatever came of it."""

    def advance(self) -> None: ...


class DmaEngine(Protocol):
    """The bus master of a channel, as its drives see it (see `piix_ide.BusMaster`)."""

    @property
    def running(self) -> bool: ...

    def open(self, size: int) -> int:
        """A data phase of `size` bytes begins; how many of them the memory descriptors have room for. PageInError: the
        memory cannot be read, and nothing has happened; once it has begun it will not fail in that way."""

    def later(self, call: Callable[[], None]) -> None:
        """See `Dma.later`."""

    def read_memory(self, size: int) -> bytes:
        """The next bytes from guest memory."""

    def write_memory(self, data: bytes | bytearray | memoryview) -> None:
        """Put the next bytes into guest memory."""

    def transfer(self, size: int, to_memory: bool) -> Transfer:
        """The next bytes of guest memory themselves; they count as transferred when `Transfer.advance` is called."""

    def close(self) -> None:
        """The data phase is over."""


class IdeDrive(Device):
    """Registers and phases. A subclass says in `execute` what a command does, and continues in the hooks below."""

    signature: ClassVar[tuple[int, int]] = ata.SIGNATURE_ATA

    block: BlockBackend
    bus: str = prop(default="", help="ide.0 or ide.1")
    unit: int = prop(default=-1, help="0 master, 1 slave")
    serial: str = prop(default="")
    model: str = prop(default="")
    ver: str = prop(default="2.5+")

    status: int = u8(reset=ata.READY)
    error: int = u8(reset=1)
    features: int = u8()
    count: int = u8(reset=1)
    lba_low: int = u8(reset=1)
    lba_mid: int = u8()
    lba_high: int = u8()
    device: int = u8(reset=0xA0)
    hob_features: int = u8()
    hob_count: int = u8()
    hob_low: int = u8()
    hob_mid: int = u8()
    hob_high: int = u8()
    command: int = u8()
    intrq: bool = boolean()
    phase: int = u8()
    data: bytearray = fifo(BUFFER)  # the PIO transfer, of which [position, stop) is the current DRQ block
    position: int = u32()
    stop: int = u32()
    channel: IdeChannel | None = transient(None)
    epoch: int = transient(0)  # completions of an older epoch are of an abandoned command
    in_memory: int = transient(0)  # backend requests that work on guest memory itself
    settled_status: int | None = transient(None)  # the status to show when they are done with it

    # -- for subclasses -----------------------------------------------------------------------------------------------

    def execute(self, command: int) -> None:
        raise NotImplementedError

    def pio_done(self) -> None:
        """The guest has transferred the whole DRQ block."""

    def run_dma(self, engine: DmaEngine) -> None:
        """The data phase begun with `begin_dma` can start. Opens `engine` before it does anything else."""

    def set_signature(self) -> None:
        self.count = self.lba_low = 1
        self.lba_mid, self.lba_high = self.signature
        self.device &= 0xF0

    def raise_irq(self) -> None:
        self.intrq = True
        if self.channel is not None:
            self.channel.update_irq()

    def finish(self, status: int = ata.READY) -> None:
        """The command is over: status and interrupt."""
        self.phase = IDLE
        self.status = status
        self.raise_irq()

    def abort(self, error: int = ata.ABRT) -> None:
        self.error = error
        self.data.clear()
        self.position = self.stop = 0
        self.finish(ata.READY | ata.ERR)

    def guarded(self, then: Callable[[int], None]) -> Callable[[int], None]:
        """A completion that does nothing if the command it belongs to was abandoned meanwhile."""
        epoch = self.epoch

        def done(error: int) -> None:
            if epoch == self.epoch:
                then(error)

        return done

    def landing(self, transfer: Transfer, then: Callable[[int], None]) -> Callable[[int], None]:
        """Like `guarded`, for a request on guest memory. If its command was abandoned, the drive stays busy until the
        request is done with the memory, which the guest may have other plans for."""
        self.in_memory += 1
        guarded = self.guarded(then)

        def done(error: int) -> None:
            transfer.landed()
            self.in_memory -= 1
            if not self.in_memory and self.settled_status is not None:
                self.status, self.settled_status = self.settled_status, None
            guarded(error)

        return done

    def settle(self, status: int) -> None:
        """The status after an abandoned command."""
        if self.in_memory:
            self.status, self.settled_status = ata.BSY | ata.DSC, status
        else:
            self.status = status

    def begin_pio(self, phase: int, size: int, *, interrupt: bool = True) -> None:
        """A DRQ block of `size` bytes at `position`: of `data` for reads, to be filled by the guest for writes."""
        self.phase = phase
        self.stop = self.position + size
        self.status = ata.READY | ata.DRQ
        if interrupt:
            self.raise_irq()

    def begin_dma(self, phase: int) -> None:
        self.phase = phase
        self.status = ata.READY | ata.DRQ
        engine = self.channel.engine if self.channel is not None else None
        if engine is None:
            self.abort()
        elif engine.running:
            self.engine_runs(engine)

    def engine_runs(self, engine: DmaEngine) -> None:
        """The bus master is there for the data phase that waits for it."""
        epoch = self.epoch

        def again() -> None:
            if epoch == self.epoch and engine.running and self.phase in (DMA_IN, DMA_OUT):
                self.engine_runs(engine)

        try:
            self.run_dma(engine)
        except PageInError:
            engine.later(again)

    def cancel(self) -> None:
        """Abandon what is under way."""
        self.epoch += 1
        self.phase = IDLE
        self.data.clear()
        self.position = self.stop = 0

    def soft_reset(self, asserted: bool) -> None:
        self.cancel()
        self.intrq = False
        self.error = 1
        self.settle(ata.BSY | ata.DSC if asserted else self.reset_status())
        self.set_signature()

    def reset_status(self) -> int:
        return ata.READY

    def reset(self) -> None:
        """The machine has drained its disks: nothing is under way."""
        super().reset()
        self.epoch += 1
        self.in_memory, self.settled_status = 0, None
        self.status = self.reset_status()
        self.set_signature()

    def post_load(self) -> None:
        self.epoch += 1
        self.in_memory, self.settled_status = 0, None

    # -- data port ----------------------------------------------------------------------------------------------------

    def take(self, size: int) -> bytes:
        """Up to `size` bytes of the current block for the guest."""
        if self.phase != PIO_IN:
            return b""
        start, end = self.position, min(self.position + size, self.stop)
        out = bytes(self.data[start:end])
        self._advance(end)
        return out

    def give(self, data: bytes) -> int:
        """Bytes from the guest; how many were wanted."""
        if self.phase != PIO_OUT:
            return 0
        taken = min(len(data), self.stop - self.position)
        self.data += data[:taken]
        self._advance(self.position + taken)
        return taken

    def _advance(self, position: int) -> None:
        self.position = position
        if position >= self.stop:
            self.status &= ~ata.DRQ
            self.pio_done()

    # -- registers ----------------------------------------------------------------------------------------------------

    def write_register(self, n: int, value: int) -> None:
        """Registers 1 to 6; each keeps its previous value, which 48-bit commands use as high byte."""
        if n == 1:
            self.hob_features, self.features = self.features, value
        elif n == 2:
            self.hob_count, self.count = self.count, value
        elif n == 3:
            self.hob_low, self.lba_low = self.lba_low, value
        elif n == 4:
            self.hob_mid, self.lba_mid = self.lba_mid, value
        elif n == 5:
            self.hob_high, self.lba_high = self.lba_high, value
        else:
            self.device = value | 0xA0

    def read_register(self, n: int, hob: bool) -> int:
        if n == 1:
            return self.hob_features if hob else self.error
        if n == 2:
            return self.hob_count if hob else self.count
        if n == 3:
            return self.hob_low if hob else self.lba_low
        if n == 4:
            return self.hob_mid if hob else self.lba_mid
        if n == 5:
            return self.hob_high if hob else self.lba_high
        return self.device


class IdeChannel(Device):
    """Bank "command" is the block at 1F0h/170h, bank "control" the register at 3F6h/376h."""

    irq: IrqLine
    control: int = u8()
    selected: int = u8()
    drives: list[IdeDrive | None] = transient(factory=lambda: [None, None])
    engine: DmaEngine | None = transient(None)

    def attach(self, drive: IdeDrive, unit: int) -> None:
        self.drives[unit] = drive
        drive.channel = self
        drive.unit = unit

    @property
    def drive(self) -> IdeDrive | None:
        """The selected drive."""
        return self.drives[self.selected]

    def update_irq(self) -> None:
        drive = self.drives[self.selected]
        self.irq.set(drive is not None and drive.intrq and not self.control & ata.NIEN)

    def reset(self) -> None:
        super().reset()
        self.update_irq()

    def post_load(self) -> None:
        self.update_irq()

    def engine_started(self) -> None:
        """The bus master was started; a drive may be waiting for it."""
        drive = self.drive
        if drive is not None and drive.phase in (DMA_IN, DMA_OUT) and self.engine is not None:
            drive.engine_runs(self.engine)

    def engine_stopped(self) -> None:
        drive = self.drive
        if drive is not None and drive.phase in (DMA_IN, DMA_OUT):
            drive.cancel()
            drive.settle(ata.READY)

    def _status(self) -> int:
        drive = self.drives[self.selected]
        return drive.status if drive is not None else 0

    @on_read(0, size=2, bank="command")
    def read_word(self) -> int:
        drive = self.drives[self.selected]
        return int.from_bytes(drive.take(2), "little") if drive is not None else 0xFFFF

    @on_read(0, size=4, bank="command")
    def read_dword(self) -> int:
        drive = self.drives[self.selected]
        return int.from_bytes(drive.take(4), "little") if drive is not None else 0xFFFFFFFF

    @on_read_burst(0, size=2, bank="command")
    def read_words(self, count: int) -> bytes:
        drive = self.drives[self.selected]
        return drive.take(count * 2) if drive is not None else b""

    @on_read_burst(0, size=4, bank="command")
    def read_dwords(self, count: int) -> bytes:
        drive = self.drives[self.selected]
        return drive.take(count * 4) if drive is not None else b""

    @on_write(0, size=2, bank="command")
    def write_word(self, value: int) -> None:
        self.write_data(value.to_bytes(2, "little"))

    @on_write(0, size=4, bank="command")
    def write_dword(self, value: int) -> None:
        self.write_data(value.to_bytes(4, "little"))

    @on_write_burst(0, size=(2, 4), bank="command")
    def write_data(self, data: bytes) -> int:
        drive = self.drives[self.selected]
        return drive.give(data) if drive is not None else 0

    @on_read(1, 2, 3, 4, 5, 6, bank="command")
    def read_register(self, n: int) -> int:
        drive = self.drives[self.selected] or self.drives[self.selected ^ 1]
        if drive is None:
            return 0
        if n == 6:
            return drive.device & ~ata.DEV_1 | self.selected * ata.DEV_1
        return drive.read_register(n, bool(self.control & ata.HOB))

    @on_write(1, 2, 3, 4, 5, 6, bank="command")
    def write_register(self, n: int, value: int) -> None:
        self.control &= ~ata.HOB
        for drive in self.drives:
            if drive is not None and not drive.status & ata.BSY:
                drive.write_register(n, value)
        if n == 6 and self.selected != value >> 4 & 1:
            self.selected ^= 1
            self.update_irq()

    @on_read(7, bank="command")
    def read_status(self) -> int:
        drive = self.drives[self.selected]
        if drive is None:
            return 0
        if drive.intrq:
            drive.intrq = False
            self.update_irq()
        return drive.status

    @on_write(7, bank="command")
    def write_command(self, value: int) -> None:
        if value == ata.DIAGNOSTIC:
            self._diagnose()
            return
        drive = self.drive
        if drive is None:
            return
        if drive.status & (ata.BSY | ata.DRQ) and value != ata.DEVICE_RESET:
            log_guest_error("ide: command %#x while busy with %#x", value, drive.command)
            return
        if drive.intrq:
            drive.intrq = False
            self.update_irq()
        drive.command = value
        drive.execute(value)

    def _diagnose(self) -> None:
        """EXECUTE DEVICE DIAGNOSTIC goes to both drives; device 0 reports for both (ATA/ATAPI-6 8.9)."""
        self.selected = 0
        for drive in self.drives:
            if drive is not None:
                drive.soft_reset(False)
                drive.device &= ~ata.DEV_1
        if self.drives[0] is not None:
            self.drives[0].raise_irq()

    @on_read(0, bank="control")
    def read_alternate_status(self) -> int:
        return self._status()

    @on_write(0, bank="control")
    def write_control(self, value: int) -> None:
        before, self.control = self.control, value
        if (before ^ value) & ata.SRST:
            for drive in self.drives:
                if drive is not None:
                    drive.soft_reset(bool(value & ata.SRST))
        self.update_irq()
