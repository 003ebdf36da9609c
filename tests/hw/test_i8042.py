"""8042 with PS/2 keyboard and mouse: commands, translation, interrupts, A20 and reset."""

from __future__ import annotations

import pytest
from fakes import Wire, round_trip

from qemupy.hw.core import unconnected
from qemupy.hw.input import i8042, keycodes
from qemupy.hw.input.i8042 import I8042
from qemupy.hw.input.ps2 import Ps2Keyboard, Ps2Mouse


class Pc:
    def __init__(self) -> None:
        self.kbd, self.mouse = Ps2Keyboard(), Ps2Mouse()
        self.irq1, self.irq12, self.a20 = Wire(), Wire(), Wire()
        self.resets: list[int] = []
        self.dev = I8042(
            keyboard=self.kbd,
            mouse=self.mouse,
            kbd_irq=self.irq1,
            aux_irq=self.irq12,
            a20=self.a20,
            request_reset=lambda: self.resets.append(1),
        )
        self.data, self.command = self.dev.bank("data"), self.dev.bank("command")

    def cmd(self, value: int, *arguments: int) -> None:
        self.command.write(0, 1, value)
        for a in arguments:
            self.data.write(0, 1, a)

    def status(self) -> int:
        return self.command.read(0, 1)

    def drain(self) -> bytes:
        out = bytearray()
        while self.status() & i8042.OBF:
            out.append(self.data.read(0, 1))
        return bytes(out)

    def to_mouse(self, *values: int) -> bytes:
        for v in values:
            self.cmd(0xD4, v)
        return self.drain()


def test_self_test_and_port_tests() -> None:
    pc = Pc()
    assert pc.status() == 0x18
    for command, answer in ((0xAA, 0x55), (0xAB, 0), (0xA9, 0), (0xC0, 0x80), (0x20, 3), (0xD0, 0xCF)):
        pc.cmd(command)
        assert pc.drain() == bytes([answer]), hex(command)
    assert pc.status() & i8042.SELF_TESTED


def test_mode_byte_and_interrupts() -> None:
    pc = Pc()
    pc.cmd(0x60, 0x30)
    pc.kbd.key("a", True)
    assert not pc.status() & i8042.OBF, "disabled"
    pc.cmd(0xAE)
    assert pc.status() & i8042.OBF and not pc.irq1.level
    pc.cmd(0x60, 0x01)
    assert pc.irq1.level and not pc.irq12.level
    assert pc.data.read(0, 1) == 0x1C and not pc.irq1.level and pc.data.read(0, 1) == 0x1C
    pc.cmd(0x65, 0x77)
    pc.cmd(0x25)
    assert pc.drain() == b"\x77"


def test_each_byte_is_an_edge() -> None:
    pc = Pc()
    pc.kbd.key("right", True)
    assert pc.drain() == b"\xe0\x74" and pc.irq1.rises == 2


def test_own_answer_goes_before_a_waiting_key() -> None:
    pc = Pc()
    pc.kbd.key("a", True)
    pc.cmd(0x20)
    assert pc.drain() == b"\x03\x1c"


def test_translation() -> None:
    pc = Pc()
    pc.cmd(0x60, 0x41)
    for name, down in (("a", True), ("a", False), ("delete", True), ("delete", False), ("f7", True)):
        pc.kbd.key(name, down)
    assert pc.drain() == b"\x1e\x9e\xe0\x53\xe0\xd3\x41"
    pc.data.write(0, 1, 0xF2)
    assert pc.drain() == b"\xfa\xab\x41"
    pc.kbd.key("pause", True)
    assert pc.drain() == b"\xe1\x1d\x45\xe1\x9d\xc5"
    pc.kbd.key("print", True)
    pc.kbd.key("print", False)
    assert pc.drain() == b"\xe0\x2a\xe0\x37\xe0\xb7\xe0\xaa"


def test_translated_set_2_is_set_1_for_every_key() -> None:
    pc = Pc()
    pc.cmd(0x60, 0x41)
    for name in keycodes.KEY_NAMES:
        for down in (True, False):
            assert pc.kbd.key(name, down) or (name == "pause" and not down)
            assert pc.drain() == keycodes.scan_code(name, down, 1), name


@pytest.mark.parametrize(
    ("name", "codes"),
    [("z", (0x2C, 0x1A, 0x1A)), ("ret", (0x1C, 0x5A, 0x5A)), ("ctrl", (0x1D, 0x14, 0x11)), ("f12", (0x58, 0x07, 0x5E))],
)
def test_scan_code_sets(name: str, codes: tuple[int, int, int]) -> None:
    pc = Pc()
    pc.cmd(0x60, 0x01)
    for number, code in enumerate(codes, 1):
        pc.data.write(0, 1, 0xF0)
        pc.data.write(0, 1, number)
        assert pc.drain() == b"\xfa"
        pc.kbd.key(name, True)
        assert pc.drain() == bytes([code])
    pc.data.write(0, 1, 0xF0)
    pc.data.write(0, 1, 0)
    assert pc.drain() == b"\xfa\x03"


