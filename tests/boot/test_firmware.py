"""Firmware and the small programs that start right on it, in real mode."""

import random
import struct
import subprocess
from pathlib import Path

import pytest
from machine import BootFunction

from qemupy_setup import guests

pytestmark = pytest.mark.boot

FLOPPY_SIZE = 1440 << 10
LEFT_WELL = 0x10 << 1 | 1  # isa-debug-exit makes (value << 1) | 1 the exit status


def test_seabios_finds_nothing_to_boot(boot: BootFunction) -> None:
    machine = boot("-m", "64", "-nographic")
    machine.expect("SeaBIOS", 30)
    machine.expect("No bootable device", 60)


def test_a_guest_that_cannot_go_on_ends_by_the_monitor(boot: BootFunction) -> None:
    machine = boot("-m", "64", "-nographic")
    machine.expect("No bootable device", 60)
    machine.send("\x01c")
    machine.expect(r"\(q\w+\) ", 10)
    machine.send("quit\n")
    assert machine.wait(10) == 0


def test_ctrl_a_x_ends(boot: BootFunction) -> None:
    machine = boot("-m", "64", "-nographic")
    machine.expect("SeaBIOS", 30)
    machine.send("\x01x")
    assert machine.wait(10) == 0


def boot_sector(folder: Path) -> bytes:
    """The one of bootsector.S."""
    code = folder / "bootsector.bin"
    subprocess.run(["gcc", "-m32", "-nostdlib", "-static", "-no-pie",
                    "-Wl,--build-id=none,-Ttext=0x7c00,--oformat=binary,-melf_i386",
                    "-o", code, Path(__file__).with_name("bootsector.S")], check=True)
    sector = code.read_bytes()
    assert len(sector) == 512
    return sector


def floppy(path: Path) -> int:
    """Write a floppy image whose boot sector reads all of it; returns the sum it must find."""
    image = boot_sector(path.parent) + random.Random(1).randbytes(FLOPPY_SIZE - 512)
    path.write_bytes(image)
    return sum(struct.unpack(f"<{FLOPPY_SIZE // 2}H", image)) & 0xFFFF


def test_boot_sector_reads_its_whole_floppy(boot: BootFunction, tmp_path: Path) -> None:
    image = tmp_path / "floppy.img"
    total = floppy(image)
    machine = boot("-m", "16", "-nographic", "-fda", image, "-boot", "a",
                   "-device", "isa-debug-exit,iobase=0xf4,iosize=0x04")
    machine.expect("qemupy boot sector", 60)
    assert machine.expect(r"sum ([0-9a-f]{4})", 120).group(1) == f"{total:04x}"
    assert machine.wait(10) == LEFT_WELL


def test_ipxe_starts_in_real_mode(boot: BootFunction) -> None:
    machine = boot("-m", "64", "-nographic", "-kernel", guests.ipxe())
    machine.expect("iPXE initialising", 60)
    machine.expect("Open Source Network Boot Firmware", 60)


def talking_sector(letter: str) -> bytes:
    """A boot sector that says `booted LETTER` on COM1 and stops."""
    out = b"".join(b"\xb0" + bytes((byte,)) + b"\xee" for byte in f"booted {letter}\n".encode())
    return (b"\xba\xf8\x03" + out + b"\xf4\xeb\xfd").ljust(510, b"\0") + b"\x55\xaa"


@pytest.mark.parametrize(("first", "letter"), [("ide", "I"), ("virtio", "V")])
def test_bootindex_chooses_the_disk(boot: BootFunction, tmp_path: Path, first: str, letter: str) -> None:
    order = {"ide": 2, "virtio": 2, first: 1}
    arguments: list[str | Path] = ["-m", "64", "-nographic"]
    for name, device, said in (("ide", "ide-hd", "I"), ("virtio", "virtio-blk-pci", "V")):
        image = tmp_path / f"{name}.img"
        image.write_bytes(talking_sector(said).ljust(1 << 20, b"\0"))
        arguments += ["-drive", f"if=none,id={name},file={image},format=raw",
                      "-device", f"{device},drive={name},bootindex={order[name]}"]
    boot(*arguments).expect(f"booted {letter}", 60)
