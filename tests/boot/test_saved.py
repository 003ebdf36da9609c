"""A machine saved at random moments of its boot and loaded into a new process each time still boots.

The moments follow a seed that is printed; QEMUPY_SEED repeats a run.
"""

import hashlib
import os
import random
import shutil
import socket
import time
from pathlib import Path

import pytest
from machine import REFERENCE, SCALE, BootFunction, Machine

from qemupy_setup import disk, guests, initramfs

pytestmark = pytest.mark.skipif(bool(REFERENCE), reason="saves to a file, which QEMU 7.2 cannot do")

PROMPT = b"(qemu) "


class Monitor:
    """An HMP monitor on a Unix socket."""

    def __init__(self, path: Path) -> None:
        deadline = time.monotonic() + 20 * SCALE
        while True:
            self._socket = socket.socket(socket.AF_UNIX)
            try:
                self._socket.connect(str(path))
                break
            except OSError:
                self._socket.close()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        self._socket.settimeout(60 * SCALE)
        self._until_prompt()

    def _until_prompt(self) -> str:
        got = b""
        while not got.endswith(PROMPT):
            chunk = self._socket.recv(65536)
            assert chunk, got
            got += chunk
        return got.decode()

    def run(self, command: str) -> str:
        """The answer without the echoed command and the prompt."""
        self._socket.sendall(command.encode() + b"\n")
        lines = self._until_prompt().splitlines()
        return "\n".join(lines[1:-1])

    def close(self) -> None:
        self._socket.close()

    def quit(self) -> None:
        self._socket.sendall(b"quit\n")
        self._socket.close()


def boot_in_pieces(boot: BootFunction, tmp_path: Path, hops: int, pause: tuple[float, float],
                   *arguments: str | Path) -> tuple[Machine, str]:
    """Save and load `hops` times; the last machine, and the console of all those before it."""
    seed = int(os.environ.get("QEMUPY_SEED", random.randrange(1 << 32)))
    print(f"QEMUPY_SEED={seed}")
    rng = random.Random(seed)
    state, socket_path, before = tmp_path / "machine.state", tmp_path / "monitor", ""
    options = [*arguments, "-monitor", f"unix:{socket_path},server=on,wait=off"]
    machine = boot(*options)
    for _ in range(hops):
        machine.idle(rng.uniform(*pause))
        monitor = Monitor(socket_path)
        while "inmigrate" in monitor.run("info status"):
            machine.idle(0.02)
        assert monitor.run(f"migrate file:{state}") == ""
        assert "postmigrate" in monitor.run("info status")
        monitor.quit()
        assert machine.wait(30) == 0
        before += machine.text()
        machine = boot(*options, "-incoming", f"file:{state}")
    return machine, before


def check_shell(machine: Machine, before: str) -> None:
    """The guest came to its shell, before or after the last hop, computes right and switches itself off."""
    machine.send("\n")
    machine.expect(initramfs.PROMPT, 240)
    assert initramfs.READY in before + machine.text()
    digest = machine.run("dd if=/dev/zero bs=64k count=16 2>/dev/null | md5sum", 120)
    assert digest.startswith("b6d81b360a5672d80c27430f39153e2c")
    machine.power_off()


KERNEL = ("-m", "256", "-display", "none", "-serial", "stdio", "-append", "console=ttyS0,115200")


@pytest.mark.boot
def test_kernel_boot_in_pieces(boot: BootFunction, tmp_path: Path) -> None:
    guest = guests.linux("linux-image-cloud-amd64")
    arguments = (*KERNEL, "-kernel", guest.kernel, "-initrd", guest.initrd)
    check_shell(*boot_in_pieces(boot, tmp_path, 10, (0.1, 0.8), *arguments))


@pytest.mark.long
def test_kernel_boot_saved_at_twenty_moments(boot: BootFunction, tmp_path: Path) -> None:
    guest = guests.linux("linux-image-cloud-amd64")
    arguments = (*KERNEL, "-kernel", guest.kernel, "-initrd", guest.initrd)
    for _ in range(20):
        check_shell(*boot_in_pieces(boot, tmp_path, 1, (0.1, 8), *arguments))


@pytest.mark.long
def test_debian_boot_in_twenty_pieces(boot: BootFunction, tmp_path: Path) -> None:
    """Firmware, GRUB, the IDE disk and systemd."""
    image = tmp_path / "debian.img"
    shutil.copyfile(disk.debian_disk(), image)
    machine, _ = boot_in_pieces(boot, tmp_path, 20, (0.2, 2), "-m", "512", "-display", "none", "-serial", "stdio",
                                "-drive", f"file={image},format=raw")
    machine.send("\n")  # a login prompt may have been printed by the machine before this one
    machine.expect("login: ", 900)
    machine.check_alarms()


@pytest.mark.boot
def test_virtio_disk_in_the_middle_of_transfers(boot: BootFunction, tmp_path: Path) -> None:
    """Copying and reading a virtio disk goes on over six machines, and all data is right."""
    data = random.Random(5).randbytes(64 << 20)
    medium, state, socket_path = tmp_path / "medium.img", tmp_path / "machine.state", tmp_path / "monitor"
    medium.write_bytes(data + bytes(len(data)))
    guest = guests.linux_with_disks()
    options = ["-m", "128", "-nographic", "-kernel", guest.kernel, "-initrd", guest.initrd, "-append", "console=ttyS0",
               "-drive", f"file={medium},format=raw,if=virtio", "-device", "virtio-rng-pci",
               "-monitor", f"unix:{socket_path},server=on,wait=off"]  # fmt: skip
    machine = boot(*options)
    machine.expect(initramfs.READY, 240)
    machine.expect(initramfs.PROMPT, 60)
    machine.send("for n in $(seq 60); do dd if=/dev/vda of=/dev/vda bs=256k count=256 seek=256 iflag=direct "
                 "oflag=direct 2>/dev/null; done; sync; md5sum < /dev/vda; echo over''.\n")
    console = ""
    for _ in range(6):
        machine.idle(0.2)
        monitor = Monitor(socket_path)
        while "inmigrate" in monitor.run("info status"):
            machine.idle(0.02)
        assert monitor.run(f"migrate file:{state}") == ""
        monitor.quit()
        assert machine.wait(30) == 0
        console += machine.text()
        assert "over." not in console, "nothing was under way"
        machine = boot(*options, "-incoming", f"file:{state}")
    machine.expect(r"over\.", 120)
    assert hashlib.md5(data + data).hexdigest() in machine.text()
    machine.power_off()
    assert medium.read_bytes() == data + data
