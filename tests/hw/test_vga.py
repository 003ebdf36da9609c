"""Standard VGA: window write and read modes, register rules, VBE modes, what the picture shows."""

from __future__ import annotations

import pytest

from qemupy.hw.display import vga_regs as r
from qemupy.hw.display.vga import VgaCore
from qemupy.hw.display.vga_pci import VgaPci
from qemupy.hw.display.vga_render import picture
from qemupy.hw.i386 import text_mode
from qemupy.memory import AddressSpace, MemoryRegion, PortSpace, PyCoreMemory


class Rig:
    def __init__(self) -> None:
        self.core = PyCoreMemory()
        self.system = MemoryRegion("system", 1 << 32)
        self.space = AddressSpace("memory", self.system, self.core)
        self.vga = VgaCore(memory=self.core, pci=self.system, vgamem_mb=1)
        self.card = VgaPci(vga=self.vga, memory=self.core)
        self.ports = PortSpace()
        self.ports.map(0x3B0, self.vga.bank("vga"), 0x30)
        self.ports.map(0x1CE, self.vga.bank("vbe-index"), 2)
        self.ports.map(0x1CF, self.vga.bank("vbe"), 3, priority=1)

    def out(self, port: int, index: int, value: int) -> None:
        self.ports.write(port, 2, value << 8 | index)

    def vbe(self, index: int, value: int) -> None:
        self.ports.write(0x1CE, 2, index)
        self.ports.write(0x1CF, 2, value)

    def planar(self) -> None:
        self.ports.write(0x3C2, 1, 0x63)
        self.out(0x3C4, r.SR_MEMORY, 0x06)
        self.out(0x3C4, r.SR_PLANE_MASK, 0x0F)
        self.out(0x3CE, r.GR_MISC, 0x05)
        self.out(0x3CE, r.GR_BIT_MASK, 0xFF)

    def text(self) -> None:
        """80x25, glyph 'A' with a lit first column, palette identity."""
        self.ports.write(0x3C2, 1, 0x67)
        self.out(0x3C4, r.SR_CLOCKING, 0x01)
        self.out(0x3C4, r.SR_PLANE_MASK, 0x03)
        self.out(0x3CE, r.GR_MODE, 0x10)
        self.out(0x3CE, r.GR_MISC, 0x0E)
        for index, value in ((1, 79), (7, 0x1F), (9, 15), (0x12, 0x8F), (0x13, 40), (0x0A, 0x20)):
            self.out(0x3D4, index, value)
        self.attributes()
        self.core.store(self.vga.vram_at + 2 + ord("A") * 128, (b"\x80\0\0\0" * 16)[:-3])

    def attributes(self) -> None:
        self.ports.read(0x3DA, 1)
        for n in range(16):
            self.ports.write(0x3C0, 1, n)
            self.ports.write(0x3C0, 1, n)
        self.ports.write(0x3C0, 1, r.AR_PLANES)
        self.ports.write(0x3C0, 1, 0x0F)
        self.ports.write(0x3C0, 1, 0x20)
        self.ports.write(0x3C8, 1, 0)
        for n in range(16):
            for part in (n * 4, n, 0):
                self.ports.write(0x3C9, 1, part)

    def planes(self, at: int) -> bytes:
        return bytes(self.core.view(self.vga.vram_at + at * 4, 4))


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_write_mode_0_with_set_reset_and_functions(rig: Rig) -> None:
    rig.planar()
    rig.space.write(0xA0005, 1, 0xF0)
    assert rig.planes(5) == b"\xf0" * 4
    rig.out(0x3C4, r.SR_PLANE_MASK, 0x05)
    rig.space.write(0xA0005, 1, 0x0F)
    assert rig.planes(5) == b"\x0f\xf0\x0f\xf0"
    rig.out(0x3C4, r.SR_PLANE_MASK, 0x0F)
    rig.out(0x3CE, r.GR_SET_RESET, 0x06)
    rig.out(0x3CE, r.GR_ENABLE_SR, 0x0F)
    rig.out(0x3CE, r.GR_BIT_MASK, 0x80)
    rig.space.read(0xA0005, 1)  # loads the latches
    rig.space.write(0xA0005, 1, 0)
    assert rig.planes(5) == b"\x0f\xf0\x8f\x70"
    rig.out(0x3CE, r.GR_ENABLE_SR, 0)
    rig.out(0x3CE, r.GR_BIT_MASK, 0xFF)
    rig.out(0x3CE, r.GR_ROTATE, 0x18 | 4)  # xor, rotated by 4
    rig.space.read(0xA0005, 1)
    rig.space.write(0xA0005, 1, 0xF0)
    assert rig.planes(5) == b"\x00\xff\x80\x7f"


