"""8259A pair: initialization, priorities, cascade, EOI and rotation, level mode, poll, spurious interrupts."""

from __future__ import annotations

from fakes import Wire, round_trip

from qemupy.hw.core import unconnected
from qemupy.hw.intc.i8259 import PicPair


class Pc:
    """A PIC pair initialized as BIOS and Linux do: vectors 08h and 70h, all unmasked."""

    def __init__(self, icw4: int = 0x01) -> None:
        self.intr = Wire()
        self.pic = PicPair(intr=self.intr)
        self.master, self.slave, self.elcr = (self.pic.bank(n) for n in ("master", "slave", "elcr"))
        self.lines = [self.pic.input(n) for n in range(16)]
        for bank, base, cascade in ((self.master, 0x08, 4), (self.slave, 0x70, 2)):
            bank.write(0, 1, 0x11)
            bank.write(1, 1, base)
            bank.write(1, 1, cascade)
            bank.write(1, 1, icw4)

    def isr(self) -> tuple[int, int]:
        for bank in (self.master, self.slave):
            bank.write(0, 1, 0x0B)
        return self.master.read(0, 1), self.slave.read(0, 1)

    def irr(self) -> tuple[int, int]:
        for bank in (self.master, self.slave):
            bank.write(0, 1, 0x0A)
        return self.master.read(0, 1), self.slave.read(0, 1)


def test_edge_request_service_and_eoi() -> None:
    pc = Pc()
    pc.lines[0].high()
    assert pc.intr.level and pc.irr() == (1, 0)
    assert pc.pic.intack() == 0x08
    assert not pc.intr.level and pc.isr() == (1, 0) and pc.irr() == (0, 0)
    pc.lines[0].high()
    assert not pc.intr.level, "no edge"
    pc.lines[0].low()
    pc.lines[0].high()
    assert not pc.intr.level, "in service"
    pc.master.write(0, 1, 0x20)
    assert pc.intr.level and pc.pic.intack() == 0x08


def test_priorities_nest() -> None:
    pc = Pc()
    pc.lines[4].high()
    assert pc.pic.intack() == 0x0C
    pc.lines[5].high()
    assert not pc.intr.level
    pc.lines[1].high()
    assert pc.intr.level and pc.pic.intack() == 0x09 and pc.isr() == (0x12, 0)
    pc.master.write(0, 1, 0x20)
    assert pc.isr() == (0x10, 0) and not pc.intr.level
    pc.master.write(0, 1, 0x64)
    assert pc.isr() == (0, 0) and pc.pic.intack() == 0x0D


def test_cascade() -> None:
    pc = Pc()
    pc.lines[12].high()
    pc.lines[8].high()
    assert pc.pic.intack() == 0x70 and pc.isr() == (4, 1) and not pc.intr.level
    pc.slave.write(0, 1, 0x20)
    assert not pc.intr.level, "the master still serves its input 2"
    pc.master.write(0, 1, 0x20)
    assert pc.intr.level and pc.pic.intack() == 0x74


def test_masks() -> None:
    pc = Pc()
    pc.master.write(1, 1, 0x04)
    pc.slave.write(1, 1, 0x01)
    assert pc.master.read(1, 1) == 4 and pc.slave.read(1, 1) == 1
    pc.lines[8].high()
    pc.lines[9].high()
    assert not pc.intr.level
    pc.master.write(1, 1, 0)
    assert pc.pic.intack() == 0x71


def test_spurious_7_and_15() -> None:
    pc = Pc()
    assert pc.pic.intack() == 0x0F and pc.isr() == (0, 0)
    pc.elcr.write(1, 1, 0xFF)
    pc.lines[10].high()
    assert pc.intr.level
    pc.slave.write(1, 1, 0xFF)
    assert pc.intr.level and pc.pic.intack() == 0x77 and pc.isr() == (4, 0)


def test_level_triggered() -> None:
    pc = Pc()
    pc.elcr.write(0, 2, 0xFFFF)
    assert pc.elcr.read(0, 1) == 0xF8 and pc.elcr.read(1, 1) == 0xDE
    pc.lines[11].high()
    assert pc.pic.intack() == 0x73
    pc.slave.write(0, 1, 0x20)
    pc.master.write(0, 1, 0x20)
    assert pc.intr.level, "still high"
    pc.lines[11].low()
    assert pc.irr() == (4, 0), "an edge into the master stays latched"
    assert pc.pic.intack() == 0x77


