"""Guests for tests of the system architecture: build an image with the GNU assembler, run it, read its records.

An image is a 64 KiB ROM whose guest reports checks as (name, value, expected) through port 0xe9 and ends by writing
port 0xf4 (guest/common.inc), so the same image also runs under QEMU: `python tests/cpu/sysguest.py long64` prints what
both say where they differ or miss the expectation.
"""

import functools
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

GUEST_DIR = Path(__file__).parent / "guest"
ROM_SIZE = 0x10000
RAM_SIZE = 16 << 20
BUDGET = 30_000_000


class Record(NamedTuple):
    name: str
    value: int
    expected: int


@functools.cache
def build(name: str) -> bytes:
    """The ROM made from guest/NAME.S."""
    with tempfile.TemporaryDirectory() as tmp:
        obj, out = Path(tmp) / "o", Path(tmp) / "bin"
        source = GUEST_DIR / f"{name}.S"
        subprocess.run(["as", "--64", "-W", "-I", GUEST_DIR, "-o", obj, source], check=True)
        subprocess.run(["ld", "-T", GUEST_DIR / "rom.ld", "--oformat", "binary", "-o", out, obj], check=True)
        image = out.read_bytes()
    assert len(image) == ROM_SIZE, hex(len(image))
    return image


def parse(image: bytes, output: bytes) -> list[Record]:
    """Records in the order the guest made them; names are addresses in the ROM, or plain numbers."""
    records = []
    for at in range(0, len(output) - 23, 24):
        name, value, expected = struct.unpack_from("<QQQ", output, at)
        text = str(name)
        if name >= 0xF0000:
            start = name - 0xF0000
            text = image[start : image.index(0, start)].decode()
        records.append(Record(text, value, expected))
    return records


class Core:
    """One vCPU with RAM, the ROM and nothing else; port 0xe9 collects, port 0xf4 ends."""

    def __init__(self, image: bytes, model: str = "max") -> None:
        from qemupy._core import ffi, lib

        self.lib, self.ffi = lib, ffi
        self.output = bytearray()
        self.done = False
        self.clock = lib.qpy_clock_new()
        lib.qpy_clock_sync(self.clock, 1, 0)
        self.machine = lib.qpy_machine_new(self.clock, 64 << 20)
        self.vcpu: Any = None
        self._upcalls()
        self._memory(image)
        err = ffi.new("char[]", 200)
        self.vcpu = lib.qpy_vcpu_new(self.machine, model.encode(), err, 200)
        assert self.vcpu != ffi.NULL, ffi.string(err)
        lib.qpy_vcpu_reset(self.vcpu)

    def _upcalls(self) -> None:
        ffi = self.ffi
        up = ffi.new("QpyUpcalls *")
        self._keep = [
            ffi.callback("uint32_t(uint32_t, uint32_t, uint32_t)", self._pio_read),
            ffi.callback("void(uint32_t, uint32_t, uint32_t, uint32_t)", self._pio_write),
        ]
        up.pio_read, up.pio_write = self._keep
        self.lib.qpy_machine_set_upcalls(self.machine, up)

    def _pio_read(self, vcpu: int, port: int, size: int) -> int:
        return 0xA5A5A5A5

    def _pio_write(self, vcpu: int, port: int, size: int, value: int) -> None:
        if port == 0xE9:
            self.output.append(value & 0xFF)
        elif port == 0xF4:
            self.done = True
            self.lib.qpy_vcpu_kick(self.vcpu)

    def _memory(self, image: bytes) -> None:
        lib = self.lib
        ram = lib.qpy_ram_alloc(self.machine, RAM_SIZE)
        rom = lib.qpy_ram_alloc(self.machine, ROM_SIZE)
        lib.qpy_bql_lock()
        lib.qpy_ram_store(self.machine, rom, image, ROM_SIZE)
        dropped, top = 2**64 - 1, 0x100000000 - ROM_SIZE
        view = [
            (0, 0xA0000, ram, ram, lib.QPY_RANGE_RAM, 0),
            (0xF0000, ROM_SIZE, rom, dropped, lib.QPY_RANGE_ROM, 0),
            (0x100000, RAM_SIZE - 0x100000, ram + 0x100000, ram + 0x100000, lib.QPY_RANGE_RAM, 0),
            (top, ROM_SIZE, rom, dropped, lib.QPY_RANGE_ROM, 0),
        ]
        lib.qpy_machine_set_view(self.machine, self.ffi.new("QpyMemRange[]", view), len(view))
        lib.qpy_bql_unlock()

    def run(self, budget: int = BUDGET) -> bytes:
        reason = self.lib.qpy_vcpu_run_n(self.vcpu, budget)
        if not self.done:
            s = self.ffi.new("QpyCpuState *")
            self.lib.qpy_vcpu_get_state(self.vcpu, s)
            raise AssertionError(
                f"exit {reason} at {s.seg[1].sel:x}:{s.rip:x} rsp {s.gpr[4]:x} flags {s.rflags:x} cr0 {s.cr0:x} "
                f"cr2 {s.cr2:x} icount {s.icount} output {len(self.output)} bytes"
            )
        return bytes(self.output)

    def close(self) -> None:
        self.lib.qpy_vcpu_free(self.vcpu)
        self.lib.qpy_machine_free(self.machine)
        self.lib.qpy_clock_free(self.clock)


def run_core(name: str, model: str = "max") -> list[Record]:
    """What the guest reports when our core runs it."""
    image = build(name)
    core = Core(image, model)
    try:
        return parse(image, core.run())
    finally:
        core.close()


def run_qemu(name: str) -> list[Record]:
    """The same under QEMU's translator, for comparison by hand."""
    qemu = shutil.which("qemu-system-x86_64")
    assert qemu, "qemu-system-x86_64 is not installed"
    image = build(name)
    with tempfile.TemporaryDirectory() as tmp:
        rom, log = Path(tmp) / "rom", Path(tmp) / "log"
        rom.write_bytes(image)
        command = [qemu, "-accel", "tcg", "-cpu", "max", "-m", "64", "-bios", rom, "-display", "none", "-no-reboot"]
        command += ["-net", "none", "-debugcon", f"file:{log}", "-device", "isa-debug-exit,iobase=0xf4,iosize=4"]
        try:
            subprocess.run(command, timeout=20, check=False)
        except subprocess.TimeoutExpired:
            print("QEMU hangs")
        return parse(image, log.read_bytes())


def compare(name: str) -> None:
    """Prints every record where core, QEMU and expectation do not all agree."""
    ours, theirs = run_core(name), run_qemu(name)
    print(f"{name}: core {len(ours)} records, QEMU {len(theirs)}")
    for mine, other in pair_up(ours, theirs):
        expected = mine.value if mine.name.isdigit() else mine.expected
        if mine.value != expected or (other and other.value != mine.value):
            seen = f"{other.value:#x}" if other else "-"
            print(f"  {mine.name:44} core {mine.value:#x} qemu {seen} expected {mine.expected:#x}")


def pair_up(ours: list[Record], theirs: list[Record]) -> list[tuple[Record, Record | None]]:
    """Joins records by name; QEMU leaves out sections it has no feature for."""
    pairs: list[tuple[Record, Record | None]] = []
    at = 0
    for mine in ours:
        found = at < len(theirs) and theirs[at].name == mine.name
        pairs.append((mine, theirs[at] if found else None))
        at += found
    return pairs


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    for guest in sys.argv[1:]:
        compare(guest)
