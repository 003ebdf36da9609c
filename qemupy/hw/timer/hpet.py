"""High precision event timer (IA-PC HPET specification 1.0a): a 64-bit counter of 10 ns ticks and three comparators.

In legacy replacement mode comparators 0 and 1 take over IRQ 0 and IRQ 8: the PIT is told to be silent, and the RTC's
line, which passes through here, is held back. A comparator set to a moment that has just passed fires at once, so that
a guest that computed it too slowly does not wait for the counter to wrap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qemupy.hw.core import (
    Clock,
    Device,
    IrqLine,
    State,
    Timer,
    boolean,
    i64,
    log_guest_error,
    nested_list,
    on_read,
    on_write,
    prop,
    register,
    timer,
    transient,
    u8,
    u64,
)

TICK_NS = 10
TIMERS = 3
MIN_PERIOD_NS = 20_000  # a shorter period is the guest's mistake and would leave no time for the guest
CAPABILITIES = 10_000_000 << 32 | 0x8086 << 16 | 0x8000 | 0x2000 | TIMERS - 1 << 8 | 1
CFG_ENABLE, CFG_LEGACY = 1, 2
TN_LEVEL, TN_ENABLE, TN_PERIODIC, TN_PERIODIC_CAP, TN_64BIT_CAP, TN_SETVAL, TN_32BIT = (
    1 << n for n in (1, 2, 3, 4, 5, 6, 8)
)
TN_WRITABLE = 0x3F4E  # no FSB delivery
RTC_IRQ = 8
ONES = (1 << 64) - 1
TIMER_CFG = range(0x100, 0x100 + 0x20 * TIMERS, 0x20)
TIMER_CMP = range(0x108, 0x108 + 0x20 * TIMERS, 0x20)

Merge = Callable[[int, int, int], int]


def _merge(old: int, half: int, new: int) -> int:
    """`old` with its low (0) or high (4) half replaced."""
    return old & 0xFFFFFFFF | new << 32 if half else old & ~0xFFFFFFFF | new


class Comparator(State):
    config: int = u64(reset=TN_PERIODIC_CAP | TN_64BIT_CAP)
    cmp: int = u64(reset=ONES)
    period: int = u64()

    def mask(self) -> int:
        return 0xFFFFFFFF if self.config & TN_32BIT else ONES

    def due_in(self, now: int) -> int:
        """Ticks until the match; 0 if it has passed."""
        mask = self.mask()
        ahead = self.cmp - now & mask
        return ahead if ahead <= mask >> 1 else 0

    def advance(self, now: int) -> None:
        """Put the comparator of a periodic timer to its next match after `now`; missed ones are dropped."""
        behind = now - self.cmp & self.mask()
        self.cmp = self.cmp + (behind // self.period + 1) * self.period & self.mask()


@register("hpet", bus="System", help="high precision event timer")
class Hpet(Device):
    """1 KiB at FED00000h. `gsi` are the lines to the interrupt controllers, `pit_enable` is low while the PIT must be
    silent, and the RTC drives `rtc_input()`. `intcap` says which lines the comparators may be routed to."""

    clock: Clock
    gsi: Sequence[IrqLine]
    pit_enable: IrqLine
    intcap: int = prop(default=0x4, help="mask of usable interrupt lines")
    config: int = u8()
    isr: int = u8()
    halted: int = u64()  # the counter, while it stands
    offset_ns: int = i64()  # counter minus clock, while it runs
    rtc_level: bool = boolean()
    comparators: list[Comparator] = nested_list(Comparator, TIMERS)
    timer0: Timer = timer("clock", "on_timer0")
    timer1: Timer = timer("clock", "on_timer1")
    timer2: Timer = timer("clock", "on_timer2")
    timers: tuple[Timer, ...] = transient()

    def realize(self) -> None:
        self.timers = (self.timer0, self.timer1, self.timer2)

    def reset(self) -> None:
        super().reset()
        self.pit_enable.set(True)

    def post_load(self) -> None:
        for n, comparator in enumerate(self.comparators):
            if self.isr >> n & 1 and comparator.config & TN_LEVEL:
                self._line(n).set(True)

    # -- counter ------------------------------------------------------------------------------------------------------

    def counter(self) -> int:
        if self.config & CFG_ENABLE:
            return (self.clock.now() + self.offset_ns) // TICK_NS & ONES
        return self.halted

    @on_read(0xF0, size=4)
    def read_counter(self) -> int:
        return self.counter() & 0xFFFFFFFF

    @on_read(0xF4, size=4)
    def read_counter_high(self) -> int:
        return self.counter() >> 32

    @on_read(0xF0, size=8)
    def read_counter_whole(self) -> int:
        return self.counter()

    @on_write(0xF0, 0xF4, size=4)
    def write_counter(self, offset: int, value: int) -> None:
        if self.config & CFG_ENABLE:
            log_guest_error("hpet: the counter is written while it runs")
        else:
            self.halted = _merge(self.halted, offset & 4, value)

    # -- general registers --------------------------------------------------------------------------------------------

    @on_read(0x00, 0x04, size=4)
    def read_capabilities(self, offset: int) -> int:
        return CAPABILITIES >> offset * 8 & 0xFFFFFFFF

    @on_read(0x10, 0x14, size=4)
    def read_config(self, offset: int) -> int:
        return 0 if offset & 4 else self.config

    @on_read(0x20, 0x24, size=4)
    def read_isr(self, offset: int) -> int:
        return 0 if offset & 4 else self.isr

    @on_write(0x00, 0x04, 0x14, 0x24, size=4)
    def write_ignored(self, value: int) -> None:
        """Capabilities and reserved halves."""

    @on_write(0x20, size=4)
    def write_isr(self, value: int) -> None:
        """Ones take level interrupts back."""
        for n in range(TIMERS):
            if value >> n & 1:
                self._clear(n)

    @on_write(0x10, size=4)
    def write_config(self, value: int) -> None:
        now = self.counter()
        changed = (self.config ^ value) & (CFG_ENABLE | CFG_LEGACY)
        self.config = value & (CFG_ENABLE | CFG_LEGACY)
        if changed & CFG_ENABLE:
            if value & CFG_ENABLE:
                self.offset_ns = self.halted * TICK_NS - self.clock.now()
            else:
                self.halted = now
            for n in range(TIMERS):
                self._arm(n)
        if changed & CFG_LEGACY:
            self._switch_legacy(bool(value & CFG_LEGACY))

    def _switch_legacy(self, on: bool) -> None:
        self.gsi[0].set(False)
        self.pit_enable.set(not on)
        self.gsi[RTC_IRQ].set(not on and self.rtc_level)

    def rtc_input(self) -> IrqLine:
        return IrqLine(self._rtc)

    def _rtc(self, n: int, level: bool) -> None:
        self.rtc_level = level
        if not self.config & CFG_LEGACY:
            self.gsi[RTC_IRQ].set(level)

    # -- comparators --------------------------------------------------------------------------------------------------

    @on_read(*TIMER_CFG, size=8)
    def read_timer_config(self, offset: int) -> int:
        return self.intcap << 32 | self.comparators[offset - 0x100 >> 5].config

    @on_write(*TIMER_CFG, size=4)
    def write_timer_config(self, offset: int, value: int) -> None:
        n = offset - 0x100 >> 5
        comparator = self.comparators[n]
        old = comparator.config
        new = old & ~TN_WRITABLE | value & TN_WRITABLE
        if old & ~new & (TN_LEVEL | TN_ENABLE):
            self._clear(n)
        comparator.config = new
        if new & TN_32BIT:
            comparator.cmp &= 0xFFFFFFFF
            comparator.period &= 0xFFFFFFFF
        if (old ^ new) & TN_ENABLE:
            self._arm(n)  # not otherwise: a one-shot that is over must not fire again

    @on_write(*(c + 4 for c in TIMER_CFG), size=4)
    def write_timer_routes(self, value: int) -> None:
        """The mask of possible routes is read-only."""

    @on_read(*TIMER_CMP, size=8)
    def read_comparator(self, offset: int) -> int:
        return self.comparators[offset - 0x108 >> 5].cmp

    @on_write(*TIMER_CMP, *(c + 4 for c in TIMER_CMP), size=4)
    def write_comparator_half(self, offset: int, value: int) -> None:
        n = offset - 0x108 >> 5
        comparator = self.comparators[n]
        if not (offset & 4 and comparator.config & TN_32BIT):
            self._set_comparator(n, offset & 4, value, _merge)

    @on_write(*TIMER_CMP, size=8)
    def write_comparator(self, offset: int, value: int) -> None:
        self._set_comparator(offset - 0x108 >> 5, 0, value, lambda old, half, new: new)

    def _set_comparator(self, n: int, half: int, value: int, merge: Merge) -> None:
        """A periodic timer takes the value as its period, and as its next match only after SETVAL."""
        comparator = self.comparators[n]
        periodic, mask = comparator.config & TN_PERIODIC, comparator.mask()
        if not periodic or comparator.config & TN_SETVAL:
            comparator.cmp = merge(comparator.cmp, half, value) & mask
        if periodic:
            comparator.period = merge(comparator.period, half, value) & mask >> 1
        comparator.config &= ~TN_SETVAL
        self._arm(n)

    @on_read(*(c + 8 for c in TIMER_CMP), size=8)
    def read_fsb_route(self, offset: int) -> int:
        return 0

    @on_write(*(c + 8 for c in TIMER_CMP), size=8)
    def write_fsb_route(self, value: int) -> None:
        """There is no delivery over the front-side bus."""

    # -- interrupts ---------------------------------------------------------------------------------------------------

    def _arm(self, n: int, least_ns: int = 0) -> None:
        comparator = self.comparators[n]
        if not self.config & CFG_ENABLE or not comparator.config & TN_ENABLE:
            self.timers[n].cancel()
            return
        counter_ns = self.clock.now() + self.offset_ns
        wait = comparator.due_in(counter_ns // TICK_NS & ONES)
        due = (counter_ns // TICK_NS + wait) * TICK_NS - self.offset_ns
        self.timers[n].mod(max(due, self.clock.now() + least_ns))

    def on_timer0(self) -> None:
        self._expired(0)

    def on_timer1(self) -> None:
        self._expired(1)

    def on_timer2(self) -> None:
        self._expired(2)

    def _expired(self, n: int) -> None:
        comparator = self.comparators[n]
        if comparator.config & TN_PERIODIC and comparator.period:
            comparator.advance(self.counter())
            self._arm(n, MIN_PERIOD_NS)
        line = self._line(n)
        if comparator.config & TN_LEVEL:
            self.isr |= 1 << n
            line.set(True)
        else:
            line.pulse()

    def _line(self, n: int) -> IrqLine:
        if self.config & CFG_LEGACY and n < 2:
            return self.gsi[(0, RTC_IRQ)[n]]
        return self.gsi[min(self.comparators[n].config >> 9 & 0x1F, len(self.gsi) - 1)]

    def _clear(self, n: int) -> None:
        """Only a line this comparator holds is driven: others share them."""
        if self.isr >> n & 1:
            self.isr &= ~(1 << n)
            self._line(n).set(False)