def test_level_that_is_high_when_the_mode_changes() -> None:
    pc = Pc()
    pc.lines[5].high()
    assert pc.pic.intack() == 0x0D
    pc.master.write(0, 1, 0x20)
    assert not pc.intr.level
    pc.elcr.write(0, 1, 0x20)
    assert pc.intr.level


def test_rotation() -> None:
    pc = Pc()
    for n in (0, 1, 3):
        pc.lines[n].high()
    assert pc.pic.intack() == 0x08
    pc.master.write(0, 1, 0xA0)
    assert pc.pic.intack() == 0x09
    pc.lines[0].low()
    pc.lines[0].high()
    pc.master.write(0, 1, 0xE1)
    assert pc.pic.intack() == 0x0B, "0 is lower than 3 now"
    pc.master.write(0, 1, 0x20)
    pc.master.write(0, 1, 0xC7)
    pc.lines[6].high()
    assert pc.pic.intack() == 0x08


def test_auto_eoi_with_rotation() -> None:
    pc = Pc(icw4=0x03)
    pc.master.write(0, 1, 0x80)
    pc.lines[0].high()
    pc.lines[1].high()
    assert pc.pic.intack() == 0x08 and pc.isr() == (0, 0) and pc.intr.level
    pc.lines[0].low()
    pc.lines[0].high()
    assert pc.pic.intack() == 0x09 and pc.pic.intack() == 0x08


def test_special_mask_mode() -> None:
    pc = Pc()
    pc.lines[1].high()
    assert pc.pic.intack() == 0x09
    pc.lines[6].high()
    assert not pc.intr.level
    pc.master.write(1, 1, 0x02)
    pc.master.write(0, 1, 0x68)
    assert pc.intr.level and pc.pic.intack() == 0x0E
    pc.master.write(0, 1, 0x20)
    assert pc.isr() == (2, 0)
    pc.master.write(0, 1, 0x48)
    pc.master.write(0, 1, 0x20)
    assert pc.isr() == (0, 0)


def test_special_fully_nested_lets_the_slave_interrupt_itself() -> None:
    pc = Pc(icw4=0x11)
    pc.lines[12].high()
    assert pc.pic.intack() == 0x74
    pc.lines[8].high()
    assert pc.intr.level and pc.pic.intack() == 0x70 and pc.isr() == (4, 0x11)


def test_poll() -> None:
    pc = Pc()
    pc.master.write(0, 1, 0x0C)
    assert pc.master.read(0, 1) == 0
    pc.lines[3].high()
    pc.master.write(0, 1, 0x0C)
    assert pc.master.read(0, 1) == 0x83 and pc.isr() == (8, 0) and not pc.intr.level


def test_icw1_clears_requests_and_masks() -> None:
    pc = Pc()
    pc.master.write(1, 1, 0xFF)
    pc.lines[3].high()
    pc.master.write(0, 1, 0x13)
    assert pc.master.read(0, 1) == 0 and pc.master.read(1, 1) == 0 and not pc.intr.level
    pc.master.write(1, 1, 0x40)
    pc.master.write(1, 1, 0x01)
    pc.lines[3].high()
    assert not pc.intr.level, "needs a new rise"
    pc.lines[3].low()
    pc.lines[3].high()
    assert pc.pic.intack() == 0x43


def test_round_trip_and_counts() -> None:
    pc = Pc()
    pc.lines[12].high()
    pc.pic.intack()
    pc.lines[1].high()
    intr = Wire()
    fresh = round_trip(pc.pic, lambda: PicPair(intr=intr))
    assert intr.level and fresh.intack() == 0x09
    assert pc.pic.counts[12] == 1 and pc.pic.counts[2] == 1
    assert pc.pic.pic_info()[1] == ("pic0: irr=02 imr=00 isr=04 hprio=0 irq_base=08 rr_sel=0 elcr=00 fnm=0")
    pc.pic.reset()
    assert not pc.intr.level and PicPair(intr=unconnected()).save() == pc.pic.save()
