"""What the VGA shows, as an RGB picture: text with the guest's font, planar, CGA, 256-colour and VBE linear modes."""

from __future__ import annotations

from qemupy.hw.display import vga_regs as r
from qemupy.hw.display.vga import VgaCore

Picture = tuple[int, int, bytes]
# For planar pixels: a byte's bits as 8 bytes of 0 or 1, the leftmost first
SPREAD = [int.from_bytes(bytes(value >> 7 - bit & 1 for bit in range(8)), "little") for value in range(256)]


def picture(vga: VgaCore) -> Picture:
    if vga.vbe_on:
        return _vbe(vga)
    if not vga.ar_index & 0x20:
        return _blank(vga)
    if not vga.gr[r.GR_MISC] & 1:
        return _text(vga)
    shift = vga.gr[r.GR_MODE] >> 5 & 3
    return _linear_256(vga) if shift >= 2 else _planar(vga, shift)


def _blank(vga: VgaCore) -> Picture:
    width, height = (vga.cr[r.CR_END_H] + 1) * 8, _visible_lines(vga)
    return width, height, bytes(width * height * 3)


def _visible_lines(vga: VgaCore) -> int:
    overflow = vga.cr[r.CR_OVERFLOW]
    return (vga.cr[r.CR_END_V] | (overflow & 2) << 7 | (overflow & 0x40) << 3) + 1


def _start(vga: VgaCore) -> int:
    """Of the first character or byte shown, in units of four bytes of video memory."""
    return vga.cr[r.CR_START_HIGH] << 8 | vga.cr[r.CR_START_LOW]


def dac_colors(vga: VgaCore) -> list[bytes]:
    if vga.vbe_on and vga.vbe[r.VBE_ENABLE] & r.VBE_8BIT_DAC:
        return [bytes(vga.palette[n * 3 : n * 3 + 3]) for n in range(256)]
    return [bytes((c & 63) << 2 | (c & 63) >> 4 for c in vga.palette[n * 3 : n * 3 + 3]) for n in range(256)]


def attribute_colors(vga: VgaCore) -> list[bytes]:
    """The 16 colours of the attribute controller."""
    dac, ar, colors = dac_colors(vga), vga.ar, []
    for n in range(16):
        if ar[r.AR_MODE] & 0x80:
            index = (ar[r.AR_SELECT] & 0xF) << 4 | ar[n] & 0xF
        else:
            index = (ar[r.AR_SELECT] & 0xC) << 4 | ar[n] & 0x3F
        colors.append(dac[index & vga.pel_mask])
    return colors


def _view(vga: VgaCore) -> memoryview:
    return vga.memory.view(vga.vram_at, vga.vram_size)


def _fonts(vga: VgaCore) -> tuple[int, int]:
    """Where the glyphs of characters with attribute bit 3 clear and set begin (plane 2)."""
    select = vga.sr[r.SR_FONT]
    second = select >> 4 & 1 | select << 1 & 6
    first = select >> 5 & 1 | select >> 1 & 6
    return second * 8192 * 4 + 2, first * 8192 * 4 + 2