def test_write_modes_1_2_3(rig: Rig) -> None:
    rig.planar()
    rig.core.store(rig.vga.vram_at, b"\x11\x22\x33\x44")
    rig.out(0x3CE, r.GR_MODE, 1)
    rig.space.read(0xA0000, 1)
    rig.space.write(0xA0009, 1, 0)
    assert rig.planes(9) == b"\x11\x22\x33\x44"
    rig.out(0x3CE, r.GR_MODE, 2)
    rig.out(0x3CE, r.GR_BIT_MASK, 0x0F)
    rig.space.write(0xA0009, 1, 0x09)
    assert rig.planes(9) == b"\x1f\x20\x30\x4f"
    rig.out(0x3CE, r.GR_BIT_MASK, 0xFF)
    rig.out(0x3CE, r.GR_MODE, 3)
    rig.out(0x3CE, r.GR_SET_RESET, 0x02)
    rig.space.write(0xA0009, 1, 0xC0)
    assert rig.planes(9) == b"\x11\xe2\x33\x04"


def test_read_map_and_color_compare(rig: Rig) -> None:
    rig.planar()
    rig.core.store(rig.vga.vram_at, b"\xf0\xff\x00\x0f")
    rig.out(0x3CE, r.GR_READ_MAP, 3)
    assert rig.space.read(0xA0000, 1) == 0x0F
    rig.out(0x3CE, r.GR_MODE, 8)
    rig.out(0x3CE, r.GR_COMPARE, 0x03)
    rig.out(0x3CE, r.GR_DONT_CARE, 0x0F)
    assert rig.space.read(0xA0000, 1) == 0xF0, "pixels with planes 0 and 1 set, 2 and 3 clear"


def test_text_window_is_odd_even(rig: Rig) -> None:
    rig.text()
    rig.space.write(0xB8000, 2, 0x0741)
    rig.space.write(0xB8002, 1, 0x42)
    rig.space.write(0xB8004, 4, 0x70447043)
    assert rig.planes(0)[:2] == b"A\x07" and rig.planes(1)[:1] == b"B"
    assert rig.space.read(0xB8000, 4) == 0x00420741
    assert rig.planes(2)[:2] == b"C\x70" and rig.planes(3)[:2] == b"D\x70"
    assert rig.space.read(0xA0000, 1) == 0xFF


def test_chain_4_is_plain_memory(rig: Rig) -> None:
    rig.planar()
    rig.out(0x3C4, r.SR_MEMORY, 0x0E)
    hit = rig.space.find(0xA1234)
    assert hit is not None and hit.direct_write
    rig.space.write(0xA1234, 4, 0x12345678)
    assert bytes(rig.core.view(rig.vga.vram_at + 0x1234, 2)) == b"\x78\x56"
    rig.out(0x3C4, r.SR_PLANE_MASK, 0x01)
    rig.space.write(0xA1234, 2, 0xFFFF)
    assert bytes(rig.core.view(rig.vga.vram_at + 0x1234, 2)) == b"\xff\x56", "only plane 0 is open"


def test_text_picture(rig: Rig) -> None:
    rig.text()
    rig.space.write(0xB8000, 2, 0x1F41)
    width, height, rgb = picture(rig.vga)
    assert (width, height) == (640, 400)

    def pixel(x: int, y: int) -> tuple[int, ...]:
        return tuple(rgb[(y * width + x) * 3 : (y * width + x) * 3 + 3])

    assert pixel(0, 3) == (60 << 2 | 60 >> 4, 15 << 2, 0) and pixel(1, 3) == (4 << 2, 1 << 2, 0)
    assert pixel(100, 100) == (0, 0, 0)


def test_cursor(rig: Rig) -> None:
    rig.text()
    rig.space.write(0xB8000, 2, 0x0F20)
    for index, value in ((0x0A, 14), (0x0B, 15), (0x0E, 0), (0x0F, 0)):
        rig.out(0x3D4, index, value)
    width, _, rgb = picture(rig.vga)
    assert rgb[13 * width * 3] == 0 and rgb[14 * width * 3] != 0


def test_crtc_lock_and_mono_ports(rig: Rig) -> None:
    rig.text()
    rig.out(0x3D4, 0x11, 0x80)
    rig.out(0x3D4, 1, 0x12)
    rig.out(0x3D4, 7, 0xFF)
    assert rig.vga.cr[1] == 79 and rig.vga.cr[7] == 0x1F
    assert rig.ports.read(0x3B4, 1) == 0xFF
    rig.ports.write(0x3C2, 1, 0x66)
    assert rig.ports.read(0x3B4, 1) == 7 and rig.ports.read(0x3D4, 1) == 0xFF


def test_dac_reads_back(rig: Rig) -> None:
    rig.ports.write(0x3C8, 1, 200)
    for value in (1, 2, 3, 4, 5, 6):
        rig.ports.write(0x3C9, 1, value)
    rig.ports.write(0x3C7, 1, 200)
    assert [rig.ports.read(0x3C9, 1) for _ in range(6)] == [1, 2, 3, 4, 5, 6] and rig.ports.read(0x3C7, 1) == 3


