"""A whole machine without its RAM: what it must be like, and the state of guest time, devices and vCPUs.

The machine is stopped while it is saved: vCPUs at instruction boundaries, disk requests complete. Loading checks
everything before anything changes. What lies on disks is not part of the state.
"""

from __future__ import annotations

from typing import Any

from qemupy.errors import StateError
from qemupy.hw.core import State
from qemupy.hw.core.fields import Field
from qemupy.memory import transaction
from qemupy.vcpu import state as cpu_state
from qemupy.vm import Vm

Tables = dict[str, dict[str, Any]]


def describe(vm: Vm) -> dict[str, Any]:
    """What a machine must be to take over a saved one."""
    return {
        "machine": vm.config.machine,
        "ram": vm.config.ram,
        "vcpus": len(vm.vcpus),
        "features": vm.vcpus[0].features() if vm.vcpus else [],
        "devices": {name: type(device).__name__ for name, device in vm.devices.items()},
        "memory": [[block.name, block.size] for block in vm.accel.memory.blocks],
        "disks": {name: drive.length for name, drive in vm.drives.items() if drive.inserted and not drive.removable},
    }


def check_machine(vm: Vm, saved: Any, where: str) -> None:
    """Every difference that matters, by name and with both values."""
    own = describe(vm)
    if not isinstance(saved, dict) or saved.keys() < own.keys():
        raise StateError(f"{where}: no description of the machine")
    for key in ("machine", "ram", "vcpus"):
        _same(key, saved[key], own[key], where)
    _check_features(saved["features"], own["features"], where)
    for key, what in (("devices", "device"), ("disks", "disk")):
        _check_named(saved[key], own[key], what, where)
    _same("memory", saved["memory"], own["memory"], where)


def _same(what: str, saved: Any, own: Any, where: str) -> None:
    if saved != own:
        raise StateError(f"{where}: {what} is {str(saved)[:80]} in the saved machine, {own} in this one")


def _check_features(saved: Any, own: list[str], where: str) -> None:
    if not isinstance(saved, list) or not all(isinstance(name, str) for name in saved):
        raise StateError(f"{where}: no list of CPU features")
    gone = [name for name in saved if name not in own]
    new = [name for name in own if name not in saved]
    if gone or new:
        raise StateError(
            f"{where}: CPU features differ: only in the saved machine: {', '.join(gone)[:200] or 'none'}; "
            f"only in this one: {', '.join(new)[:200] or 'none'}"
        )


def _check_named(saved: Any, own: dict[str, Any], what: str, where: str) -> None:
    if not isinstance(saved, dict):
        raise StateError(f"{where}: no list of {what}s")
    for name in saved:
        if name not in own:
            raise StateError(f"{where}: the saved machine has a {what} {name[:40]!r}, this one has none")
    for name, value in own.items():
        if name not in saved:
            raise StateError(f"{where}: this machine has a {what} {name!r}, the saved one has none")
        _same(f"{what} {name}", saved[name], value, where)


def collect(vm: Vm, running: bool) -> Tables:
    """The state of a stopped machine. `running`: it was running before, and shall go on where it is loaded.
    MonitorError if a disk request waits."""
    vm.check_disks_settled()
    tables: Tables = {"clock": {"virtual": vm.loop.virtual.now(), "running": running}}
    for name, device in vm.devices.items():
        tables[f"device.{name}"] = device.save()
    for vcpu in vm.vcpus:
        tables[f"cpu.{vcpu.index}"] = cpu_state.dump(vcpu.state())
    return tables


class Checked:
    """The state in tables, found good for `vm`. StateError: it is not, and nothing has changed."""

    def __init__(self, vm: Vm, tables: Tables, where: str) -> None:
        self._vm, self._tables, self._where = vm, tables, where
        clock = self._table("clock")
        virtual = clock.get("virtual")
        self.running = clock.get("running") is True
        if type(virtual) is not int or not 0 <= virtual < 1 << 62:
            raise StateError(f"{where}: no guest time")
        self.virtual = virtual
        self._devices: list[tuple[State, list[tuple[Field, Any]]]] = []
        for name, device in vm.devices.items():
            fields = device.check_fields(self._table(f"device.{name}"), f"{where}: {name}")
            self._devices.append((device, fields))
        self._cpus = [cpu_state.build(self._table(f"cpu.{v.index}"), f"{where}: cpu.{v.index}") for v in vm.vcpus]

    def _table(self, name: str) -> dict[str, Any]:
        if name not in self._tables:
            raise StateError(f"{self._where}: section {name!r} is missing")
        return self._tables[name]

    def commit(self) -> None:
        """Make the stopped machine the saved one. Its RAM must be in place already: devices may look at it.

        Wires are driven last. A timer that was late when the machine was saved makes an edge then, and if the
        interrupt controllers or local APICs were loaded behind it, that edge would be lost and never come again."""
        self._vm.forget_waiting()
        self._vm.loop.virtual.set(self.virtual)
        for device, fields in self._devices:
            device.fill_fields(fields)
        for vcpu, state in zip(self._vm.vcpus, self._cpus, strict=True):
            vcpu.set_state(state)
        with transaction():
            for device, _ in self._devices:
                device.place()
        for device, _ in self._devices:
            device.post_load()
        for device, _ in self._devices:
            device.machine_loaded()
