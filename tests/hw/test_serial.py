"""16550A and parallel port."""

from __future__ import annotations

from fakes import Wire, round_trip

from qemupy.backends.chardev import BREAK, FakeChardev
from qemupy.hw.char import serial
from qemupy.hw.char.parallel import Parallel
from qemupy.hw.char.serial import Serial16550
from qemupy.hw.core import ManualClock

DATA, IER, IIR, LCR, MCR, LSR, MSR, SCR = range(8)


class Pc:
    def __init__(self) -> None:
        self.clock, self.irq, self.chardev = ManualClock(), Wire(), FakeChardev()
        self.dev = Serial16550(chardev=self.chardev, irq=self.irq, clock=self.clock)
        self.bank = self.dev.bank()

    def out(self, register: int, value: int) -> None:
        self.bank.write(register, 1, value)

    def inb(self, register: int) -> int:
        return self.bank.read(register, 1)


def test_transmit() -> None:
    pc = Pc()
    for c in b"hi":
        assert pc.inb(LSR) == serial.LSR_THRE | serial.LSR_TEMT
        pc.out(DATA, c)
    pc.bank.write_string(DATA, 1, b" all")
    assert pc.chardev.output == b"hi all" and not pc.irq.level


def test_transmitter_interrupt() -> None:
    pc = Pc()
    pc.out(IER, serial.IER_THR)
    assert pc.irq.level and pc.inb(IIR) == serial.IIR_THR
    assert not pc.irq.level and pc.inb(IIR) == serial.IIR_NONE
    pc.out(DATA, 65)
    assert pc.irq.level and pc.irq.rises == 2
    pc.out(DATA, 66)
    assert pc.irq.rises == 3, "each byte is a new edge"
    pc.inb(IIR)
    pc.out(IER, 0)
    pc.out(IER, serial.IER_THR)
    assert pc.irq.level, "switching it on reports the empty transmitter again"


def test_divisor_latch() -> None:
    pc = Pc()
    assert pc.dev.divisor == 12
    pc.out(LCR, 0x83)
    pc.out(DATA, 1)
    pc.out(IER, 2)
    assert pc.inb(DATA) == 1 and pc.inb(IER) == 2 and pc.dev.divisor == 0x201 and not pc.chardev.output
    pc.out(LCR, 0x03)
    assert pc.inb(IER) == 0 and pc.inb(LCR) == 3


def test_receive_without_fifo() -> None:
    pc = Pc()
    pc.out(IER, serial.IER_RX)
    pc.chardev.feed(b"ab")
    assert pc.irq.level and pc.inb(LSR) & serial.LSR_DR and pc.inb(IIR) == serial.IIR_RX
    assert pc.inb(DATA) == ord("a") and pc.irq.level and pc.inb(DATA) == ord("b")
    assert not pc.irq.level and not pc.inb(LSR) & serial.LSR_DR


def test_receive_trigger_and_timeout() -> None:
    pc = Pc()
    pc.out(LCR, 3)
    pc.out(2, 0x81)
    pc.out(IER, serial.IER_RX)
    pc.chardev.feed(b"x" * 7)
    assert not pc.irq.level and pc.inb(IIR) == serial.IIR_NONE | serial.IIR_FIFO
    pc.clock.advance(4 * 10 * 1_000_000_000 * 12 // 115200 + 4)
    assert pc.irq.level and pc.inb(IIR) == serial.IIR_TIMEOUT | serial.IIR_FIFO
    pc.inb(DATA)
    assert not pc.irq.level
    pc.chardev.feed(b"yy")
    assert pc.irq.level and pc.inb(IIR) == serial.IIR_RX | serial.IIR_FIFO
    pc.chardev.feed(b"z" * 20)
    assert len(pc.dev.rx) == 16
    got = bytes(pc.inb(DATA) for _ in range(28))
    assert got == b"x" * 6 + b"yy" + b"z" * 20 and not pc.inb(LSR) & serial.LSR_OE


def test_fifo_clear() -> None:
    pc = Pc()
    pc.out(2, 0x01)
    pc.chardev.feed(b"abc")
    pc.out(2, 0x03)
    assert not pc.inb(LSR) & serial.LSR_DR and not pc.dev.rx
    pc.out(2, 0)
    assert pc.inb(IIR) & 0xC0 == 0


def test_break_and_line_status_interrupt() -> None:
    pc = Pc()
    pc.out(IER, serial.IER_LINE)
    pc.chardev.send_event(BREAK)
    assert pc.irq.level and pc.inb(IIR) == serial.IIR_LINE
    assert pc.inb(LSR) & serial.LSR_BI and not pc.irq.level and not pc.inb(LSR) & serial.LSR_BI
    assert pc.inb(DATA) == 0


def test_loopback() -> None:
    pc = Pc()
    pc.out(MCR, serial.MCR_LOOP | serial.MCR_RTS | serial.MCR_OUT2)
    assert pc.inb(MSR) == 0x90
    pc.out(MCR, serial.MCR_LOOP | serial.MCR_DTR | serial.MCR_OUT1)
    assert pc.inb(MSR) == 0x60
    pc.out(DATA, 0x55)
    assert not pc.chardev.output and pc.inb(DATA) == 0x55
    pc.out(DATA, 1)
    pc.out(DATA, 2)
    assert pc.inb(LSR) & serial.LSR_OE and pc.inb(DATA) == 2
    pc.out(MCR, 0)
    assert pc.inb(MSR) == 0xB0


def test_scratch_and_round_trip() -> None:
    pc = Pc()
    pc.out(SCR, 0xA5)
    pc.out(2, 0xC1)
    pc.out(IER, serial.IER_RX)
    pc.chardev.feed(b"abc")
    other = Pc()
    fresh = round_trip(pc.dev, lambda: other.dev)
    assert fresh.bank().read(SCR, 1) == 0xA5 and not other.irq.level
    other.clock.advance(10**9)
    assert other.irq.level and fresh.bank().read(DATA, 1) == ord("a")
    fresh.reset()
    assert not other.irq.level and not fresh.rx


def test_parallel() -> None:
    irq, chardev = Wire(), FakeChardev()
    dev = Parallel(chardev=chardev, irq=irq)
    bank = dev.bank()
    for c in b"hi":
        assert bank.read(1, 1) & 0x80
        bank.write(0, 1, c)
        bank.write(2, 1, 0x1D)
        bank.write(2, 1, 0x1C)
        assert irq.level and not bank.read(1, 1) & 0x80 and not irq.level
        assert not bank.read(1, 1) & 0x40, "ACK"
        assert bank.read(1, 1) & 0xC0 == 0xC0
    assert chardev.output == b"hi" and bank.read(0, 1) == ord("i")
    round_trip(dev, lambda: Parallel(chardev=FakeChardev(), irq=Wire()))


def test_input_that_waited_comes_in_only_when_the_whole_machine_is_loaded() -> None:
    """The local APIC is loaded after the devices: an interrupt raised before that would be lost."""
    pc = Pc()
    saved = pc.dev.save()
    pc.dev.receive(b"x")
    pc.chardev.feed(b"y")
    pc.dev.load(saved)
    assert not pc.dev.rx
    pc.dev.machine_loaded()
    assert bytes(pc.dev.rx) == b"y"
