"""MC146818 real-time clock with 128 bytes of CMOS memory (Motorola MC146818A datasheet; century bytes as on PCs).

The calendar is not ticked: it is an offset to the clock wire, and the time registers are computed when they are read.
Only while the guest holds the time still (SET, or the divider in reset) do the registers themselves hold it. Timers run
only as long as a flag in register C waits to be raised.
"""

from __future__ import annotations

import datetime

from qemupy.errors import ConfigError
from qemupy.hw.core import (
    Clock,
    Device,
    IrqLine,
    Timer,
    buffer,
    i64,
    on_read,
    on_write,
    register,
    timer,
    transient,
    u8,
)

NS = 1_000_000_000
HZ = 32768
UIP_NS = 8 * NS // HZ  # UIP rises 244 us before an update
NEVER = (1 << 63) - 1
EPOCH = datetime.datetime(1970, 1, 1)

SECONDS, SECONDS_ALARM, MINUTES, MINUTES_ALARM, HOURS, HOURS_ALARM, WEEKDAY, DAY, MONTH, YEAR = range(10)
REG_A, REG_B, REG_C, REG_D = range(10, 14)
CENTURY, PS2_CENTURY = 0x32, 0x37
TIME_REGISTERS = frozenset((SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY))
ALARM_REGISTERS = frozenset((SECONDS_ALARM, MINUTES_ALARM, HOURS_ALARM))

A_UIP = 0x80
B_SET, B_PIE, B_AIE, B_UIE, B_SQWE, B_BINARY, B_24H = 0x80, 0x40, 0x20, 0x10, 0x08, 0x04, 0x02
C_IRQF, C_PF, C_AF, C_UF = 0x80, 0x40, 0x20, 0x10
INITIAL = bytes(REG_A) + bytes((0x26, B_24H, 0, 0x80))


