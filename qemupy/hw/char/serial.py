"""16550A UART (National Semiconductor PC16550D datasheet, sections 8.1 to 8.6).

A byte written is handed to the chardev at once, so the transmitter is always empty; received bytes wait in the FIFO (or
in its one place when FIFOs are off). Times on the line matter only for the receive timeout. As in QEMU, OUT2 does not
gate the interrupt.
"""

from __future__ import annotations

from qemupy.backends.chardev import BREAK, CharBackend
from qemupy.hw.core import (
    Clock,
    Device,
    IrqLine,
    Timer,
    boolean,
    fifo,
    on_read,
    on_write,
    on_write_burst,
    register,
    timer,
    u8,
    u16,
)

IER_RX, IER_THR, IER_LINE, IER_MODEM = 0x01, 0x02, 0x04, 0x08
IIR_NONE, IIR_MODEM, IIR_THR, IIR_RX, IIR_LINE, IIR_TIMEOUT, IIR_FIFO = 0x01, 0x00, 0x02, 0x04, 0x06, 0x0C, 0xC0
FCR_ENABLE, FCR_CLEAR_RX, FCR_CLEAR_TX = 0x01, 0x02, 0x04
TRIGGERS = (1, 4, 8, 14)
LCR_STOP, LCR_PARITY, LCR_DLAB = 0x04, 0x08, 0x80
MCR_DTR, MCR_RTS, MCR_OUT1, MCR_OUT2, MCR_LOOP = 0x01, 0x02, 0x04, 0x08, 0x10
LSR_DR, LSR_OE, LSR_BI, LSR_THRE, LSR_TEMT, LSR_ERRORS = 0x01, 0x02, 0x10, 0x20, 0x40, 0x1E
MSR_CTS, MSR_DSR, MSR_RI, MSR_DCD, MSR_DELTAS = 0x10, 0x20, 0x40, 0x80, 0x0F
FIFO_SIZE = 16
BASE_BAUD = 115200
NS = 1_000_000_000

_BYTES = [bytes([i]) for i in range(256)]


