"""ELF kernels: the PVH entry, reached directly, and Multiboot 1, reached through the firmware.

PVH: ebx holds a start_info with command line, modules, memory map and RSDP (xen/include/public/arch-x86/hvm/
start_info.h). Multiboot kernels such as Xen still call the BIOS, so they are started by `boot_rom` after SeaBIOS.
"""

from __future__ import annotations

import struct

from qemupy.errors import ConfigError
from qemupy.hw.i386.kernel_image import ElfKernel, read_file
from qemupy.hw.i386.linux_boot import Load, place_initrd

START_INFO, CMDLINE = 0x6000, 0x20000
START_MAGIC = 0x336EC578
MB_INFO, MB_LOADER_MAGIC = 0x9000, 0x2BADB002
MB_MEMORY, MB_CMDLINE, MB_MODULES, MB_MMAP, MB_LOADER = 1 << 0, 1 << 2, 1 << 3, 1 << 6, 1 << 9

E820 = list[tuple[int, int, int]]


def _segments(kernel: ElfKernel, top: int) -> list[tuple[int, bytes]]:
    if kernel.end > top:
        raise ConfigError(f"memory is too small for the kernel: it needs {kernel.end >> 20} MiB")
    return [(address, data.ljust(size, b"\0")) for address, data, size in kernel.segments]


def pvh(kernel: ElfKernel, initrd: bytes, cmdline: str, top: int, e820: E820, rsdp: int) -> Load:
    pieces = _segments(kernel, top)
    modules_at, map_at = START_INFO + 0x40, START_INFO + 0x80
    if initrd:
        at = place_initrd(len(initrd), top, kernel.end)
        pieces.append((at, initrd))
        pieces.append((modules_at, struct.pack("<QQQQ", at, len(initrd), 0, 0)))
    pieces.append((map_at, b"".join(struct.pack("<QQII", start, size, kind, 0) for start, size, kind in e820)))
    pieces.append((CMDLINE, cmdline.encode() + b"\0"))
    info = struct.pack("<IIIIQQQQII", START_MAGIC, 1, 0, int(bool(initrd)), modules_at if initrd else 0, CMDLINE, rsdp,
                       map_at, len(e820), 0)  # fmt: skip
    pieces.append((START_INFO, info))
    return Load(pieces, eip=kernel.entry, ebx=START_INFO)


def split_modules(text: str) -> list[str]:
    """QEMU's `-initrd "file args,file2 args"`; a doubled comma stands for itself."""
    from qemupy.options import split_commas

    return [item for item in split_commas(text) if item]


def multiboot(kernel: ElfKernel, path: str, modules: str | None, cmdline: str, top: int, e820: E820) -> Load:
    """Modules follow the kernel, each on its page; the information structure and its texts lie below 640 KiB."""
    pieces = _segments(kernel, top)
    texts = bytearray(f"{path} {cmdline}".rstrip().encode() + b"\0")
    entries, at = b"", kernel.end + 0xFFF & ~0xFFF
    listed = split_modules(modules) if modules else []
    texts_at = MB_INFO + 0x100 + 16 * len(listed)
    for item in listed:
        name = item.split(" ", 1)[0]
        data = read_file(name, "Multiboot module")
        if at + len(data) > top:
            raise ConfigError(f"memory is too small for the Multiboot module '{name}'")
        pieces.append((at, data))
        entries += struct.pack("<IIII", at, at + len(data), texts_at + len(texts), 0)
        texts += item.encode() + b"\0"
        at = at + len(data) + 0xFFF & ~0xFFF
    loader_at = texts_at + len(texts)
    texts += b"qemupy\0"
    map_at = texts_at + len(texts) + 3 & ~3
    memory_map = b"".join(struct.pack("<IQQI", 20, start, size, kind) for start, size, kind in e820)
    upper = next((size for start, size, kind in e820 if start == 0x100000 and kind == 1), 0) >> 10
    info = bytearray(0x100)
    struct.pack_into("<III", info, 0, MB_MEMORY | MB_CMDLINE | MB_MODULES | MB_MMAP | MB_LOADER, 639, upper)
    struct.pack_into("<III", info, 16, texts_at, len(listed), MB_INFO + 0x100)
    struct.pack_into("<II", info, 44, len(memory_map), map_at)
    struct.pack_into("<I", info, 64, loader_at)
    pieces.append((MB_INFO, bytes(info) + entries))
    pieces.append((texts_at, bytes(texts)))
    pieces.append((map_at, memory_map))
    return Load(pieces, eip=kernel.entry, eax=MB_LOADER_MAGIC, ebx=MB_INFO)
