"""The two 8237A DMA controllers of a PC and their page registers (Intel 8237A datasheet, 231466; IBM PC/AT technical
reference, "DMA controller").

Channels 0-3 move bytes, 5-7 move words; 4 cascades the first controller. The device drives a transfer: when its channel
is `ready` it calls `to_memory` or `from_memory` with what it has, and learns how much went through and whether the
count ran out (terminal count).
"""

from __future__ import annotations

from collections.abc import Callable

from qemupy.hw.core import (
    Device,
    Dma,
    State,
    boolean,
    buffer,
    log_unimp,
    nested_list,
    on_read,
    on_write,
    register,
    transient,
    u8,
    u16,
)

MODE_DIRECTION, MODE_TO_MEMORY, MODE_FROM_MEMORY, MODE_AUTOINIT, MODE_DOWN = 0x0C, 0x04, 0x08, 0x10, 0x20
COMMAND_MEM_TO_MEM, COMMAND_DISABLE = 0x01, 0x04
CASCADE = 4
PAGE_CHANNEL = {0x1: 2, 0x2: 3, 0x3: 1, 0x7: 0, 0x9: 6, 0xA: 7, 0xB: 5, 0xF: 4}  # by port - 80h


class Channel(State):
    base_address: int = u16()
    base_count: int = u16()
    address: int = u16()
    count: int = u16()  # transfers left, minus one
    mode: int = u8()
    page: int = u8(keep=True)
    masked: bool = boolean(reset=True)
    requested: bool = boolean()  # DREQ

    def autoinit(self) -> None:
        self.address, self.count = self.base_address, self.base_count


class Controller(State):
    command: int = u8()
    terminal: int = u8()  # channels that have reached terminal count
    flip_flop: bool = boolean()  # the high byte is next


