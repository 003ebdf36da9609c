"""The ISA side of a PC: interrupt controllers, DMA, timers, clock, keyboard controller, ports."""

from __future__ import annotations

import time

from qemupy.backends.chardev.base import NullChardev
from qemupy.hw.char.parallel import Parallel
from qemupy.hw.char.serial import Serial16550
from qemupy.hw.core import IrqLine, IrqOr
from qemupy.hw.input.i8042 import I8042
from qemupy.hw.input.ps2 import Ps2Keyboard, Ps2Mouse
from qemupy.hw.intc.gsi import gsi_lines
from qemupy.hw.intc.i8259 import PicPair
from qemupy.hw.intc.ioapic import Deliver, IoApic
from qemupy.hw.isa.debug import PostCode
from qemupy.hw.isa.i8257 import DmaPair
from qemupy.hw.isa.system_ports import FpuError, Port92, ResetControl
from qemupy.hw.timer.hpet import Hpet
from qemupy.hw.timer.i8254 import Pit
from qemupy.hw.timer.port61 import Port61
from qemupy.hw.timer.rtc import Rtc, start_time
from qemupy.memory import MemoryRegion
from qemupy.vm import Vm

SERIAL_PORTS = ((0x3F8, 4), (0x2F8, 3), (0x3E8, 4), (0x2E8, 3))
PARALLEL_PORT = (0x378, 7)
IOAPIC_BASE, HPET_BASE = 0xFEC00000, 0xFED00000
# ISA interrupts that PCI's lines may join, or that two devices share
SHARED = (3, 4, 5, 6, 7, 9, 10, 11, 12, 14, 15)
FROM_ISA, FROM_PCI, FROM_SCI, FROM_SECOND = range(4)


class Interrupts:
    """Where interrupt lines lead: the 8259s and the IOAPIC."""

    def __init__(self, vm: Vm) -> None:
        self.pic = PicPair(intr=IrqLine(lambda n, level: vm.vcpus[0].set_intr(level)))
        vm.add("pic", self.pic)
        vm.accel.upcalls.intack = self.pic.intack
        vm.ports.map(0x20, self.pic.bank("master"), name="pic")
        vm.ports.map(0xA0, self.pic.bank("slave"), name="pic")
        vm.ports.map(0x4D0, self.pic.bank("elcr"), name="elcr")
        self.ioapic = IoApic(deliver=_apic_bus(vm), pic_intack=self.pic.intack)
        vm.add("ioapic", self.ioapic)
        vm.accel.upcalls.apic_eoi = self.ioapic.eoi
        vm.memory_root.add(MemoryRegion.mmio("ioapic", 0x1000, self.ioapic.bank()), IOAPIC_BASE)
        self.gsi = gsi_lines(self.pic, self.ioapic)
        self._joined: dict[int, IrqOr] = {}
        self._vm = vm

    def join_shared(self) -> None:
        for n in SHARED:
            joined = IrqOr(out=self.gsi[n])
            self._vm.add(f"irq{n}", joined)
            self._joined[n] = joined

    def isa(self, n: int, source: int = FROM_ISA) -> IrqLine:
        joined = self._joined.get(n)
        return joined.input(source) if joined is not None else self.gsi[n]


def _apic_bus(vm: Vm) -> Deliver:
    def deliver(dest: int, dest_mode: int, delivery_mode: int, vector: int, trigger_mode: int) -> None:
        vm.accel.apic_deliver(dest, bool(dest_mode), delivery_mode, vector, bool(trigger_mode))

    return deliver


def _utc_offset() -> int:
    return time.localtime().tm_gmtoff


