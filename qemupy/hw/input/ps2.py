"""PS/2 keyboard and mouse (IBM PS/2 hardware interface technical reference; Microsoft IntelliMouse for the wheel).

Both are a command interpreter and two byte queues: answers to commands go before what the user does. When the queue is
full the rest of an event is dropped whole, so the controller never sees half a code.
"""

from __future__ import annotations

from collections.abc import Callable

from qemupy.hw.core import Device, array, boolean, fifo, log_guest_error, transient, u8, u16
from qemupy.hw.input.keycodes import scan_code

ACK, RESEND, BAT_OK, ECHO = 0xFA, 0xFE, 0xAA, 0xEE
QUEUE = 16


class Ps2Device(Device):
    """The controller `connect`s, then polls `pending` and takes bytes by `peek` and `pop`."""

    replies: bytearray = fifo(QUEUE)
    events: bytearray = fifo(QUEUE)
    command: int = u8()  # a command that waits for its argument
    last_sent: int = u8()
    enabled: bool = boolean()
    notify: Callable[[], None] = transient(lambda: None)

    def connect(self, notify: Callable[[], None]) -> None:
        """`notify` is called when `pending` may have changed."""
        self.notify = notify

    @property
    def pending(self) -> bool:
        return bool(self.replies or self.events)

    def peek(self) -> int:
        return (self.replies or self.events)[0]

    def pop(self) -> int:
        queue = self.replies or self.events
        self.last_sent = queue[0]
        del queue[0]
        return self.last_sent

    def reply(self, *values: int) -> None:
        self.replies += bytes(values)
        del self.replies[QUEUE:]

    def write(self, value: int) -> None:
        """A byte from the host. A new command breaks off an answer still under way."""
        self.replies.clear()
        command, self.command = self.command, 0
        if command:
            self.argument(command, value)
        else:
            self.execute(value)
        self.notify()

    def argument(self, command: int, value: int) -> None:
        raise NotImplementedError

    def execute(self, value: int) -> None:
        raise NotImplementedError


class Ps2Keyboard(Ps2Device):
    scan_set: int = u8(reset=2)
    leds: int = u8()  # scroll lock, num lock, caps lock from bit 0 up

    def realize(self) -> None:
        self.enabled = True

    def reset(self) -> None:
        super().reset()
        self.enabled = True

    def key(self, name: str, down: bool) -> bool:
        """The user presses or releases a key, by QEMU's name of it. False if there is no such key or no room."""
        code = scan_code(name, down, self.scan_set)
        if not code or not self.enabled or len(self.events) + len(code) > QUEUE:
            return False
        self.events += code
        self.notify()
        return True

    def argument(self, command: int, value: int) -> None:
        if command == 0xED:
            self.leds = value & 7
            self.reply(ACK)
        elif command == 0xF0:
            self._select_set(value)
        else:
            self.reply(ACK)

    def _select_set(self, value: int) -> None:
        if value == 0:
            self.reply(ACK, self.scan_set)
        elif value <= 3:
            self.scan_set = value
            self.events.clear()
            self.reply(ACK)
        else:
            self.reply(RESEND)

    def execute(self, value: int) -> None:
        if value == ECHO:
            self.reply(ECHO)
        elif value in (0xED, 0xF0, 0xF3, 0xFB, 0xFC, 0xFD):
            self.command = value
            self.reply(ACK)
        elif value == 0xF2:
            self.reply(ACK, 0xAB, 0x83)
        elif value == 0xF4:
            self.enabled = True
            self.events.clear()
            self.reply(ACK)
        elif value in (0xF5, 0xF6):
            self._defaults()
            self.enabled = value == 0xF6
            self.reply(ACK)
        elif 0xF7 <= value <= 0xFA or value == 0:
            self.reply(ACK)
        elif value == 0xFE:
            self.reply(self.last_sent)
        elif value == 0xFF:
            self._defaults()
            self.enabled = True
            self.reply(ACK, BAT_OK)
        else:
            log_guest_error("ps2 keyboard: unknown command %#04x", value)
            self.reply(RESEND)

    def _defaults(self) -> None:
        self.scan_set, self.leds = 2, 0
        self.events.clear()


STANDARD, WHEEL, FIVE_BUTTONS = 0, 3, 4