@register("i8257", bus="ISA", help="pair of 8237A DMA controllers")
class DmaPair(Device):
    """Banks: "low" at 00h (16 ports), "high" at C0h (32 ports), "page" at 81h (15 ports)."""

    ram: Dma
    channels: list[Channel] = nested_list(Channel, 8)
    controllers: list[Controller] = nested_list(Controller, 2)
    spare_pages: bytearray = buffer(15)  # page ports without a channel are plain memory
    listeners: dict[int, Callable[[], None]] = transient(factory=dict)

    # -- the device's side --------------------------------------------------------------------------------------------

    def connect(self, n: int, ready: Callable[[], None]) -> None:
        """`ready` is called when channel `n`, with its request raised, becomes able to transfer."""
        self.listeners[n] = ready

    def request(self, n: int, level: bool) -> None:
        """Raise or drop DREQ."""
        self.channels[n].requested = level
        if level:
            self._announce(n >> 2)

    def ready(self, n: int) -> bool:
        return (
            not self.channels[n].masked
            and not self.controllers[n >> 2].command & COMMAND_DISABLE
            and (n > CASCADE or not (self.channels[CASCADE].masked or self.controllers[1].command & COMMAND_DISABLE))
        )

    def to_memory(self, n: int, data: bytes | bytearray | memoryview) -> tuple[int, bool]:
        """The device gives `data`; how many bytes were taken, and whether terminal count was reached. PageInError: the
        device may try again `later`."""
        channel = self.channels[n]
        size = self._room(n, len(data))
        if channel.mode & MODE_DIRECTION == MODE_TO_MEMORY:
            for gpa, at, length in self._spans(n, size):
                piece = bytes(data[at : at + length])
                self.ram.write(gpa, piece[::-1] if channel.mode & MODE_DOWN else piece)
        return size, self._advance(n, size)

    def from_memory(self, n: int, size: int) -> tuple[bytes, bool]:
        """The device asks for `size` bytes; what it got, and whether terminal count was reached. PageInError: as
        above."""
        channel = self.channels[n]
        size = self._room(n, size)
        out = bytearray(size)
        if channel.mode & MODE_DIRECTION == MODE_FROM_MEMORY:
            for gpa, at, length in self._spans(n, size):
                piece = self.ram.read(gpa, length)
                out[at : at + length] = piece[::-1] if channel.mode & MODE_DOWN else piece
        return bytes(out), self._advance(n, size)

    def later(self, call: Callable[[], None]) -> None:
        """See `Dma.later`."""
        self.ram.later(call)

    def _room(self, n: int, size: int) -> int:
        unit = 2 if n > CASCADE else 1
        return min(size // unit, self.channels[n].count + 1) * unit

    def _spans(self, n: int, size: int) -> list[tuple[int, int, int]]:
        """Guest addresses of the next `size` bytes as (address, offset, length): the page register does not count, so
        an address wraps within its 64 or 128 KiB."""
        channel = self.channels[n]
        wide = n > CASCADE
        page = (channel.page & 0xFE if wide else channel.page) << 16
        limit = 0x20000 if wide else 0x10000
        at = channel.address << 1 if wide else channel.address
        if channel.mode & MODE_DOWN:
            at += 2 if wide else 1
            first = min(size, at)
            spans = [(page + at - first, 0, first), (page + limit - (size - first), first, size - first)]
        else:
            first = min(size, limit - at)
            spans = [(page + at, 0, first), (page, first, size - first)]
        return [span for span in spans if span[2]]

    def _advance(self, n: int, size: int) -> bool:
        channel = self.channels[n]
        units = size // 2 if n > CASCADE else size
        step = -units if channel.mode & MODE_DOWN else units
        channel.address = channel.address + step & 0xFFFF
        ended = units == channel.count + 1
        channel.count = channel.count - units & 0xFFFF
        if ended:
            self.controllers[n >> 2].terminal |= 1 << (n & 3)
            if channel.mode & MODE_AUTOINIT:
                channel.autoinit()
            else:
                channel.masked = True
        return ended

    def _announce(self, which: int) -> None:
        """Tell devices that wait for one of the controller's channels."""
        for n in range(4 * which, 4 * which + 4):
            if n in self.listeners and self.channels[n].requested and self.ready(n):
                self.listeners[n]()

    # -- address and count registers ----------------------------------------------------------------------------------

    @on_write(range(8), bank="low")
    def write_low(self, offset: int, value: int) -> None:
        self._write_half(offset >> 1, offset & 1, value)

    @on_write(range(0, 16, 2), bank="high")
    def write_high(self, offset: int, value: int) -> None:
        self._write_half(4 + (offset >> 2), offset >> 1 & 1, value)

    @on_read(range(8), bank="low")
    def read_low(self, offset: int) -> int:
        return self._read_half(offset >> 1, offset & 1)

    @on_read(range(0, 16, 2), bank="high")
    def read_high(self, offset: int) -> int:
        return self._read_half(4 + (offset >> 2), offset >> 1 & 1)

    def _half(self, n: int) -> bool:
        """Which byte of a 16-bit register is meant now; each access turns the flip-flop."""
        controller = self.controllers[n >> 2]
        high = controller.flip_flop
        controller.flip_flop = not high
        return high

    def _write_half(self, n: int, is_count: int, value: int) -> None:
        channel = self.channels[n]
        old = channel.base_count if is_count else channel.base_address
        new = old & 0xFF | value << 8 if self._half(n) else old & 0xFF00 | value
        if is_count:
            channel.base_count = channel.count = new
        else:
            channel.base_address = channel.address = new

    def _read_half(self, n: int, is_count: int) -> int:
        value = self.channels[n].count if is_count else self.channels[n].address
        return value >> 8 if self._half(n) else value & 0xFF

    # -- control registers --------------------------------------------------------------------------------------------

    @on_write(range(8, 16), bank="low")
    def write_low_control(self, offset: int, value: int) -> None:
        self._write_control(0, offset - 8, value)

    @on_write(range(16, 32, 2), bank="high")
    def write_high_control(self, offset: int, value: int) -> None:
        self._write_control(1, (offset >> 1) - 8, value)

    def _write_control(self, which: int, register: int, value: int) -> None:
        controller = self.controllers[which]
        channels = self.channels[4 * which : 4 * which + 4]
        if register == 0:
            controller.command = value
            if value & COMMAND_MEM_TO_MEM:
                log_unimp("i8257: memory-to-memory transfers are not supported")
        elif register == 1:
            if value & 4:
                log_unimp("i8257: software requests are not supported")
        elif register == 2:
            channels[value & 3].masked = bool(value & 4)
        elif register == 3:
            channels[value & 3].mode = value & 0xFC
        elif register == 4:
            controller.flip_flop = False
        elif register == 5:
            controller.reset()
            for channel in channels:
                channel.masked = True
        else:
            for i, channel in enumerate(channels):
                channel.masked = register == 7 and bool(value >> i & 1)
        self._announce(which)
        if which:
            self._announce(0)

    @on_read(range(8, 16), bank="low")
    def read_low_control(self, offset: int) -> int:
        return self._read_control(0, offset - 8)

    @on_read(range(16, 32, 2), bank="high")
    def read_high_control(self, offset: int) -> int:
        return self._read_control(1, (offset >> 1) - 8)

    def _read_control(self, which: int, register: int) -> int:
        channels = self.channels[4 * which : 4 * which + 4]
        if register == 0:
            controller = self.controllers[which]
            status = controller.terminal | sum(c.requested << 4 + i for i, c in enumerate(channels))
            controller.terminal = 0
            return status
        if register == 7:
            return 0xF0 | sum(c.masked << i for i, c in enumerate(channels))
        return 0

    # -- page registers -----------------------------------------------------------------------------------------------

    @on_write(range(15), bank="page")
    def write_page(self, offset: int, value: int) -> None:
        n = PAGE_CHANNEL.get(offset + 1)
        if n is None:
            self.spare_pages[offset] = value
        else:
            self.channels[n].page = value

    @on_read(range(15), bank="page")
    def read_page(self, offset: int) -> int:
        n = PAGE_CHANNEL.get(offset + 1)
        return self.spare_pages[offset] if n is None else self.channels[n].page
