"""`-kernel` with a Linux bzImage: entered directly, or through the firmware for kernels that need the BIOS.

A kernel of protocol 2.12 or later gets boot_params filled in and is entered at its 32-bit entry, which every such
kernel has, whatever the CPU (boot.rst, "32-bit Boot Protocol"). Older ones, such as iPXE's, have their real-mode setup
run by `boot_rom` after SeaBIOS.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from qemupy.errors import ConfigError
from qemupy.hw.i386.kernel_image import CAN_USE_HEAP, LOADED_HIGH, BzImage
from qemupy.records import record

if TYPE_CHECKING:
    from collections.abc import Sequence

BOOT_PARAMS, CMDLINE, GDT_AT = 0x10000, 0x20000, 0x9000
HIGH = 0x100000
LOADER_UNDEFINED, LOADER_QEMU = 0xFF, 0xB0
MAX_E820 = 128


@record()
class Load:
    """What to put where, and how to go on: `esi`/`ebx`/`eax` for 32-bit entries."""

    pieces: Sequence[tuple[int, bytes | memoryview]]
    eip: int = 0
    eax: int = 0
    ebx: int = 0
    esi: int = 0


def place_initrd(size: int, limit: int, kernel_end: int) -> int:
    """As high as allowed, on a page; never over the kernel."""
    at = (limit - size) & ~0xFFF
    if at < kernel_end:
        raise ConfigError(f"memory is too small for the initial RAM disk: {size >> 10} KiB do not fit above the kernel")
    return at


def direct(
    kernel: BzImage,
    initrd: bytes,
    cmdline: str,
    top: int,
    e820: list[tuple[int, int, int]],
    rsdp: int,
    text_screen: bool = False,
) -> Load:
    """Boot parameters and places for RAM that is free up to `top`. `text_screen`: the VGA is in 80x25 text mode."""
    command = cmdline.encode() + b"\0"
    if len(command) - 1 > (kernel.u32(0x238) or 255):
        raise ConfigError(f"-append: the kernel takes at most {kernel.u32(0x238)} characters")
    address, needed = _kernel_address(kernel, top)
    params = bytearray(4096)
    end = 0x202 + kernel.data[0x201]
    params[0x1F1:end] = kernel.data[0x1F1:end]
    params[0x210] = LOADER_UNDEFINED
    params[0x211] |= CAN_USE_HEAP
    struct.pack_into("<H", params, 0x224, 0xFE00)
    struct.pack_into("<I", params, 0x214, address)
    struct.pack_into("<I", params, 0x228, CMDLINE)
    pieces: list[tuple[int, bytes | memoryview]] = [(address, kernel.payload), (CMDLINE, command)]
    if initrd:
        at = place_initrd(len(initrd), min(kernel.u32(0x22C) + 1, top), address + needed)
        struct.pack_into("<II", params, 0x218, at, len(initrd))
        pieces.append((at, initrd))
    struct.pack_into("<Q", params, 0x070, rsdp)
    _put_e820(params, e820)
    if text_screen:  # struct screen_info: mode, columns; rows, VGA, font height
        params[0x06:0x08] = bytes((3, 80))
        params[0x0E:0x12] = bytes((25, 1, 16, 0))
    pieces.append((BOOT_PARAMS, bytes(params)))
    return Load(pieces, eip=address, esi=BOOT_PARAMS)


def _kernel_address(kernel: BzImage, top: int) -> tuple[int, int]:
    """Where it likes to be if RAM reaches that far, else at 1 MiB; and how much room it needs there."""
    preferred, needed = int.from_bytes(kernel.data[0x258:0x260], "little"), kernel.u32(0x260)
    for address in (preferred, HIGH):
        if address >= HIGH and address + needed <= top:
            return address, needed
    raise ConfigError(f"memory is too small for the kernel: it needs {(HIGH + needed) >> 20} MiB")


def _put_e820(params: bytearray, e820: list[tuple[int, int, int]]) -> None:
    params[0x1E8] = len(e820)
    for n, (start, size, kind) in enumerate(e820[:MAX_E820]):
        struct.pack_into("<QQI", params, 0x2D0 + 20 * n, start, size, kind)
    above = next((size for start, size, kind in e820 if start == HIGH and kind == 1), 0)
    struct.pack_into("<I", params, 0x1E0, min(above >> 10, 0xFFFFFFFF))
    struct.pack_into("<H", params, 0x002, min(above >> 10, 0xFFFF))


def through_firmware(kernel: BzImage, initrd: bytes, cmdline: str, top: int) -> tuple[Load, int, int]:
    """For the real-mode entry: what to load, the setup's segment, and its stack pointer (boot.rst, "Memory layout")."""
    command = cmdline.encode() + b"\0"
    high = bool(kernel.loadflags & LOADED_HIGH)
    if kernel.protocol >= 0x202 and high:
        real, command_at, payload_at = 0x10000, 0x20000, HIGH
    else:
        real, command_at = 0x90000, 0x9A000 - (len(command) + 15 & ~15)
        payload_at = HIGH if high else 0x10000
    setup = bytearray(kernel.setup)
    if kernel.protocol >= 0x202:
        struct.pack_into("<I", setup, 0x228, command_at)
    else:
        struct.pack_into("<HH", setup, 0x20, 0xA33F, command_at - real)
    setup[0x210] = LOADER_QEMU
    if kernel.protocol >= 0x201:
        struct.pack_into("<H", setup, 0x224, command_at - real - 0x200)
        setup[0x211] |= CAN_USE_HEAP
    pieces: list[tuple[int, bytes | memoryview]] = [(payload_at, kernel.payload), (command_at, command)]
    if initrd:
        limit = kernel.u32(0x22C) + 1 if kernel.protocol >= 0x203 else 0x38000000
        at = place_initrd(len(initrd), min(limit, top), payload_at + len(kernel.payload))
        struct.pack_into("<II", setup, 0x218, at, len(initrd))
        pieces.append((at, initrd))
    pieces.append((real, bytes(setup)))
    return Load(pieces), real >> 4, command_at - real - 16
