"""What a PC's firmware expects in the CMOS bytes above the clock (Ralf Brown's CMOS list; the fields SeaBIOS reads)."""

from __future__ import annotations

from collections.abc import Sequence

from qemupy.errors import ConfigError
from qemupy.hw.timer.rtc import Rtc
from qemupy.records import record

KIB, MIB = 1 << 10, 1 << 20
EQUIPMENT_FPU, EQUIPMENT_MOUSE = 0x02, 0x04
FLOPPY_NONE, FLOPPY_1200K, FLOPPY_1440K, FLOPPY_2880K = 0, 2, 4, 5
BOOT_CODES = {"a": 1, "b": 1, "c": 2, "d": 3, "n": 4, "o": 4, "p": 4}


@record(frozen=True)
class DiskGeometry:
    """`translation`: 0 none, 1 LBA, 2 large, 3 revised ECHS."""

    cylinders: int
    heads: int
    sectors: int
    translation: int = 1


def _word(rtc: Rtc, low: int, high: int, value: int) -> None:
    rtc.set(low, value)
    rtc.set(high, value >> 8)


def set_memory(rtc: Rtc, below_4g: int, above_4g: int) -> None:
    """RAM below and above the 4 GiB line, in bytes."""
    _word(rtc, 0x15, 0x16, min(below_4g // KIB, 640))
    extended = min(max(below_4g // KIB - 1024, 0), 0xFFFF)
    _word(rtc, 0x17, 0x18, extended)
    _word(rtc, 0x30, 0x31, extended)
    _word(rtc, 0x34, 0x35, min(max(below_4g - 16 * MIB, 0) // (64 * KIB), 0xFFFF))
    high = above_4g // (64 * KIB)
    _word(rtc, 0x5B, 0x5C, high)
    rtc.set(0x5D, high >> 16)


def set_cpus(rtc: Rtc, count: int) -> None:
    rtc.set(0x5F, count - 1)


def set_boot_order(rtc: Rtc, order: str, check_floppy: bool = True) -> None:
    """`order` as in `-boot order=cda`: the first three are tried."""
    if len(order) > 3:
        raise ConfigError(f"Too many boot devices for PC: '{order}'")
    codes = [BOOT_CODES.get(c, 0) for c in order]
    if 0 in codes:
        raise ConfigError(f"Invalid boot device for PC: '{order[codes.index(0)]}'")
    codes += [0] * (3 - len(codes))
    rtc.set(0x3D, codes[1] << 4 | codes[0])
    rtc.set(0x38, codes[2] << 4 | (not check_floppy))


def set_floppies(rtc: Rtc, first: int, second: int) -> None:
    """Drive types FLOPPY_*; also the equipment byte, which says FPU and PS/2 mouse besides."""
    rtc.set(0x10, first << 4 | second)
    count = bool(first) + bool(second)
    rtc.set(0x14, EQUIPMENT_FPU | EQUIPMENT_MOUSE | (0, 0x01, 0x41)[count])


def set_disks(rtc: Rtc, disks: Sequence[DiskGeometry | None]) -> None:
    """The IDE disks at primary master, primary slave, secondary master, secondary slave (CD-ROMs are None)."""
    kinds = translation = 0
    for i, disk in enumerate(disks):
        if disk is None:
            continue
        translation |= disk.translation << 2 * i
        if i < 2:
            kinds |= 0xF0 >> 4 * i
            rtc.set(0x19 + i, 47)
            _set_disk(rtc, 0x1B + 9 * i, disk)
    rtc.set(0x12, kinds)
    rtc.set(0x39, translation)


def _set_disk(rtc: Rtc, at: int, disk: DiskGeometry) -> None:
    low, high = disk.cylinders & 0xFF, disk.cylinders >> 8
    control = 0xC0 | (disk.heads > 8) << 3
    for i, value in enumerate((low, high, disk.heads, 0xFF, 0xFF, control, low, high, disk.sectors)):
        rtc.set(at + i, value)
