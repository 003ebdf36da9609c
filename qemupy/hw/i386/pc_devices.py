"""`-device` on the pc board: which wires a device of the registry gets here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qemupy.errors import ConfigError
from qemupy.hw.core import registry
from qemupy.hw.i386.pc_drives import IDE_DEVICES
from qemupy.hw.isa.debug import DebugCon, DebugExit
from qemupy.hw.pci import PciDevice

if TYPE_CHECKING:
    from qemupy.hw.i386.pc import Pc

PLACED_BY_BOARD = {"id", "driver", "bus", "bootindex"}


def add_device(board: Pc, given: dict[str, str]) -> None:
    """One `-device`, in the order of the command line."""
    given = dict(given)
    kind = given.pop("driver")
    if kind in IDE_DEVICES:
        board.ide.attach_device(kind, given)
        return
    name = given.pop("id", "") or f"{kind}.{len(board.vm.devices)}"
    if kind == "isa-debugcon":
        _add_debugcon(board, name, given)
    elif kind == "isa-debug-exit":
        _add_debug_exit(board, name, given)
    else:
        _add_other(board, kind, name, given)


def _add_debugcon(board: Pc, name: str, given: dict[str, str]) -> None:
    chardev = given.pop("chardev", None)
    if chardev is None:
        raise ConfigError("-device isa-debugcon: Can't create debugcon device, empty char device")
    values = registry.parse_props(DebugCon, given)
    device = DebugCon(chardev=board.vm.chardevs.frontend(chardev), **values)  # type: ignore[arg-type]
    board.vm.add(name, device)
    board.vm.ports.map(device.iobase, device.bank(), 1, name="isa-debugcon")


def _add_debug_exit(board: Pc, name: str, given: dict[str, str]) -> None:
    vm = board.vm
    values = registry.parse_props(DebugExit, given)
    device = DebugExit(exit=lambda status: vm.request_shutdown("host-debug-exit", status), **values)  # type: ignore[arg-type]
    vm.add(name, device)
    vm.ports.map(device.iobase, device.bank(), device.iosize, name="isa-debug-exit")


def _add_other(board: Pc, kind: str, name: str, given: dict[str, str]) -> None:
    """PCI devices whose only wires are those of the bus and DMA."""
    entry = registry.lookup(kind)
    if not issubclass(entry.cls, PciDevice) or set(entry.cls.__wires__) - {"dma"}:
        raise ConfigError(f"-device {kind}: the machine has this device already, or it cannot be added")
    given = {key: value for key, value in given.items() if key not in PLACED_BY_BOARD}
    arguments: dict[str, Any] = registry.parse_props(entry.cls, given)
    if "dma" in entry.cls.__wires__:
        arguments["dma"] = board.vm.dma
    device = entry.cls(**arguments)
    board.bus.plug(device)
    board.vm.add(name, device)
