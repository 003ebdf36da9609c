"""Loading a machine as a whole: what crosses from one device to the other while it happens."""

from __future__ import annotations

from pathlib import Path

from qemupy.config import Config
from qemupy.hw.i386 import pc
from qemupy.memory import transaction
from qemupy.migration import machine
from qemupy.vcpu.interp import InterpAccel
from qemupy.vm import Vm


def test_an_edge_made_by_loading_reaches_the_cpu(tmp_path: Path) -> None:
    """The timer's output was low when the PIC last saw it, and is high by the guest time of the snapshot: the main loop
    was late. The interrupt is there after loading, and so is INTR at the vCPU."""
    bios = tmp_path / "bios"
    bios.write_bytes(bytes(0x10000))
    config = Config(ram=16 << 20, bios=str(bios))
    vm = Vm(config, InterpAccel(config.ram + (64 << 20)))
    vm.add_vcpu("qemu64")
    try:
        with vm.bql:
            with transaction():
                pc.Pc(vm)
            vm.reset()
            for port, value in ((0x20, 0x11), (0x21, 8), (0x21, 4), (0x21, 1), (0x21, 0xFE), (0x43, 0x34), (0x40, 0xA9),
                                (0x40, 4)):  # fmt: skip
                vm.ports.write(port, 1, value)
            vm.vcpus[0].set_intr(False)
            tables = machine.collect(vm, True)
            master = tables["device.pic"]["chips"][0]
            master["last"], master["irr"] = master["last"] & ~1, 0
            tables["clock"]["virtual"] += 5000
            machine.Checked(vm, tables, "here").commit()
            assert vm.devices["pic"].save()["chips"][0]["irr"] & 1
            assert vm.vcpus[0].state().apic.intr_line == 1
    finally:
        vm.close()
