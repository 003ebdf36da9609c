"""8254 programmable interval timer (Intel 8254 datasheet, 231164; on PCs at 1.193182 MHz).

Nothing counts: a channel remembers when its count was loaded, and count and output are worked out from the clock when
someone looks. Only channel 0 has a timer, for the rises of its output that are IRQ 0. A count takes effect at once,
also in the periodic modes, where the chip finishes its period first.
"""

from __future__ import annotations

from qemupy.hw.core import (
    Clock,
    Device,
    IrqLine,
    State,
    Timer,
    boolean,
    i64,
    nested_list,
    on_read,
    on_write,
    register,
    timer,
    u8,
    u16,
    u32,
)

NS = 1_000_000_000
HZ = 1_193_182

LOW, HIGH, BOTH = 1, 2, 3  # how a 16-bit count passes the 8-bit port
INTERRUPT, ONE_SHOT, RATE, SQUARE, SOFT_STROBE, HARD_STROBE = range(6)
PERIODIC = (RATE, SQUARE)
GATE_STARTED = (ONE_SHOT, HARD_STROBE)


class Channel(State):
    mode: int = u8(reset=SQUARE)
    access: int = u8(reset=BOTH)
    bcd: bool = boolean()
    gate: bool = boolean()
    count: int = u32(reset=0x10000)  # as loaded: 1 to 65536, in BCD 1 to 10000
    counting: bool = boolean()
    start: int = i64()  # clock time of the load, while counting
    held: int = i64()  # ticks counted so far, while not
    null: bool = boolean()  # a count has been announced, not loaded
    write_high: bool = boolean()  # the second byte is due
    write_low_byte: int = u8()
    read_high: bool = boolean()
    latched: bool = boolean()
    latch: int = u16()
    status_latched: bool = boolean()
    status: int = u8()

    def ticks(self, now: int) -> int:
        return (now - self.start) * HZ // NS if self.counting else self.held

    def value(self, now: int) -> int:
        """The counting element as the guest reads it."""
        ticks, count = self.ticks(now), self.count
        if self.mode == SQUARE:
            value = count - ticks * 2 % count
        elif self.mode == RATE:
            value = count - ticks % count
        else:
            value = count - ticks
        if not self.bcd:
            return value & 0xFFFF
        value %= 10000
        return value // 1000 << 12 | value // 100 % 10 << 8 | value // 10 % 10 << 4 | value % 10

    def out(self, now: int) -> bool:
        mode, count = self.mode, self.count
        if mode == INTERRUPT:
            return not self.null and self.ticks(now) >= count
        if not self.counting:
            return True
        ticks = self.ticks(now)
        if mode == ONE_SHOT:
            return ticks >= count
        if mode == RATE:
            return ticks % count != count - 1
        if mode == SQUARE:
            return ticks % count < count + 1 >> 1
        return ticks != count

    def next_rise(self, now: int) -> int | None:
        """When the output next rises, after `now`."""
        if not self.counting or self.null:
            return None
        ticks = self.ticks(now)
        if self.mode in PERIODIC:
            rise = (ticks // self.count + 1) * self.count
        else:
            rise = self.count + (self.mode in (SOFT_STROBE, HARD_STROBE))
            if ticks >= rise:
                return None
        return self.start - (-rise * NS // HZ)

    def stop(self, now: int) -> None:
        if self.counting:
            self.held = self.ticks(now)
            self.counting = False

    def restart(self, now: int) -> None:
        self.start, self.counting = now, True

    def control(self, value: int, now: int) -> None:
        """A control word: everything but the gate starts afresh, and waits for a count."""
        mode = value >> 1 & 7
        self.mode = mode if mode < 6 else mode - 4
        self.access, self.bcd = value >> 4 & 3, bool(value & 1)
        self.stop(now)
        self.held = 0
        self.null = True
        self.write_high = self.read_high = self.latched = self.status_latched = False

    def set_count(self, value: int, now: int) -> None:
        if self.bcd:
            value = (value >> 12) * 1000 + (value >> 8 & 15) * 100 + (value >> 4 & 15) * 10 + (value & 15)
        self.count = value or (10000 if self.bcd else 0x10000)
        self.null = False
        if self.mode in GATE_STARTED:
            return
        self.held = 0
        self.counting = False
        if self.gate:
            self.restart(now)

    def set_gate(self, level: bool, now: int) -> None:
        rise = level and not self.gate
        fall = self.gate and not level
        self.gate = level
        if rise and not self.null:
            if self.mode in (INTERRUPT, SOFT_STROBE):
                self.restart(now + (-self.held * NS // HZ))
            else:
                self.restart(now)
        elif fall and self.mode not in GATE_STARTED:
            self.stop(now)


@register("isa-pit", bus="ISA", help="8254 interval timer")
class Pit(Device):
    """Ports 40h-43h. `irq` is IRQ 0; channel 2 goes to port 61h through `set_gate` and `out`."""

    clock: Clock
    irq: IrqLine
    channels: list[Channel] = nested_list(Channel, 3)
    irq_enabled: bool = boolean(reset=True)
    tick: Timer = timer("clock", "on_tick")

    def realize(self) -> None:
        self._power_on()

    def reset(self) -> None:
        super().reset()
        self._power_on()

    def _power_on(self) -> None:
        """All channels count 65536 in mode 3; the gates of 0 and 1 are tied high."""
        now = self.clock.now()
        for channel in self.channels[:2]:
            channel.gate = True
            channel.restart(now)
        self._changed(0, now)

    def post_load(self) -> None:
        if self.irq_enabled:
            self.irq.set(self.channels[0].out(self.clock.now()))

    # -- wires to other devices ---------------------------------------------------------------------------------------

    def out(self, n: int) -> bool:
        return self.channels[n].out(self.clock.now())

    def set_gate(self, n: int, level: bool) -> None:
        now = self.clock.now()
        self.channels[n].set_gate(level, now)
        self._changed(n, now)

    def irq_enable_line(self) -> IrqLine:
        """Low while the HPET stands in for the PIT at IRQ 0."""
        return IrqLine(self._enable_irq)

    def _enable_irq(self, n: int, level: bool) -> None:
        if level != self.irq_enabled:
            self.irq_enabled = level
            self._changed(0, self.clock.now())

    # -- IRQ 0 --------------------------------------------------------------------------------------------------------

    def _changed(self, n: int, now: int) -> None:
        """Channel `n` was written: drive the interrupt anew."""
        if n == 0:
            self._arm(now)
            if self.irq_enabled:
                self.irq.set(self.channels[0].out(now))

    def _arm(self, now: int) -> None:
        due = self.channels[0].next_rise(now) if self.irq_enabled else None
        if due is None:
            self.tick.cancel()
        else:
            self.tick.mod(due)

    def on_tick(self) -> None:
        """A rise of the output. Rises missed because the host was late become this one."""
        self._arm(self.clock.now())
        self.irq.set(False)
        self.irq.set(True)

    # -- ports --------------------------------------------------------------------------------------------------------

    @on_write(3)
    def write_control(self, value: int) -> None:
        now = self.clock.now()
        n = value >> 6
        if n == 3:
            self._read_back(value, now)
        elif value & 0x30:
            self.channels[n].control(value, now)
            self._changed(n, now)
        else:
            self._latch_count(self.channels[n], now)

    def _read_back(self, value: int, now: int) -> None:
        for n, channel in enumerate(self.channels):
            if not value & 2 << n:
                continue
            if not value & 0x20:
                self._latch_count(channel, now)
            if not value & 0x10 and not channel.status_latched:
                channel.status_latched = True
                channel.status = (
                    channel.out(now) << 7 | channel.null << 6 | channel.access << 4 | channel.mode << 1 | channel.bcd
                )

    @staticmethod
    def _latch_count(channel: Channel, now: int) -> None:
        if not channel.latched:
            channel.latched, channel.latch = True, channel.value(now)

    @on_write(0, 1, 2)
    def write_count(self, n: int, value: int) -> None:
        channel = self.channels[n]
        now = self.clock.now()
        if channel.access == BOTH:
            if not channel.write_high:
                channel.write_high, channel.write_low_byte = True, value
                return
            channel.write_high = False
            channel.set_count(value << 8 | channel.write_low_byte, now)
        else:
            channel.set_count(value << 8 if channel.access == HIGH else value, now)
        self._changed(n, now)

    @on_read(0, 1, 2)
    def read_count(self, n: int) -> int:
        channel = self.channels[n]
        if channel.status_latched:
            channel.status_latched = False
            return channel.status
        value = channel.latch if channel.latched else channel.value(self.clock.now())
        if channel.access == BOTH:
            channel.read_high = not channel.read_high
            if channel.read_high:
                return value & 0xFF
            channel.latched = False
            return value >> 8
        channel.latched = False
        return value >> 8 if channel.access == HIGH else value & 0xFF

    @on_read(3)
    def read_control(self) -> int:
        return 0
