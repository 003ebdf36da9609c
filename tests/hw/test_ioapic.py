"""IOAPIC: registers, edge and level delivery, EOI, masks, GSI fan-out."""

from __future__ import annotations

from fakes import Wire, round_trip

from qemupy.hw.intc import ioapic
from qemupy.hw.intc.gsi import gsi_lines
from qemupy.hw.intc.i8259 import PicPair
from qemupy.hw.intc.ioapic import IoApic


class Pc:
    def __init__(self) -> None:
        self.sent: list[tuple[int, ...]] = []
        self.dev = IoApic(deliver=self.deliver, pic_intack=lambda: 0x99)
        self.bank = self.dev.bank()
        self.pins = [self.dev.input(n) for n in range(ioapic.PINS)]

    def deliver(self, dest: int, dest_mode: int, delivery_mode: int, vector: int, trigger_mode: int) -> None:
        self.sent.append((dest, dest_mode, delivery_mode, vector, trigger_mode))

    def write(self, register: int, value: int) -> None:
        self.bank.write(0, 4, register)
        self.bank.write(0x10, 4, value)

    def read(self, register: int) -> int:
        self.bank.write(0, 1, register)
        return self.bank.read(0x10, 4)

    def entry(self, n: int, low: int, high: int = 0) -> None:
        self.write(0x11 + 2 * n, high)
        self.write(0x10 + 2 * n, low)


def test_registers() -> None:
    pc = Pc()
    assert pc.read(1) == 0x00170020 and pc.read(0x10) == 0x10000
    pc.write(0, 0xFF000000)
    assert pc.read(0) == pc.read(2) == 0x0F000000 and pc.bank.read(0, 4) == 2
    pc.entry(3, 0xFFFFFFFF & ~0x8000, 0x05000000)
    assert (pc.read(0x16), pc.read(0x17)) == (0x0001FFFF & ~0xD000 | 0xFFFE0000, 0x05000000)


def test_edge() -> None:
    pc = Pc()
    pc.entry(4, 0x31, 0x02000000)
    pc.pins[4].high()
    pc.pins[4].high()
    assert pc.sent == [(2, 0, 0, 0x31, 0)]
    pc.pins[4].low()
    pc.pins[4].high()
    assert len(pc.sent) == 2
    pc.entry(4, 0x10031)
    pc.pins[4].low()
    pc.pins[4].high()
    pc.entry(4, 0x31)
    assert len(pc.sent) == 2, "an edge while masked is lost"


def test_level_and_eoi() -> None:
    pc = Pc()
    pc.entry(11, 0x8941, 0x03000000)
    pc.pins[11].high()
    assert pc.sent == [(3, 1, 1, 0x41, 1)] and pc.read(0x10 + 22) & ioapic.REMOTE_IRR
    pc.pins[11].high()
    assert len(pc.sent) == 1
    pc.dev.eoi(0x42)
    assert len(pc.sent) == 1
    pc.dev.eoi(0x41)
    assert len(pc.sent) == 2, "still high"
    pc.pins[11].low()
    pc.bank.write(0x40, 4, 0x41)
    assert len(pc.sent) == 2 and not pc.read(0x10 + 22) & ioapic.REMOTE_IRR


def test_level_while_masked_is_sent_when_unmasked() -> None:
    pc = Pc()
    pc.entry(20, 0x18050)
    pc.pins[20].high()
    assert not pc.sent
    pc.entry(20, 0x8050)
    assert len(pc.sent) == 1


def test_edge_mode_clears_remote_irr() -> None:
    pc = Pc()
    pc.entry(10, 0x8050)
    pc.pins[10].high()
    pc.entry(10, 0x10050)
    assert not pc.read(0x10 + 20) & ioapic.REMOTE_IRR
    pc.entry(10, 0x8050)
    assert len(pc.sent) == 2, "the line is still high"


def test_extint() -> None:
    pc = Pc()
    pc.entry(0, 0x700)
    pc.pins[0].high()
    assert pc.sent == [(0, 0, 7, 0x99, 0)]


def test_pic_info() -> None:
    pc = Pc()
    pc.entry(11, 0x8941, 0x03000000)
    pc.pins[11].high()
    lines = pc.dev.pic_info()
    assert lines[0] == "ioapic0: ver=0x20 id=0x00 sel=0x26 (redir[11])"
    assert lines[1] == ("  pin 0  0x0000000000010000 dest=0 vec=0   active-hi edge  masked fixed  physical")
    assert lines[12] == "  pin 11 0x030000000000c941 dest=3 vec=65  active-hi level        lowest logical"
    assert lines[-2:] == ["  IRR      11 ", "  Remote IRR 11 "]


def test_fan_out() -> None:
    pc = Pc()
    pic = PicPair(intr=Wire())
    gsi = gsi_lines(pic, pc.dev)
    pc.entry(2, 0x30)
    gsi[0].high()
    gsi[2].high()
    gsi[16].high()
    assert pc.sent == [(0, 0, 0, 0x30, 0)] and pic.master.irr == 1
    assert [n for n in range(24) if pc.dev.levels >> n & 1] == [2, 16]


def test_round_trip() -> None:
    pc, other = Pc(), Pc()
    pc.entry(11, 0x8041)
    pc.pins[11].high()
    fresh = round_trip(pc.dev, lambda: other.dev)
    other.pins[11].high()
    assert not other.sent
    fresh.eoi(0x41)
    assert len(other.sent) == 1
