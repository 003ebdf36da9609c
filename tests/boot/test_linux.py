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
    machine.power_off()


def test_clock_and_sleep_agree(boot: BootFunction) -> None:
    """A second of sleep is a second on the guest's clocks: RTC, timer interrupt and TSC tell the same time."""
    guest = guests.linux("linux-image-cloud-amd64")
    machine = boot("-m", "256", "-nographic", "-kernel", guest.kernel, "-initrd", guest.initrd, "-append", CONSOLE)
    to_shell(machine, "cloud-amd64")
    lines = machine.run("cat /proc/uptime; hwclock -u -r; sleep 3; cat /proc/uptime; hwclock -u -r").splitlines()
    passed = float(lines[2].split()[0]) - float(lines[0].split()[0])
    assert 2.9 < passed < 6
    assert lines[1] != lines[3]
    machine.power_off()


def test_no_mitigation_costs_the_guest_anything(boot: BootFunction) -> None:
    """On `max` a kernel finds nothing to work around but what is switched on once (docs/performance.md)."""
    guest = guests.linux("linux-image-cloud-amd64")
    machine = boot("-m", "256", "-nographic", "-cpu", "max", "-kernel", guest.kernel, "-initrd", guest.initrd,
                   "-append", CONSOLE)
    to_shell(machine, "cloud-amd64")
    found = dict(line.split(":", 1) for line in
                 machine.run("cd /sys/devices/system/cpu/vulnerabilities && grep . *").splitlines())
    assert len(found) > 10
    # No CPU is said to be free of these two. Spectre v1 costs fences beside a few copies; v2 an MSR written at boot.
    assert found.pop("spectre_v1") == "Mitigation: usercopy/swapgs barriers and __user pointer sanitization"
    parts = found.pop("spectre_v2").split("; ")
    assert parts[0] == "Mitigation: Enhanced / Automatic IBRS"  # and no retpolines
    assert {part.split(":")[0]: part.split(": ")[1] for part in parts[2:]} == {
        "PBRSB-eIBRS": "Not affected", "BHI": "BHI_DIS_S"}  # and no loop at every entry
    assert set(found.values()) == {"Not affected"}, found
    flags = machine.run("grep -m1 ^flags /proc/cpuinfo").split()
    assert {"constant_tsc", "nonstop_tsc", "erms", "fsrm", "pcid", "invpcid", "fsgsbase", "tsc_known_freq", "arat",
            "tsc_deadline_timer", "x2apic"} <= set(flags)
    assert "pti" not in flags and "retpoline" not in flags
    assert not machine.run("dmesg | grep -iE 'Refined TSC|TSC calibration|Marking TSC unstable' || true")
    machine.power_off()
