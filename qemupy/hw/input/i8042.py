"""8042 keyboard controller (IBM PS/2 technical reference, "keyboard and auxiliary device controller").

The guest sees one output buffer (port 60h) that shows, in this order, an answer of the controller itself, a byte of the
keyboard, a byte of the mouse. A byte is taken from its device only when the guest reads it. With translation on, what
comes from the keyboard goes through a table, and F0h (break) is swallowed to set bit 7 of the next byte.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol

from qemupy.hw.core import Device, IrqLine, array, boolean, log_guest_error, on_read, on_write, register, u8
from qemupy.hw.input.keycodes import BREAK, TRANSLATION

OBF, SELF_TESTED, COMMAND, UNLOCKED, AUX_OBF = 0x01, 0x04, 0x08, 0x10, 0x20
MODE_KBD_IRQ, MODE_AUX_IRQ, MODE_NO_KBD, MODE_NO_AUX, MODE_TRANSLATE = 0x01, 0x02, 0x10, 0x20, 0x40
OUT_RUN, OUT_A20, OUT_KBD_OBF, OUT_AUX_OBF, OUT_ONES = 0x01, 0x02, 0x10, 0x20, 0xCC
NOTHING, OWN_KBD, OWN_AUX, KEYBOARD, MOUSE = range(5)  # what the output buffer shows
AUX_SOURCES = (OWN_AUX, MOUSE)


class Ps2Port(Protocol):
    """What the controller needs of a device on its ports."""

    @property
    def pending(self) -> bool: ...

    def connect(self, notify: Callable[[], None]) -> None: ...

    def peek(self) -> int: ...

    def pop(self) -> int: ...

    def write(self, value: int) -> None: ...


@register("i8042", bus="ISA", help="keyboard controller")
class I8042(Device):
    """Banks "data" at 60h and "command" at 64h. Two devices drive `a20`; see Port92."""

    keyboard: Ps2Port
    mouse: Ps2Port
    kbd_irq: IrqLine
    aux_irq: IrqLine
    a20: IrqLine
    request_reset: Callable[[], None]
    mode: int = u8(reset=MODE_KBD_IRQ | MODE_AUX_IRQ)
    status: int = u8(reset=COMMAND | UNLOCKED)
    outport: int = u8(reset=OUT_RUN | OUT_A20 | OUT_ONES)
    ram: list[int] = array(8, 32)
    command: int = u8()  # a command that waits for its argument at port 60h
    own: int = u8()  # OWN_KBD or OWN_AUX: the controller has an answer
    own_data: int = u8()
    source: int = u8()
    last: int = u8()  # what an empty buffer still shows
    saw_break: bool = boolean()

    def realize(self) -> None:
        self.keyboard.connect(self._update)
        self.mouse.connect(self._update)

    def reset(self) -> None:
        super().reset()
        self.update_irq()

    def post_load(self) -> None:
        self.update_irq()

    # -- the output buffer --------------------------------------------------------------------------------------------

    def _keyboard_pending(self) -> bool:
        if self.mode & MODE_NO_KBD:
            return False
        keyboard = self.keyboard
        if self.mode & MODE_TRANSLATE:
            while keyboard.pending and keyboard.peek() == BREAK:
                keyboard.pop()
                self.saw_break = True
        return keyboard.pending

    def _update(self) -> None:
        """Choose what to show. A byte shown stays until it is read, except that the controller's own goes first."""
        if self.own:
            self.source = self.own
        elif not self.source:
            if self._keyboard_pending():
                self.source = KEYBOARD
            elif not self.mode & MODE_NO_AUX and self.mouse.pending:
                self.source = MOUSE
        self.update_irq()

    def update_irq(self) -> None:
        source, mode = self.source, self.mode
        aux = source in AUX_SOURCES
        self.kbd_irq.set(bool(source and not aux and mode & MODE_KBD_IRQ and not mode & MODE_NO_KBD))
        self.aux_irq.set(bool(aux and mode & MODE_AUX_IRQ))

    def _answer(self, value: int, aux: bool = False) -> None:
        self.own, self.own_data = OWN_AUX if aux else OWN_KBD, value
        self._update()

    @on_read(0, bank="data")
    def read_data(self) -> int:
        source, self.source = self.source, NOTHING
        if source in (OWN_KBD, OWN_AUX):
            self.last, self.own = self.own_data, NOTHING
        elif source == KEYBOARD and self.keyboard.pending:
            self.last = self._translate(self.keyboard.pop())
        elif source == MOUSE and self.mouse.pending:
            self.last = self.mouse.pop()
        if source:
            self.update_irq()  # the line falls, so that a next byte is a new edge
            self._update()
        return self.last

    def _translate(self, value: int) -> int:
        if not self.mode & MODE_TRANSLATE:
            return value
        value = TRANSLATION[value] | self.saw_break << 7
        self.saw_break = False
        return value

    @on_read(0, bank="command")
    def read_status(self) -> int:
        source = self.source
        if not source:
            return self.status
        return self.status | (OBF | AUX_OBF if source in AUX_SOURCES else OBF)

    # -- commands -----------------------------------------------------------------------------------------------------

    @on_write(0, bank="command")
    def write_command(self, value: int) -> None:
        self.status |= COMMAND
        self.command = 0
        simple = self._COMMANDS.get(value)
        if simple is not None:
            simple(self)
        elif 0x20 <= value < 0x40:
            self._answer(self.mode if value == 0x20 else self.ram[value & 31])
        elif 0x60 <= value < 0x80 or 0xD1 <= value <= 0xD4:
            self.command = value
        elif value >= 0xF0:
            if not value & OUT_RUN:
                self.request_reset()
        else:
            log_guest_error("i8042: unknown command %#04x", value)

    @on_write(0, bank="data")
    def write_data(self, value: int) -> None:
        command, self.command = self.command, 0
        self.status &= ~COMMAND
        if command == 0:
            self._set_mode(self.mode & ~MODE_NO_KBD)
            self.keyboard.write(value)
        elif command == 0xD4:
            self._set_mode(self.mode & ~MODE_NO_AUX)
            self.mouse.write(value)
        elif command == 0x60:
            self._set_mode(value)
        elif command == 0xD1:
            self._set_outport(value)
        elif command in (0xD2, 0xD3):
            self._answer(value, command == 0xD3)
        else:
            self.ram[command & 31] = value

    def _set_mode(self, value: int) -> None:
        if not value & MODE_TRANSLATE:
            self.saw_break = False
        self.mode = value
        self._update()

    def _set_outport(self, value: int) -> None:
        self.outport = value & ~(OUT_KBD_OBF | OUT_AUX_OBF)
        self.a20.set(bool(value & OUT_A20))
        if not value & OUT_RUN:
            self.request_reset()

    def _read_outport(self) -> None:
        full = 0 if not self.source else OUT_AUX_OBF if self.source in AUX_SOURCES else OUT_KBD_OBF
        self._answer(self.outport | full)

    def _self_test(self) -> None:
        self.status |= SELF_TESTED
        self._answer(0x55)

    _COMMANDS: ClassVar[dict[int, Callable[[I8042], None]]] = {
        0xA7: lambda self: self._set_mode(self.mode | MODE_NO_AUX),
        0xA8: lambda self: self._set_mode(self.mode & ~MODE_NO_AUX),
        0xA9: lambda self: self._answer(0x00),  # mouse port works
        0xAA: _self_test,
        0xAB: lambda self: self._answer(0x00),  # keyboard port works
        0xAD: lambda self: self._set_mode(self.mode | MODE_NO_KBD),
        0xAE: lambda self: self._set_mode(self.mode & ~MODE_NO_KBD),
        0xC0: lambda self: self._answer(0x80),  # input port: keyboard not locked
        0xD0: _read_outport,
        0xDD: lambda self: self._set_outport(self.outport & ~OUT_A20),
        0xDF: lambda self: self._set_outport(self.outport | OUT_A20),
    }