def _text(vga: VgaCore) -> Picture:
    columns, cell = vga.cr[r.CR_END_H] + 1, (vga.cr[r.CR_MAX_SCAN] & 0x1F) + 1
    dots = 8 if vga.sr[r.SR_CLOCKING] & 1 else 9
    rows = max(_visible_lines(vga) // cell, 1)
    stride = vga.cr[r.CR_OFFSET] * 8 or columns * 4
    colors, vram = attribute_colors(vga), _view(vga)
    fonts, start, cursor = _fonts(vga), _start(vga) * 4, _cursor(vga, cell)
    wide = bool(vga.ar[r.AR_MODE] & 4)
    out = bytearray()
    glyphs: dict[tuple[int, int], list[bytes]] = {}
    for row in range(rows):
        cells: list[list[bytes]] = []
        for column in range(columns):
            at = (start + row * stride + column * 4) % vga.vram_size
            key = vram[at], vram[at + 1]
            lines = glyphs.get(key)
            if lines is None:
                base = fonts[key[1] >> 3 & 1] + key[0] * 32 * 4
                lines = glyphs[key] = _glyph(vram[base : base + cell * 4 : 4], key[0], key[1], dots, wide, colors)
            if cursor is not None and at == cursor[0]:
                lines = list(lines)
                lines[cursor[1] : cursor[2] + 1] = [colors[key[1] & 15] * dots] * (cursor[2] + 1 - cursor[1])
            cells.append(lines)
        for line in range(cell):
            out += b"".join(lines[line] for lines in cells)
    return columns * dots, rows * cell, bytes(out)


def _glyph(bits: memoryview, char: int, attribute: int, dots: int, wide: bool, colors: list[bytes]) -> list[bytes]:
    """A character's lines as RGB. The ninth dot repeats the eighth for the line-drawing characters."""
    pair = colors[attribute >> 4 & 15], colors[attribute & 15]
    lines = []
    for byte in bits:
        line = b"".join(pair[byte >> 7 - bit & 1] for bit in range(8))
        if dots == 9:
            line += pair[byte & 1 if wide and 0xC0 <= char <= 0xDF else 0]
        lines.append(line)
    return lines


def _cursor(vga: VgaCore, cell: int) -> tuple[int, int, int] | None:
    """Place in video memory, first and last line; None if it is off."""
    first, last = vga.cr[r.CR_CURSOR_START], vga.cr[r.CR_CURSOR_END] & 0x1F
    if first & 0x20 or first & 0x1F > last:
        return None
    at = (vga.cr[r.CR_CURSOR_HIGH] << 8 | vga.cr[r.CR_CURSOR_LOW]) * 4
    return at, min(first & 0x1F, cell - 1), min(last, cell - 1)


def _repeat(vga: VgaCore) -> int:
    """How often a line of memory is shown."""
    scan = vga.cr[r.CR_MAX_SCAN]
    return ((scan & 0x1F) + 1) << (scan >> 7)


def _planar(vga: VgaCore, shift: int) -> Picture:
    """16 colours from four planes, or CGA's 4 colours from pairs of bits."""
    columns, height = vga.cr[r.CR_END_H] + 1, _visible_lines(vga)
    stride, start, repeat = vga.cr[r.CR_OFFSET] * 8, _start(vga) * 4, _repeat(vga)
    half = bool(vga.sr[r.SR_CLOCKING] & 8)
    colors, vram, size = attribute_colors(vga), _view(vga), vga.vram_size
    cga = not vga.cr[r.CR_MODE] & 1  # row scan bit 0 is address bit 13
    enabled = vga.ar[r.AR_PLANES] & 0xF
    out = bytearray()
    if cga:
        repeat //= 2
    for y in range(height):
        line = y // max(repeat, 1)
        at = start + (line // 2 * stride + (line & 1) * 0x8000 if cga else line * stride)
        row = bytearray()
        for x in range(columns):
            place = (at + x * 4) % size
            row += _cga_pixels(vram, place) if shift else _planar_pixels(vram, place)
        pixels = b"".join(colors[p & enabled] for p in row)
        out += _doubled(pixels) if half else pixels
    return columns * 8 * (2 if half else 1), height, bytes(out)


def _planar_pixels(vram: memoryview, at: int) -> bytes:
    value = SPREAD[vram[at]] | SPREAD[vram[at + 1]] << 1 | SPREAD[vram[at + 2]] << 2 | SPREAD[vram[at + 3]] << 3
    return value.to_bytes(8, "little")


def _cga_pixels(vram: memoryview, at: int) -> bytes:
    return bytes(vram[at + byte] >> 6 - 2 * n & 3 for byte in (0, 1) for n in range(4))


def _doubled(pixels: bytes) -> bytes:
    return b"".join(pixels[n : n + 3] * 2 for n in range(0, len(pixels), 3))


def _linear_256(vga: VgaCore) -> Picture:
    width, height = (vga.cr[r.CR_END_H] + 1) * 4, _visible_lines(vga)
    stride, start, repeat = vga.cr[r.CR_OFFSET] * 8, _start(vga) * 4, _repeat(vga)
    colors, vram, size = dac_colors(vga), _view(vga), vga.vram_size
    out, lines = bytearray(), {}
    for y in range(height):
        at = (start + y // repeat * stride) % size
        if at not in lines:
            lines[at] = b"".join(colors[p] * 2 for p in vram[at : at + width])
        out += lines[at].ljust(width * 6, b"\0")
    return width * 2, height, bytes(out)


def _vbe(vga: VgaCore) -> Picture:
    width, height, bpp = vga.vbe[r.VBE_XRES], vga.vbe[r.VBE_YRES], vga.vbe[r.VBE_BPP]
    stride, vram = vga.vbe_stride, _view(vga)
    start = vga.vbe[r.VBE_Y] * stride + (vga.vbe[r.VBE_X] // 8 * 4 if bpp == 4 else vga.vbe[r.VBE_X] * (bpp + 7 >> 3))
    if bpp == 4:
        colors = attribute_colors(vga)
        return width, height, _vbe_planar(vram, start, width, height, stride, colors)
    colors = dac_colors(vga) if bpp == 8 else []
    bytes_wide = width * (bpp + 7 >> 3)
    table: dict[int, bytes] = {}
    out = bytearray()
    for y in range(height):
        row = bytes(vram[start + y * stride : start + y * stride + bytes_wide]).ljust(bytes_wide, b"\0")
        out += _vbe_row(row, bpp, colors, table)
    return width, height, bytes(out)


def _vbe_row(row: bytes, bpp: int, colors: list[bytes], table: dict[int, bytes]) -> bytes:
    if bpp == 8:
        return b"".join([colors[p] for p in row])
    if bpp in (24, 32):
        step, out = bpp // 8, bytearray(len(row) // (bpp // 8) * 3)
        out[0::3], out[1::3], out[2::3] = row[2::step], row[1::step], row[0::step]
        return bytes(out)
    pixels = memoryview(row).cast("H")
    for pixel in set(pixels):
        if pixel not in table:
            table[pixel] = _rgb(pixel, bpp)
    return b"".join([table[p] for p in pixels])


def _rgb(pixel: int, bpp: int) -> bytes:
    """5-5-5 or 5-6-5."""
    red, blue = pixel >> (11 if bpp == 16 else 10) & 31, pixel & 31
    green = pixel >> 5 & 63 if bpp == 16 else (pixel >> 5 & 31) << 1 | pixel >> 9 & 1
    return bytes((red << 3 | red >> 2, green << 2 | green >> 4, blue << 3 | blue >> 2))


def _vbe_planar(vram: memoryview, start: int, width: int, height: int, stride: int, colors: list[bytes]) -> bytes:
    out = bytearray()
    for y in range(height):
        at = start + y * stride * 4 // 4
        for x in range(0, width, 8):
            out += b"".join(colors[p] for p in _planar_pixels(vram, at + x // 2))
    return bytes(out)