class Ps2Mouse(Ps2Device):
    """A standard mouse that becomes an IntelliMouse when the host plays the knock: sample rates 200, 100, 80 (wheel)
    or 200, 200, 80 (five buttons)."""

    kind: int = u8()
    remote: bool = boolean()
    wrap: bool = boolean()
    scale21: bool = boolean()
    resolution: int = u8(reset=2)
    rate: int = u8(reset=100)
    knock: list[int] = array(8, 2)
    buttons: int = u8()  # left, right, middle, side, extra from bit 0 up
    sent_buttons: int = u8()
    dx: int = u16()  # movement not sent yet, two's complement; y is positive upwards
    dy: int = u16()
    dz: int = u16()

    def move(self, dx: int, dy: int, dz: int = 0) -> None:
        """The user moves the mouse; y grows downwards, as on a screen, z towards the user."""
        self.dx = _limit(_signed(self.dx) + dx) & 0xFFFF
        self.dy = _limit(_signed(self.dy) - dy) & 0xFFFF
        self.dz = _limit(_signed(self.dz) + dz) & 0xFFFF
        self._stream()

    def press(self, buttons: int) -> None:
        """The set of buttons held down now."""
        self.buttons = buttons & 0x1F
        self._stream()

    def pop(self) -> int:
        value = super().pop()
        if not self.pending:
            self._stream()
        return value

    def _moved(self) -> bool:
        return bool(self.dx or self.dy or self.dz or self.buttons != self.sent_buttons)

    def _stream(self) -> None:
        """Send packets until all is told or the queue is full."""
        if not self.enabled or self.remote or self.wrap:
            return
        before = len(self.events)
        while self._moved() and len(self.events) + 4 <= QUEUE:
            self.events += self._packet()
        if len(self.events) > before:
            self.notify()

    def _packet(self) -> bytes:
        """Byte 0: y and x sign, always-one bit, middle, right, left button; then x, y; with a wheel, z and buttons."""
        dx, dy = (max(-127, min(127, _signed(v))) for v in (self.dx, self.dy))
        reach = 7 if self.kind == FIVE_BUTTONS else 127
        dz = max(-reach, min(reach, _signed(self.dz)))
        self.dx, self.dy = _signed(self.dx) - dx & 0xFFFF, _signed(self.dy) - dy & 0xFFFF
        self.dz = _signed(self.dz) - dz & 0xFFFF if self.kind else 0
        self.sent_buttons = self.buttons
        packet = bytes((0x08 | self.buttons & 7 | (dx < 0) << 4 | (dy < 0) << 5, dx & 0xFF, dy & 0xFF))
        if self.kind == WHEEL:
            packet += bytes((dz & 0xFF,))
        elif self.kind == FIVE_BUTTONS:
            packet += bytes((dz & 0x0F | (self.buttons & 0x18) << 1,))
        return packet

    def argument(self, command: int, value: int) -> None:
        if command == 0xE8:
            self.resolution = value & 3
        else:
            self._set_rate(value)
        self.reply(ACK)

    def _set_rate(self, rate: int) -> None:
        before = tuple(self.knock)
        self.knock[:] = [before[1], rate]
        if rate == 80 and before == (200, 100):
            self.kind = WHEEL
        elif rate == 80 and before == (200, 200):
            self.kind = FIVE_BUTTONS
        self.rate = rate

    def execute(self, value: int) -> None:
        if self.wrap and value not in (0xEC, 0xFF):
            self.reply(value)
            return
        if value == 0xFF:
            self._defaults()
            self.kind = STANDARD
            self.reply(ACK, BAT_OK, 0)
        elif value == 0xFE:
            self.reply(self.last_sent)
        elif value in (0xE8, 0xF3):
            self.command = value
            self.reply(ACK)
        elif value == 0xF2:
            self.reply(ACK, self.kind)
        elif value == 0xE9:
            self.reply(ACK, self._status(), self.resolution, self.rate)
        elif value == 0xEB:
            self.reply(ACK, *self._packet())
        elif self._switch(value):
            self.reply(ACK)
            self._stream()
        else:
            log_guest_error("ps2 mouse: unknown command %#04x", value)
            self.reply(RESEND)

    def _switch(self, value: int) -> bool:
        """Commands that only change a mode; False for an unknown one."""
        if value in (0xE6, 0xE7):
            self.scale21 = value == 0xE7
        elif value in (0xEA, 0xF0):
            self.remote = value == 0xF0
        elif value in (0xEC, 0xEE):
            self.wrap = value == 0xEE
        elif value in (0xF4, 0xF5):
            self.enabled = value == 0xF4
            self.events.clear()
        elif value == 0xF6:
            self._defaults()
        else:
            return False
        return True

    def _defaults(self) -> None:
        self.rate, self.resolution = 100, 2
        self.remote = self.wrap = self.scale21 = self.enabled = False
        self.dx = self.dy = self.dz = 0
        self.events.clear()

    def _status(self) -> int:
        left, right, middle = self.buttons & 1, self.buttons >> 1 & 1, self.buttons >> 2 & 1
        return self.remote << 6 | self.enabled << 5 | self.scale21 << 4 | left << 2 | middle << 1 | right


def _signed(value: int) -> int:
    return value - 0x10000 if value & 0x8000 else value


def _limit(value: int) -> int:
    return max(-0x7FFF, min(0x7FFF, value))
