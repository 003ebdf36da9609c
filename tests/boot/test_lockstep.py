"""Whole boots in lock-step: interpreter and translator execute each block from the same state, and every register,
flag, FPU state and stored byte must agree. A difference ends the program and is in the console's text."""

from pathlib import Path

import pytest
from machine import REFERENCE, Machine

from qemupy_setup import guests, initramfs

LOCKSTEP = "dbt,lockstep=on"
pytestmark = pytest.mark.skipif(REFERENCE is not None, reason="compares our own two tiers")


def boot_to_power_off(package: str, arch: str, tmp_path: Path) -> None:
    guest = guests.linux(package, arch)
    arguments = ("-m", "256", "-nographic", "-kernel", guest.kernel, "-initrd", guest.initrd, "-append",
                 "console=ttyS0,115200")  # fmt: skip
    with Machine(LOCKSTEP, *arguments, log=tmp_path / "console.log") as machine:
        machine.expect(initramfs.READY, 900)
        machine.expect(initramfs.PROMPT, 120)
        digest = machine.run("dd if=/dev/zero bs=64k count=16 2>/dev/null | md5sum", 240)
        assert digest.startswith("b6d81b360a5672d80c27430f39153e2c")
        machine.send("\x01c")
        machine.expect("QEMU", 60)
        machine.send("info jit\n")
        machine.expect(r"blocks compared\s+(\d+)", 60)
        compared = int(machine.text().rsplit("blocks compared", 1)[1].split()[0])
        print(f"{compared} blocks compared")
        assert compared > 100_000
        machine.send("quit\n")
        assert machine.wait(60) == 0


@pytest.mark.boot
def test_cloud_kernel(tmp_path: Path) -> None:
    boot_to_power_off("linux-image-cloud-amd64", "amd64", tmp_path)


@pytest.mark.boot
def test_686_kernel(tmp_path: Path) -> None:
    boot_to_power_off("linux-image-686", "i386", tmp_path)


@pytest.mark.long
def test_installer(tmp_path: Path) -> None:
    guest = guests.installer("amd64")
    arguments = ("-m", "1024", "-nographic", "-kernel", guest.kernel, "-initrd", guest.initrd, "-append",
                 "console=ttyS0,115200 TERM=linux")  # fmt: skip
    with Machine(LOCKSTEP, *arguments, log=tmp_path / "console.log") as machine:
        machine.expect("activates buttons", 3000)