def add_chips(vm: Vm, irqs: Interrupts, has_hpet: bool) -> Rtc:
    clock = vm.loop.virtual
    pit = Pit(clock=clock, irq=irqs.isa(0))
    vm.add("pit", pit)
    vm.ports.map(0x40, pit.bank(), 4, name="pit")
    port61 = Port61(clock=clock, pit=pit)
    vm.add("port61", port61)
    vm.ports.map(0x61, port61.bank(), name="pcspk")
    rtc_line = irqs.isa(8)
    if has_hpet:
        hpet = Hpet(clock=clock, gsi=irqs.gsi, pit_enable=pit.irq_enable_line())
        vm.add("hpet", hpet)
        vm.memory_root.add(MemoryRegion.mmio("hpet", 0x400, hpet.bank()), HPET_BASE)
        rtc_line = hpet.rtc_input()
    start = start_time(vm.config.rtc.get("base", "utc"), time.time_ns(), _utc_offset())
    clocks = {"host": vm.loop.host, "rt": vm.loop.realtime, "vm": clock}
    rtc = Rtc(clock=clocks[vm.config.rtc.get("clock", "host")], irq=rtc_line, start_ns=start)
    vm.add("rtc", rtc)
    vm.ports.map(0x70, rtc.bank(), 2, name="rtc")
    return rtc


def add_dma(vm: Vm) -> DmaPair:
    dma = DmaPair(ram=vm.dma)
    vm.add("dma", dma)
    vm.ports.map(0x00, dma.bank("low"), 16, name="dma")
    vm.ports.map(0xC0, dma.bank("high"), 32, name="dma")
    vm.ports.map(0x81, dma.bank("page"), 15, name="dma-page")
    return dma


def add_system_ports(vm: Vm, irqs: Interrupts) -> None:
    a20 = IrqLine(lambda n, level: vm.accel.set_a20(level))
    port92 = Port92(a20=a20, request_reset=lambda: vm.request_reset("guest-reset"))
    vm.add("port92", port92)
    vm.ports.map(0x92, port92.bank(), name="port92")
    reset_control = ResetControl(request_reset=lambda: vm.request_reset("guest-reset"))
    vm.add("reset-control", reset_control)
    vm.ports.map(0xCF9, reset_control.bank(), priority=1, name="piix3-reset-control")
    post = PostCode()
    vm.add("port80", post)
    vm.ports.map(0x80, post.bank(), name="ioport80")
    ferr = FpuError(irq=irqs.isa(13), ignne=lambda: vm.vcpus[0].ignne())
    vm.accel.upcalls.ferr = ferr.ferr
    vm.add("ferr", ferr)
    vm.ports.map(0xF0, ferr.bank(), 1, name="ioportF0")
    vm.on_reset(lambda: vm.accel.set_a20(True))


def add_keyboard(vm: Vm, irqs: Interrupts) -> None:
    """Keyboard controller, keyboard and mouse."""
    keyboard, mouse = Ps2Keyboard(), Ps2Mouse()
    controller = I8042(
        keyboard=keyboard, mouse=mouse, kbd_irq=irqs.isa(1), aux_irq=irqs.isa(12),
        a20=IrqLine(lambda n, level: vm.accel.set_a20(level)), request_reset=lambda: vm.request_reset("guest-reset"),
    )  # fmt: skip
    for name, device in (("i8042", controller), ("ps2-kbd", keyboard), ("ps2-mouse", mouse)):
        vm.add(name, device)
    vm.ports.map(0x60, controller.bank("data"), 1, name="i8042-data")
    vm.ports.map(0x64, controller.bank("command"), 1, name="i8042-cmd")
    vm.keyboard = keyboard


def add_serial_ports(vm: Vm, irqs: Interrupts) -> int:
    """Those with a backend; how many."""
    count = 0
    for n, (backend, (port, irq)) in enumerate(zip(vm.serials, SERIAL_PORTS, strict=False)):
        if backend is None:
            continue
        source = FROM_ISA if n < 2 else FROM_SECOND
        serial = Serial16550(chardev=backend, irq=irqs.isa(irq, source), clock=vm.loop.virtual)
        vm.add(f"serial{n}", serial)
        vm.ports.map(port, serial.bank(), name="serial")
        count += 1
    return count


def add_parallel_port(vm: Vm, irqs: Interrupts) -> bool:
    if vm.config.nodefaults:
        return False
    port, irq = PARALLEL_PORT
    parallel = Parallel(chardev=NullChardev("parallel0"), irq=irqs.isa(irq))
    vm.add("parallel0", parallel)
    vm.ports.map(port, parallel.bank(), name="parallel")
    return True
