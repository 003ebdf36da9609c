"""The fixed ACPI registers: PM1 event and control, the PM timer, one GPE block (ACPI 6.4, 4.8.3 and 4.8.4).

SCI is raised while an enabled event is pending and the machine is in ACPI mode (SCI_EN). The timer counts 24 bits at
3.579545 MHz; the change of its highest bit is an event, so a host timer runs only while that event is enabled.
"""

from __future__ import annotations

from collections.abc import Callable

from qemupy.hw.core import Clock, IrqLine, State, Timer, i64, log_guest_error, timer, u16

TIMER_HZ = 3_579_545
NS = 1_000_000_000
TMR, GBL, PWRBTN, SLPBTN, RTC, WAK = 1 << 0, 1 << 5, 1 << 8, 1 << 9, 1 << 10, 1 << 15
EVENTS = TMR | GBL | PWRBTN | SLPBTN | RTC
SCI_EN, SLP_EN = 1 << 0, 1 << 13
S5, S3, S4 = 0, 1, 2  # SLP_TYP, as the DSDT's \_Sx objects say


class Pm1(State):
    clock: Clock
    sci: IrqLine
    power_off: Callable[[], None]

    status: int = u16()
    enable: int = u16()
    control: int = u16()
    overflow_at: int = i64()  # when the timer's highest bit changes next after TMR was cleared
    gpe_status: int = u16()
    gpe_enable: int = u16()
    overflow: Timer = timer("clock", "update")

    def ticks(self) -> int:
        return self.clock.now() * TIMER_HZ // NS

    def read_timer(self) -> int:
        return self.ticks() & 0xFFFFFF

    def _next_overflow(self) -> int:
        half = (self.ticks() >> 23) + 1 << 23
        return -(-half * NS // TIMER_HZ)

    def read_status(self) -> int:
        if self.clock.now() >= self.overflow_at:
            self.status |= TMR
        return self.status

    def write_status(self, value: int) -> None:
        if self.read_status() & value & TMR:
            self.overflow_at = self._next_overflow()
        self.status &= ~value
        self.update()

    def write_enable(self, value: int) -> None:
        self.enable = value
        self.update()

    def write_control(self, value: int) -> None:
        self.control = value & ~SLP_EN
        if value & SLP_EN:
            self._sleep(value >> 10 & 7)
        self.update()

    def _sleep(self, kind: int) -> None:
        if kind in (S5, S4):
            self.power_off()
        else:
            log_guest_error("acpi: sleep state %d is not there", kind)

    def switch_acpi(self, on: bool) -> None:
        self.control = self.control | SCI_EN if on else self.control & ~SCI_EN
        self.update()

    def press_power_button(self) -> None:
        self.status |= PWRBTN
        self.update()

    def update(self) -> None:
        """The SCI as a function of the registers, and the timer that will next change it."""
        pending = self.read_status() & self.enable & EVENTS or self.gpe_status & self.gpe_enable
        self.sci.set(bool(pending) and bool(self.control & SCI_EN))
        if self.enable & TMR and not self.status & TMR:
            self.overflow.mod(self.overflow_at)
        else:
            self.overflow.cancel()

    def reset(self) -> None:
        super().reset()
        self.overflow_at = self._next_overflow()
        self.update()

    def realize(self) -> None:
        self.overflow_at = self._next_overflow()

    def post_load(self) -> None:
        self.update()
