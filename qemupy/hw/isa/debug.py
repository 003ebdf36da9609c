"""Ports that exist for the sake of debugging: the Bochs debug console, QEMU's exit port, POST codes."""

from __future__ import annotations

from collections.abc import Callable

from qemupy.backends.chardev import CharBackend
from qemupy.hw.core import Device, on_read, on_write, on_write_burst, prop, register, u8

_BYTES = [bytes([i]) for i in range(256)]


@register("isa-debugcon", bus="ISA", help="Bochs debug console")
class DebugCon(Device):
    """One port: what is written goes to the chardev, what is read says that a console is there."""

    chardev: CharBackend
    iobase: int = prop(default=0xE9)
    readback: int = prop(default=0xE9)

    @on_read(0)
    def read_presence(self) -> int:
        return self.readback

    @on_write(0)
    def write_char(self, value: int) -> None:
        self.chardev.write(_BYTES[value])

    @on_write_burst(0, size=1)
    def write_text(self, data: bytes) -> int:
        self.chardev.write(data)
        return len(data)


@register("isa-debug-exit", bus="ISA", help="end the machine with an exit status of the guest's choice")
class DebugExit(Device):
    """A write of `v` ends the process with status `v << 1 | 1`: odd, so that it never looks like success."""

    exit: Callable[[int], None]
    iobase: int = prop(default=0x501)
    iosize: int = prop(default=2)

    @on_read(0, size=(1, 2, 4))
    def read_nothing(self) -> int:
        return 0

    @on_write(0, size=(1, 2, 4))
    def write_status(self, value: int) -> None:
        self.exit(value << 1 | 1)


class PostCode(Device):
    """Port 80h. Also the port whose write Linux uses as a delay, so it does nothing but remember."""

    code: int = u8()

    @on_read(0)
    def read_open_bus(self) -> int:
        return 0xFF

    @on_write(0)
    def write_code(self, value: int) -> None:
        self.code = value
