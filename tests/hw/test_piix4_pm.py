"""ACPI fixed hardware of the PIIX4: events and SCI, PM timer, sleep, placing of the registers."""

from __future__ import annotations

import pytest

from qemupy.hw.acpi import pm1 as regs
from qemupy.hw.acpi.piix4_pm import Piix4Pm
from qemupy.hw.acpi.pm1 import Pm1
from qemupy.hw.core import IrqLine, ManualClock
from qemupy.memory import PortSpace

BASE = 0x600


class Rig:
    def __init__(self, placed: bool = True) -> None:
        self.clock, self.ports = ManualClock(1000), PortSpace()
        self.sci = IrqLine(lambda n, level: None)
        self.offs = 0
        self.pm1 = Pm1(clock=self.clock, sci=self.sci, power_off=self.on_off)
        self.pm = Piix4Pm(pm1=self.pm1, ports=self.ports.root)
        if placed:
            self.pm.config_write(0x40, 4, BASE | 1)
            self.pm.config_write(0x80, 1, 1)

    def on_off(self) -> None:
        self.offs += 1


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_identity_and_reset_values() -> None:
    config = Rig(placed=False).pm.config
    assert config[0:4] == bytes.fromhex("86801371") and config[8:12] == bytes.fromhex("03008006")
    assert config[0x40] == 1 and config[0x90:0x92] == b"\x01\xb1" and config[0x5F] == 0x90 and config[0x67] == 8
    assert config[0x5B] == 2, "firmware must not wait for an SMI"


def test_registers_move_with_pmba(rig: Rig) -> None:
    assert rig.ports.read(BASE + 4, 2) == 0
    rig.pm.config_write(0x40, 4, 0xB000)
    assert rig.ports.read(BASE + 4, 2) == 0xFFFF and rig.ports.read(0xB004, 2) == 0
    other = Rig(placed=False)
    other.pm.load(rig.pm.save())
    assert other.ports.read(0xB004, 2) == 0
    other.pm.reset()
    assert other.ports.read(0xB004, 2) == 0xFFFF


def test_timer_rate_and_overflow(rig: Rig) -> None:
    start = rig.ports.read(BASE + 8, 4)
    rig.clock.advance(1_000_000_000)
    assert rig.ports.read(BASE + 8, 4) - start in (3579544, 3579545, 3579546)
    rig.pm.apm_command(0xF1)
    rig.ports.write(BASE + 2, 2, regs.TMR)
    assert not rig.sci.level
    rig.clock.advance(1_400_000_000)  # 2^23 ticks are 2.34 s
    assert rig.sci.level and rig.ports.read(BASE, 2) & 1
    rig.ports.write(BASE, 2, 1)
    assert not rig.sci.level
    rig.clock.advance(2_200_000_000)
    assert not rig.sci.level
    rig.clock.advance(100_000_000)
    assert rig.sci.level


def test_power_button_needs_acpi_mode(rig: Rig) -> None:
    rig.ports.write(BASE + 2, 2, regs.PWRBTN)
    rig.pm1.press_power_button()
    assert not rig.sci.level
    rig.pm.apm_command(0xF1)
    assert rig.sci.level and rig.ports.read(BASE + 4, 2) == 1
    again = Rig()
    again.pm1.load(rig.pm1.save())
    assert again.sci.level
    rig.ports.write(BASE, 2, regs.PWRBTN)
    assert not rig.sci.level
    rig.pm.apm_command(0xF0)
    assert rig.ports.read(BASE + 4, 2) == 0


def test_soft_off(rig: Rig) -> None:
    rig.ports.write(BASE + 4, 2, 5 << 10 | regs.SLP_EN)
    assert rig.offs == 0
    rig.ports.write(BASE + 4, 2, regs.SLP_EN)
    assert rig.offs == 1 and rig.ports.read(BASE + 4, 2) == 0, "SLP_EN reads as zero"


def test_gpe_block(rig: Rig) -> None:
    rig.pm.apm_command(0xF1)
    rig.pm1.gpe_status = 2
    rig.ports.write(0xAFE2, 1, 2)
    assert rig.sci.level and rig.ports.read(0xAFE0, 2) == 2
    rig.ports.write(0xAFE0, 2, 2)
    assert not rig.sci.level


def test_smbus_has_no_devices(rig: Rig) -> None:
    rig.ports.write(0xB102, 1, 0x48)
    assert rig.ports.read(0xB100, 1) == 4
    rig.ports.write(0xB100, 1, 0xFF)
    assert rig.ports.read(0xB100, 1) == 0
