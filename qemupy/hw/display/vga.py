"""The VGA core: registers, DAC, Bochs VBE extensions, and which part of video memory the window shows.

IBM VGA technical reference; FreeVGA "Hardware Level VGA Programming"; Bochs VBE interface. Video memory is kept as
QEMU keeps it: the four planes of an address are four neighbouring bytes, so that chain-4 and linear modes are plain
memory. Then the window at A0000h is mapped as RAM; otherwise `vga_window` handles every access.
"""

from __future__ import annotations

from qemupy.hw.core import array, boolean, buffer, on_read, on_write, prop, transient, u8, u16
from qemupy.hw.display import vga_regs as r
from qemupy.hw.display.vga_window import WINDOW, VgaWindow
from qemupy.memory import MemoryRegion

SR_MASK = (0x03, 0x3D, 0x0F, 0x3F, 0x0E, 0x00, 0x00, 0xFF)
GR_MASK = (0x0F, 0x0F, 0x0F, 0x1F, 0x03, 0x7B, 0x0F, 0x0F, 0xFF) + (0,) * 7
MONO_ONLY, COLOR_ONLY = range(0x10), range(0x20, 0x30)  # 3B0h-3BFh and 3D0h-3DFh, as offsets from 3B0h
DISPLAY_OFF, RETRACE = 0x01, 0x08


