"""How many guest instructions the interpreter runs in a second of processor time: a busy loop and a kernel's boot."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qemupy_setup import guests, initramfs
from tests.boot.machine import REFERENCE
from tests.perf.bzimage import bzimage

pytestmark = [pytest.mark.boot, pytest.mark.skipif(bool(REFERENCE), reason="counts our own instructions")]

BOOT_MIPS = 60
LOOPS = 100_000_000
# mov $LOOPS,%ecx; 1: add %ecx,%eax; dec %ecx; jnz 1b; mov $10h,%al; out %al,$f4h; jmp .
BUSY = b"\xb9" + LOOPS.to_bytes(4, "little") + bytes.fromhex("01c8 49 75fb b010 e6f4 ebfe")


def mips(tmp_path: Path, status: int, *arguments: str | Path) -> float:
    """Run a machine to its end; millions of guest instructions in a second of the process's CPU time."""
    counts = tmp_path / "counts.json"
    command = [sys.executable, str(Path(__file__).with_name("counted.py")), "-accel", "interp", *map(str, arguments)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=400,
                          env={**os.environ, "COUNTS": str(counts)})
    assert done.returncode == status, done
    found = json.loads(counts.read_text())
    return float(found["instructions"] / found["cpu_seconds"] / 1e6)


def test_busy_loop(tmp_path: Path) -> None:
    kernel = tmp_path / "busy.bzimage"
    kernel.write_bytes(bzimage(BUSY))
    rate = mips(tmp_path, 0x21, "-m", "128", "-display", "none", "-serial", "null", "-monitor", "none",
                "-kernel", kernel, "-device", "isa-debug-exit,iobase=0xf4,iosize=0x04")
    print(f"\nbusy loop: {rate:.0f} MIPS")
    assert rate > BOOT_MIPS


def test_kernel_boot(tmp_path: Path) -> None:
    guest = guests.linux("linux-image-cloud-amd64")
    initrd = tmp_path / "off.cpio.gz"
    busybox = guests.busybox("amd64")
    initrd.write_bytes(initramfs.busybox_initramfs(busybox, "#!/bin/busybox sh\nexec /bin/busybox poweroff -f\n"))
    rate = mips(tmp_path, 0, "-m", "256", "-nographic", "-kernel", guest.kernel, "-initrd", initrd,
                "-append", "console=ttyS0,115200")
    print(f"\nkernel boot: {rate:.0f} MIPS")
    assert rate > BOOT_MIPS
