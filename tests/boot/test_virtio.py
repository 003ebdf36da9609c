"""Linux's virtio drivers and the firmware's on our devices: data right under load, through MSI-X and pin interrupts."""

import hashlib
import random
import subprocess
from pathlib import Path

import pytest
from machine import BootFunction, Machine
from test_debian import image, log_in  # noqa: F401 (image is a fixture)
from test_linux import CONSOLE, to_shell

from qemupy_setup import disk, guests

pytestmark = pytest.mark.boot

SIZE = 48 << 20


@pytest.fixture
def medium(tmp_path: Path) -> Path:
    path = tmp_path / "medium.img"
    path.write_bytes(random.Random(3).randbytes(SIZE))
    return path


def start(boot: BootFunction, *arguments: str | Path) -> Machine:
    guest = guests.linux_with_disks()
    machine = boot("-m", "256", "-nographic", "-kernel", guest.kernel, "-initrd", guest.initrd, "-append", CONSOLE,
                   *arguments)
    to_shell(machine, "cloud-amd64")
    return machine


def interrupts(machine: Machine) -> str:
    return machine.run("grep virtio /proc/interrupts")


def test_data_is_right_under_load(boot: BootFunction, medium: Path) -> None:
    """Several readers and writers at once, each with its checksum; then the same through the image file."""
    machine = start(boot, "-drive", f"file={medium},format=raw,if=none,id=first",
                    "-device", "virtio-blk-pci,drive=first,serial=medium-7", "-device",
                    "virtio-blk-pci,drive=second,num-queues=1,queue-size=64,serial=other,disable-legacy=on",
                    "-drive", f"if=none,id=second,driver=null-co,size={1 << 20}")
    assert machine.run("cat /sys/block/vda/serial; echo; cat /sys/block/vdb/serial").split() == ["medium-7", "other"]
    assert machine.run("cat /sys/block/vda/size").split() == [str(SIZE // 512)]
    want = hashlib.md5(medium.read_bytes()).hexdigest()
    assert machine.run("md5sum < /dev/vda", 300).split()[0] == want
    assert "PCI-MSI" in interrupts(machine)
    source = [hashlib.md5(medium.read_bytes()[n << 22 : n + 1 << 22]).hexdigest() for n in range(3)]
    # Copy three stretches to elsewhere at the same time, past the cache, then look at them.
    machine.run("for n in 0 1 2; do dd if=/dev/vda of=/dev/vda bs=64k count=64 skip=$((64*n)) seek=$((512+64*n)) "
                "oflag=direct conv=notrunc 2>/dev/null & done; wait; sync; echo 3 > /proc/sys/vm/drop_caches", 300)
    for n in range(3):
        seen = machine.run(f"dd if=/dev/vda bs=64k count=64 skip={512 + 64 * n} 2>/dev/null | md5sum", 120)
        assert seen.split()[0] == source[n]
    machine.power_off()
    data = medium.read_bytes()
    assert [hashlib.md5(data[(512 << 16) + (n << 22) :][: 4 << 20]).hexdigest() for n in range(3)] == source


def test_legacy_interface_and_pin_interrupt(boot: BootFunction, medium: Path) -> None:
    machine = start(boot, "-drive", f"if=none,id=d,file={medium},format=raw", "-device",
                    "virtio-blk-pci,drive=d,disable-modern=on,vectors=0")
    assert machine.run("md5sum < /dev/vda", 300).split()[0] == hashlib.md5(medium.read_bytes()).hexdigest()
    assert "PCI-MSI" not in interrupts(machine)
    machine.power_off()


def test_read_only_disk(boot: BootFunction, medium: Path) -> None:
    machine = start(boot, "-drive", f"if=virtio,file={medium},format=raw,readonly=on")
    assert machine.run("cat /sys/block/vda/ro").strip() == "1"
    assert machine.run("if echo x > /dev/vda; then echo written; else echo refused; fi").strip().endswith("refused")


def test_debian_from_a_virtio_disk(boot: BootFunction, image: Path) -> None:  # noqa: F811
    """SeaBIOS, GRUB and Debian, which find the root file system by its UUID."""
    arguments = ("-m", "512", "-nographic", "-drive", f"file={image},format=raw,if=virtio")
    machine = boot(*arguments)
    log_in(machine)
    assert machine.run("findmnt -no SOURCE,FSTYPE /").split() == ["/dev/vda1", "ext4"]
    machine.run("head -c 3000000 /dev/urandom > /root/kept && sync && sha256sum < /root/kept > /root/kept.sum", 120)
    machine.run("echo 3 > /proc/sys/vm/drop_caches; sha256sum < /root/kept | diff - /root/kept.sum", 120)
    machine.power_off("poweroff", 180)
    subprocess.run(["e2fsck", "-fn", f"{image}?offset={disk.PARTITION_START}"], check=True, capture_output=True)


def test_random_numbers(boot: BootFunction) -> None:
    machine = start(boot, "-device", "virtio-rng-pci")
    assert machine.run("cat /sys/class/misc/hw_random/rng_current").strip() == "virtio_rng.0"
    first, second = (machine.run("head -c 5000 /dev/hwrng | md5sum").split()[0] for _ in range(2))
    empty = hashlib.md5(bytes(5000)).hexdigest()
    assert len({first, second, empty}) == 3
    machine.power_off()
