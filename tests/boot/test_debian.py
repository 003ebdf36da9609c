"""An installed Debian from its disk: SeaBIOS, GRUB, ext4, systemd, a login; what was written outlives the power-off."""

import shutil
import subprocess
from pathlib import Path

import pytest
from machine import BootFunction, Machine

from qemupy_setup import disk

pytestmark = pytest.mark.boot

BOOT_TIME = 600


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A disk of the test's own."""
    copy = tmp_path / "debian.img"
    subprocess.run(["cp", "--reflink=auto", "--sparse=always", disk.debian_disk(), copy], check=True)
    return copy


def log_in(machine: Machine) -> None:
    """From power-on to a root shell."""
    machine.expect("SeaBIOS", 30)
    machine.expect("GRUB", 60)
    machine.expect("Linux version", 120)
    machine.expect("login: ", BOOT_TIME)
    machine.send(f"{disk.USER}\n")
    machine.expect("Password: ", 60)
    machine.send(f"{disk.PASSWORD}\n")
    machine.expect(r"root@debian:~# ?", 120)
    machine.run("dmesg -n 1")  # what the kernel says of its own accord would break into what commands print


def test_login_write_and_come_back(boot: BootFunction, image: Path) -> None:
    arguments = ("-m", "512", "-nographic", "-drive", f"file={image},format=raw,if=ide")
    machine = boot(*arguments)
    log_in(machine)
    assert machine.run("findmnt -no SOURCE,FSTYPE /").split() == ["/dev/sda1", "ext4"]
    assert machine.run("systemctl is-system-running --wait", 300).strip() == "running"
    machine.run("head -c 3000000 /dev/urandom > /root/kept && sync && sha256sum < /root/kept > /root/kept.sum", 120)
    digest = machine.run("cat /root/kept.sum").split()[0]
    machine.power_off("poweroff", 180)

    machine = boot(*arguments)
    log_in(machine)
    assert machine.run("sha256sum < /root/kept", 120).split()[0] == digest
    assert "recovering journal" not in machine.text()
    machine.power_off("poweroff", 180)

    if shutil.which("e2fsck"):
        # Exit status 0: the file system was left clean and consistent.
        subprocess.run(["e2fsck", "-fn", f"{image}?offset={disk.PARTITION_START}"], check=True, capture_output=True)
