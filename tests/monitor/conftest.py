"""A machine on a fake accelerator with a monitor; its vCPU stands in SeaBIOS, as QEMU 7.2 showed one."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace as Ns
from typing import Any

import pytest

from qemupy.config import Config, parse_drive
from qemupy.memory import MemoryRegion
from qemupy.monitor.hmp import Hmp
from qemupy.vcpu.accel import FakeAccel, FakeVcpu, Vcpu
from qemupy.vm import Vm


def _segment(sel: int, base: int, limit: int, flags: int) -> Ns:
    return Ns(sel=sel, base=base, limit=limit, rights=flags >> 8 & 0xF0FF)


def seabios_state() -> Any:
    data = _segment(0x10, 0x07F3D000, 0xFFFFFFFF, 0x00CF9300)
    code = _segment(0x08, 0x07F3D000, 0xFFFFFFFF, 0x00CF9F00)
    fpu = bytearray(1088)
    fpu[0:2], fpu[24:28] = b"\x7f\x03", b"\x80\x1f\x00\x00"
    zeros = [0] * 8
    apic = Ns(
        tpr=0, ldr=0, dfr=0xFFFFFFFF, svr=0x1FF, esr=0, isr=zeros, tmr=zeros, irr=zeros, icr_low=0xC4610, icr_high=0,
        lvt_timer=0x10000, lvt_thermal=0x10000, lvt_perf=0x10000, lvt_lint0=0x8700, lvt_lint1=0x8400,
        lvt_error=0x10000, timer_initial=0, timer_divide=0, timer_start=-1,
    )  # fmt: skip
    return Ns(
        gpr=[0, 0xF815F480, 0x10246, 0x800, 0xA1FBC, 0x9CCC2F10, 0x78B158, 0x800, *zeros], rip=0x12839, rflags=0x246,
        seg=[data, code, data, data, data, data, _segment(0, 0, 0xFFFF, 0x8200), _segment(0, 0, 0xFFFF, 0x8B00)],
        gdt_base=0x9CD30, gdt_limit=0x47, idt_base=0x07F5CFB0, idt_limit=0x7FF, cr0=0x11, cr2=0, cr3=0, cr4=0, efer=0,
        dr=[0, 0, 0, 0, 0, 0, 0xFFFF0FF0, 0x400], cpl=0, shadow=0, halted=1, fpu=fpu, apic=apic,
    )  # fmt: skip


class StateVcpu(FakeVcpu):
    """Memory is linear = physical below 1 MiB."""

    vm: Vm

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.registers = seabios_state()

    def state(self) -> Any:
        return self.registers

    def translate(self, linear: int) -> int | None:
        return linear if linear < 1 << 20 else None

    def read(self, linear: int, size: int) -> bytes:
        return self.vm.dma.read(linear, max(min(size, (1 << 20) - linear), 0))


class StateAccel(FakeAccel):
    def create_vcpu(self, model: str) -> Vcpu:
        vcpu = StateVcpu(len(self.vcpus))
        self.vcpus.append(vcpu)
        return vcpu


class Bench:
    """`mon("line")` gives the output; `vcpu`, `vm` are there to look at."""

    def __init__(self, config: Config) -> None:
        self.accel = StateAccel()
        self.vm = Vm(config, self.accel)
        block = self.accel.memory.alloc("pc.ram", 1 << 20)
        ram = MemoryRegion.ram("pc.ram", block)
        self.vm.memory_root.add(MemoryRegion.alias("ram-below-4g", ram, 0, 1 << 20), 0)
        self.vm.add_vcpu("qemu64")
        self.vcpu = self.accel.vcpus[0]
        assert isinstance(self.vcpu, StateVcpu)
        self.vcpu.vm = self.vm
        self.hmp = Hmp(self.vm)

    def __call__(self, line: str) -> str:
        with self.vm.bql:
            return self.hmp.execute(line)


@pytest.fixture
def mon() -> Iterator[Bench]:
    made = Bench(
        Config(
            name="foo",
            uuid="01234567-89ab-cdef-0123-456789abcdef",
            ram=1 << 20,
            drives=(parse_drive("media=cdrom,index=2", []),),
        )
    )
    yield made
    made.vm.close()
