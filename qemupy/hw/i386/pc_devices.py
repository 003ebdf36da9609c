"""`-device` on the pc board: which wires a device of the registry gets here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qemupy import options
from qemupy.errors import ConfigError
from qemupy.hw.char.parallel import Parallel
from qemupy.hw.char.serial import Serial16550
from qemupy.hw.core import registry
from qemupy.hw.i386 import pc_isa
from qemupy.hw.i386.pc_drives import IDE_DEVICES
from qemupy.hw.isa.debug import DebugCon, DebugExit
from qemupy.hw.pci import PciDevice

if TYPE_CHECKING:
    from qemupy.hw.i386.pc import Pc

# Addresses and interrupts of the numbered serial and parallel ports
ISA_PORTS = {"isa-serial": pc_isa.SERIAL_PORTS, "isa-parallel": ((0x378, 7), (0x278, 7), (0x3BC, 7))}
PLACED_BY_BOARD = {"id", "driver", "bus"}


def add_device(board: Pc, given: dict[str, str]) -> None:
    """One `-device`, in the order of the command line."""
    given = dict(given)
    kind = given.pop("driver")
    if kind in IDE_DEVICES:
        board.ide.attach_device(kind, given)
        return
    name = _name(board, kind, given)
    if kind == "isa-debugcon":
        _add_debugcon(board, name, given)
    elif kind == "isa-debug-exit":
        _add_debug_exit(board, name, given)
    elif kind in ISA_PORTS:
        _add_isa_port(board, kind, given)
    else:
        _add_other(board, kind, name, given)


def _name(board: Pc, kind: str, given: dict[str, str]) -> str:
    """The device's `id=`, or a name of its own."""
    wanted = given.pop("id", "")
    if wanted in board.vm.devices:
        raise ConfigError(f"-device {kind}: Duplicate device ID '{wanted}'")
    if wanted:
        board.vm.user_ids.add(wanted)
    return wanted or f"{kind}.{len(board.vm.devices)}"


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


def _add_isa_port(board: Pc, kind: str, given: dict[str, str]) -> None:
    """A serial or parallel port: the one with `index=`, or the first that is free; `iobase=` and `irq=` move it."""
    options.refuse_unknown(given, ("chardev", "index", "iobase", "irq"))
    if "chardev" not in given:
        raise ConfigError(f"-device {kind}: Can't create {kind[4:]} device, empty char device")
    vm, places = board.vm, ISA_PORTS[kind]
    prefix = kind[4:]
    free = next((n for n in range(len(places)) if f"{prefix}{n}" not in vm.devices), len(places))
    index = options.number("index", given.get("index", str(free)))
    if index >= len(places):
        raise ConfigError(f"-device {kind}: Max. supported number of ISA {prefix} ports is {len(places)}.")
    if f"{prefix}{index}" in vm.devices:
        raise ConfigError(f"-device {kind}: {prefix} port {index} is there already")
    port = options.number("iobase", given.get("iobase", str(places[index][0])), high=0xFFF8)
    irq_number = options.number("irq", given.get("irq", str(places[index][1])), high=15)
    irq = board.irqs.isa(irq_number, pc_isa.FROM_ISA if index < 2 and kind == "isa-serial" else pc_isa.FROM_SECOND)
    chardev = vm.chardevs.frontend(given["chardev"])
    device: Serial16550 | Parallel
    if kind == "isa-serial":
        device = Serial16550(chardev=chardev, irq=irq, clock=vm.loop.virtual)
    else:
        device = Parallel(chardev=chardev, irq=irq)
    vm.add(f"{prefix}{index}", device)
    vm.ports.map(port, device.bank(), name=prefix)


def _add_other(board: Pc, kind: str, name: str, given: dict[str, str]) -> None:
    """PCI devices whose only wires are those of the bus and DMA."""
    from qemupy.hw.i386 import pc_virtio  # enters its devices in the registry
    from qemupy.hw.virtio import VirtioPci

    entry = registry.lookup(kind)
    given = {key: value for key, value in given.items() if key not in PLACED_BY_BOARD}
    if issubclass(entry.cls, VirtioPci):
        pc_virtio.add(board, kind, name, given)
        return
    if not issubclass(entry.cls, PciDevice) or set(entry.cls.__wires__) - {"dma"}:
        raise ConfigError(f"-device {kind}: the machine has this device already, or it cannot be added")
    arguments: dict[str, Any] = registry.parse_props(entry.cls, given)
    if "dma" in entry.cls.__wires__:
        arguments["dma"] = board.vm.dma
    device = entry.cls(**arguments)
    board.bus.plug(device)
    board.vm.add(name, device)
