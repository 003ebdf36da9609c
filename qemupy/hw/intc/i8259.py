"""The two 8259A interrupt controllers of a PC, slave on the master's input 2 (Intel 8259A datasheet, 231468), with the
edge/level control registers of the PIIX (82371SB datasheet 2.5.5).

An input sets a bit of IRR (on a rise, or by level); the highest-priority bit not masked and not below one in service
raises INTR; the CPU's acknowledge cycle (`intack`) moves it to ISR and answers with its vector; EOI ends the service.
"""

from __future__ import annotations

from qemupy.hw.core import (
    Device,
    IrqLine,
    State,
    boolean,
    log_unimp,
    nested_list,
    on_read,
    on_write,
    register,
    transient,
    u8,
)

CASCADE = 2
ELCR_MASKS = (0xF8, 0xDE)  # IRQ 0, 1, 2, 8 and 13 are always edge-triggered

ICW1, ICW1_IC4, ICW1_SNGL, ICW1_LTIM = 0x10, 0x01, 0x02, 0x08
ICW4_AEOI, ICW4_SFNM = 0x02, 0x10
OCW3 = 0x08


class Chip(State):
    last: int = u8()  # input levels, for edge detection
    irr: int = u8()
    imr: int = u8()
    isr: int = u8()
    base: int = u8()
    lowest: int = u8(reset=7)  # the input of lowest priority
    elcr: int = u8()
    icw_step: int = u8()  # which ICW a write to the odd address is; 0: OCW1
    needs_icw4: bool = boolean()
    single: bool = boolean()
    level_mode: bool = boolean()
    auto_eoi: bool = boolean()
    rotate_on_aeoi: bool = boolean()
    special_nested: bool = boolean()
    special_mask: bool = boolean()
    read_isr: bool = boolean()
    poll: bool = boolean()

    def first(self, mask: int) -> int:
        """The highest-priority input in `mask`, counted from the highest: 0 to 7, or 8 if there is none."""
        if not mask:
            return 8
        turn = self.lowest + 1 & 7
        if turn:
            mask = (mask >> turn | mask << 8 - turn) & 0xFF
        return (mask & -mask).bit_length() - 1

    def number(self, priority: int) -> int:
        return self.lowest + 1 + priority & 7

    def sense_levels(self) -> None:
        """Level-triggered inputs request as long as they are high."""
        levels = 0xFF if self.level_mode else self.elcr
        self.irr = self.irr & ~levels | self.last & levels

    def initialize(self, icw1: int) -> None:
        """ICW1 clears all but the ELCR. Edge-triggered inputs that are high have to rise again."""
        self.irr = self.imr = self.isr = 0
        self.lowest = 7
        self.read_isr = self.poll = self.special_mask = self.rotate_on_aeoi = False
        self.auto_eoi = self.special_nested = False
        self.needs_icw4 = bool(icw1 & ICW1_IC4)
        self.single = bool(icw1 & ICW1_SNGL)
        self.level_mode = bool(icw1 & ICW1_LTIM)
        self.sense_levels()
        self.icw_step = 2

    def write_odd(self, value: int) -> None:
        step = self.icw_step
        if step == 0:
            self.imr = value
        elif step == 2:
            self.base = value & 0xF8
            self.icw_step = 3 if not self.single else 4 if self.needs_icw4 else 0
        elif step == 3:
            self.icw_step = 4 if self.needs_icw4 else 0
        else:
            self.auto_eoi = bool(value & ICW4_AEOI)
            self.special_nested = bool(value & ICW4_SFNM)
            self.icw_step = 0

    def ocw2(self, value: int) -> None:
        """Rotate (bit 7), specific (bit 6), end of interrupt (bit 5), level in bits 2-0."""
        rotate, specific, eoi = value & 0x80, value & 0x40, value & 0x20
        if eoi:
            # In special mask mode a non-specific EOI passes over masked inputs.
            served = self.isr & ~self.imr if self.special_mask else self.isr
            if not specific and not served:
                return
            n = value & 7 if specific else self.number(self.first(served))
            self.isr &= ~(1 << n)
            if rotate:
                self.lowest = n
        elif specific:
            if rotate:
                self.lowest = value & 7
        else:
            self.rotate_on_aeoi = bool(rotate)

    def ocw3(self, value: int) -> None:
        if value & 0x04:
            self.poll = True
        if value & 0x02:
            self.read_isr = bool(value & 1)
        if value & 0x40:
            self.special_mask = bool(value & 0x20)


