"""The VGA's window at A0000h: the write and read paths of the graphics controller.

Every access of a text or planar mode comes here, so the handlers first look at one word, `window_mode`, computed when a
register changes. Address translation: IBM VGA reference "Graphics Controller"; the four planes of an address are four
neighbouring bytes of video memory.
"""

from __future__ import annotations

from qemupy.hw.core import Device, array, transient, u32
from qemupy.hw.display import vga_regs as r
from qemupy.memory import CoreMemory, MemoryRegion

WINDOW = 0xA0000
LINEAR, TEXT, ODD_EVEN, PLANAR = range(4)
# A byte for each of the four planes, all ones where the mask bit is set
PLANES = [sum(0xFF << 8 * plane for plane in range(4) if mask >> plane & 1) for mask in range(16)]
SPREAD = 0x01010101


class VgaWindow(Device):
    memory: CoreMemory
    sr: list[int] = array(8, 8)
    gr: list[int] = array(8, 16)
    latch: int = u32()
    vram: MemoryRegion = transient()
    vram_at: int = transient(0)
    vram_size: int = transient(0)
    window_mode: int = transient(PLANAR)
    window_start: int = transient(0)
    window_length: int = transient(0)

    @property
    def bank_offset(self) -> int:
        raise NotImplementedError

    def update_window_mode(self) -> None:
        sr, gr = self.sr, self.gr
        self.window_start, self.window_length = (
            (0, 0x20000), (0, 0x10000), (0x10000, 0x8000), (0x18000, 0x8000),
        )[gr[r.GR_MISC] >> 2 & 3]  # fmt: skip
        if sr[r.SR_MEMORY] & r.CHAIN4:
            self.window_mode = LINEAR
        elif gr[r.GR_MODE] & 0x10:
            is_text = sr[r.SR_PLANE_MASK] & 3 == 3 and not gr[r.GR_READ_MAP] & 2
            self.window_mode = TEXT if is_text else ODD_EVEN
        else:
            self.window_mode = PLANAR

    # -- memory-map handlers ------------------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        at = offset - self.window_start
        if at < 0 or at + size > self.window_length:
            return (1 << 8 * size) - 1
        if self.window_mode == TEXT and size == 2 and not at & 1:
            return int.from_bytes(self.memory.view(self.vram_at + at * 2, 2), "little")
        value = 0
        for n in range(size):
            value |= self._read_byte(at + n) << 8 * n
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        at = offset - self.window_start
        if at < 0 or at + size > self.window_length:
            return
        if self.window_mode == TEXT and size > 1 and not at & 1:
            for n in range(0, size, 2):
                self.memory.store(self.vram_at + (at + n) * 2, (value >> 8 * n & 0xFFFF).to_bytes(2, "little"))
            return
        for n in range(size):
            self._write_byte(at + n, value >> 8 * n & 0xFF)

    def _read_byte(self, at: int) -> int:
        if self.window_length == 0x10000:
            at += self.bank_offset
        mode, view, gr = self.window_mode, self.memory.view, self.gr
        if mode == LINEAR:
            return view(self.vram_at + at, 1)[0] if at < self.vram_size else 0xFF
        if mode != PLANAR:
            return view(self.vram_at + (at & ~1) * 2 + (gr[r.GR_READ_MAP] & 2 | at & 1), 1)[0]
        if at * 4 >= self.vram_size:
            return 0xFF
        self.latch = latch = int.from_bytes(view(self.vram_at + at * 4, 4), "little")
        if not gr[r.GR_MODE] & 8:
            return latch >> 8 * (gr[r.GR_READ_MAP] & 3) & 0xFF
        differs = (latch ^ PLANES[gr[r.GR_COMPARE]]) & PLANES[gr[r.GR_DONT_CARE]]
        differs |= differs >> 16
        return ~(differs | differs >> 8) & 0xFF

    def _write_byte(self, at: int, value: int) -> None:
        if self.window_length == 0x10000:
            at += self.bank_offset
        mode, mask = self.window_mode, self.sr[r.SR_PLANE_MASK]
        if mode == PLANAR:
            if at * 4 < self.vram_size:
                self._write_planes(at * 4, value, mask)
            return
        if mode == LINEAR:
            plane, place = at & 3, at
        else:
            plane = self.gr[r.GR_READ_MAP] & 2 | at & 1
            place = (at & ~1) * 2 + plane
        if mask >> plane & 1 and place < self.vram_size:
            self.memory.store(self.vram_at + place, bytes((value,)))

    def _write_planes(self, place: int, value: int, mask: int) -> None:
        gr = self.gr
        mode, latch = gr[r.GR_MODE] & 3, self.latch
        if mode == 1:
            result = latch
        else:
            bits = gr[r.GR_BIT_MASK]
            rotate = gr[r.GR_ROTATE] & 7
            if mode == 2:
                source = PLANES[value & 0x0F]
            else:
                value = (value >> rotate | value << 8 - rotate) & 0xFF
                if mode == 3:
                    bits &= value
                    source = PLANES[gr[r.GR_SET_RESET]]
                else:
                    fixed = PLANES[gr[r.GR_ENABLE_SR]]
                    source = value * SPREAD & ~fixed | PLANES[gr[r.GR_SET_RESET]] & fixed
            function = gr[r.GR_ROTATE] >> 3
            if function == 1:
                source &= latch
            elif function == 2:
                source |= latch
            elif function == 3:
                source ^= latch
            bits *= SPREAD
            result = source & bits | latch & ~bits
        if mask != 0x0F:
            keep = ~PLANES[mask] & 0xFFFFFFFF
            result = result & ~keep | int.from_bytes(self.memory.view(self.vram_at + place, 4), "little") & keep
        self.memory.store(self.vram_at + place, (result & 0xFFFFFFFF).to_bytes(4, "little"))
