"""The trees a monitor shows: memory regions (`info mtree`), devices (`info qtree`), PCI functions (`info pci`)."""

from __future__ import annotations

from collections.abc import Iterator

from qemupy.hw.core import Device
from qemupy.hw.pci.bus import PciBus
from qemupy.hw.pci.device import Bar, PciDevice
from qemupy.hw.virtio import VirtioDevice, VirtioPci
from qemupy.memory.flatview import FlatRange, FlatView
from qemupy.memory.region import MemoryRegion
from qemupy.vm import Vm

_CLASSES = {
    0x0001: "VGA controller", 0x0100: "SCSI controller", 0x0101: "IDE controller", 0x0106: "SATA controller",
    0x0200: "Ethernet controller", 0x0300: "VGA controller", 0x0401: "Audio controller", 0x0600: "Host bridge",
    0x0601: "ISA bridge", 0x0604: "PCI bridge", 0x0680: "Bridge", 0x0700: "Serial port", 0x0C03: "USB controller",
    0x0C05: "SMBus",
}  # fmt: skip


def _kind(region: MemoryRegion, readonly: bool = False) -> str:
    """What QEMU calls it: ram, rom, romd or i/o."""
    if region.kind == "alias" and region.target is not None:
        return _kind(region.target, readonly or region.readonly)
    if region.kind == "ram":
        return "rom" if readonly else "ram"
    if region.kind == "romd":
        return "romd" if region.romd_mode else "i/o"
    return "rom" if region.kind == "rom" else "i/o"


def region_lines(region: MemoryRegion, base: int, depth: int, aliases: dict[str, MemoryRegion]) -> Iterator[str]:
    start = base + region.offset if region.parent is not None else base
    if not region.enabled:
        return
    text = f"{'  ' * (depth + 1)}{start:016x}-{start + region.size - 1:016x}"
    text += f" (prio {region.priority}, {_kind(region)}): "
    if region.target is not None:
        aliases.setdefault(region.target.name, region.target)
        low = region.target_offset
        yield f"{text}alias {region.name} @{region.target.name} {low:016x}-{low + region.size - 1:016x}"
        return
    yield f"{text}{region.name}"
    for child in sorted(region.children, key=lambda c: (c.offset, -c.priority)):
        yield from region_lines(child, start, depth + 1, aliases)


def mtree_lines(vm: Vm) -> Iterator[str]:
    aliases: dict[str, MemoryRegion] = {}
    for name, root in (("memory", vm.memory.root), ("I/O", vm.ports.root)):
        yield f"address-space: {name}"
        yield from region_lines(root, 0, 0, aliases)
        yield ""
    shown: set[str] = set()
    while left := [name for name in aliases if name not in shown]:
        for name in left:
            shown.add(name)
            yield f"memory-region: {name}"
            region = aliases[name]
            yield from region_lines(region, -region.offset if region.parent is not None else 0, 0, aliases)
            yield ""


def _flat_line(r: FlatRange) -> str:
    kind = _kind(r.region, r.readonly)
    offset = f" @{r.offset:016x}" if r.offset else ""
    return f"  {r.start:016x}-{r.end - 1:016x} (prio {r.region.priority}, {kind}): {r.region.name}{offset}"


def flat_lines(vm: Vm) -> Iterator[str]:
    spaces: tuple[tuple[str, MemoryRegion, FlatView], ...] = (
        ("memory", vm.memory.root, vm.memory.view),
        ("I/O", vm.ports.root, vm.ports.view),
    )
    for n, (name, root, view) in enumerate(spaces):
        yield f"FlatView #{n}"
        yield f' AS "{name}", root: {root.name}'
        yield f" Root memory region: {root.name}"
        for r in view.ranges:
            yield _flat_line(r)
        yield ""


def _bus_functions(vm: Vm) -> list[tuple[int, PciDevice]]:
    buses: dict[int, PciBus] = {}
    for device in vm.devices.values():
        slot = getattr(device, "slot", None)
        bus = getattr(slot, "bus", None)
        if isinstance(bus, PciBus):
            buses[id(bus)] = bus
    return [pair for bus in buses.values() for pair in bus]


def _class_name(device: PciDevice) -> str:
    code = int.from_bytes(device.config[10:12], "little")
    return _CLASSES.get(code, f"Class {code:04x}")


def _words(device: PciDevice, at: int) -> str:
    """Two ids that lie side by side in the configuration space."""
    return ":".join(f"{int.from_bytes(device.config[n : n + 2], 'little'):04x}" for n in (at, at + 2))


