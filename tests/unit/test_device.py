"""The Device form: fields, wires, properties, registers, save and load."""

from __future__ import annotations

import pytest

from qemupy.errors import StateError
from qemupy.hw.core import (
    Clock,
    Device,
    IrqLine,
    ManualClock,
    State,
    Timer,
    array,
    boolean,
    buffer,
    fifo,
    nested_list,
    on_read,
    on_read_burst,
    on_write,
    prop,
    timer,
    transient,
    u8,
    u16,
    u32,
)


class Channel(State):
    count: int = u16(reset=0xFFFF)
    gate: bool = boolean(reset=True)


class Sample(Device):
    irq: IrqLine
    clock: Clock
    index: int = prop(default=3)
    ier: int = u8()
    divisor: int = u16(reset=12)
    wide: int = u32(reset=0x44332211)
    rx: bytearray = fifo(16)
    sector: bytearray = buffer(8)
    lines: list[int] = array(8, 4, reset=7)
    channels: list[Channel] = nested_list(Channel, 3)
    cmos: int = u8(keep=True)
    tick: Timer = timer("clock", "on_tick")
    ticks: int = transient(0)

    def on_tick(self) -> None:
        self.ticks += 1

    @on_read(0, 1)
    def read_ier(self, offset: int) -> int:
        return self.ier + offset

    @on_write(0)
    def write_ier(self, value: int) -> None:
        self.ier = value
        self.irq.set(bool(value))

    @on_write(1)
    def write_nothing(self, value: int) -> None:
        pass

    @on_read(4, size=4)
    def read_wide(self) -> int:
        return self.wide

    @on_read(8, size=2)
    def read_data(self) -> int:
        return 0x1234

    @on_read_burst(8, size=2)
    def read_many(self, count: int) -> bytes:
        return b"ab"


def make() -> Sample:
    return Sample(irq=IrqLine(lambda n, level: None), clock=ManualClock())


def test_reset_values_wires_and_props() -> None:
    dev = make()
    assert (dev.divisor, dev.lines, dev.index, dev.channels[2].count) == (12, [7] * 4, 3, 0xFFFF)
    with pytest.raises(TypeError, match="needs the wire 'irq'"):
        Sample(clock=ManualClock())  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="no wire or property 'foo'"):
        Sample(irq=dev.irq, clock=dev.clock, foo=1)  # type: ignore[call-arg]


def test_undeclared_attribute_is_refused() -> None:
    with pytest.raises(AttributeError):
        make().typo = 1  # type: ignore[attr-defined]


def test_registers_split_cut_and_string() -> None:
    dev = make()
    bank = dev.bank()
    bank.write(0, 1, 5)
    assert dev.irq.level and bank.read(0, 1) == 5
    assert bank.read(0, 2) == 0x0605
    bank.write(0, 2, 0xAA09)
    assert dev.ier == 9
    assert bank.read(5, 1) == 0x22 and bank.read(6, 2) == 0x4433
    assert bank.read(12, 4) == 0xFFFFFFFF
    assert bank.read_string(8, 2, 2) == b"ab\x34\x12"


def test_collisions_name_both_handlers() -> None:
    with pytest.raises(TypeError, match=r"second \[0x03-0x03\] and first \[0x03-0x03\] collide"):

        class Bad(Device):
            @on_read(3)
            def first(self) -> int:
                return 0

            @on_read(3)
            def second(self) -> int:
                return 0


def test_save_load_round_trip() -> None:
    dev = make()
    dev.ier, dev.cmos, dev.channels[1].count, dev.lines[2] = 0x55, 9, 77, 1
    dev.rx += b"hello"
    dev.sector[0] = 0xEE
    dev.tick.mod(1000)
    saved = dev.save()
    other = make()
    sector = other.sector
    other.load(saved)
    assert other.save() == saved and sector is other.sector
    assert isinstance(other.clock, ManualClock)
    other.clock.advance(1000)
    assert other.ticks == 1 and other.tick.deadline is None


def test_reset_keeps_what_is_declared_keep() -> None:
    dev = make()
    dev.ier, dev.cmos = 1, 2
    dev.rx += b"x"
    dev.tick.mod(5)
    dev.reset()
    assert (dev.ier, dev.cmos, bytes(dev.rx), dev.tick.deadline) == (0, 2, b"", None)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("ier", 256, "does not fit 8 bits"),
        ("ier", -1, "does not fit 8 bits"),
        ("ier", "1", "an integer is needed"),
        ("ier", True, "an integer is needed"),
        ("rx", b"x" * 17, "17 bytes where 16"),
        ("sector", b"x", "1 bytes where 8 are needed"),
        ("lines", [1, 2, 3], "a list of 4 integers"),
        ("channels", [{}], "a list of 3 entries"),
        ("tick", -4, "a deadline"),
        ("bogus", 1, "unknown field 'bogus'"),
        ("version", 9, "later version"),
    ],
)
def test_hostile_state_is_refused_whole(field: str, value: object, message: str) -> None:
    dev = make()
    before = dev.save()
    bad = {**before, "divisor": 99, field: value}
    with pytest.raises(StateError, match=message):
        dev.load(bad)
    assert dev.save() == before


def test_since() -> None:
    class Later(State):
        version = 2
        old: int = u8()
        new: int = u8(reset=5, since=2)

    state = Later()
    state.new = 1
    state.load({"version": 1, "old": 3})
    assert (state.old, state.new) == (3, 5)
    with pytest.raises(StateError, match="'new' is missing"):
        state.load({"version": 2, "old": 3})


def test_inheritance_keeps_and_overrides_handlers() -> None:
    class Derived(Sample):
        extra: int = u8(reset=1)

        def read_wide(self) -> int:
            return 1

    dev = Derived(irq=IrqLine(lambda n, level: None), clock=ManualClock())
    assert dev.bank().read(4, 4) == 1 and dev.extra == 1 and "ier" in dev.save()
