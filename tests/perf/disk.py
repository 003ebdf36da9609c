"""Sequential disk speed in a guest, ours beside QEMU's: `python tests/perf/disk.py [--size MiB] [--bus virtio] ...`

The guest is the cloud kernel with busybox; dd reads or writes the raw image past the guest's page cache. The host's
cache is warm for reads. With --profile also prints where our process's time goes for each request.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "boot")]

import machine as boot_machine  # noqa: E402
from machine import Machine  # noqa: E402

from qemupy_setup import guests, initramfs  # noqa: E402

READ = "dd if={disk} of=/dev/null bs={block} count={count} iflag=direct 2>/dev/null"
WRITE = "dd if=/dev/zero of={disk} bs={block} count={count} oflag=direct conv=fsync 2>/dev/null"


def drive(bus: str, image: Path) -> tuple[list[str], str]:
    """Options and the guest's name of the disk."""
    if bus == "ide":
        return ["-drive", f"file={image},format=raw,if=ide,index=0"], "/dev/sda"
    return ["-drive", f"file={image},format=raw,if=virtio"], "/dev/vda"


def timed(guest_machine: Machine, command: str) -> float:
    """Seconds by the guest's clock."""
    lines = guest_machine.run(f"cat /proc/uptime; {command}; cat /proc/uptime", 2400).split("\n")
    begin, end = (float(line.split()[0]) for line in (lines[0], lines[1]))
    return end - begin


def measure(command: list[str], bus: str, image: Path, block: int, size: int, log: Path) -> dict[str, float]:
    """MB/s of reading and writing, by the guest's clock."""
    guest = guests.linux_with_disks()
    options, disk = drive(bus, image)
    boot_machine.REFERENCE = None
    boot_machine.program = lambda accelerator: command  # type: ignore[assignment]
    speeds = {}
    arguments = ["-m", "256", "-nographic", "-kernel", guest.kernel, "-initrd", guest.initrd,
                 "-append", "console=ttyS0 quiet", *options]  # fmt: skip
    with Machine("", *arguments, log=log) as guest_machine:
        guest_machine.expect(initramfs.READY, 300)
        guest_machine.expect(initramfs.PROMPT, 60)
        for name, pattern in (("read", READ), ("write", WRITE)):
            timed(guest_machine, pattern.format(disk=disk, block=block, count=16))  # warm up
            took = timed(guest_machine, pattern.format(disk=disk, block=block, count=size // block))
            speeds[name] = size / took / 1e6
        guest_machine.send("poweroff -f\n")
        guest_machine.wait(60)
    return speeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=1024, help="MiB of the image")
    parser.add_argument("--block", type=int, default=1024, help="KiB of each dd request")
    parser.add_argument("--bus", choices=("virtio", "ide"), action="append")
    parser.add_argument("--accel", default="", help="our accelerator; empty: the default")
    arguments = parser.parse_args()
    ours = [str(Path(sys.executable).with_name("qemupy")), *(["-accel", arguments.accel] if arguments.accel else [])]
    programs = {"qemupy": ours, "qemu": ["qemu-system-x86_64", "-accel", "tcg"]}
    size = arguments.size << 20
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "disk.img"
        with image.open("wb") as file:
            for _ in range(arguments.size):
                file.write(b"\x5a" * (1 << 20))
        for bus in arguments.bus or ["virtio"]:
            for name, command in programs.items():
                speeds = measure(command, bus, image, arguments.block << 10, size, Path(folder) / "console.log")
                print(f"{name:<8} {bus:<7} " + "  ".join(f"{k} {v:7.1f} MB/s" for k, v in speeds.items()), flush=True)


if __name__ == "__main__":
    main()