@register("mc146818rtc", bus="ISA", help="real-time clock and CMOS memory")
class Rtc(Device):
    """Ports 70h (index) and 71h (data). `start_ns` is the guest's calendar time, in ns since 1970, at the moment the
    device is made; see `start_time`. The board fills the CMOS bytes with `set` (see cmos_layout)."""

    clock: Clock
    irq: IrqLine
    start_ns: int = 0

    index: int = u8()
    cmos: bytearray = buffer(128, reset=INITIAL, keep=True)
    offset_ns: int = i64(keep=True)  # calendar time minus clock, while running
    fraction_ns: int = i64(keep=True)  # ns into the second, while held
    alarm_due: int = i64(reset=NEVER)  # calendar time
    periodic_seen: int = i64()  # clock time up to which the periodic flag has been accounted for
    update_timer: Timer = timer("clock", "on_update")
    periodic_timer: Timer = timer("clock", "on_periodic")
    latched: int = transient(-1)

    def realize(self) -> None:
        self.offset_ns = self.start_ns - self.clock.now()
        self.latched = -1
        self._latch()
        self._arm_update()

    def reset(self) -> None:
        """RESET# clears the interrupt enables and flags; time and memory live on the battery."""
        super().reset()
        self.cmos[REG_B] &= ~(B_PIE | B_AIE | B_UIE | B_SQWE)
        self.cmos[REG_C] = 0
        self._arm_update()
        self.update_irq()

    def post_load(self) -> None:
        self.latched = -1
        self.update_irq()

    # -- the board's side ---------------------------------------------------------------------------------------------

    def set(self, index: int, value: int) -> None:
        self.cmos[index] = value & 0xFF

    def get(self, index: int) -> int:
        return self.cmos[index]

    def calendar_seconds(self) -> int:
        """The guest's wall clock, seconds since 1970."""
        return self._calendar_ns() // NS

    # -- ports --------------------------------------------------------------------------------------------------------

    @on_read(0)
    def read_index(self) -> int:
        return 0xFF

    @on_write(0)
    def write_index(self, value: int) -> None:
        self.index = value & 0x7F

    @on_read(1)
    def read_data(self) -> int:
        index = CENTURY if self.index == PS2_CENTURY else self.index
        if index in TIME_REGISTERS:
            self._latch()
        elif index == REG_A and self._updating():
            return self.cmos[REG_A] | A_UIP
        elif index == REG_C:
            return self._read_flags()
        return self.cmos[index]

    @on_write(1)
    def write_data(self, value: int) -> None:
        index = CENTURY if self.index == PS2_CENTURY else self.index
        if index in TIME_REGISTERS:
            self._write_time(index, value)
        elif index in ALARM_REGISTERS:
            self.cmos[index] = value
            self._arm_update()
        elif index == REG_A:
            self._write_a(value & ~A_UIP)
        elif index == REG_B:
            self._write_b(value)
        elif index not in (REG_C, REG_D):
            self.cmos[index] = value

    # -- time ---------------------------------------------------------------------------------------------------------

    def _running(self) -> bool:
        return not self.cmos[REG_B] & B_SET and self.cmos[REG_A] & 0x70 <= 0x20

    def _calendar_ns(self) -> int:
        if self._running():
            return self.clock.now() + self.offset_ns
        return self._registers_to_seconds() * NS + self.fraction_ns

    def _updating(self) -> bool:
        return self._running() and self._calendar_ns() % NS >= NS - UIP_NS

    def _latch(self) -> None:
        """Bring the time registers up to date."""
        if not self._running():
            return
        second = (self.clock.now() + self.offset_ns) // NS
        if second == self.latched:
            return
        self.latched = second
        limit = 253402300799  # the end of year 9999
        t = EPOCH + datetime.timedelta(seconds=min(max(second, -62135596800), limit))
        cmos, encode = self.cmos, self._encode
        cmos[SECONDS], cmos[MINUTES], cmos[HOURS] = encode(t.second), encode(t.minute), self._encode_hour(t.hour)
        cmos[WEEKDAY], cmos[DAY], cmos[MONTH] = encode(t.isoweekday() % 7 + 1), encode(t.day), encode(t.month)
        cmos[YEAR], cmos[CENTURY] = encode(t.year % 100), encode(t.year // 100)

    def _registers_to_seconds(self) -> int:
        """Seconds since 1970 of the time registers; nonsense in them is carried over, as a counter would."""
        cmos, decode = self.cmos, self._decode
        month = decode(cmos[MONTH]) - 1
        year = decode(cmos[CENTURY]) * 100 + decode(cmos[YEAR]) + month // 12
        first = datetime.datetime(min(max(year, 1), 9999), month % 12 + 1, 1)
        days = (first - EPOCH).days + decode(cmos[DAY]) - 1
        return days * 86400 + self._decode_hour(cmos[HOURS]) * 3600 + decode(cmos[MINUTES]) * 60 + decode(cmos[SECONDS])

    def _encode(self, value: int) -> int:
        return value if self.cmos[REG_B] & B_BINARY else value // 10 << 4 | value % 10

    def _decode(self, value: int) -> int:
        return value if self.cmos[REG_B] & B_BINARY else (value >> 4) * 10 + (value & 15)

    def _encode_hour(self, hour: int) -> int:
        if self.cmos[REG_B] & B_24H:
            return self._encode(hour)
        return self._encode(hour % 12 or 12) | (0x80 if hour >= 12 else 0)

    def _decode_hour(self, value: int) -> int:
        if self.cmos[REG_B] & B_24H:
            return self._decode(value)
        return self._decode(value & 0x7F) % 12 + (12 if value & 0x80 else 0)

    def _write_time(self, index: int, value: int) -> None:
        if not self._running():
            self.cmos[index] = value
            return
        self._latch()
        fraction = self._calendar_ns() % NS
        self.cmos[index] = value
        self._start(fraction)

    def _start(self, fraction: int) -> None:
        """Run on from the time in the registers."""
        self.offset_ns = self._registers_to_seconds() * NS + fraction - self.clock.now()
        self.latched = -1
        self._arm_update()

    # -- control registers --------------------------------------------------------------------------------------------

    def _write_a(self, value: int) -> None:
        self._change_control(REG_A, value)
        self._arm_periodic()

    def _write_b(self, value: int) -> None:
        if value & B_SET:
            value &= ~B_UIE
        self._change_control(REG_B, value)
        self._arm_periodic()
        self.update_irq()

    def _change_control(self, index: int, value: int) -> None:
        self._latch()
        was_running, old = self._running(), self.cmos[index]
        if was_running:
            self.fraction_ns = self._calendar_ns() % NS
        # A change of the data format does not convert the registers, so a running clock is shown in the new one.
        self.cmos[index] = value
        self.latched = -1
        if self._running() and not was_running:
            # Leaving divider reset, the first update comes half a second later.
            self._start(NS // 2 if index == REG_A and old & 0x60 == 0x60 else self.fraction_ns)
        self._arm_update()

    # -- interrupts ---------------------------------------------------------------------------------------------------

    def _arm_update(self) -> None:
        """Wait for the next second while UF is clear, for the alarm while only AF is."""
        flags = self.cmos[REG_C]
        if not self._running() or (flags & C_UF and flags & C_AF):
            self.update_timer.cancel()
            return
        second = self._calendar_ns() // NS
        wait = self._seconds_to_alarm(second % 86400)
        self.alarm_due = (second + wait) * NS if wait else NEVER
        due = self.alarm_due if flags & C_UF else (second + 1) * NS
        if due == NEVER:
            self.update_timer.cancel()
        else:
            self.update_timer.mod(max(due - self.offset_ns, 0))

    def _seconds_to_alarm(self, now: int) -> int:
        """From second `now` of the day; 0 if the alarm registers match no time."""
        pattern = [None if self.cmos[r] & 0xC0 == 0xC0 else self.cmos[r] for r in sorted(ALARM_REGISTERS)]
        second, minute = (None if v is None else self._decode(v) for v in pattern[:2])
        hour = None if pattern[2] is None else self._decode_hour(pattern[2])
        t = now + 1
        while t <= now + 86400:
            if hour is not None and t // 3600 % 24 != hour:
                t += 3600 - t % 3600
            elif minute is not None and t // 60 % 60 != minute:
                t += 60 - t % 60
            elif second is not None and t % 60 != second:
                t += 1
            else:
                return t - now
        return 0

    def on_update(self) -> None:
        self.cmos[REG_C] |= C_UF | (C_AF if self._calendar_ns() >= self.alarm_due else 0)
        self._arm_update()
        self.update_irq()

    def _period(self) -> int:
        """Of the periodic interrupt, in cycles of 32768 Hz; 0 is off."""
        rate = self.cmos[REG_A] & 0x0F
        if rate == 0 or self.cmos[REG_A] & 0x60 == 0x60:
            return 0
        return 1 << (rate + 6 if rate <= 2 else rate - 1)

    def _arm_periodic(self) -> None:
        """The timer runs only if it interrupts; otherwise the flag is worked out when register C is read."""
        self.periodic_seen = now = self.clock.now()
        period = self._period()
        if period and self.cmos[REG_B] & B_PIE:
            cycle = (now * HZ // NS // period + 1) * period
            self.periodic_timer.mod(-(-cycle * NS // HZ))
        else:
            self.periodic_timer.cancel()

    def on_periodic(self) -> None:
        """Ticks that were missed meanwhile are dropped: the next one is counted from now."""
        self.cmos[REG_C] |= C_PF
        self._arm_periodic()
        self.update_irq()

    def _read_flags(self) -> int:
        period, now = self._period(), self.clock.now()
        if period and now * HZ // NS // period != self.periodic_seen * HZ // NS // period:
            self.cmos[REG_C] |= C_PF
        self.periodic_seen = now
        flags = self.cmos[REG_C]
        self.cmos[REG_C] = 0
        if flags & self.cmos[REG_B] & (C_PF | C_AF | C_UF):
            flags |= C_IRQF
        if flags & (C_UF | C_AF):
            self._arm_update()
        self.update_irq()
        return flags

    def update_irq(self) -> None:
        self.irq.set(bool(self.cmos[REG_C] & self.cmos[REG_B] & (C_PF | C_AF | C_UF)))


def start_time(base: str, host_ns: int, utc_offset_s: int) -> int:
    """`start_ns` for QEMU's `-rtc base=`: `utc`, `localtime` (the host's, `utc_offset_s` east of UTC), or a date such
    as 2006-06-17T16:01:21 or 2006-06-17."""
    if base == "utc":
        return host_ns
    if base == "localtime":
        return host_ns + utc_offset_s * NS
    for form in ("%Y-%m-%dT%H:%M:%S", "%Y-%m-%d"):
        try:
            return int((datetime.datetime.strptime(base, form) - EPOCH).total_seconds()) * NS
        except ValueError:
            continue
    raise ConfigError(f"invalid datetime format '{base}'; valid formats: '2006-06-17T16:01:21' or '2006-06-17'")
