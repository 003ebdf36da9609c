"""8254: the six modes, latches, read-back, BCD, gates, IRQ 0, port 61h."""

from __future__ import annotations

import pytest
from fakes import Wire, round_trip

from qemupy.hw.core import ManualClock
from qemupy.hw.timer import port61
from qemupy.hw.timer.i8254 import HZ, NS, Pit
from qemupy.hw.timer.port61 import Port61


class Pc:
    def __init__(self) -> None:
        self.clock, self.irq = ManualClock(12345), Wire()
        self.pit = Pit(clock=self.clock, irq=self.irq)
        self.bank = self.pit.bank()
        self.speaker = Port61(clock=self.clock, pit=self.pit)
        self.p61 = self.speaker.bank()

    def setup(self, channel: int, mode: int, count: int, bcd: bool = False) -> None:
        self.bank.write(3, 1, channel << 6 | 0x30 | mode << 1 | bcd)
        self.bank.write(channel, 1, count & 0xFF)
        self.bank.write(channel, 1, count >> 8)

    def advance(self, ticks: int) -> None:
        """To the first moment at which `ticks` more ticks have passed since the start of the channels."""
        self.clock.advance(-(-ticks * NS // HZ))

    def read(self, channel: int) -> int:
        self.bank.write(3, 1, channel << 6)
        return self.bank.read(channel, 1) | self.bank.read(channel, 1) << 8

    def outs(self, channel: int, ticks: int) -> str:
        """The output level over the next ticks, drawn as `-` and `_`."""
        start, levels = self.clock.now(), []
        for i in range(ticks):
            self.clock.advance(start - (-i * NS // HZ) - self.clock.now())
            levels.append("-" if self.pit.out(channel) else "_")
        return "".join(levels)


def test_power_on_is_18_hz() -> None:
    pc = Pc()
    pc.irq.rises = 0
    pc.clock.advance(NS)
    assert pc.irq.rises == 18


@pytest.mark.parametrize(
    ("mode", "drawn"),
    [
        (0, "_____-------"),
        (2, "----_----_----_"),
        (3, "---__---__---__"),
        (4, "-----_------"),
        (7, "---__---__---__"),
    ],
)
def test_output_of_the_modes(mode: int, drawn: str) -> None:
    pc = Pc()
    pc.p61.write(0, 1, port61.GATE)
    pc.setup(2, mode, 5)
    assert pc.outs(2, len(drawn)) == drawn


@pytest.mark.parametrize(("mode", "drawn"), [(1, "_____-------"), (5, "-----_------")])
def test_modes_the_gate_starts(mode: int, drawn: str) -> None:
    pc = Pc()
    pc.setup(2, mode, 5)
    assert pc.outs(2, 9) == "---------"
    pc.p61.write(0, 1, port61.GATE)
    assert pc.outs(2, 3) == drawn[:3]
    pc.p61.write(0, 1, 0)
    pc.p61.write(0, 1, port61.GATE)
    assert pc.outs(2, len(drawn)) == drawn


def test_gate_holds_the_count() -> None:
    pc = Pc()
    pc.p61.write(0, 1, port61.GATE)
    pc.setup(2, 0, 1000)
    pc.advance(100)
    assert pc.read(2) == 900
    pc.p61.write(0, 1, 0)
    pc.advance(5000)
    assert pc.read(2) == 900 and not pc.p61.read(0, 1) & port61.OUT2
    pc.p61.write(0, 1, port61.GATE)
    pc.advance(100)
    assert pc.read(2) == 800
    pc.advance(800)
    assert pc.p61.read(0, 1) & port61.OUT2


def test_counting_down_and_latch() -> None:
    pc = Pc()
    pc.setup(0, 2, 0x1234)
    pc.advance(0x34)
    pc.bank.write(3, 1, 0)
    pc.advance(7)
    pc.bank.write(3, 1, 0)
    assert pc.bank.read(0, 1) == 0x00 and pc.bank.read(0, 1) == 0x12
    assert pc.read(0) == 0x1200 - 7
    pc.advance(0x1234)
    assert pc.read(0) in (0x1200 - 7, 0x1200 - 8)


def test_square_mode_counts_by_two() -> None:
    pc = Pc()
    pc.setup(0, 3, 1000)
    pc.advance(100)
    assert pc.read(0) == 800
    pc.advance(450)
    assert pc.read(0) in (898, 900)


def test_bcd_and_single_byte_access() -> None:
    pc = Pc()
    pc.setup(0, 2, 0x0500, bcd=True)
    pc.advance(1)
    assert pc.read(0) == 0x0499
    pc.bank.write(3, 1, 0x10 | 2 << 1)
    pc.bank.write(0, 1, 200)
    pc.advance(3)
    assert pc.bank.read(0, 1) == 197
    pc.bank.write(3, 1, 0x20 | 2 << 1)
    pc.bank.write(0, 1, 0x10)
    assert pc.bank.read(0, 1) == 0x10


def test_read_back() -> None:
    pc = Pc()
    pc.bank.write(3, 1, 0x34)
    pc.bank.write(3, 1, 0xE2)
    assert pc.bank.read(0, 1) == 0xF4, "null count"
    pc.setup(0, 2, 0x300)
    pc.setup(1, 2, 0x300)
    pc.bank.write(3, 1, 0xC6)
    pc.advance(0x20)
    assert [pc.bank.read(0, 1) for _ in range(3)] == [0xB4, 0x00, 0x03]
    assert [pc.bank.read(1, 1) for _ in range(3)] == [0xB4, 0x00, 0x03]


def test_irq_rate_without_drift() -> None:
    pc = Pc()
    pc.setup(0, 2, 1193)
    pc.irq.rises = 0
    for _ in range(1000):
        pc.clock.advance(10 * NS // 1000)
    assert pc.irq.rises == 10 * HZ // 1193


def test_one_shot_irq_in_mode_0() -> None:
    pc = Pc()
    pc.setup(0, 0, 1000)
    assert not pc.irq.level
    pc.irq.rises = 0
    pc.clock.advance(1000 * NS // HZ - 1)
    assert not pc.irq.level
    pc.clock.advance(10 * NS)
    assert pc.irq.level and pc.irq.rises == 1 and pc.pit.tick.deadline is None


def test_missed_ticks_are_one() -> None:
    pc = Pc()
    pc.setup(0, 2, 1193)
    pc.irq.rises = 0
    pc.clock._now += NS  # the host was away
    pc.clock.advance(0)
    assert pc.irq.rises == 1
    pc.clock.advance(NS // 100)
    assert pc.irq.rises in (10, 11)


def test_hpet_takes_irq_0_over() -> None:
    pc = Pc()
    enable = pc.pit.irq_enable_line()
    enable.low()
    pc.irq.rises = 0
    pc.clock.advance(NS)
    assert pc.irq.rises == 0
    enable.high()
    pc.clock.advance(NS)
    assert pc.irq.rises >= 18


def test_port_61() -> None:
    pc = Pc()
    pc.p61.write(0, 1, 0xFF)
    assert pc.p61.read(0, 1) & 0xCF == 0x0F
    toggles = 0
    last = 0
    for _ in range(1000):
        pc.clock.advance(1000)
        now = pc.p61.read(0, 1) & port61.REFRESH
        toggles += now != last
        last = now
    assert toggles in (66, 67)
    round_trip(pc.speaker, lambda: Port61(clock=pc.clock, pit=pc.pit))


def test_round_trip() -> None:
    pc = Pc()
    pc.setup(0, 2, 1193)
    pc.setup(2, 3, 500)
    pc.bank.write(3, 1, 0)
    pc.bank.read(0, 1)
    pc.advance(3000)
    other = Pc()
    other.clock.advance(pc.clock.now() - other.clock.now())
    clock, irq = ManualClock(pc.clock.now()), Wire()
    fresh = round_trip(pc.pit, lambda: Pit(clock=clock, irq=irq))
    assert irq.level and fresh.bank().read(0, 1) == pc.bank.read(0, 1)
    irq.rises = 0
    clock.advance(NS // 10)
    assert irq.rises in (99, 100)
