"""Virtio devices on the pc board: the machine's side of them, and their two halves from one `-device`."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qemupy import options
from qemupy.backends.block.drive import Drive
from qemupy.config import RERROR, WERROR
from qemupy.errors import ConfigError, QemupyError
from qemupy.hw.block.virtio_blk import VirtioBlk
from qemupy.hw.core import State, registry
from qemupy.hw.i386.boot_order import virtio_disk
from qemupy.hw.misc.virtio_rng import VirtioRng
from qemupy.hw.virtio import VirtioDevice, VirtioPci
from qemupy.memory.virtqueue import Virtqueue
from qemupy.records import replace
from qemupy.vm import RunState, Vm

if TYPE_CHECKING:
    from qemupy.hw.i386.pc import Pc


class Host:
    """Implements VirtioHost."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._calls: dict[int, Callable[[], None]] = {}
        self.post = vm.drive_workers.soon

    @property
    def running(self) -> bool:
        return self._vm.running

    def virtqueue(self) -> Virtqueue:
        return self._vm.accel.virtqueue()

    def notifier(self, call: Callable[[], None]) -> int:
        fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

        def ring() -> None:
            os.eventfd_read(fd)
            call()

        self._calls[fd] = call
        self._vm.loop.watch(fd, ring)
        self._vm.on_close(lambda: os.close(fd))
        return fd

    def ring(self, notifier: int) -> None:
        if self._vm.config.icount is None:
            os.eventfd_write(notifier, 1)
        else:
            self.post(self._calls[notifier])

    def later(self, call: Callable[[], None]) -> None:
        self._vm.dma.later(call)

    def on_resume(self, call: Callable[[], None]) -> None:
        self._vm.on_run_state(lambda state: call() if state == RunState.RUNNING else None)


def add_configured(board: Pc) -> None:
    """The `-drive if=virtio` ones."""
    for config in board.vm.config.drives:
        if config.interface == "virtio":
            given = {"drive": config.id, **({"serial": config.serial} if config.serial else {})}
            add(board, "virtio-blk-pci", f"virtio-blk-pci.{len(board.vm.devices)}", given)


def add(board: Pc, kind: str, name: str, given: dict[str, str]) -> None:
    """One device with its PCI function; the properties may be of either."""
    entry = registry.lookup(kind)
    assert issubclass(entry.cls, VirtioPci)
    try:
        cls, device_cls = entry.cls, entry.cls.device_class
        given = dict(given)
        wires: dict[str, Any] = {"host": Host(board.vm)}
        drive = _take_drive(board.vm, device_cls, given, wires)
        boot_index = board.boot_order.take(given) if drive is not None else None
        if issubclass(device_cls, VirtioRng):
            wires["entropy"] = _entropy(board.vm, given)
        pci_keys = {key for key in given if key.replace("-", "_") in cls.__props__}
        of_function: dict[str, Any] = registry.parse_props(cls, {key: given[key] for key in pci_keys})
        rest = {key: value for key, value in given.items() if key not in pci_keys}
        of_device: dict[str, Any] = registry.parse_props(device_cls, rest)
        device = device_cls(**wires, **of_device)
        function = cls(device=device, **of_function)
        board.boot_order.add(boot_index, virtio_disk(board.bus.plug(function)))
        _enter(board.vm, name, device, function)
        if drive is not None:
            anonymous = sum(isinstance(d, VirtioPci) for n, d in board.vm.devices.items() if n not in board.vm.user_ids)
            place = f"peripheral/{name}" if name in board.vm.user_ids else f"peripheral-anon/device[{anonymous - 1}]"
            drive[0].attach(f"/machine/{place}/virtio-backend", share_rw=drive[1])
    except ConfigError as e:
        raise _located(e, kind) from None


def _entropy(vm: Vm, given: dict[str, str]) -> Callable[[int], bytes]:
    """The host's, or with `-seed` one that repeats."""
    if given.get("rng"):
        raise ConfigError(f"Device '{given['rng']}' not found")
    return os.urandom if vm.config.seed is None else random.Random(vm.config.seed).randbytes


def _located(error: QemupyError, kind: str) -> QemupyError:
    text = str(error)
    return error if text.startswith("-device") else type(error)(f"-device {kind}: {text}")


def _enter(vm: Vm, name: str, device: VirtioDevice, function: VirtioPci) -> None:
    """Queues are loaded before the device that works on them, and the device before its function."""
    parts: dict[str, State] = {f"{name}.queue{queue.number}": queue for queue in device.queues}
    parts |= {f"{name}.virtio": device, name: function}
    for part, state in parts.items():
        if part in vm.devices:
            raise ConfigError(f"Duplicate device ID '{part}'")
        vm.add(part, state)


def _take_drive(
    vm: Vm, cls: type[VirtioDevice], given: dict[str, str], wires: dict[str, Any]
) -> tuple[Drive, bool] | None:
    """For a disk: its drive, which is its wire, and whether others may write to it."""
    if not issubclass(cls, VirtioBlk):
        return None
    name = given.pop("drive", None)
    drive = vm.drive_for(name) if name is not None else None
    if drive is None:
        missing = f"Property '{cls.qdev_name}.drive' can't find value '{name}'"
        raise ConfigError(missing if name is not None else "drive property not set")
    if not drive.inserted:
        raise ConfigError("Device needs media, but drive is empty")
    wires["block"] = drive
    _set_policy(drive, given)
    write_cache = given.pop("write-cache", "auto")
    if write_cache == "auto":
        write_cache = "off" if drive.policy.writethrough else "on"
    given["write-cache"] = write_cache
    given.setdefault("num-queues", str(min(vm.config.smp, 1024)))
    blocks = given.setdefault("logical_block_size", "512")
    given.setdefault("physical_block_size", blocks)
    for key in ("logical_block_size", "physical_block_size", "min_io_size", "opt_io_size"):
        if key in given:
            given[key] = str(options.size(key, given[key]))
    return drive, options.boolean("share-rw", given.pop("share-rw", "off"))


def _set_policy(drive: Drive, given: dict[str, str]) -> None:
    """`werror=` and `rerror=` of the device win over those of the drive."""
    for key, known in (("werror", WERROR), ("rerror", RERROR)):
        value = given.pop(key, "auto")
        if value == "auto":
            continue
        if value not in known:
            raise ConfigError(f"Invalid parameter '{value}' for {key}{options.did_you_mean(value, known)}")
        changed: dict[str, Any] = {key: value}
        drive.policy = replace(drive.policy, **changed)