@register("isa-serial", bus="ISA", help="16550A serial port")
class Serial16550(Device):
    """Eight ports. `chardev` is the other end of the line."""

    chardev: CharBackend
    irq: IrqLine
    clock: Clock
    divisor: int = u16(reset=12)
    ier: int = u8()
    fcr: int = u8()
    lcr: int = u8()
    mcr: int = u8(reset=MCR_OUT2)
    lsr: int = u8(reset=LSR_THRE | LSR_TEMT)
    msr: int = u8(reset=MSR_DCD | MSR_DSR | MSR_CTS)
    scratch: int = u8()
    rx: bytearray = fifo(FIFO_SIZE)
    last_rx: int = u8()  # what an empty receiver still shows
    thr_pending: bool = boolean()  # "transmitter empty" has not been reported yet
    timed_out: bool = boolean()  # bytes below the trigger level have waited for four character times
    rx_timeout: Timer = timer("clock", "on_rx_timeout")

    def realize(self) -> None:
        self.chardev.connect(self.receive, self.room, self.event)

    def reset(self) -> None:
        super().reset()
        self.irq.set(False)

    def post_load(self) -> None:
        self.update_irq()

    def machine_loaded(self) -> None:
        self.chardev.accept_input()

    # -- the line -----------------------------------------------------------------------------------------------------

    def room(self) -> int:
        """Up to the trigger level at once, then byte by byte, so that a slow guest is not overrun."""
        waiting = len(self.rx)
        if not self.fcr & FCR_ENABLE:
            return 1 - min(waiting, 1)
        if waiting >= FIFO_SIZE:
            return 0
        return max(TRIGGERS[self.fcr >> 6] - waiting, 1)

    def receive(self, data: bytes) -> None:
        if not self.mcr & MCR_LOOP:
            self._receive(data)

    def event(self, what: str) -> None:
        if what == BREAK:
            self._receive(b"\0")
            self.lsr |= LSR_BI
            self.update_irq()

    def _receive(self, data: bytes) -> None:
        rx = self.rx
        if self.fcr & FCR_ENABLE:
            room = FIFO_SIZE - len(rx)
            if len(data) > room:
                self.lsr |= LSR_OE
            rx += data[:room]
        else:
            if len(rx) + len(data) > 1:
                self.lsr |= LSR_OE
            rx[:] = data[-1:]
        self.lsr |= LSR_DR
        self._restart_timeout()
        self.update_irq()

    def _restart_timeout(self) -> None:
        if self.fcr & FCR_ENABLE:
            self.rx_timeout.mod(self.clock.now() + 4 * self._character_time())

    def _character_time(self) -> int:
        bits = 1 + 5 + (self.lcr & 3) + 1 + bool(self.lcr & LCR_PARITY) + bool(self.lcr & LCR_STOP)
        return bits * NS * max(self.divisor, 1) // BASE_BAUD

    def on_rx_timeout(self) -> None:
        if self.rx:
            self.timed_out = True
            self.update_irq()

    # -- interrupts ---------------------------------------------------------------------------------------------------

    def _interrupt_id(self) -> int:
        """The highest-priority pending source (PC16550D, table IV)."""
        ier = self.ier
        if ier & IER_LINE and self.lsr & LSR_ERRORS:
            return IIR_LINE
        if ier & IER_RX:
            if self.timed_out:
                return IIR_TIMEOUT
            if self.rx and (not self.fcr & FCR_ENABLE or len(self.rx) >= TRIGGERS[self.fcr >> 6]):
                return IIR_RX
        if ier & IER_THR and self.thr_pending:
            return IIR_THR
        if ier & IER_MODEM and self.msr & MSR_DELTAS:
            return IIR_MODEM
        return IIR_NONE

    def update_irq(self) -> None:
        self.irq.set(self._interrupt_id() != IIR_NONE)

    # -- registers ----------------------------------------------------------------------------------------------------

    @on_write(0)
    def write_data(self, value: int) -> None:
        if self.lcr & LCR_DLAB:
            self.divisor = self.divisor & 0xFF00 | value
            return
        if self.mcr & MCR_LOOP:
            self._receive(_BYTES[value])
        else:
            self.chardev.write(_BYTES[value])
        self._sent()

    @on_write_burst(0, size=1)
    def write_text(self, data: bytes) -> int:
        if self.lcr & LCR_DLAB or self.mcr & MCR_LOOP:
            return 0
        self.chardev.write(data)
        self._sent()
        return len(data)

    def _sent(self) -> None:
        """The transmitter was full for a moment and is empty again: that is a new interrupt, though no new rise of the
        line if another one is still pending."""
        if self.ier & IER_THR:
            self.thr_pending = False
            self.update_irq()
            self.thr_pending = True
            self.update_irq()
        else:
            self.thr_pending = True

    @on_read(0)
    def read_data(self) -> int:
        if self.lcr & LCR_DLAB:
            return self.divisor & 0xFF
        rx = self.rx
        if rx:
            self.last_rx = rx[0]
            del rx[0]
            self.timed_out = False
            if rx:
                self._restart_timeout()
            else:
                self.lsr &= ~(LSR_DR | LSR_BI)
                self.rx_timeout.cancel()
            self.update_irq()
            self.chardev.accept_input()
        return self.last_rx

    @on_write(1)
    def write_ier(self, value: int) -> None:
        if self.lcr & LCR_DLAB:
            self.divisor = self.divisor & 0xFF | value << 8
            return
        changed = self.ier ^ value
        self.ier = value & 0x0F
        if changed & IER_THR:
            # Switching it on reports an empty transmitter once more.
            self.thr_pending = bool(value & IER_THR)
        self.update_irq()

    @on_read(1)
    def read_ier(self) -> int:
        return self.divisor >> 8 if self.lcr & LCR_DLAB else self.ier

    @on_read(2)
    def read_iir(self) -> int:
        source = self._interrupt_id()
        if source == IIR_THR:
            self.thr_pending = False
            self.update_irq()
        return source | IIR_FIFO if self.fcr & FCR_ENABLE else source

    @on_write(2)
    def write_fcr(self, value: int) -> None:
        toggled = (self.fcr ^ value) & FCR_ENABLE
        if value & FCR_CLEAR_RX or toggled:
            self.rx.clear()
            self.lsr &= ~(LSR_DR | LSR_BI)
            self.timed_out = False
            self.rx_timeout.cancel()
        if value & FCR_CLEAR_TX or toggled:
            self.thr_pending = True
        self.fcr = value & 0xC9 if value & FCR_ENABLE else 0
        self.update_irq()
        self.chardev.accept_input()

    @on_read(3)
    def read_lcr(self) -> int:
        return self.lcr

    @on_write(3)
    def write_lcr(self, value: int) -> None:
        self.lcr = value

    @on_read(4)
    def read_mcr(self) -> int:
        return self.mcr

    @on_write(4)
    def write_mcr(self, value: int) -> None:
        self.mcr = value & 0x1F

    @on_read(5)
    def read_lsr(self) -> int:
        lsr = self.lsr
        if lsr & LSR_ERRORS:
            self.lsr = lsr & ~LSR_ERRORS
            self.update_irq()
        return lsr

    @on_write(5, 6)
    def write_ignored(self, value: int) -> None:
        """Line and modem status are the chip's to set."""

    @on_read(6)
    def read_msr(self) -> int:
        mcr = self.mcr
        if mcr & MCR_LOOP:
            return (mcr & (MCR_OUT1 | MCR_OUT2)) << 4 | (mcr & MCR_RTS) << 3 | (mcr & MCR_DTR) << 5
        msr = self.msr
        if msr & MSR_DELTAS:
            self.msr = msr & ~MSR_DELTAS
            self.update_irq()
        return msr

    @on_read(7)
    def read_scratch(self) -> int:
        return self.scratch

    @on_write(7)
    def write_scratch(self, value: int) -> None:
        self.scratch = value
