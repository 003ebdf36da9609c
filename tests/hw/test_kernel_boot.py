"""`-kernel`: recognising images, refusing others, and what is put into memory for each way of booting."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import pytest

from qemupy.errors import ConfigError
from qemupy.hw.i386 import boot_rom, elf_boot, linux_boot
from qemupy.hw.i386.kernel_image import BzImage, ElfKernel, parse

MIB = 1 << 20
E820 = [(0, 0x9FC00, 1), (0x100000, 255 * MIB, 1)]


def bzimage(protocol: int = 0x20F, setup_sects: int = 2, loadflags: int = 1, payload: bytes = b"K" * 5000) -> bytes:
    setup = bytearray((setup_sects + 1) * 512)
    setup[0x1F1] = setup_sects
    setup[0x1FE:0x202] = b"\x55\xaa\xeb\x66"
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, protocol)
    setup[0x211] = loadflags
    struct.pack_into("<I", setup, 0x22C, 0x7FFFFFFF)
    setup[0x234] = 1
    struct.pack_into("<I", setup, 0x238, 2047)
    struct.pack_into("<QI", setup, 0x258, 16 * MIB, 8 * MIB)
    return bytes(setup) + payload


def elf(machine: int = 3, note: bytes = b"", address: int = 0x200000, code: bytes = b"\xf4" * 64) -> bytes:
    count = 2 if note else 1
    at = 52 + 32 * count
    head = struct.pack(
        "<16sHHIIIIIHHHHHH", b"\x7fELF\1\1\1", 2, machine, 1, 0xC0200010, 52, 0, 0, 52, 32, count, 0, 0, 0
    )
    programs = struct.pack("<8I", 1, at, 0xC0000000 + address, address, len(code), len(code) + 100, 5, 4)
    if note:
        programs += struct.pack("<8I", 4, at + len(code), 0, 0, len(note), len(note), 4, 4)
    return head + programs + code + note


def pieces(load: linux_boot.Load) -> dict[int, bytes]:
    return dict(load.pieces)


def test_direct_linux_boot_parameters() -> None:
    kernel = parse("k", bzimage())
    assert isinstance(kernel, BzImage) and kernel.direct
    load = linux_boot.direct(kernel, b"I" * 10000, "console=ttyS0", 256 * MIB, E820, 0xF5000)
    placed = pieces(load)
    assert load.eip == 16 * MIB and placed[16 * MIB] == b"K" * 5000 and load.esi == linux_boot.BOOT_PARAMS
    params = placed[linux_boot.BOOT_PARAMS]
    assert params[0x1FE:0x206] == b"\x55\xaa\xeb\x66HdrS" and params[0x210] == 0xFF
    initrd, size, cmdline = struct.unpack_from("<II", params, 0x218) + struct.unpack_from("<I", params, 0x228)
    assert placed[initrd] == b"I" * 10000 and size == 10000 and initrd == (256 * MIB - 10000) & ~0xFFF
    assert placed[cmdline] == b"console=ttyS0\0"
    assert struct.unpack_from("<Q", params, 0x70)[0] == 0xF5000 and params[0x1E8] == 2
    assert struct.unpack_from("<QQI", params, 0x2D0 + 20) == E820[1]


def test_small_memory() -> None:
    kernel = parse("k", bzimage())
    assert isinstance(kernel, BzImage)
    assert linux_boot.direct(kernel, b"", "", 16 * MIB, E820, 0).eip == MIB, "below its preferred address"
    with pytest.raises(ConfigError, match="too small for the kernel"):
        linux_boot.direct(kernel, b"", "", 8 * MIB, E820, 0)
    with pytest.raises(ConfigError, match="too small for the initial RAM disk"):
        linux_boot.direct(kernel, bytes(8 * MIB), "", 16 * MIB, E820, 0)
    with pytest.raises(ConfigError, match="at most 2047"):
        linux_boot.direct(kernel, b"", "x" * 2048, 256 * MIB, E820, 0)


def test_old_bzimage_goes_through_the_firmware() -> None:
    kernel = parse("k", bzimage(protocol=0x207))
    assert isinstance(kernel, BzImage) and not kernel.direct
    load, segment, stack = linux_boot.through_firmware(kernel, b"init", "a=b", 64 * MIB)
    placed = pieces(load)
    assert segment == 0x1000 and stack == 0xFFF0
    setup = placed[0x10000]
    assert len(setup) == 3 * 512 and setup[0x210] == 0xB0 and setup[0x211] & 0x80
    assert placed[struct.unpack_from("<I", setup, 0x228)[0]] == b"a=b\0" and placed[0x100000] == b"K" * 5000
    assert placed[struct.unpack_from("<I", setup, 0x218)[0]] == b"init"
    low = parse("k", bzimage(protocol=0x200, loadflags=0))
    assert isinstance(low, BzImage)
    load, segment, _ = linux_boot.through_firmware(low, b"", "a=b", 64 * MIB)
    assert segment == 0x9000 and pieces(load)[0x10000] == b"K" * 5000
    assert struct.unpack_from("<H", pieces(load)[0x90000], 0x20)[0] == 0xA33F


def test_pvh() -> None:
    note = struct.pack("<III4sI", 4, 4, 18, b"Xen\0", 0x200020)
    kernel = parse("k", elf(note=note))
    assert isinstance(kernel, ElfKernel) and kernel.kind == "pvh" and kernel.entry == 0x200020
    load = elf_boot.pvh(kernel, b"module", "x=y", 64 * MIB, E820, 0xF5000)
    placed = pieces(load)
    info = placed[load.ebx]
    magic, version, _, modules, at, cmdline, rsdp, map_at, entries = struct.unpack_from("<IIIIQQQQI", info)
    assert (magic, version, modules, rsdp, entries) == (0x336EC578, 1, 1, 0xF5000, 2)
    module, size = struct.unpack_from("<QQ", placed[at])
    assert placed[module] == b"module" and size == 6 and placed[cmdline] == b"x=y\0"
    assert struct.unpack_from("<QQI", placed[map_at], 24) == E820[1]
    assert placed[0x200000] == b"\xf4" * 64 + bytes(100)


def test_multiboot_with_modules(tmp_path: Path) -> None:
    header = struct.pack("<III", 0x1BADB002, 3, -(0x1BADB002 + 3) & 0xFFFFFFFF)
    kernel = parse("xen", elf(code=header + b"\xf4" * 64))
    assert isinstance(kernel, ElfKernel) and kernel.kind == "multiboot" and kernel.entry == 0x200010
    first, second = tmp_path / "one", tmp_path / "two"
    first.write_bytes(b"1" * 5000)
    second.write_bytes(b"2" * 10)
    load = elf_boot.multiboot(kernel, "xen", f"{first} a=1,,2,{second}", "loglvl=all", 64 * MIB, E820)
    placed = pieces(load)
    info = placed[load.ebx]
    flags, _, upper, _, cmdline, count, modules = struct.unpack_from("<7I", info)
    assert load.eax == 0x2BADB002 and flags == 0x24D and upper == 255 * 1024 and count == 2
    texts_at, texts = next((a, d) for a, d in load.pieces if a <= cmdline < a + len(d) and d.startswith(b"xen "))

    def text(at: int) -> bytes:
        return texts[at - texts_at : texts.index(b"\0", at - texts_at)]

    assert text(cmdline) == b"xen loglvl=all"
    listed = [struct.unpack_from("<III", info, modules - load.ebx + 16 * n) for n in range(2)]
    assert [placed[start][: end - start] for start, end, _ in listed] == [b"1" * 5000, b"2" * 10]
    assert text(listed[0][2]) == f"{first} a=1,2".encode() and all(start % 4096 == 0 for start, _, _ in listed)
    length, map_at = struct.unpack_from("<II", info, 44)
    assert length == 48 and struct.unpack_from("<IQQI", placed[map_at], 24) == (20, *E820[1])


def test_multiboot_with_addresses_in_the_header() -> None:
    flags = 1 << 16
    header = struct.pack("<8I", 0x1BADB002, flags, -(0x1BADB002 + flags) & 0xFFFFFFFF, 0x100020, 0x100000, 0x100080,
                         0x100100, 0x100040)  # fmt: skip
    kernel = parse("k", bytes(0x20) + header + b"C" * 0x100)
    assert isinstance(kernel, ElfKernel) and kernel.entry == 0x100040
    ((address, data, size),) = kernel.segments
    assert address == 0x100000 and len(data) == 0x80 and size == 0x100


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "invalid kernel header"),
        (b"#!/bin/sh\n" * 100, "invalid kernel header"),
        (gzip.compress(b"x" * 100), "is compressed"),
        (b"MZ" + bytes(0x36) + b"ARM\x64" + bytes(100), "another machine"),
        (b"MZ" + bytes(100), "an EFI program"),
        (elf(machine=183), "another machine .AARCH64., not for x86"),
        (elf(), "without PVH ELF Note"),
        (b"\x7fELF" + bytes(100), "invalid ELF file"),
        (elf()[:60], "invalid ELF file|nothing to load"),
        (bzimage()[:700], "truncated"),
    ],
)
def test_refusals(data: bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse("k", data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rom", [boot_rom.real_mode(0x11, 0x1000, 0xFFF0), boot_rom.protected_mode(0x11, 1, 2, 3)])
def test_boot_rom_is_one_for_the_firmware(rom: bytes) -> None:
    assert rom[:3] == b"\x55\xaa\x02" and len(rom) == 1024 and sum(rom) & 0xFF == 0
    pnp = struct.unpack_from("<H", rom, 0x1A)[0]
    assert rom[pnp : pnp + 4] == b"$PnP" and sum(rom[pnp : pnp + rom[pnp + 5] * 16]) & 0xFF == 0
    assert struct.unpack_from("<H", rom, pnp + 0x1A)[0] == boot_rom.ENTRY