@pytest.mark.parametrize("bpp", [8, 15, 16, 24, 32])
def test_vbe_modes(rig: Rig, bpp: int) -> None:
    rig.attributes()
    for index, value in ((r.VBE_XRES, 320), (r.VBE_YRES, 200), (r.VBE_BPP, bpp), (r.VBE_ENABLE, 0x41)):
        rig.vbe(index, value)
    red = {8: b"\x0f", 15: b"\x00\x7c", 16: b"\x00\xf8", 24: b"\0\0\xff", 32: b"\0\0\xff\0"}[bpp]
    stride = 320 * ((bpp + 7) // 8)
    rig.core.store(rig.vga.vram_at + stride * 2 + 5 * len(red), red)
    width, height, rgb = picture(rig.vga)
    assert (width, height, len(rgb)) == (320, 200, 320 * 200 * 3)
    at = (2 * 320 + 5) * 3
    assert rgb[at : at + 3] == (b"\xf3\x3c\0" if bpp == 8 else b"\xff\0\0") and not any(rgb[:at])


def test_vbe_limits_and_ids(rig: Rig) -> None:
    rig.vbe(r.VBE_ENABLE, r.VBE_GETCAPS)
    rig.ports.write(0x1CE, 2, r.VBE_XRES)
    assert rig.ports.read(0x1CF, 2) == 16000
    rig.ports.write(0x1CE, 2, r.VBE_MEMORY)
    assert rig.ports.read(0x1CF, 2) == 16
    rig.ports.write(0x1CE, 2, r.VBE_ID)
    assert rig.ports.read(0x1CF, 2) == 0xB0C5
    for index, value in ((r.VBE_XRES, 1024), (r.VBE_YRES, 60000), (r.VBE_BPP, 32), (r.VBE_ENABLE, 0x41)):
        rig.vbe(index, value)
    assert rig.vga.vbe[r.VBE_YRES] == 256, "as many rows as memory has"
    picture(rig.vga)


def test_mode_13h_and_planar_pictures(rig: Rig) -> None:
    rig.planar()
    rig.attributes()
    for index, value in ((1, 79), (7, 0x1F), (9, 0x41), (0x12, 0x8F), (0x13, 40), (0x17, 0xE3)):
        rig.out(0x3D4, index, value)
    rig.out(0x3CE, r.GR_MODE, 0x40)
    rig.out(0x3C4, r.SR_MEMORY, 0x0E)
    rig.space.write(0xA0000 + 320 + 1, 1, 15)
    width, height, rgb = picture(rig.vga)
    assert (width, height) == (640, 400)
    lit = [n // 3 for n in range(0, len(rgb), 3) if rgb[n]]
    assert lit == [2 * 640 + 2, 2 * 640 + 3, 3 * 640 + 2, 3 * 640 + 3]
    rig.vga.reset()
    rig.planar()
    rig.attributes()
    for index, value in ((1, 79), (7, 0x3E), (9, 0x40), (0x12, 0xDF), (0x13, 40), (0x17, 0xE3)):
        rig.out(0x3D4, index, value)
    rig.space.write(0xA0000 + 80, 1, 0x01)
    width, height, rgb = picture(rig.vga)
    assert (width, height) == (640, 480)
    assert [n // 3 for n in range(0, len(rgb), 3) if rgb[n]] == [640 + 7]


def test_pci_registers_and_save(rig: Rig) -> None:
    mmio = rig.card.bank("mmio")
    mmio.write(0x500 + 2 * r.VBE_XRES, 2, 640)
    assert rig.vga.vbe[r.VBE_XRES] == 640 and mmio.read(0x604, 4) == 0x1E1E1E1E
    mmio.write(0x40C + 0x5, 1, 1)
    rig.planar()
    rig.out(0x3C4, r.SR_MEMORY, 0x0E)
    other = Rig()
    other.vga.load(rig.vga.save())
    hit = other.space.find(0xA0000)
    assert hit is not None and hit.direct_write
    assert other.vga.save() == rig.vga.save()


def test_text_mode_without_firmware(rig: Rig) -> None:
    font = bytes(16) + text_mode.SMILE + bytes(range(16)) * 254
    assert not text_mode.enter(rig.vga, b"no font in here")
    assert text_mode.enter(rig.vga, b"some code" + font + b"more")
    rig.space.write(0xB8000, 2, 0x0701)
    width, height, rgb = picture(rig.vga)
    assert (width, height) == (720, 400)
    row = [bool(rgb[(2 * width + x) * 3]) for x in range(9)]
    assert row == [False, True, True, True, True, True, True, False, False], "the smile's top line, in light grey"
    assert rgb[(2 * width + 1) * 3] == 42 << 2 | 42 >> 4
