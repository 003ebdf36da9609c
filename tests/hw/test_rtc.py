"""RTC: calendar formats, update cycle, alarm, periodic interrupt, CMOS layout."""

from __future__ import annotations

import pytest
from fakes import Wire, round_trip

from qemupy.errors import ConfigError
from qemupy.hw.core import ManualClock
from qemupy.hw.timer import cmos_layout, rtc
from qemupy.hw.timer.rtc import NS, Rtc, start_time

START = start_time("1999-12-31T23:59:58", 0, 0)


class Pc:
    def __init__(self, start: int = START, now: int = 0) -> None:
        self.clock, self.irq = ManualClock(now), Wire()
        self.dev = Rtc(clock=self.clock, irq=self.irq, start_ns=start)
        self.bank = self.dev.bank()

    def read(self, index: int) -> int:
        self.bank.write(0, 1, index)
        return self.bank.read(1, 1)

    def write(self, index: int, value: int) -> None:
        self.bank.write(0, 1, index | 0x80)
        self.bank.write(1, 1, value)

    def calendar(self) -> str:
        r = [self.read(i) for i in (0x32, 9, 8, 7, 4, 2, 0)]
        return f"{r[0]:02x}{r[1]:02x}-{r[2]:02x}-{r[3]:02x} {r[4]:02x}:{r[5]:02x}:{r[6]:02x}"


def test_calendar_rolls_over_the_century() -> None:
    pc = Pc()
    assert pc.calendar() == "1999-12-31 23:59:58" and pc.read(rtc.WEEKDAY) == 6
    pc.clock.advance(2 * NS)
    assert pc.calendar() == "2000-01-01 00:00:00" and pc.read(rtc.WEEKDAY) == 7
    assert pc.read(0x37) == 0x20


def test_12_hour_and_binary_formats() -> None:
    pc = Pc()
    pc.write(rtc.REG_B, 0)
    assert pc.read(rtc.HOURS) == 0x91
    pc.write(rtc.REG_B, rtc.B_BINARY | rtc.B_24H)
    assert (pc.read(rtc.HOURS), pc.read(rtc.SECONDS), pc.read(rtc.YEAR)) == (23, 58, 99)
    pc.write(rtc.REG_B, rtc.B_BINARY)
    pc.clock.advance(2 * NS)
    assert pc.read(rtc.HOURS) == 12


def test_setting_the_time() -> None:
    pc = Pc()
    pc.write(rtc.REG_B, rtc.B_SET | rtc.B_24H)
    for index, value in ((0, 0x59), (2, 0x59), (4, 0x23), (7, 0x28), (8, 0x02), (9, 0x24), (0x32, 0x20)):
        pc.write(index, value)
    pc.clock.advance(10 * NS)
    assert pc.calendar() == "2024-02-28 23:59:59"
    pc.write(rtc.REG_B, rtc.B_24H)
    pc.clock.advance(NS)
    assert pc.calendar() == "2024-02-29 00:00:00"
    pc.write(rtc.DAY, 0x01)
    pc.write(rtc.MONTH, 0x13)
    assert pc.calendar() == "2025-01-01 00:00:00"


def test_update_in_progress_and_update_flag() -> None:
    pc = Pc()
    assert not pc.read(rtc.REG_A) & rtc.A_UIP
    pc.clock.advance(NS - 200_000)
    assert pc.read(rtc.REG_A) & rtc.A_UIP
    pc.clock.advance(200_000)
    assert not pc.read(rtc.REG_A) & rtc.A_UIP
    assert pc.read(rtc.REG_C) == rtc.C_UF | rtc.C_PF and not pc.irq.level and pc.read(rtc.REG_C) == 0
    pc.write(rtc.REG_B, rtc.B_24H | rtc.B_UIE)
    pc.clock.advance(NS)
    assert pc.irq.level and pc.irq.rises == 1
    pc.clock.advance(5 * NS)
    assert pc.irq.rises == 1
    assert pc.read(rtc.REG_C) == rtc.C_UF | rtc.C_AF | rtc.C_PF | rtc.C_IRQF and not pc.irq.level


