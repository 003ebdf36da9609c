"""A whole machine into a stream and out of one: guest time, devices, vCPUs, RAM.

The machine is stopped while it is saved: vCPUs at instruction boundaries, disk requests complete. Guest time comes
first, as devices save timers as points of it; RAM comes last, so that everything small has been checked, all of it
before anything changes, when the first page is written. What lies on disks is not part of the stream.
"""

from __future__ import annotations

from typing import Any, BinaryIO

from qemupy.errors import StateError
from qemupy.hw.core import State
from qemupy.migration.stream import END, RAM, TABLE, StreamReader, StreamWriter
from qemupy.vcpu import state as cpu_state
from qemupy.vm import Vm


def describe(vm: Vm) -> dict[str, Any]:
    """What a machine must be to take over a saved one."""
    return {
        "machine": vm.config.machine,
        "cpu": vm.config.cpu,
        "vcpus": len(vm.vcpus),
        "devices": list(vm.devices),
        "memory": {block.name: block.size for block in vm.accel.memory.blocks},
    }


def save(vm: Vm, file: BinaryIO, running: bool) -> None:
    """Write a stopped machine. `running`: it was running before, and shall go on where it is loaded. With the BQL, in
    the main loop."""
    stream = StreamWriter(file)
    stream.table("machine", describe(vm))
    stream.table("clock", {"virtual": vm.loop.virtual.now(), "running": running})
    for name, device in vm.devices.items():
        stream.table(f"device.{name}", device.save())
    for vcpu in vm.vcpus:
        stream.table(f"cpu.{vcpu.index}", cpu_state.dump(vcpu.state()))
    for block in vm.accel.memory.blocks:
        stream.ram(f"ram.{block.name}", vm.accel.memory.view(block.offset, block.size))
    stream.end()


def load(vm: Vm, file: BinaryIO, where: str) -> bool:
    """Make a stopped machine, just reset, the one in the stream; whether that one was running. StateError: refused; the
    machine must not run if RAM had begun to change."""
    stream = StreamReader(file, where)
    tables: dict[str, dict[str, Any]] = {}
    section = stream.next()
    while section.kind == TABLE and not section.name.startswith("ram."):
        tables[section.name] = stream.table(section)
        if section.name == "machine":
            _check_machine(vm, tables["machine"], where)
        section = stream.next()
    apply = _Checked(vm, tables, where)
    while section.kind == TABLE:
        pages = stream.table(section)
        _load_block(vm, stream, section.name.removesuffix(".pages"), pages, where)
        section = stream.next()
    if section.kind != END:
        raise StateError(f"{where}: section {section.name!r} out of place")
    apply.commit()
    return apply.running


def _check_machine(vm: Vm, saved: dict[str, Any], where: str) -> None:
    """Every difference that matters, by name and with both values."""
    own = describe(vm)
    for key in ("machine", "cpu", "vcpus", "memory"):
        if saved.get(key) != own[key]:
            raise StateError(f"{where}: {key} is {saved.get(key)} in the saved machine, {own[key]} in this one")
    devices = saved.get("devices")
    if not isinstance(devices, list):
        raise StateError(f"{where}: no list of devices")
    for name in devices:
        if name not in own["devices"]:
            raise StateError(f"{where}: the saved machine has a device {str(name)[:40]!r}, this one has none")
    for name in own["devices"]:
        if name not in devices:
            raise StateError(f"{where}: this machine has a device {name!r}, the saved one has none")


def _load_block(vm: Vm, stream: StreamReader, name: str, pages: dict[str, Any], where: str) -> None:
    section = stream.next()
    block = next((b for b in vm.accel.memory.blocks if f"ram.{b.name}" == name), None)
    if block is None or section.kind != RAM or section.name != name:
        raise StateError(f"{where}: section {section.name!r} out of place")
    stream.ram(section, pages, vm.accel.memory.view(block.offset, block.size))
    vm.accel.memory.changed(block.offset, block.size)


class _Checked:
    """All small state of a stream, found good; `commit` cannot fail for what the stream says."""

    def __init__(self, vm: Vm, tables: dict[str, dict[str, Any]], where: str) -> None:
        self.vm = vm
        self.tables = tables
        self.where = where
        for name in ("machine", "clock"):
            self._table(name)
        virtual = self._table("clock").get("virtual")
        self.running = self._table("clock").get("running") is True
        if type(virtual) is not int or not 0 <= virtual < 1 << 63:
            raise StateError(f"{where}: no guest time")
        self.virtual = virtual
        self.devices: list[tuple[State, dict[str, Any]]] = []
        for name, device in vm.devices.items():
            state = self._table(f"device.{name}")
            device.check_fields(state, f"{where}: {name}")
            self.devices.append((device, state))
        self.cpus = [cpu_state.build(self._table(f"cpu.{v.index}"), f"{where}: cpu.{v.index}") for v in vm.vcpus]

    def _table(self, name: str) -> dict[str, Any]:
        if name not in self.tables:
            raise StateError(f"{self.where}: section {name!r} is missing")
        return self.tables[name]

    def commit(self) -> None:
        self.vm.loop.virtual.set(self.virtual)
        for device, state in self.devices:
            device.load(state)
        for vcpu, state in zip(self.vm.vcpus, self.cpus, strict=True):
            vcpu.set_state(state)
