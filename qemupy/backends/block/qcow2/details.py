"""What `info block -v` says about a qcow2 image beyond names and sizes, in the words of `qemu-img info`."""

from __future__ import annotations

import os
import time

from qemupy.backends.block.qcow2 import header as fmt
from qemupy.backends.block.qcow2.bitmaps import read_directory
from qemupy.backends.block.qcow2.image import Qcow2Image
from qemupy.backends.block.qcow2.snapshots import SnapshotInfo

_BITMAP_FLAGS = ((1 << 0, "in-use"), (1 << 1, "auto"))


def describe(image: Qcow2Image, filename: str) -> list[str]:
    header = image.header
    lines = [f"cluster_size: {header.geometry.cluster_size}"]
    if header.backing_file:
        path = os.path.join(os.path.dirname(filename), header.backing_file)
        actual = f" (actual path: {path})" if path != header.backing_file else ""
        lines.append(f"backing file: {header.backing_file}{actual}")
        if header.backing_format:
            lines.append(f"backing file format: {header.backing_format}")
    snapshots = image.snapshots()
    if snapshots:
        lines.append("Snapshot list:")
        lines.append("ID        TAG               VM SIZE                DATE     VM CLOCK     ICOUNT")
        lines += map(_snapshot, snapshots)
    return [*lines, "Format specific information:", *_format_specific(image)]


def _snapshot(info: SnapshotInfo) -> str:
    date = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(info.date_sec))
    seconds, nanoseconds = divmod(info.vm_clock_nsec, 1_000_000_000)
    clock = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{nanoseconds // 1_000_000:03}"
    icount = "" if info.icount < 0 else str(info.icount)
    return f"{info.id:<9} {info.name:<16} {size_text(info.vm_state_size):>8}{date:>20}{clock:>13}{icount:>11}"


def size_text(size: int) -> str:
    """Three digits and a binary unit: `196 KiB`, `1.5 GiB`."""
    value, units = float(size), iter(("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"))
    unit = next(units)
    while value >= 1000:
        value, unit = value / 1024, next(units)
    return f"{value:.3g} {unit}"


def _format_specific(image: Qcow2Image) -> list[str]:
    header = image.header
    lines = [
        f"    compat: {'0.10' if header.version < 3 else '1.1'}",
        f"    compression type: {fmt.COMPRESSIONS[header.compression]}",
    ]
    if header.version < 3:
        return [*lines, f"    refcount bits: {1 << header.refcount_order}"]
    lines.append(f"    lazy refcounts: {_word(header.compatible & fmt.COMPATIBLE_LAZY_REFCOUNTS)}")
    bitmaps = read_directory(image.meta)
    if bitmaps:
        lines.append("    bitmaps:")
    for n, bitmap in enumerate(bitmaps):
        flags = [name for bit, name in _BITMAP_FLAGS if bitmap.flags & bit]
        lines.append(f"        [{n}]:")
        lines.append("            flags:")
        lines += [f"                [{k}]: {name}" for k, name in enumerate(flags)]
        lines += [f"            name: {bitmap.name}", f"            granularity: {1 << bitmap.granularity_bits}"]
    return [
        *lines,
        f"    refcount bits: {1 << header.refcount_order}",
        f"    corrupt: {_word(header.incompatible & fmt.INCOMPATIBLE_CORRUPT)}",
        f"    extended l2: {_word(header.incompatible & fmt.INCOMPATIBLE_EXTENDED_L2)}",
    ]


def _word(bit: int) -> str:
    return "true" if bit else "false"