def test_divider_reset_starts_half_a_second_before_the_update() -> None:
    pc = Pc()
    pc.write(rtc.REG_A, 0x76)
    pc.clock.advance(3 * NS)
    assert pc.read(rtc.REG_C) == 0 and pc.calendar().endswith(":58")
    pc.write(rtc.REG_A, 0x26)
    pc.clock.advance(NS // 2 - 1)
    assert pc.calendar().endswith(":58")
    pc.clock.advance(1)
    assert pc.calendar().endswith(":59") and pc.read(rtc.REG_C) == rtc.C_UF | rtc.C_PF


@pytest.mark.parametrize(
    ("alarm", "seconds"),
    [((0xFF, 0xFF, 0xFF), 1), ((0x00, 0xC0, 0xC0), 2), ((0x30, 0x01, 0x00), 92), ((0x57, 0x59, 0x23), 86399)],
)
def test_alarm(alarm: tuple[int, int, int], seconds: int) -> None:
    pc = Pc()
    for index, value in zip((rtc.SECONDS_ALARM, rtc.MINUTES_ALARM, rtc.HOURS_ALARM), alarm, strict=True):
        pc.write(index, value)
    pc.write(rtc.REG_B, rtc.B_24H | rtc.B_AIE)
    pc.clock.advance(seconds * NS - 1)
    assert not pc.irq.level
    pc.clock.advance(1)
    assert pc.irq.level and pc.read(rtc.REG_C) & rtc.C_AF


def test_impossible_alarm_never_fires() -> None:
    pc = Pc()
    pc.write(rtc.HOURS_ALARM, 0x25)
    pc.write(rtc.REG_B, rtc.B_24H | rtc.B_AIE)
    pc.clock.advance(3 * 86400 * NS)
    assert not pc.irq.level


def test_periodic_interrupt_rate_and_missed_ticks() -> None:
    pc = Pc()
    pc.write(rtc.REG_A, 0x26)
    pc.write(rtc.REG_B, rtc.B_24H | rtc.B_PIE)
    ticks = 0
    for _ in range(1024):
        pc.clock.advance(NS // 1024)
        ticks += bool(pc.read(rtc.REG_C) & rtc.C_PF)
    assert 1022 <= ticks <= 1024
    rises = pc.irq.rises
    pc.clock.advance(NS)
    assert pc.irq.rises == rises + 1
    pc.write(rtc.REG_B, rtc.B_24H)
    assert not pc.irq.level and pc.dev.periodic_timer.deadline is None


def test_periodic_flag_can_be_polled() -> None:
    pc = Pc()
    pc.write(rtc.REG_A, 0x2A)
    pc.read(rtc.REG_C)
    assert not pc.read(rtc.REG_C) & rtc.C_PF
    pc.clock.advance(NS // 64)
    assert pc.read(rtc.REG_C) & rtc.C_PF


def test_reset_keeps_time_and_memory() -> None:
    pc = Pc()
    pc.write(0x40, 0x77)
    pc.write(rtc.REG_B, rtc.B_24H | rtc.B_UIE | rtc.B_PIE)
    pc.clock.advance(NS)
    pc.dev.reset()
    assert not pc.irq.level and pc.read(0x40) == 0x77 and pc.calendar().endswith(":59")
    assert pc.read(rtc.REG_B) == rtc.B_24H
    pc.clock.advance(NS)
    assert pc.read(rtc.REG_C) == rtc.C_UF | rtc.C_AF | rtc.C_PF  # it is midnight, and the alarm registers are zero


def test_round_trip() -> None:
    pc = Pc()
    pc.write(rtc.REG_B, rtc.B_24H | rtc.B_UIE | rtc.B_PIE)
    pc.write(rtc.SECONDS, 0x30)
    pc.clock.advance(NS // 2)
    other = Pc(start=0, now=pc.clock.now())
    other.clock = ManualClock(pc.clock.now())
    other.dev = round_trip(pc.dev, lambda: Rtc(clock=other.clock, irq=other.irq))
    assert other.irq.level
    other.bank = other.dev.bank()
    assert other.calendar() == pc.calendar() == "1999-12-31 23:59:30"
    other.read(rtc.REG_C)
    other.clock.advance(NS)
    assert other.irq.rises == 2


def test_start_time() -> None:
    assert start_time("utc", 5, 3600) == 5 and start_time("localtime", 5, 3600) == 5 + 3600 * NS
    assert start_time("1970-01-02", 0, 0) == 86400 * NS
    with pytest.raises(ConfigError, match="invalid datetime"):
        start_time("tomorrow", 0, 0)


def test_cmos_layout() -> None:
    pc = Pc()
    cmos_layout.set_memory(pc.dev, 512 << 20, 3 << 30)
    assert [pc.read(i) for i in (0x15, 0x16, 0x17, 0x18, 0x30, 0x31)] == [0x80, 2, 0xFF, 0xFF, 0xFF, 0xFF]
    assert [pc.read(i) for i in (0x34, 0x35, 0x5B, 0x5C, 0x5D)] == [0x00, 0x1F, 0x00, 0xC0, 0]
    cmos_layout.set_boot_order(pc.dev, "cad")
    assert (pc.read(0x3D), pc.read(0x38)) == (0x12, 0x30)
    with pytest.raises(ConfigError, match="'x'"):
        cmos_layout.set_boot_order(pc.dev, "x")
    cmos_layout.set_floppies(pc.dev, cmos_layout.FLOPPY_1440K, 0)
    assert (pc.read(0x10), pc.read(0x14)) == (0x40, 0x07)
    cmos_layout.set_disks(pc.dev, [None, cmos_layout.DiskGeometry(0x123, 16, 63), None, None])
    assert (pc.read(0x12), pc.read(0x1A), pc.read(0x39)) == (0x0F, 47, 1 << 2)
    assert bytes(pc.dev.cmos[0x24:0x2D]) == bytes((0x23, 1, 16, 0xFF, 0xFF, 0xC8, 0x23, 1, 63))
    cmos_layout.set_cpus(pc.dev, 4)
    assert pc.read(0x5F) == 3
