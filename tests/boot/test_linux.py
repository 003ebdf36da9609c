"""Linux kernels started by -kernel, each to a shell in a busybox initramfs, and off again through ACPI."""

import pytest
from machine import BootFunction, Machine

from qemupy_setup import guests, initramfs

pytestmark = pytest.mark.boot

CONSOLE = "console=ttyS0,115200"
BOOT_TIME = 240


def to_shell(machine: Machine, release: str) -> None:
    """Wait until our init of the expected kernel runs and its shell answers."""
    machine.expect(rf"{initramfs.READY} \S*{release}\b", BOOT_TIME)
    machine.expect(initramfs.PROMPT, 60)
    assert machine.run("echo $((6 * 7))").strip() == "42"


def power_off(machine: Machine) -> None:
    """Leave through ACPI S5 and look at everything the guest said."""
    machine.send("poweroff -f\n")
    assert machine.wait(60) == 0
    machine.check_alarms()


@pytest.mark.parametrize(("package", "arch", "cpu", "release"), [
    ("linux-image-cloud-amd64", "amd64", "qemu64", "cloud-amd64"),
    ("linux-image-686", "i386", "pentium3", "686"),
    ("linux-image-686-pae", "i386", "qemu32", "686-pae"),
])
def test_kernel_boots(boot: BootFunction, package: str, arch: str, cpu: str, release: str) -> None:
    guest = guests.linux(package, arch)
    machine = boot("-m", "256", "-nographic", "-cpu", cpu, "-kernel", guest.kernel, "-initrd", guest.initrd,
                   "-append", CONSOLE)
    to_shell(machine, release)
    assert int(machine.run("grep -c ^processor /proc/cpuinfo")) == 1
    before, after = (int(machine.run("grep -m1 -E 'timer' /proc/interrupts").split()[1]) for _ in range(2))
    assert after >= before > 0
    # Busy work under the timer: the result must be right, and the clock must have moved by about what it took.
    digest = machine.run("dd if=/dev/zero bs=64k count=16 2>/dev/null | md5sum", 120)
    assert digest.startswith("b6d81b360a5672d80c27430f39153e2c")
    power_off(machine)


def test_clock_and_sleep_agree(boot: BootFunction) -> None:
    """A second of sleep is a second on the guest's clocks: RTC, timer interrupt and TSC tell the same time."""
    guest = guests.linux("linux-image-cloud-amd64")
    machine = boot("-m", "256", "-nographic", "-kernel", guest.kernel, "-initrd", guest.initrd, "-append", CONSOLE)
    to_shell(machine, "cloud-amd64")
    lines = machine.run("cat /proc/uptime; hwclock -u -r; sleep 3; cat /proc/uptime; hwclock -u -r").splitlines()
    passed = float(lines[2].split()[0]) - float(lines[0].split()[0])
    assert 2.9 < passed < 6
    assert lines[1] != lines[3]
    power_off(machine)