def test_sendkey_numbers() -> None:
    assert keycodes.key_of_number(0x1C) == "ret" and keycodes.key_of_number(0x9C) == "kp_enter"
    assert keycodes.key_of_number(0x7FF) is None


def test_keyboard_commands() -> None:
    pc = Pc()
    for sent, answer in ((b"\xff", b"\xfa\xaa"), (b"\xee", b"\xee"), (b"\xed\x07", b"\xfa"), (b"\xf1", b"\xfe")):
        for value in sent:
            pc.data.write(0, 1, value)
        assert pc.drain() == answer
    assert pc.kbd.leds == 7
    pc.data.write(0, 1, 0xF5)
    pc.drain()
    assert not pc.kbd.key("a", True)
    pc.data.write(0, 1, 0xF4)
    pc.drain()
    assert pc.kbd.key("a", True)
    for _ in range(8):
        pc.kbd.key("up", True)
    assert pc.drain() == b"\x1c" + b"\xe0\x75" * 7, "overflow drops whole codes"
    pc.data.write(0, 1, 0xFE)
    assert pc.drain() == b"\x75"


def test_a20_and_reset() -> None:
    pc = Pc()
    pc.cmd(0xDF)
    assert pc.a20.level
    pc.cmd(0xD1, 0xDD)
    assert not pc.a20.level and not pc.resets
    pc.cmd(0xFE)
    pc.cmd(0xFF)
    assert pc.resets == [1]
    pc.cmd(0xD1, 0xDE)
    assert pc.resets == [1, 1] and pc.a20.level


def test_write_to_own_output_buffer() -> None:
    pc = Pc()
    pc.cmd(0xD2, 0x12)
    assert pc.irq1.level and pc.status() & 0x21 == 0x01 and pc.drain() == b"\x12"
    pc.cmd(0xD3, 0x34)
    assert pc.irq12.level and pc.status() & 0x21 == 0x21 and pc.drain() == b"\x34"


def test_mouse_reports() -> None:
    pc = Pc()
    assert pc.to_mouse(0xFF) == b"\xfa\xaa\x00" and pc.irq12.rises == 3
    pc.mouse.move(1, 1)
    assert not pc.drain(), "not enabled"
    assert pc.to_mouse(0xF4)[:1] == b"\xfa"
    pc.drain()
    pc.mouse.move(5, -3)
    assert pc.drain() == b"\x08\x05\x03"
    pc.mouse.press(1)
    pc.mouse.move(-300, 0)
    assert pc.drain() == b"\x09\x00\x00\x19\x81\x00\x19\x81\x00\x19\xd2\x00"
    assert pc.to_mouse(0xE9) == b"\xfa\x24\x02\x64"


def test_mouse_intellimouse_knock() -> None:
    pc = Pc()
    pc.to_mouse(0xF3, 200, 0xF3, 100, 0xF3, 80)
    assert pc.to_mouse(0xF2) == b"\xfa\x03"
    pc.to_mouse(0xF4)
    pc.mouse.move(0, 0, -1)
    assert pc.drain() == b"\x08\x00\x00\xff"
    pc.to_mouse(0xF3, 200, 0xF3, 200, 0xF3, 80)
    assert pc.to_mouse(0xF2) == b"\xfa\x04"
    pc.mouse.press(0x08)
    assert pc.drain() == b"\x08\x00\x00\x10"
    assert pc.to_mouse(0xFF) == b"\xfa\xaa\x00" and pc.to_mouse(0xF2) == b"\xfa\x00"


def test_mouse_remote_and_wrap() -> None:
    pc = Pc()
    pc.to_mouse(0xF4, 0xF0)
    pc.mouse.move(2, 0)
    assert not pc.drain() and pc.to_mouse(0xEB) == b"\xfa\x08\x02\x00"
    pc.to_mouse(0xEE)
    assert pc.to_mouse(0x55) == b"\x55" and pc.to_mouse(0xEC) == b"\xfa"


def test_a_new_command_breaks_off_the_answer_and_loses_no_interrupt() -> None:
    pc = Pc()
    pc.data.write(0, 1, 0xF2)
    assert pc.data.read(0, 1) == 0xFA
    pc.data.write(0, 1, 0xEE)
    assert pc.irq1.level and pc.drain() == b"\xee"
    pc.kbd.key("a", True)
    assert pc.irq1.level and pc.drain() == b"\x1c"


def test_round_trip() -> None:
    pc, other = Pc(), Pc()
    pc.cmd(0x60, 0x43)
    pc.data.write(0, 1, 0xED)
    pc.kbd.key("delete", False)
    pc.mouse.enabled = True
    pc.mouse.move(3, 0)
    round_trip(pc.kbd, lambda: other.kbd)
    round_trip(pc.mouse, lambda: other.mouse)
    round_trip(pc.dev, lambda: other.dev)
    assert other.irq1.level and other.drain() == pc.drain() == b"\xfa\xe0\xd3\x08\x03\x00"
    other.data.write(0, 1, 2)
    assert other.kbd.leds == 2
    other.dev.reset()
    other.kbd.reset()
    assert not other.irq1.level and other.kbd.enabled and other.kbd.save() == Ps2Keyboard().save()
    assert unconnected().level is False
