"""System control port B, 61h: gate and output of PIT channel 2, the speaker, refresh and NMI status.

IBM PC/AT technical reference, "I/O port 61h"; 82371SB (PIIX3) datasheet 2.5.1.2 "NMI status and control". The parity
and channel-check sources do not exist here, so their status bits read 0.
"""

from __future__ import annotations

from typing import Protocol

from qemupy.hw.core import Clock, Device, on_read, on_write, register, u8

GATE, SPEAKER, SERR_OFF, IOCHK_OFF, REFRESH, OUT2 = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
REFRESH_NS = 15_085  # one refresh cycle, a toggle of bit 4, every 18 PIT ticks


class SpeakerTimer(Protocol):
    """What the port needs of the PIT."""

    def out(self, n: int) -> bool: ...

    def set_gate(self, n: int, level: bool) -> None: ...


@register("isa-pcspk", bus="ISA", help="PC speaker and system control port B")
class Port61(Device):
    clock: Clock
    pit: SpeakerTimer
    control: int = u8()

    @on_read(0)
    def read_status(self) -> int:
        value = self.control
        if self.clock.now() // REFRESH_NS & 1:
            value |= REFRESH
        return value | OUT2 if self.pit.out(2) else value

    @on_write(0)
    def write_control(self, value: int) -> None:
        self.control = value & 0x0F
        self.pit.set_gate(2, bool(value & GATE))
