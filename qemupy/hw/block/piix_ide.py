"""The PIIX3 IDE function: two channels and their bus masters.

82371SB datasheet 2.7 and "Programming Interface for Bus Master IDE Controller" rev. 1.0: each channel has a command
register (bit 0 start, bit 3 towards memory), a status register (bit 0 active, bits 1 and 2 error and interrupt, cleared
by ones) and the address of a table of descriptors (address, 16-bit count where 0 means 64 KiB, end mark in bit 31).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from qemupy.hw.block.ide import IdeChannel
from qemupy.hw.core import Dma, IrqLine, State, log_guest_error, on_read, on_write, transient, u8, u32
from qemupy.hw.core.fields import nested_list
from qemupy.hw.core.registry import register
from qemupy.hw.pci.device import PciDevice
from qemupy.memory import MemoryRegion
from qemupy.scatter import cut_table, descriptors

START, TO_MEMORY = 0x01, 0x08
ACTIVE, ERROR, INTERRUPT = 0x01, 0x02, 0x04
PAGE = 4096


class MemoryTransfer:
    """Implements ide.Transfer."""

    def __init__(self, master: BusMaster, size: int, to_memory: bool) -> None:
        assert master.dma is not None
        self._master, self._dma, self._size, self._to_memory = master, master.dma, size, to_memory
        whole = not master.position and size == master.room
        self._pieces = master.pieces if whole else cut_table(master.pieces, master.position, size)
        self.views = master.dma.views(self._pieces, to_memory)

    def landed(self) -> None:
        if self._to_memory:
            self._dma.landed(self._pieces, self.views)

    def advance(self) -> None:
        self._master.position += self._size


class BusMaster(State):
    """One channel's engine; the `DmaEngine` of its drives."""

    command: int = u8()
    status: int = u8()
    table: int = u32()
    dma: Dma | None = None
    function: PciDevice | None = None
    pieces: bytes = transient(b"")  # guest memory of the opened phase, as `scatter.table` packs it
    room: int = transient(0)  # its bytes
    position: int = transient(0)  # how many of them are done with
    _spare: bool = transient(False)  # the table has room beyond the phase

    @property
    def running(self) -> bool:
        return bool(self.status & ACTIVE) and self.function is not None and self.function.is_master

    def later(self, call: Callable[[], None]) -> None:
        assert self.dma is not None
        self.dma.later(call)

    def open(self, size: int) -> int:
        """The table does not cross 64 KiB."""
        assert self.dma is not None
        at, part = self.table & ~3, (size // PAGE + 2) * 8  # as many as pages, usually
        self.pieces, self.position, self.room, ended = b"", 0, 0, False
        end = at + 0x10000
        while at < end and self.room < size and not ended:
            data = self.dma.read(at, min(part, end - at))
            pieces, room, ended = descriptors(data, size - self.room)
            self.pieces += pieces
            self.room += room
            at += len(data)
        self.dma.claim(self.pieces)
        self._spare = self.room > size or not ended
        return min(self.room, size)

    def transfer(self, size: int, to_memory: bool) -> MemoryTransfer:
        return MemoryTransfer(self, size, to_memory)

    def read_memory(self, size: int) -> bytes:
        transfer = self.transfer(size, False)
        transfer.advance()
        return b"".join(transfer.views)

    def write_memory(self, data: bytes | bytearray | memoryview) -> None:
        transfer = self.transfer(len(data), True)
        at = 0
        for view in transfer.views:
            view[:] = data[at : at + len(view)]
            at += len(view)
        transfer.landed()
        transfer.advance()

    def close(self) -> None:
        """A table with room left leaves the engine active (Bus Master IDE 1.0, 3.1)."""
        self.pieces, self.position = b"", 0
        if not self._spare:
            self.status &= ~ACTIVE


@register("piix3-ide", bus="PCI")
class PiixIde(PciDevice):
    device_id = 0x7010
    class_code = 0x010180
    command_mask = 0x0005
    config_reset: ClassVar[dict[int, bytes]] = {0x06: b"\x80\x02"}

    dma: Dma
    channels: list[IdeChannel]
    masters: list[BusMaster] = nested_list(BusMaster, 2)

    def realize(self) -> None:
        super().realize()
        self.add_bar(4, MemoryRegion.mmio("piix-bmdma", 16, self.bank("bmdma")), io=True)
        for channel, master in zip(self.channels, self.masters, strict=True):
            master.dma, master.function = self.dma, self
            channel.engine = master
            channel.irq = self._watched(channel.irq, master)

    def _watched(self, line: IrqLine, master: BusMaster) -> IrqLine:
        """INTRQ on its way to the interrupt controller sets the interrupt bit."""

        def drive(n: int, level: bool) -> None:
            if level:
                master.status |= INTERRUPT
            line.set(level)

        return IrqLine(drive, line.n)

    @on_read(0, 8, bank="bmdma")
    def read_command(self, offset: int) -> int:
        return self.masters[offset >> 3].command

    @on_read(1, 3, 9, 11, bank="bmdma")
    def read_reserved(self) -> int:
        return 0xFF

    @on_write(1, 3, 9, 11, bank="bmdma")
    def write_reserved(self, value: int) -> None:
        pass

    @on_write(0, 8, bank="bmdma")
    def write_command(self, offset: int, value: int) -> None:
        at = offset >> 3
        master, channel = self.masters[at], self.channels[at]
        started, master.command = master.command & START, value & (START | TO_MEMORY)
        if value & START and not started:
            master.status |= ACTIVE
            if not self.is_master:
                log_guest_error("piix3-ide: bus master started with its PCI command bit clear")
                return
            channel.engine_started()
        elif started and not value & START:
            if master.status & ACTIVE:
                channel.engine_stopped()
            master.status &= ~ACTIVE

    @on_read(2, 10, bank="bmdma")
    def read_status(self, offset: int) -> int:
        return self.masters[offset >> 3].status

    @on_write(2, 10, bank="bmdma")
    def write_status(self, offset: int, value: int) -> None:
        master = self.masters[offset >> 3]
        master.status = value & 0x60 | master.status & ~value & (ERROR | INTERRUPT) | master.status & ACTIVE

    @on_read(4, 12, size=4, bank="bmdma")
    def read_table(self, offset: int) -> int:
        return self.masters[offset >> 3].table

    @on_write(4, 12, size=4, bank="bmdma")
    def write_table(self, offset: int, value: int) -> None:
        self.masters[offset >> 3].table = value & ~3

    @on_write(4, 6, 12, 14, size=2, bank="bmdma")
    def write_table_word(self, offset: int, value: int) -> None:
        master, shift = self.masters[offset >> 3], 8 * (offset & 3)
        master.table = (master.table & ~(0xFFFF << shift) | value << shift) & ~3