def _bar_text(bar: Bar) -> str:
    address = bar.address if bar.address is not None else 0xFFFFFFFFFFFFFFFF
    if bar.is_io:
        start = address & 0xFFFFFFFF
        return f"I/O at 0x{start & 0xFFFF:04x} [0x{start + bar.size - 1 & 0xFFFF:04x}]."
    prefetch = " prefetchable" if bar.flags & 8 else ""
    end = address + bar.size - 1 & (1 << 64) - 1 if bar.address is not None else bar.size - 2
    return f"{8 * bar.width} bit{prefetch} memory at 0x{address:08x} [0x{end:08x}]."


def pci_lines(vm: Vm) -> Iterator[str]:
    """`info pci`."""
    for devfn, device in _bus_functions(vm):
        config = device.config
        yield f"  Bus  0, device {devfn >> 3:3d}, function {devfn & 7}:"
        yield f"    {_class_name(device)}: PCI device {_words(device, 0)}"
        if any(config[0x2C:0x30]):
            yield f"      PCI subsystem {_words(device, 0x2C)}"
        if config[0x3D]:
            yield f"      IRQ {config[0x3C]}, pin {' ABCD'[config[0x3D] & 7]}"
        for bar in sorted(device.bars, key=lambda b: b.index):
            yield f"      BAR{bar.index}: {_bar_text(bar)}"
        yield f'      id "{_id(vm, device)}"'


def _id(vm: Vm, device: Device) -> str:
    return next((name for name, d in vm.devices.items() if d is device and name in vm.user_ids), "")


def _property_lines(device: Device, indent: str) -> Iterator[str]:
    for name in device.__props__:
        value = getattr(device, name)
        if isinstance(value, bool):
            text = "true" if value else "false"
        elif isinstance(value, int):
            text = f"{value} ({value & (1 << 64) - 1:#x})"
        else:
            text = f'"{value}"'
        yield f"{indent}{name.replace('_', '-')} = {text}"


def qtree_lines(vm: Vm) -> Iterator[str]:
    """`info qtree`: the system bus, on it the PCI bus, on its ISA bridge the ISA bus; newest device first."""
    devices = [d for d in reversed(list(vm.devices.values())) if isinstance(d, Device) and d.qdev_name]
    from qemupy.hw.core import registry

    places = {e.name: e.bus for e in registry.entries()}
    functions = {id(d): devfn for devfn, d in _bus_functions(vm)}
    isa = [d for d in devices if places.get(d.qdev_name) == "ISA"]
    pci = [d for d in devices if isinstance(d, PciDevice)]
    rest = [d for d in devices if d not in isa and d not in pci and not isinstance(d, VirtioDevice)]
    yield "bus: main-system-bus"
    yield "  type System"
    for device in rest:
        yield from _device_lines(vm, device, "  ")
        if device.qdev_name.endswith("pcihost"):
            yield "    bus: pci.0"
            yield "      type PCI"
            for function in pci:
                yield from _pci_device_lines(vm, function, functions.get(id(function), 0))
                if function.class_code >> 8 == 0x0601:
                    yield "        bus: isa.0"
                    yield "          type ISA"
                    for each in isa:
                        yield from _device_lines(vm, each, "          ")


def _device_lines(vm: Vm, device: Device, indent: str) -> Iterator[str]:
    yield f'{indent}dev: {device.qdev_name}, id "{_id(vm, device)}"'
    yield from _property_lines(device, indent + "  ")


def _pci_device_lines(vm: Vm, device: PciDevice, devfn: int) -> Iterator[str]:
    indent = "        "
    yield f'      dev: {device.qdev_name}, id "{_id(vm, device)}"'
    for line in _property_lines(device, indent):
        yield f"{indent}addr = {devfn >> 3:02x}.{devfn & 7:x}" if line.lstrip().startswith("addr =") else line
    yield (
        f"{indent}class {_class_name(device)}, addr 00:{devfn >> 3:02x}.{devfn & 7:x}, pci id "
        f"{_words(device, 0)} (sub {_words(device, 0x2C)})"
    )
    for bar in sorted(device.bars, key=lambda b: b.index):
        start = bar.address if bar.address is not None else (1 << 64) - 1
        kind = "i/o" if bar.is_io else "mem"
        yield f"{indent}bar {bar.index}: {kind} at {start:#x} [{start + bar.size - 1 & (1 << 64) - 1:#x}]"
    if isinstance(device, VirtioPci):
        yield f"{indent}bus: virtio-bus"
        yield f"{indent}  type virtio-pci-bus"
        yield from _device_lines(vm, device.device, f"{indent}  ")
