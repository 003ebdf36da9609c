"""`-icount`: two runs of a machine say the same and execute the same number of instructions, whatever runs them."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from machine import REFERENCE, SCALE
from test_firmware import LEFT_WELL, boot_sector

from qemupy_setup import guests, initramfs

pytestmark = [pytest.mark.boot, pytest.mark.skipif(bool(REFERENCE), reason="counts what our own vCPUs did")]

COUNTED = Path(__file__).parents[1] / "perf/counted.py"
REPEATABLE = ("-nographic", "-monitor", "none", "-rtc", "base=2026-01-01,clock=vm", "-seed", "1")
INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
date; cat /proc/uptime /proc/interrupts
head -c 64 /dev/urandom | md5sum
sleep 2; cat /proc/uptime
poweroff -f
"""


def run(accelerator: str, tmp_path: Path, *arguments: str | Path, sleep: str = "on") -> tuple[int, bytes, int]:
    """Exit status, serial transcript, instructions. Whether HLT takes its time makes no difference to them."""
    counts = tmp_path / "counts"
    done = subprocess.run(
        [sys.executable, COUNTED, "-accel", accelerator, "-icount", f"shift=1,sleep={sleep}", *REPEATABLE,
         *map(str, arguments)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=200 * SCALE,
        env={**os.environ, "COUNTS": str(counts)}, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, json.loads(counts.read_text())["instructions"]


def test_a_kernel_boots_twice_the_same(accelerator: str, tmp_path: Path) -> None:
    guest = guests.linux("linux-image-cloud-amd64")
    initrd = tmp_path / "initrd.gz"
    initrd.write_bytes(initramfs.busybox_initramfs(guests.busybox("amd64"), INIT))
    arguments = ("-m", "256", "-kernel", guest.kernel, "-initrd", initrd, "-append", "console=ttyS0 no_hash_pointers")
    status, text, count = first = run(accelerator, tmp_path, *arguments)
    assert status == 0 and b"Jan  1 00:00:0" in text and b"Power down" in text and count > 100_000_000
    assert run("interp", tmp_path, *arguments, sleep="off") == first


@pytest.mark.parametrize("interface", ["ide", "virtio"])
def test_a_disk_is_read_twice_the_same(interface: str, accelerator: str, tmp_path: Path) -> None:
    """SeaBIOS and a boot sector read it by the sector; once from the host's page cache, once past it."""
    image = tmp_path / "disk.img"
    image.write_bytes(boot_sector(tmp_path) + random.Random(1).randbytes((1 << 20) - 512))
    os.truncate(image, 64 << 20)
    drive = f"file={image},format=raw,if={interface}"
    leave = ("-m", "16", "-device", "isa-debug-exit,iobase=0xf4,iosize=0x04")
    status, text, count = first = run(accelerator, tmp_path, *leave, "-drive", drive)
    assert status == LEFT_WELL and b"sum " in text and count > 1_000_000
    os.posix_fadvise(fd := os.open(image, os.O_RDONLY), 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    assert run(accelerator, tmp_path, *leave, "-drive", drive) == first
    assert run("interp", tmp_path, *leave, "-drive", drive + ",cache=none", sleep="off") == first
