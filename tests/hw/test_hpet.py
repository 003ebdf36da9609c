"""HPET: counter, one-shot and periodic comparators, level interrupts, legacy replacement."""

from __future__ import annotations

from fakes import Wire, round_trip

from qemupy.hw.core import ManualClock
from qemupy.hw.timer import hpet
from qemupy.hw.timer.hpet import Hpet

MS = 1_000_000
T0, C0, T1, C1, T2, C2 = 0x100, 0x108, 0x120, 0x128, 0x140, 0x148


class Pc:
    def __init__(self) -> None:
        self.clock = ManualClock(777)
        self.gsi = [Wire() for _ in range(24)]
        self.pit = Wire()
        self.dev = self.make()
        self.bank = self.dev.bank()

    def make(self) -> Hpet:
        return Hpet(clock=self.clock, gsi=self.gsi, pit_enable=self.pit)

    def w(self, offset: int, value: int, size: int = 4) -> None:
        self.bank.write(offset, size, value)

    def r(self, offset: int, size: int = 4) -> int:
        return self.bank.read(offset, size)


def test_identification() -> None:
    pc = Pc()
    assert pc.r(0) == 0x8086A201 and pc.r(4) == 10_000_000 and pc.r(0, 8) == 10_000_000 << 32 | 0x8086A201
    assert pc.r(T0) == 0x30 and pc.r(T0 + 4) == 4 and pc.r(C0, 8) == (1 << 64) - 1


def test_counter_runs_halts_and_is_set() -> None:
    pc = Pc()
    pc.clock.advance(MS)
    assert pc.r(0xF0) == 0
    pc.w(0xF0, 0xFFFFFFF0)
    pc.w(0x10, 1)
    pc.clock.advance(1000)
    assert pc.r(0xF0) == 0xFFFFFFF0 + 100 & 0xFFFFFFFF and pc.r(0xF4) == 1
    pc.w(0xF0, 0)
    assert pc.r(0xF0, 8) == 0xFFFFFFF0 + 100
    pc.w(0x10, 0)
    pc.clock.advance(MS)
    assert pc.r(0xF0, 8) == 0xFFFFFFF0 + 100


def test_one_shot() -> None:
    pc = Pc()
    pc.w(0x10, 1)
    pc.w(C2, 100_000, 8)
    pc.w(T2, hpet.TN_ENABLE | 20 << 9)
    pc.clock.advance(MS - 1)
    assert pc.gsi[20].rises == 0
    pc.clock.advance(1)
    assert pc.gsi[20].rises == 1 and not pc.gsi[20].level
    pc.clock.advance(50 * MS)
    assert pc.gsi[20].rises == 1
    pc.w(T2, hpet.TN_ENABLE | hpet.TN_32BIT | 20 << 9)
    pc.w(T2, hpet.TN_ENABLE | 20 << 9)
    pc.clock.advance(50 * MS)
    assert pc.gsi[20].rises == 1, "a one-shot that is over stays over"
    pc.w(C2, 10)
    pc.w(C2 + 4, 0)
    pc.clock.advance(0)
    assert pc.gsi[20].rises == 2, "a match just passed is not lost"


def test_periodic_in_32_bit_mode_as_linux_sets_it() -> None:
    pc = Pc()
    pc.w(0xF0, 0xFFFFFF00)
    pc.w(0x10, 3)
    pc.w(T0, hpet.TN_ENABLE | hpet.TN_PERIODIC | hpet.TN_SETVAL | hpet.TN_32BIT)
    pc.w(C0, pc.r(0xF0) + 100_000 & 0xFFFFFFFF)
    pc.w(C0, 100_000)
    pc.clock.advance(100 * MS)
    assert pc.gsi[0].rises == 100 and pc.dev.comparators[0].period == 100_000
    pc.clock._now += 1000 * MS
    pc.clock.advance(0)
    assert pc.gsi[0].rises == 101, "missed ticks are one"
    pc.clock.advance(10 * MS)
    assert pc.gsi[0].rises == 111


def test_absurd_period_is_slowed_down() -> None:
    pc = Pc()
    pc.w(0x10, 3)
    pc.w(T0, hpet.TN_ENABLE | hpet.TN_PERIODIC | hpet.TN_SETVAL)
    pc.w(C0, 1, 8)
    pc.clock.advance(MS)
    assert 40 <= pc.gsi[0].rises <= 60


def test_level_interrupt() -> None:
    pc = Pc()
    pc.w(0x10, 1)
    pc.w(C1, 50, 8)
    pc.w(T1, hpet.TN_ENABLE | hpet.TN_LEVEL | 21 << 9)
    pc.clock.advance(MS)
    assert pc.gsi[21].level and pc.r(0x20) == 2
    fresh = round_trip(pc.dev, pc.make)
    assert fresh.isr == 2 and pc.gsi[21].level
    pc.w(0x20, 1)
    assert pc.gsi[21].level
    pc.w(0x20, 2)
    assert not pc.gsi[21].level and pc.r(0x20) == 0


def test_legacy_replacement() -> None:
    pc = Pc()
    rtc = pc.dev.rtc_input()
    rtc.high()
    assert pc.gsi[8].level
    pc.w(0x10, 3)
    assert not pc.gsi[8].level and not pc.pit.level
    rtc.low()
    rtc.high()
    assert not pc.gsi[8].level
    pc.w(C1, 50, 8)
    pc.w(T1, hpet.TN_ENABLE)
    pc.clock.advance(MS)
    assert pc.gsi[8].rises == 2
    pc.w(0x10, 1)
    assert pc.gsi[8].level and pc.pit.level
    pc.dev.reset()
    assert pc.pit.level and pc.dev.save() == pc.make().save()
