"""Whole boots in lock-step: interpreter and translator execute each block, or chains of blocks with links and jump
caches at work, from the same state, and every register, flag, FPU state and stored byte must agree. A difference ends
the program and is in the console's text."""

from pathlib import Path

import pytest
from machine import REFERENCE, Machine

from qemupy_setup import guests, initramfs

pytestmark = pytest.mark.skipif(REFERENCE is not None, reason="compares our own two tiers")


def compared(machine: Machine) -> int:
    """Asks the monitor on the console, and leaves it open."""
    machine.send("\x01c")
    machine.expect("QEMU", 60)
    machine.send("info jit\n")
    blocks = int(machine.expect(r"blocks compared\s+(\d+)", 60).group(1))
    print(f"{blocks} blocks compared")
    return blocks


def boot_and_work(mode: str, package: str, arch: str, tmp_path: Path) -> None:
    guest = guests.linux(package, arch)
    arguments = ("-m", "256", "-nographic", "-kernel", guest.kernel, "-initrd", guest.initrd, "-append",
                 "console=ttyS0,115200")  # fmt: skip
    with Machine(f"dbt,lockstep={mode}", *arguments, log=tmp_path / "console.log") as machine:
        machine.expect(initramfs.READY, 900)
        machine.expect(initramfs.PROMPT, 120)
        digest = machine.run("dd if=/dev/zero bs=64k count=16 2>/dev/null | md5sum", 240)
        assert digest.startswith("b6d81b360a5672d80c27430f39153e2c")
        assert compared(machine) > 100_000
        machine.send("quit\n")
        assert machine.wait(60) == 0


@pytest.mark.boot
@pytest.mark.parametrize("mode", ["block", "chain"])
def test_cloud_kernel(mode: str, tmp_path: Path) -> None:
    boot_and_work(mode, "linux-image-cloud-amd64", "amd64", tmp_path)


@pytest.mark.boot
@pytest.mark.parametrize("mode", ["block", "chain"])
def test_686_kernel(mode: str, tmp_path: Path) -> None:
    boot_and_work(mode, "linux-image-686", "i386", tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("mode", ["block", "chain"])
def test_installer(mode: str, tmp_path: Path) -> None:
    guest = guests.installer("amd64")
    arguments = ("-m", "1024", "-nographic", "-kernel", guest.kernel, "-initrd", guest.initrd, "-append",
                 "console=ttyS0,115200 TERM=linux")  # fmt: skip
    with Machine(f"dbt,lockstep={mode}", *arguments, log=tmp_path / "console.log") as machine:
        machine.expect("activates buttons", 3000)
        assert compared(machine) > 1_000_000
