"""A PCI bus: which device sits at which devfn, where its BARs appear, and where its interrupt pin leads."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from qemupy.errors import ConfigError
from qemupy.hw.core import log_guest_error
from qemupy.hw.pci.device import Bar, PciDevice
from qemupy.memory import MemoryRegion, transaction

# set_irq(devfn, pin, level): pin 0 is INTA#. The bridge that routes interrupts provides it.
InterruptRouter = Callable[[int, int, bool], None]
APIC_WINDOW = 0xFEE  # addresses FEEx_xxxxh are interrupt messages (SDM vol 3A 11.11.1)


def parse_addr(text: str) -> int:
    """QEMU's `addr=SLOT[.FUNCTION]`, hexadecimal, to devfn."""
    slot, _, function = text.partition(".")
    try:
        number, fn = int(slot, 16), int(function or "0", 16)
    except ValueError:
        number, fn = -1, 0
    if not (0 <= number < 32 and 0 <= fn < 8):
        raise ConfigError(f"Property 'addr' expects a PCI slot and function such as 05.0, not '{text}'")
    return number << 3 | fn


class _Slot:
    __slots__ = ("bus", "devfn")

    def __init__(self, bus: PciBus, devfn: int) -> None:
        self.bus, self.devfn = bus, devfn

    def map_bar(self, bar: Bar, address: int | None) -> None:
        space = self.bus.io if bar.is_io else self.bus.memory
        with transaction():
            if bar.region.parent is not None:
                space.remove(bar.region)
            if address is not None:
                space.add(bar.region, address, priority=1)

    def set_interrupt(self, pin: int, level: bool) -> None:
        if self.bus.route is not None:
            self.bus.route(self.devfn, pin, level)

    def send_message(self, address: int, data: int) -> None:
        if address >> 20 == APIC_WINDOW:
            self.bus.send_message(address, data)
        else:
            log_guest_error("PCI: device %#04x sends a message to %#x, where no APIC is", self.devfn, address)


class PciBus:
    """`io` and `memory` are what BARs are mapped into. Holds no state of its own."""

    def __init__(self, io: MemoryRegion, memory: MemoryRegion, number: int = 0) -> None:
        self.io, self.memory, self.number = io, memory, number
        self.route: InterruptRouter | None = None
        self.send_message: Callable[[int, int], None] = lambda address, data: None  # (address, data), to the APICs
        self._devices: dict[int, PciDevice] = {}

    def __iter__(self) -> Iterator[tuple[int, PciDevice]]:
        """(devfn, device) in order of devfn."""
        return iter(sorted(self._devices.items()))

    def find(self, devfn: int) -> PciDevice | None:
        return self._devices.get(devfn)

    def plug(self, device: PciDevice, devfn: int | None = None) -> int:
        """Put the device at `devfn`, at its `addr` property, or at the first free slot."""
        if devfn is None:
            devfn = parse_addr(device.addr) if device.addr else self._free_slot(device)
        taken = self._devices.get(devfn)
        if taken is not None:
            raise ConfigError(
                f"PCI: slot {devfn >> 3} function {devfn & 7} not available for {device.qdev_name}, "
                f"in use by {taken.qdev_name}"
            )
        self._devices[devfn] = device
        device.slot = _Slot(self, devfn)
        device.update_bars()
        return devfn

    def _free_slot(self, device: PciDevice) -> int:
        for devfn in range(0, 256, 8):
            if not any(devfn | fn in self._devices for fn in range(8)):
                return devfn
        raise ConfigError(f"PCI: no slot/function available for {device.qdev_name}, all in use or reserved")

    def config_read(self, devfn: int, offset: int, size: int) -> int:
        device = self._devices.get(devfn)
        return device.config_read(offset, size) if device is not None else (1 << 8 * size) - 1

    def config_write(self, devfn: int, offset: int, size: int, value: int) -> None:
        device = self._devices.get(devfn)
        if device is not None:
            device.config_write(offset, size, value)
