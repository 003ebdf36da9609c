"""The PIIX4 power management function, 00:01.3 of a PC.

82371AB (PIIX4) datasheet chapter 7: PMBA (40h) and PMREGMISC (80h) place 64 ports of power management registers, 90h
those of the SMBus. Device activity registers 5Ch-67h only tell firmware which ports exist. GLBCTL-style SMI enables
(58h-5Bh) are storage, but 5Bh says from the start that APMC SMIs are on, so that firmware does not wait for an SMI
handler that a CPU without SMM never runs. General-purpose events lie at a fixed port, as in QEMU.
"""

from __future__ import annotations

from typing import ClassVar

from qemupy.hw.acpi.pm1 import Pm1
from qemupy.hw.core import array, on_read, on_write, transient
from qemupy.hw.core.registry import register
from qemupy.hw.pci.device import PciDevice
from qemupy.memory import MemoryRegion

PMBA, PMREGMISC, SMBBA = 0x40, 0x80, 0x90
ACPI_ENABLE, ACPI_DISABLE = 0xF1, 0xF0  # APMC commands, as the FADT says
GPE_BASE, SMBUS_BASE = 0xAFE0, 0xB100
SMB_STATUS, SMB_CONTROL, SMB_ERROR, SMB_START = 0, 2, 0x04, 0x40


@register("PIIX4_PM", bus="PCI")
class Piix4Pm(PciDevice):
    device_id = 0x7113
    revision = 0x03
    class_code = 0x068000
    interrupt_pin = 1
    command_mask = 0x0001
    config_reset: ClassVar[dict[int, bytes]] = {
        0x06: b"\x80\x02", PMBA: b"\x01", 0x5B: b"\x02", 0x63: b"\x60", SMBBA: b"\x01\xb1", 0xD2: b"\x09",
    }  # fmt: skip
    config_mask: ClassVar[dict[int, bytes]] = {PMBA: b"\xc0\xff\0\0", SMBBA: bytes(4)}

    pm1: Pm1
    ports: MemoryRegion  # the I/O ports
    has_parallel: bool = True
    serial_count: int = 1
    smbus: list[int] = array(8, 16)
    _window: MemoryRegion | None = transient(None)
    _base: int | None = transient(None)

    def realize(self) -> None:
        super().realize()
        self._window = MemoryRegion.mmio("piix4-pm", 64, self.bank("pm"))
        self.ports.add(MemoryRegion.mmio("acpi-gpe0", 4, self.bank("gpe")), GPE_BASE)
        self.ports.add(MemoryRegion.mmio("pm-smbus", 64, self.bank("smbus")), SMBUS_BASE)

    def _power_on(self) -> None:
        super()._power_on()
        self.config[0x5F] = 0x90 if self.has_parallel else 0x10
        self.config[0x67] = (0x08 if self.serial_count > 0 else 0) | (0x90 if self.serial_count > 1 else 0)

    def _place_registers(self) -> None:
        """Show the registers where PMBA says, while PMREGMISC says so."""
        base = int.from_bytes(self.config[PMBA : PMBA + 2], "little") & 0xFFC0
        wanted = base if self.config[PMREGMISC] & 1 else None
        if wanted == self._base or self._window is None:
            return
        if self._base is not None:
            self.ports.remove(self._window)
        if wanted is not None:
            self.ports.add(self._window, wanted)
        self._base = wanted

    def config_written(self, offset: int, size: int) -> None:
        self._place_registers()

    def place(self) -> None:
        super().place()
        self._place_registers()

    def apm_command(self, value: int) -> None:
        """A write to APMC."""
        if value in (ACPI_ENABLE, ACPI_DISABLE):
            self.pm1.switch_acpi(value == ACPI_ENABLE)

    @on_read(0, size=2, bank="pm")
    def read_status(self) -> int:
        return self.pm1.read_status()

    @on_write(0, size=2, bank="pm")
    def write_status(self, value: int) -> None:
        self.pm1.write_status(value)

    @on_read(2, size=2, bank="pm")
    def read_enable(self) -> int:
        return self.pm1.enable

    @on_write(2, size=2, bank="pm")
    def write_enable(self, value: int) -> None:
        self.pm1.write_enable(value)

    @on_read(4, size=2, bank="pm")
    def read_control(self) -> int:
        return self.pm1.control

    @on_write(4, size=2, bank="pm")
    def write_control(self, value: int) -> None:
        self.pm1.write_control(value)

    @on_read(8, size=4, bank="pm")
    def read_timer(self) -> int:
        return self.pm1.read_timer()

    @on_write(8, size=4, bank="pm")
    def write_timer(self, value: int) -> None:
        """Read-only."""

    @on_read(0, size=2, bank="gpe")
    def read_gpe_status(self) -> int:
        return self.pm1.gpe_status

    @on_write(0, size=2, bank="gpe")
    def write_gpe_status(self, value: int) -> None:
        self.pm1.gpe_status &= ~value
        self.pm1.update()

    @on_read(2, size=2, bank="gpe")
    def read_gpe_enable(self) -> int:
        return self.pm1.gpe_enable

    @on_write(2, size=2, bank="gpe")
    def write_gpe_enable(self, value: int) -> None:
        self.pm1.gpe_enable = value
        self.pm1.update()

    @on_write(0, 1, bank="gpe")
    def write_gpe_status_byte(self, offset: int, value: int) -> None:
        self.write_gpe_status(value << 8 * offset)

    @on_write(2, 3, bank="gpe")
    def write_gpe_enable_byte(self, offset: int, value: int) -> None:
        shift = 8 * (offset & 1)
        self.write_gpe_enable(self.pm1.gpe_enable & ~(0xFF << shift) | value << shift)

    @on_read(range(16), bank="smbus")
    def read_smbus(self, offset: int) -> int:
        return self.smbus[offset]

    @on_write(range(16), bank="smbus")
    def write_smbus(self, offset: int, value: int) -> None:
        """The host controller without any device on its bus: every transaction ends with a device error."""
        if offset == SMB_STATUS:
            self.smbus[SMB_STATUS] &= ~value
            return
        self.smbus[offset] = value & ~SMB_START if offset == SMB_CONTROL else value
        if offset == SMB_CONTROL and value & SMB_START:
            self.smbus[SMB_STATUS] |= SMB_ERROR
