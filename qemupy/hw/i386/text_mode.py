"""Puts the VGA into 80x25 text, as the video BIOS does, for kernels that start without firmware.

Register values are those of BIOS mode 3 with 9x16 characters (IBM VGA technical reference, "Video modes"). The font is
looked up in the VGA BIOS image, where it is a table of 256 glyphs of 16 lines.
"""

from __future__ import annotations

from qemupy.hw.display.vga import VgaCore

MISC = 0x67
SEQUENCER = bytes.fromhex("0300030002")
CRTC = bytes.fromhex("5f4f50825581bf1f004f0d0e000000009c8e8f281f96b9a3ff")
GRAPHICS = bytes.fromhex("0000000000100e00ff")
ATTRIBUTES = bytes.fromhex("00010203040514073839 3a3b3c3d3e3f 0c000f0800")
# Glyph 1, a smiling face, tells the font from other data; glyph 0 before it is blank
SMILE = bytes.fromhex("00007e81a58181bd9981817e00000000")
GLYPHS, LINES = 256, 16
BLANK = b"\x20\x07\0\0"


def find_font(rom: bytes | None) -> bytes | None:
    at = (rom or b"").find(bytes(LINES) + SMILE)
    return None if rom is None or at < 0 else rom[at : at + GLYPHS * LINES]


def default_color(n: int) -> tuple[int, int, int]:
    """One of the 64 EGA colours: bits 0-2 are two thirds of blue, green, red, bits 3-5 one third."""
    blue, green, red = ((n >> bit & 1) * 42 + (n >> bit + 3 & 1) * 21 for bit in range(3))
    return red, green, blue


def enter(vga: VgaCore, rom: bytes | None) -> bool:
    """False if there is no font to show text with."""
    font = find_font(rom)
    if font is None:
        return False
    vga.misc = MISC
    vga.sr[: len(SEQUENCER)] = list(SEQUENCER)
    vga.cr[: len(CRTC)] = list(CRTC)
    vga.gr[: len(GRAPHICS)] = list(GRAPHICS)
    vga.ar[:] = list(ATTRIBUTES)
    vga.ar_index = 0x20
    for n in range(64):
        vga.palette[3 * n : 3 * n + 3] = bytes(default_color(n))
    plane = bytearray(GLYPHS * 32 * 4)
    for glyph in range(GLYPHS):
        plane[glyph * 128 + 2 : glyph * 128 + 2 + 4 * LINES : 4] = font[glyph * LINES : (glyph + 1) * LINES]
    for cell in range(80 * 25):
        plane[4 * cell : 4 * cell + 2] = BLANK[:2]
    vga.memory.store(vga.vram_at, plane)
    vga.mode_changed()
    return True
