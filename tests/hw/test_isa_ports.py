"""Debug console, exit port, port 80h/92h/CF9h/B2h/F0h."""

from __future__ import annotations

from fakes import Wire, round_trip

from qemupy.backends.chardev import FakeChardev
from qemupy.hw.core import unconnected
from qemupy.hw.isa.debug import DebugCon, DebugExit, PostCode
from qemupy.hw.isa.system_ports import ApmControl, FpuError, Port92, ResetControl


def test_debugcon() -> None:
    chardev = FakeChardev()
    bank = DebugCon(chardev=chardev).bank()
    assert bank.read(0, 1) == 0xE9
    bank.write(0, 1, ord("x"))
    bank.write_string(0, 1, b"yz")
    assert chardev.output == b"xyz"


def test_debug_exit_status_is_odd() -> None:
    codes: list[int] = []
    bank = DebugExit(exit=codes.append).bank()
    bank.write(0, 1, 0x10)
    bank.write(0, 4, 0)
    assert codes == [0x21, 1] and bank.read(0, 1) == 0


def test_post_code() -> None:
    dev = PostCode()
    dev.bank().write(0, 1, 0x55)
    assert round_trip(dev, PostCode).code == 0x55


def test_port92_a20_and_reset() -> None:
    resets: list[int] = []
    a20 = Wire()
    dev = Port92(a20=a20, request_reset=lambda: resets.append(1))
    bank = dev.bank()
    bank.write(0, 1, 2)
    assert a20.level and not resets and bank.read(0, 1) == 2
    bank.write(0, 1, 1)
    bank.write(0, 1, 1)
    assert not a20.level and resets == [1]
    round_trip(dev, lambda: Port92(a20=unconnected(), request_reset=lambda: None))
    bank.write(0, 1, 3)
    dev.reset()
    assert bank.read(0, 1) == 2


def test_reset_control() -> None:
    resets: list[int] = []
    dev = ResetControl(request_reset=lambda: resets.append(1))
    dev.bank().write(0, 1, 2)
    assert dev.bank().read(0, 1) == 2 and not resets
    dev.bank().write(0, 1, 6)
    assert resets == [1] and dev.bank().read(0, 1) == 2
    round_trip(dev, lambda: ResetControl(request_reset=lambda: None))


def test_apm() -> None:
    commands: list[int] = []
    dev = ApmControl(command=commands.append)
    dev.bank().write(0, 2, 0x55F1)
    assert commands == [0xF1] and dev.bank().read(0, 1) == 0xF1 and dev.bank().read(1, 1) == 0x55
    fresh = round_trip(dev, lambda: ApmControl(command=commands.append))
    assert commands == [0xF1] and fresh.apms == 0x55


def test_fpu_error() -> None:
    irq = Wire()
    ignne: list[int] = []
    dev = FpuError(irq=irq, ignne=lambda: ignne.append(1))
    dev.ferr()
    assert irq.level
    loaded = Wire()
    round_trip(dev, lambda: FpuError(irq=loaded))
    assert loaded.level
    dev.bank().write(0, 1, 0)
    assert not irq.level and ignne == [1]