class VgaCore(VgaWindow):
    """Bank "vga" lies at 3B0h, "vbe-index" at 1CEh, "vbe" at 1CFh, over the index's second byte."""

    pci: MemoryRegion | None = None  # where the window is shown
    vgamem_mb: int = prop(default=16, help="video memory in MiB")

    misc: int = u8()
    sr_index: int = u8()
    gr_index: int = u8()
    ar_index: int = u8()
    ar_data_next: bool = boolean()
    ar: list[int] = array(8, 21)
    cr_index: int = u8()
    cr: list[int] = array(8, 256)
    feature: int = u8()
    status: int = u8()
    pel_mask: int = u8(reset=0xFF)
    dac_reading: bool = boolean()
    dac_read_index: int = u8()
    dac_write_index: int = u8()
    dac_part: int = u8()
    dac_cache: list[int] = array(8, 3)
    palette: bytearray = buffer(768)
    vbe_index: int = u16()
    vbe: list[int] = array(16, 10, reset=[r.VBE_ID5, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    _linear: MemoryRegion | None = transient(None)
    _linear_at: tuple[int, int, int] | None = transient(None)

    def realize(self) -> None:
        super().realize()
        self.vram = MemoryRegion.ram("vga.vram", self.memory.alloc("vga.vram", self.vgamem_mb << 20))
        assert self.vram.block is not None
        self.vram_at, self.vram_size = self.vram.block.offset, self.vram.size
        if self.pci is not None:
            self.pci.add(MemoryRegion.mmio("vga-lowmem", 0x20000, self), WINDOW, priority=1)
        self.mode_changed()

    def reset(self) -> None:
        super().reset()
        self.memory.store(self.vram_at, bytes(0x40000))
        self.mode_changed()

    def post_load(self) -> None:
        super().post_load()
        self.mode_changed()

    # -- derived from the registers -----------------------------------------------------------------------------------

    @property
    def vbe_on(self) -> bool:
        return bool(self.vbe[r.VBE_ENABLE] & r.VBE_ENABLED)

    @property
    def bank_offset(self) -> int:
        return self.vbe[r.VBE_BANK] << 16 if self.vbe_on else 0

    def mode_changed(self) -> None:
        """After a write to a register that decides how the window works."""
        self.update_window_mode()
        if self.pci is None:
            return
        wanted = self._linear_part()
        if wanted == self._linear_at:
            return
        if self._linear is not None:
            self.pci.remove(self._linear)
            self._linear = None
        if wanted is not None:
            address, size, offset = wanted
            self._linear = MemoryRegion.alias("vga.chain4", self.vram, offset, size)
            self.pci.add(self._linear, address, priority=2)
        self._linear_at = wanted

    def _linear_part(self) -> tuple[int, int, int] | None:
        """Where the window is plain memory: chain 4 with all planes open."""
        if not self.sr[r.SR_MEMORY] & r.CHAIN4 or self.sr[r.SR_PLANE_MASK] != 0x0F:
            return None
        start, size = ((0, 0x20000), (0, 0x10000), (0x10000, 0x8000), (0x18000, 0x8000))[self.gr[r.GR_MISC] >> 2 & 3]
        offset = self.bank_offset if size == 0x10000 else 0
        if offset + size > self.vram_size:
            return None
        return WINDOW + start, size, offset

    # -- 3B0h-3DFh ----------------------------------------------------------------------------------------------------

    def _absent(self, offset: int) -> bool:
        return offset in (MONO_ONLY if self.misc & 1 else COLOR_ONLY)

    @on_read(0x10, bank="vga")
    def read_attribute_index(self) -> int:
        return 0 if self.ar_data_next else self.ar_index

    @on_read(0x11, bank="vga")
    def read_attribute(self) -> int:
        index = self.ar_index & 0x1F
        return self.ar[index] if index < 21 else 0

    @on_write(0x10, bank="vga")
    def write_attribute(self, value: int) -> None:
        if not self.ar_data_next:
            self.ar_index = value & 0x3F
        elif (index := self.ar_index & 0x1F) < 21:
            mask = 0x3F if index < 16 else (0xEF, 0xFF, 0x3F, 0x0F, 0x0F)[index - 16]
            self.ar[index] = value & mask
        self.ar_data_next = not self.ar_data_next

    @on_read(0x12, bank="vga")
    def read_status_0(self) -> int:
        return 0

    @on_write(0x12, bank="vga")
    def write_misc(self, value: int) -> None:
        self.misc = value & ~0x10

    @on_read(0x14, bank="vga")
    def read_sequencer_index(self) -> int:
        return self.sr_index

    @on_write(0x14, bank="vga")
    def write_sequencer_index(self, value: int) -> None:
        self.sr_index = value & 7

    @on_read(0x15, bank="vga")
    def read_sequencer(self) -> int:
        return self.sr[self.sr_index]

    @on_write(0x15, bank="vga")
    def write_sequencer(self, value: int) -> None:
        self.sr[self.sr_index] = value & SR_MASK[self.sr_index]
        self.mode_changed()

    @on_read(0x16, bank="vga")
    def read_pel_mask(self) -> int:
        return self.pel_mask

    @on_write(0x16, bank="vga")
    def write_pel_mask(self, value: int) -> None:
        self.pel_mask = value

    @on_read(0x17, bank="vga")
    def read_dac_state(self) -> int:
        return 3 if self.dac_reading else 0

    @on_write(0x17, bank="vga")
    def write_dac_read_index(self, value: int) -> None:
        self.dac_read_index, self.dac_part, self.dac_reading = value, 0, True

    @on_read(0x18, bank="vga")
    def read_dac_index(self) -> int:
        return self.dac_write_index

    @on_write(0x18, bank="vga")
    def write_dac_index(self, value: int) -> None:
        self.dac_write_index, self.dac_part, self.dac_reading = value, 0, False

    @on_read(0x19, bank="vga")
    def read_dac(self) -> int:
        value = self.palette[self.dac_read_index * 3 + self.dac_part]
        self.dac_part += 1
        if self.dac_part == 3:
            self.dac_part, self.dac_read_index = 0, self.dac_read_index + 1 & 0xFF
        return value

    @on_write(0x19, bank="vga")
    def write_dac(self, value: int) -> None:
        self.dac_cache[self.dac_part] = value
        self.dac_part += 1
        if self.dac_part == 3:
            at = self.dac_write_index * 3
            self.palette[at : at + 3] = bytes(self.dac_cache)
            self.dac_part, self.dac_write_index = 0, self.dac_write_index + 1 & 0xFF

    @on_read(0x1A, bank="vga")
    def read_feature(self) -> int:
        return self.feature

    @on_read(0x1C, bank="vga")
    def read_misc(self) -> int:
        return self.misc

    @on_read(0x1E, bank="vga")
    def read_graphics_index(self) -> int:
        return self.gr_index

    @on_write(0x1E, bank="vga")
    def write_graphics_index(self, value: int) -> None:
        self.gr_index = value & 0x0F

    @on_read(0x1F, bank="vga")
    def read_graphics(self) -> int:
        return self.gr[self.gr_index]

    @on_write(0x1F, bank="vga")
    def write_graphics(self, value: int) -> None:
        self.gr[self.gr_index] = value & GR_MASK[self.gr_index]
        if self.gr_index in (r.GR_MODE, r.GR_MISC, r.GR_READ_MAP):
            self.mode_changed()

    @on_read(0x04, 0x24, bank="vga")
    def read_crtc_index(self, offset: int) -> int:
        return 0xFF if self._absent(offset) else self.cr_index

    @on_write(0x04, 0x24, bank="vga")
    def write_crtc_index(self, offset: int, value: int) -> None:
        if not self._absent(offset):
            self.cr_index = value

    @on_read(0x05, 0x25, bank="vga")
    def read_crtc(self, offset: int) -> int:
        return 0xFF if self._absent(offset) else self.cr[self.cr_index]

    @on_write(0x05, 0x25, bank="vga")
    def write_crtc(self, offset: int, value: int) -> None:
        if self._absent(offset):
            return
        index = self.cr_index
        if index <= r.CR_OVERFLOW and self.cr[r.CR_VSYNC_END] & 0x80:
            if index == r.CR_OVERFLOW:  # locked, but for a bit of the line compare register
                self.cr[index] = self.cr[index] & ~0x10 | value & 0x10
            return
        self.cr[index] = value

    @on_read(0x0A, 0x2A, bank="vga")
    def read_status_1(self, offset: int) -> int:
        """Retrace comes and goes with every look, so that nobody waits for it in vain."""
        if self._absent(offset):
            return 0xFF
        self.ar_data_next = False
        self.status ^= DISPLAY_OFF | RETRACE
        return self.status

    @on_write(0x0A, 0x2A, bank="vga")
    def write_feature(self, offset: int, value: int) -> None:
        if not self._absent(offset):
            self.feature = value & 0x10

    # -- Bochs VBE ----------------------------------------------------------------------------------------------------

    @on_read(0, size=2, bank="vbe-index")
    def read_vbe_index(self) -> int:
        return self.vbe_index

    @on_write(0, size=2, bank="vbe-index")
    def write_vbe_index(self, value: int) -> None:
        self.vbe_index = value

    @on_read(0, 1, size=2, bank="vbe")
    def read_vbe_data(self, offset: int) -> int:
        return self.vbe_read(self.vbe_index)

    @on_write(0, 1, size=2, bank="vbe")
    def write_vbe_data(self, offset: int, value: int) -> None:
        self.vbe_write(self.vbe_index, value)

    def vbe_read(self, index: int) -> int:
        if index == r.VBE_MEMORY:
            return self.vram_size >> 16
        if index >= r.VBE_MEMORY:
            return 0
        if self.vbe[r.VBE_ENABLE] & r.VBE_GETCAPS and index in (r.VBE_XRES, r.VBE_YRES, r.VBE_BPP):
            return (r.VBE_MAX_X, r.VBE_MAX_Y, r.VBE_MAX_BPP)[index - r.VBE_XRES]
        return self.vbe[index]

    def vbe_write(self, index: int, value: int) -> None:
        if index >= r.VBE_MEMORY:
            return
        if index == r.VBE_ID:
            if r.VBE_ID0 <= value <= r.VBE_ID5:
                self.vbe[index] = value
        elif index == r.VBE_ENABLE:
            self._vbe_enable(value)
        elif index == r.VBE_BANK:
            self.vbe[index] = value & (self.vram_size >> 16) - 1
            self.mode_changed()
        else:
            self.vbe[index] = value
            self._fix_vbe()
            self._vbe_to_vga()

    def _vbe_enable(self, value: int) -> None:
        was_on = self.vbe_on
        if value & r.VBE_ENABLED and not was_on:
            self.vbe[r.VBE_WIDTH] = self.vbe[r.VBE_X] = self.vbe[r.VBE_Y] = 0
            self.vbe[r.VBE_ENABLE] = value
            self._fix_vbe()
            self._vbe_to_vga()
            if not value & r.VBE_NOCLEAR:
                self.memory.store(self.vram_at, bytes(min(self.vbe_height * self.vbe_stride, self.vram_size)))
        elif not value & r.VBE_ENABLED:
            self.vbe[r.VBE_BANK] = 0
        self.vbe[r.VBE_ENABLE] = value
        self.mode_changed()

    @property
    def vbe_stride(self) -> int:
        """Bytes from row to row."""
        bpp = self.vbe[r.VBE_BPP]
        return self.vbe[r.VBE_WIDTH] // 2 if bpp == 4 else self.vbe[r.VBE_WIDTH] * (bpp + 7 >> 3)

    @property
    def vbe_height(self) -> int:
        return self.vbe[r.VBE_YRES]

    def _fix_vbe(self) -> None:
        """Bring impossible values to the nearest possible ones."""
        vbe = self.vbe
        if vbe[r.VBE_BPP] not in (4, 8, 15, 16, 24, 32):
            vbe[r.VBE_BPP] = 8
        vbe[r.VBE_XRES] = min(max(vbe[r.VBE_XRES] & ~7, 8), r.VBE_MAX_X)
        vbe[r.VBE_WIDTH] = max(min(vbe[r.VBE_WIDTH] & ~7, r.VBE_MAX_X), vbe[r.VBE_XRES])
        stride = self.vbe_stride
        most = max(self.vram_size // stride, 1)
        vbe[r.VBE_YRES] = min(max(vbe[r.VBE_YRES], 1), r.VBE_MAX_Y, most)
        vbe[r.VBE_HEIGHT] = min(most, 0xFFFF)
        shown = vbe[r.VBE_X] * stride // max(vbe[r.VBE_WIDTH], 1) + vbe[r.VBE_Y] * stride
        if shown + vbe[r.VBE_YRES] * stride > self.vram_size:
            vbe[r.VBE_X] = vbe[r.VBE_Y] = 0

    def _vbe_to_vga(self) -> None:
        """The VGA registers that VBE modes imply; the VGA BIOS leaves them to us."""
        if not self.vbe_on:
            return
        self.gr[r.GR_MISC] = self.gr[r.GR_MISC] & ~0x0C | 0x05
        self.cr[r.CR_MODE] |= 3
        self.cr[r.CR_OFFSET] = self.vbe_stride >> 3 & 0xFF
        self.cr[r.CR_END_H] = (self.vbe[r.VBE_XRES] >> 3) - 1 & 0xFF
        last = self.vbe[r.VBE_YRES] - 1
        self.cr[r.CR_END_V] = last & 0xFF
        self.cr[r.CR_OVERFLOW] = self.cr[r.CR_OVERFLOW] & ~0x42 | last >> 7 & 2 | last >> 3 & 0x40
        self.cr[r.CR_MAX_SCAN] &= ~0x9F
        planar = self.vbe[r.VBE_BPP] == 4
        self.gr[r.GR_MODE] = self.gr[r.GR_MODE] & ~0x60 | (0 if planar else 0x40)
        if planar:
            self.sr[r.SR_MEMORY] &= ~r.CHAIN4
        else:
            self.sr[r.SR_MEMORY] |= r.CHAIN4
            self.sr[r.SR_PLANE_MASK] |= 0x0F
        self.mode_changed()
