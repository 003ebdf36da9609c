"""A CD-ROM with GRUB that starts a kernel; and the same kernel by -kernel, which must find the same machine."""

import re

import pytest
from machine import BootFunction, Machine

from qemupy_setup import guests, initramfs

pytestmark = pytest.mark.boot

# What the kernel says about the machine it found, whatever way it was loaded. Addresses of tables may differ.
MACHINE_LINES = re.compile(
    r"\] (ACPI: (?:RSDP|RSDT|XSDT|FACP|DSDT|FACS|APIC|HPET|WAET|SSDT)\b.*|ACPI: PCI: Interrupt link.*|"
    r"ACPI: INT_SRC_OVR.*|IOAPIC\[0\].*|DMI: .*|SMBIOS .*|pci 0000:00:[0-9a-f.]+: \[[0-9a-f:]+\].*|"
    r"ACPI: PM-Timer IO Port.*|hpet: .*|tsc: Detected.*MHz processor|rtc_cmos.*alarms.*)")


def described_machine(text: str) -> list[str]:
    """The lines about the hardware, sorted, without what the loader decides."""
    variable = r"0x[0-9A-Fa-f]{8,16}|v\d+ |[\d.]+ MHz|, BIOS .*"
    lines = (re.sub(variable, "", line) for line in MACHINE_LINES.findall(text))
    return sorted(line.strip() for line in lines)


def to_shell(machine: Machine) -> str:
    machine.expect(initramfs.READY, 300)
    machine.expect(initramfs.PROMPT, 60)
    text = machine.text()
    machine.power_off()
    return text


def test_grub_on_a_cdrom_and_direct_boot_agree(boot: BootFunction) -> None:
    iso = guests.grub_iso()
    through_firmware = boot("-m", "512", "-nographic", "-cdrom", iso)
    through_firmware.expect("GNU GRUB", 60)
    through_firmware.send("\n")
    from_disc = described_machine(to_shell(through_firmware))

    guest = guests.linux("linux-image-cloud-amd64")
    direct = boot("-m", "512", "-nographic", "-cdrom", iso, "-kernel", guest.kernel, "-initrd", guest.initrd,
                  "-append", guests.ISO_KERNEL_ARGS)
    from_kernel = described_machine(to_shell(direct))
    assert len(from_disc) > 15, from_disc
    assert from_kernel == from_disc
