"""Loading a machine as a whole: what crosses from one device to the other while it happens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from qemupy.config import Config
from qemupy.hw.i386 import pc
from qemupy.memory import transaction
from qemupy.migration import machine
from qemupy.vcpu.interp import InterpAccel
from qemupy.vm import Vm


@pytest.fixture
def vm(tmp_path: Path) -> Iterator[Vm]:
    bios = tmp_path / "bios"
    bios.write_bytes(bytes(0x10000))
    config = Config(ram=16 << 20, bios=str(bios))
    made = Vm(config, InterpAccel(config.ram + (64 << 20)))
    made.add_vcpu("qemu64")
    try:
        with made.bql:
            with transaction():
                pc.Pc(made)
            made.reset()
            yield made
    finally:
        made.close()


def test_an_edge_made_by_loading_reaches_the_cpu(vm: Vm) -> None:
    """The timer's output was low when the PIC last saw it, and is high by the guest time of the snapshot: the main loop
    was late. The interrupt is there after loading, and so is INTR at the vCPU."""
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


def test_all_devices_find_their_places_at_once(vm: Vm) -> None:
    """Shadow RAM, the display's memory and registers, power management's ports: one new layout for all of them."""
    tables = machine.collect(vm, True)
    for name, offset, values in (("i440fx", 0x59, b"\x30"), ("vga-pci", 4, b"\3\0"), ("vga-pci", 0x10, b"\0\0\0\xfd"),
                                 ("vga-pci", 0x18, b"\0\0\xeb\xfe"), ("piix4-pm", 0x40, b"\1\6\0\0"),
                                 ("piix4-pm", 0x80, b"\1")):  # fmt: skip
        table = tables[f"device.{name}"]
        config = table["config"]
        table["config"] = config[:offset] + values + config[offset + len(values) :]
    laid_out: list[str] = []
    vm.memory.root.listen(lambda: laid_out.append("memory"))
    vm.ports.root.listen(lambda: laid_out.append("ports"))
    machine.Checked(vm, tables, "here").commit()
    assert sorted(laid_out) == ["memory", "ports"]
    for address in (0xF0000, 0xFD000000):
        vm.memory.write(address, 4, 0x12345678)
        assert vm.memory.read(address, 4) == 0x12345678
