"""I/O APIC (Intel 82093AA datasheet, 290566), version 20h with the EOI register of later chips.

A pin's request is sent to the local APICs as a message with the destination and vector of its redirection entry. A
level-triggered pin sets Remote IRR when it is sent and is not sent again before the EOI for its vector comes back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from qemupy.hw.core import Device, IrqLine, array, log_guest_error, on_read, on_write, register, transient, u8, u32

PINS = 24
VERSION = 0x20
IOREGSEL, IOWIN, EOI = 0x00, 0x10, 0x40
REG_ID, REG_VERSION, REG_ARBITRATION, REG_REDIRECTION = 0x00, 0x01, 0x02, 0x10
DELIVERY_MODES = ("fixed", "lowest", "SMI", "...", "NMI", "INIT", "...", "extINT")
EXTINT = 7
LOGICAL, PENDING, ACTIVE_LOW, REMOTE_IRR, LEVEL, MASKED = (1 << n for n in (11, 12, 13, 14, 15, 16))
READ_ONLY = PENDING | REMOTE_IRR


class Deliver(Protocol):
    """The APIC bus. `dest_mode` is 0 physical, 1 logical; `trigger_mode` is 0 edge, 1 level."""

    def __call__(self, dest: int, dest_mode: int, delivery_mode: int, vector: int, trigger_mode: int) -> None: ...


@register("ioapic", bus="System", help="I/O APIC")
class IoApic(Device):
    """Mapped at FEC00000h. `input(n)` is pin n; the local APICs call `eoi(vector)` for level-triggered interrupts.
    `pic_intack` gives the vector for pins in ExtINT mode."""

    deliver: Deliver
    pic_intack: Callable[[], int] | None = None
    select: int = u8()
    id: int = u32()
    redirection: list[int] = array(64, PINS, reset=MASKED)
    irr: int = u32()
    levels: int = u32()
    counts: list[int] = transient(factory=lambda: [0] * PINS)

    # -- pins ---------------------------------------------------------------------------------------------------------

    def input(self, n: int) -> IrqLine:
        return IrqLine(self._drive, n)

    def _drive(self, n: int, level: bool) -> None:
        bit = 1 << n
        entry = self.redirection[n]
        if not level:
            self.levels &= ~bit
            if entry & LEVEL:
                self.irr &= ~bit
            return
        rose = not self.levels & bit
        self.levels |= bit
        self.counts[n] += rose
        if entry & LEVEL:
            self.irr |= bit
            self._service(n)
        elif rose and not entry & MASKED:
            # An edge on a masked pin is lost (82093AA 3.2.4).
            self.irr |= bit
            self._service(n)

    def _service(self, n: int) -> None:
        """Send the request of pin `n` if it has one and may."""
        entry = self.redirection[n]
        bit = 1 << n
        if not self.irr & bit or entry & MASKED:
            return
        if entry & LEVEL:
            if entry & REMOTE_IRR:
                return
            self.redirection[n] = entry | REMOTE_IRR
        else:
            self.irr &= ~bit
        mode, vector = entry >> 8 & 7, entry & 0xFF
        if mode == EXTINT and self.pic_intack is not None:
            vector = self.pic_intack()
        self.deliver(entry >> 56, entry >> 11 & 1, mode, vector, entry >> 15 & 1)

    def eoi(self, vector: int) -> None:
        """A local APIC ended the service of a level-triggered interrupt; a line still high is sent again."""
        for n, entry in enumerate(self.redirection):
            if entry & 0xFF == vector and entry & REMOTE_IRR:
                self.redirection[n] = entry & ~REMOTE_IRR
                self._service(n)

    # -- registers ----------------------------------------------------------------------------------------------------

    @on_read(IOREGSEL, size=4)
    def read_select(self) -> int:
        return self.select

    @on_write(IOREGSEL, size=(1, 2, 4))
    def write_select(self, value: int) -> None:
        self.select = value & 0xFF

    @on_read(IOWIN, size=4)
    def read_window(self) -> int:
        select = self.select
        n = select - REG_REDIRECTION >> 1
        if 0 <= n < PINS:
            return self.redirection[n] >> (32 if select & 1 else 0) & 0xFFFFFFFF
        if select in (REG_ID, REG_ARBITRATION):
            return self.id << 24
        if select == REG_VERSION:
            return VERSION | PINS - 1 << 16
        return 0

    @on_write(IOWIN, size=4)
    def write_window(self, value: int) -> None:
        select = self.select
        n = select - REG_REDIRECTION >> 1
        if 0 <= n < PINS:
            old = self.redirection[n]
            if select & 1:
                self._set_entry(n, old & 0xFFFFFFFF | value << 32)
            else:
                self._set_entry(n, old & ~0xFFFFFFFF | value & ~READ_ONLY | old & READ_ONLY)
        elif select == REG_ID:
            self.id = value >> 24 & 0x0F
        else:
            log_guest_error("ioapic: write of %#x to register %#04x", value, select)

    def _set_entry(self, n: int, entry: int) -> None:
        """Turning a pin to edge mode clears Remote IRR, which systems use in place of an EOI."""
        bit = 1 << n
        if entry & LEVEL:
            self.irr = self.irr & ~bit | self.levels & bit
        else:
            entry &= ~REMOTE_IRR
            if self.redirection[n] & LEVEL:
                self.irr &= ~bit
        self.redirection[n] = entry
        self._service(n)

    @on_write(EOI, size=4)
    def write_eoi(self, value: int) -> None:
        self.eoi(value & 0xFF)

    # -- monitor ------------------------------------------------------------------------------------------------------

    def pic_info(self) -> list[str]:
        """`info pic`, as QEMU prints it."""
        names = {REG_ID: " (id)", REG_VERSION: " (ver)", REG_ARBITRATION: " (arb)"}
        select = "" if not self.select else names.get(self.select, f" (redir[{self.select - REG_REDIRECTION >> 1}])")
        lines = [f"ioapic0: ver=0x{VERSION:x} id=0x{self.id:02x} sel=0x{self.select:02x}{select}"]
        for n, entry in enumerate(self.redirection):
            lines.append(
                f"  pin {n:<2} 0x{entry:016x} dest={entry >> 56 & (0xFF if entry & LOGICAL else 0x0F):x} "
                f"vec={entry & 0xFF:<3} {'active-lo' if entry & ACTIVE_LOW else 'active-hi'} "
                f"{'level' if entry & LEVEL else 'edge':<5} {'masked' if entry & MASKED else '':<6} "
                f"{DELIVERY_MODES[entry >> 8 & 7]:<6} {'logical' if entry & LOGICAL else 'physical'}"
            )
        remote = sum(1 << n for n, entry in enumerate(self.redirection) if entry & REMOTE_IRR)
        for name, bits in (("  IRR", self.irr), ("  Remote IRR", remote)):
            pins = "".join(f"{n:<2} " for n in range(PINS) if bits >> n & 1)
            lines.append(f"{name:<10} {pins or '(none)'}")
        return lines
