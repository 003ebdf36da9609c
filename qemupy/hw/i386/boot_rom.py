"""A tiny option ROM that starts a kernel after the firmware: for kernels that call the BIOS (old bzImages, Multiboot).

SeaBIOS finds it as `genroms/qemupy-kernel.rom` in fw_cfg and boots it first (`bootorder`). When its boot entry runs, it
selects a fw_cfg item; the board answers that by putting the kernel into guest memory (after the firmware has cleared
and used it). Then the ROM jumps: in real mode to the setup code, or in protected mode to a Multiboot entry.
"BIOS Boot Specification" 1.01, 3.3 (BEV devices); "Plug and Play BIOS Specification" 1.0A, 3.1 (expansion header).
"""

from __future__ import annotations

import struct

FILE = "genroms/qemupy-kernel.rom"
BOOT_ORDER = "/rom@" + FILE
SIZE = 1024
PNP, ENTRY, GDT = 0x20, 0x60, 0x160
PRODUCT = 0x48


def _wrap(code: bytes) -> bytes:
    rom = bytearray(SIZE)
    rom[0:4] = bytes((0x55, 0xAA, SIZE // 512, 0xCB))  # the init entry at 3 returns at once (retf)
    struct.pack_into("<H", rom, 0x1A, PNP)
    struct.pack_into("<4sBBHBBIHH3sBHHHHH", rom, PNP, b"$PnP", 1, 2, 0, 0, 0, 0, 0, PRODUCT, b"\0\0\0", 0, 0, 0, ENTRY,
                     0, 0)  # fmt: skip
    rom[PNP + 9] = -sum(rom[PNP : PNP + 32]) & 0xFF
    name = b"qemupy -kernel\0"
    rom[PRODUCT : PRODUCT + len(name)] = name
    rom[ENTRY : ENTRY + len(code)] = code
    rom[SIZE - 1] = -sum(rom) & 0xFF
    return bytes(rom)


def _select(key: int) -> bytes:
    """cli; cld; mov dx, 510h; mov ax, key; out dx, ax"""
    return b"\xfa\xfc\xba\x10\x05\xb8" + struct.pack("<H", key) + b"\xef"


def real_mode(key: int, segment: int, stack: int) -> bytes:
    """Enter a bzImage's setup code: all segments its own, CS 20h paragraphs on (boot.rst, "Running the kernel")."""
    code = _select(key)
    code += b"\xb8" + struct.pack("<H", segment)  # mov ax, segment
    code += b"\x8e\xd8\x8e\xc0\x8e\xe0\x8e\xe8\x8e\xd0"  # mov ds, es, fs, gs, ss
    code += b"\x66\xbc" + struct.pack("<I", stack)  # mov esp, stack
    code += b"\x66\x31\xc0\x66\x31\xdb\x66\x31\xc9\x66\x31\xd2\x66\x31\xf6\x66\x31\xff\x66\x31\xed"  # xor regs
    code += b"\xea" + struct.pack("<HH", 0, segment + 0x20)  # ljmp
    return _wrap(code)


def protected_mode(key: int, eip: int, eax: int, ebx: int) -> bytes:
    """Enter 32-bit code with flat segments, paging off, interrupts off (Multiboot 3.2)."""
    code = _select(key)
    code += b"\xb8\x01\x24\xcd\x15\xfa"  # mov ax, 2401h; int 15h: open A20; cli
    code += b"\x0e\x1f"  # push cs; pop ds
    code += b"\x66\x31\xc0\x8c\xc8\x66\xc1\xe0\x04\x66\x05" + struct.pack("<I", GDT)  # eax = cs * 16 + GDT
    code += b"\x66\x50\x6a\x17"  # push eax; push word 17h: the GDT pointer on the stack
    code += b"\x89\xe5\x66\x0f\x01\x56\x00"  # mov bp, sp; lgdt [bp]
    code += b"\x83\xc4\x06"  # add sp, 6
    code += b"\x0f\x20\xc0\x0c\x01\x0f\x22\xc0"  # cr0.pe = 1
    code += b"\xb8\x10\x00\x8e\xd8\x8e\xc0\x8e\xe0\x8e\xe8\x8e\xd0"  # data segments = 10h
    code += b"\x66\xb8" + struct.pack("<I", eax) + b"\x66\xbb" + struct.pack("<I", ebx)
    code += b"\x66\xea" + struct.pack("<IH", eip, 8)  # ljmp 8:eip
    rom = bytearray(_wrap(code))
    rom[GDT : GDT + 24] = bytes(8) + bytes.fromhex("ffff0000009bcf00 ffff00000093cf00")
    rom[SIZE - 1] = 0
    rom[SIZE - 1] = -sum(rom) & 0xFF
    return bytes(rom)