@register("isa-i8259", bus="ISA", help="pair of 8259A interrupt controllers")
class PicPair(Device):
    """Board: `input(n)` for ISA IRQ n (2 is taken by the slave), banks "master" at 20h, "slave" at A0h, "elcr" at 4D0h
    (2 ports each). `intr` is the CPU's INTR; the CPU calls `intack()`."""

    intr: IrqLine
    chips: list[Chip] = nested_list(Chip, 2)
    counts: list[int] = transient(factory=lambda: [0] * 16)
    master: Chip = transient()
    slave: Chip = transient()

    def realize(self) -> None:
        self.master, self.slave = self.chips

    def reset(self) -> None:
        super().reset()
        self.intr.set(False)

    def post_load(self) -> None:
        self.intr.set(self._pending(0) < 8)

    # -- inputs and output --------------------------------------------------------------------------------------------

    def input(self, n: int) -> IrqLine:
        return IrqLine(self._drive, n)

    def _drive(self, n: int, level: bool) -> None:
        chip = self.slave if n & 8 else self.master
        bit = 1 << (n & 7)
        old = chip.last
        if level:
            if not old & bit:
                self.counts[n] += 1
                chip.last = old | bit
                chip.irr |= bit
            elif chip.irr & bit:
                return
            elif chip.level_mode or chip.elcr & bit:
                chip.irr |= bit
            else:
                return
        else:
            if not old & bit:
                return
            chip.last = old & ~bit
            if not (chip.level_mode or chip.elcr & bit):
                return
            chip.irr &= ~bit
        self._update(n >> 3)

    def _pending(self, which: int) -> int:
        """Priority of the request chip `which` would signal now, 8 for none."""
        chip = self.chips[which]
        requests = chip.irr & ~chip.imr
        if not requests:
            return 8
        served = chip.isr
        if chip.special_mask:
            served &= ~chip.imr
        if chip.special_nested and not which:
            served &= ~(1 << CASCADE)
        priority = chip.first(requests)
        return priority if not served or priority < chip.first(served) else 8

    def _update(self, which: int) -> None:
        """Carry a change in one chip to the outputs."""
        if which:
            self._drive(CASCADE, self._pending(1) < 8)
        level = self._pending(0) < 8
        if level != self.intr.level:
            self.intr.set(level)

    # -- the acknowledge cycle ----------------------------------------------------------------------------------------

    def intack(self) -> int:
        """The vector of the interrupt the CPU takes now. Nothing pending any more gives the spurious IRQ 7 or 15."""
        priority = self._pending(0)
        if priority == 8:
            return self.master.base + 7
        n = self.master.number(priority)
        if n != CASCADE:
            self._begin_service(0, n)
            return self.master.base + n
        priority = self._pending(1)
        slave_n = 7
        if priority < 8:
            slave_n = self.slave.number(priority)
            self._begin_service(1, slave_n)
        self._begin_service(0, CASCADE)
        return self.slave.base + slave_n

    def _begin_service(self, which: int, n: int) -> None:
        chip = self.chips[which]
        bit = 1 << n
        if chip.auto_eoi:
            if chip.rotate_on_aeoi:
                chip.lowest = n
        else:
            chip.isr |= bit
        if not (chip.level_mode or chip.elcr & bit):
            chip.irr &= ~bit
        self._update(which)

    # -- ports --------------------------------------------------------------------------------------------------------

    @on_write(0, bank="master")
    def write_master_even(self, value: int) -> None:
        self._write_even(0, value)

    @on_write(0, bank="slave")
    def write_slave_even(self, value: int) -> None:
        self._write_even(1, value)

    def _write_even(self, which: int, value: int) -> None:
        chip = self.chips[which]
        if value & ICW1:
            if value & ICW1_SNGL:
                log_unimp("i8259: single mode is not supported")
            chip.initialize(value)
        elif value & OCW3:
            chip.ocw3(value)
        else:
            chip.ocw2(value)
        self._update(which)

    @on_write(1, bank="master")
    def write_master_odd(self, value: int) -> None:
        self.master.write_odd(value)
        self._update(0)

    @on_write(1, bank="slave")
    def write_slave_odd(self, value: int) -> None:
        self.slave.write_odd(value)
        self._update(1)

    @on_read(0, bank="master")
    def read_master_even(self) -> int:
        chip = self.master
        if chip.poll:
            return self._poll(0)
        return chip.isr if chip.read_isr else chip.irr

    @on_read(0, bank="slave")
    def read_slave_even(self) -> int:
        chip = self.slave
        if chip.poll:
            return self._poll(1)
        return chip.isr if chip.read_isr else chip.irr

    @on_read(1, bank="master")
    def read_master_odd(self) -> int:
        return self._poll(0) if self.master.poll else self.master.imr

    @on_read(1, bank="slave")
    def read_slave_odd(self) -> int:
        return self._poll(1) if self.slave.poll else self.slave.imr

    def _poll(self, which: int) -> int:
        """A read after the poll command stands for the acknowledge cycle."""
        chip = self.chips[which]
        chip.poll = False
        priority = self._pending(which)
        if priority == 8:
            return 0
        n = chip.number(priority)
        self._begin_service(which, n)
        return 0x80 | n

    @on_read(0, 1, bank="elcr")
    def read_elcr(self, which: int) -> int:
        return self.chips[which].elcr

    @on_write(0, 1, bank="elcr")
    def write_elcr(self, which: int, value: int) -> None:
        chip = self.chips[which]
        chip.elcr = value & ELCR_MASKS[which]
        chip.sense_levels()
        self._update(which)

    # -- monitor ------------------------------------------------------------------------------------------------------

    def pic_info(self) -> list[str]:
        """`info pic`, as QEMU prints it."""
        lines = []
        for i, chip in reversed(list(enumerate(self.chips))):
            lines.append(
                f"pic{i}: irr={chip.irr:02x} imr={chip.imr:02x} isr={chip.isr:02x} hprio={chip.lowest + 1 & 7} "
                f"irq_base={chip.base:02x} rr_sel={int(chip.read_isr)} elcr={chip.elcr:02x} "
                f"fnm={int(chip.special_nested)}"
            )
        return lines
