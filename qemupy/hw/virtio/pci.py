"""Virtio over PCI (virtio 1.2, 4.1), laid out as QEMU does it.

BAR 0 is the legacy interface in I/O ports, BAR 1 the MSI-X table, BAR 4 the modern interface: common configuration,
ISR status, device configuration and notifications, a page each. A transitional device has both interfaces. The
doorbells (queue notifications) are watched by the accelerator once the driver is ready; their handlers here serve those
that came earlier or by another way.
"""

from __future__ import annotations

from typing import ClassVar

from qemupy.errors import ConfigError
from qemupy.hw.core import nested, on_read, on_write, prop, transient, u8, u16, u32
from qemupy.hw.pci import PciDevice
from qemupy.hw.pci import regs as pci
from qemupy.hw.pci.msi import Msix
from qemupy.hw.virtio import regs
from qemupy.hw.virtio.device import VirtioDevice, VirtQueue
from qemupy.memory import MemoryRegion, RegionDoorbell

LEGACY_NOTIFY, LEGACY_HEADER = 0x10, 20  # two more words follow the header while MSI-X is enabled
PAGE = 0x1000
COMMON, ISR, DEVICE, NOTIFY, MODERN_SIZE = 0, PAGE, 2 * PAGE, 3 * PAGE, 4 * PAGE
ACCESS_BAR, ACCESS_OFFSET, ACCESS_LENGTH, ACCESS_DATA = 4, 8, 12, 16  # in the PCI access capability


class VirtioPci(PciDevice):
    vendor_id = regs.VENDOR
    interrupt_pin = 1
    device_class: ClassVar[type[VirtioDevice]] = VirtioDevice
    transitional_id: ClassVar[int] = 0
    allow_legacy: ClassVar[bool] = True  # of the names that end in -transitional and -non-transitional
    allow_modern: ClassVar[bool] = True

    device: VirtioDevice
    disable_legacy: str = prop(default="auto", help="on/off/auto: no legacy interface")
    disable_modern: bool = prop(default=False, help="no modern interface")
    vectors: int = prop(default=-1, help="MSI-X vectors; -1: one for each queue and one more")
    ioeventfd: bool = prop(default=True, help="the main loop takes notifications; else the vCPU calls for it")
    isr: int = u8()
    config_vector: int = u16(reset=regs.NO_VECTOR)
    device_feature_select: int = u32()
    driver_feature_select: int = u32()
    queue_select: int = u16()
    msix: Msix = nested(Msix)
    has_legacy: bool = transient(False)
    has_modern: bool = transient(False)
    _access: int = transient(0)  # offset of the PCI access capability
    _legacy: MemoryRegion | None = transient(None)
    _modern: MemoryRegion | None = transient(None)
    _notify: MemoryRegion | None = transient(None)

    def realize(self) -> None:
        if self.disable_legacy not in ("on", "off", "auto"):
            raise ConfigError(f"Parameter 'disable-legacy' of {self.qdev_name} expects 'on', 'off' or 'auto'")
        self.has_legacy = self.allow_legacy and self.disable_legacy != "on"
        self.has_modern = self.allow_modern and not self.disable_modern
        if not self.has_legacy and not self.has_modern:
            raise ConfigError("device cannot work as neither modern nor legacy mode is enabled")
        super().realize()
        if self.has_modern:
            self._add_modern()
        vectors = len(self.device.queues) + 1 if self.vectors < 0 else self.vectors
        if vectors > 2048:
            raise ConfigError(f"{self.qdev_name}: unable to init msix vectors to {vectors}")
        if vectors:
            self.msix.attach(self, 1, vectors)
        if self.has_legacy:
            size = LEGACY_HEADER + 4 + self.device.config_size
            self._legacy = MemoryRegion.mmio(self.qdev_name, 1 << (size - 1).bit_length(), LegacyPorts(self))
            self.add_bar(0, self._legacy, io=True)
        self.device.transport = self

    def _add_modern(self) -> None:
        whole = MemoryRegion("virtio-pci", MODERN_SIZE)
        self._notify = MemoryRegion.mmio("virtio-pci-notify", PAGE, NotifyPage(self.device))
        for offset, region in (
            (COMMON, MemoryRegion.mmio("virtio-pci-common", PAGE, self.bank("common"))),
            (ISR, MemoryRegion.mmio("virtio-pci-isr", PAGE, self.bank("isr"))),
            (DEVICE, MemoryRegion.mmio("virtio-pci-device", PAGE, DeviceConfig(self.device))),
            (NOTIFY, self._notify),
        ):
            whole.add(region, offset)
        self._modern = whole
        for kind, offset in ((regs.CAP_COMMON, COMMON), (regs.CAP_ISR, ISR), (regs.CAP_DEVICE, DEVICE)):
            self.add_capability(pci.CAP_VENDOR, _structure(kind, 4, offset, PAGE))
        multiplier = regs.NOTIFY_MULTIPLIER.to_bytes(4, "little")
        self.add_capability(pci.CAP_VENDOR, _structure(regs.CAP_NOTIFY, 4, NOTIFY, PAGE, multiplier))
        mask = b"\0\0\xff\0\0\0" + b"\xff" * 8 + bytes(4)
        self._access = self.add_capability(pci.CAP_VENDOR, _structure(regs.CAP_PCI, 0, 0, 0, bytes(4)), mask)
        self.add_bar(4, whole, prefetch=True, wide=True)

    def _power_on(self) -> None:
        super()._power_on()
        if self.has_legacy:
            device_id, revision, subsystem = self.transitional_id, 0, self.device_class.device_type
        else:
            device_id, revision, subsystem = regs.MODERN_BASE + self.device_class.device_type, 1, pci.SUBSYSTEM_QEMU
        for at, size, value in (
            (pci.DEVICE_ID, 2, device_id),
            (pci.REVISION, 1, revision),
            (pci.SUBSYSTEM_VENDOR, 2, regs.VENDOR),
            (pci.SUBSYSTEM, 2, subsystem),
        ):
            self.config[at : at + size] = value.to_bytes(size, "little")

    def reset(self) -> None:
        super().reset()
        self.msix.config_written()

    def post_load(self) -> None:
        super().post_load()
        self.msix.config_written()
        self.queues_changed()

    def config_written(self, offset: int, size: int) -> None:
        self.msix.config_written()
        data = self._access + ACCESS_DATA
        if self._access and data <= offset < data + 4:
            self._access_bar(write=True)

    def config_read(self, offset: int, size: int) -> int:
        data = self._access + ACCESS_DATA
        if self._access and data <= offset < data + 4:
            self._access_bar(write=False)
        return super().config_read(offset, size)

    def _access_bar(self, *, write: bool) -> None:
        """The PCI configuration access capability (4.1.4.9): a window into BAR 4 for those who cannot reach it."""
        config, at = self.config, self._access
        offset, size = (int.from_bytes(config[at + n : at + n + 4], "little") for n in (ACCESS_OFFSET, ACCESS_LENGTH))
        if config[at + ACCESS_BAR] != 4 or size not in (1, 2, 4) or offset % size or offset >= MODERN_SIZE:
            return
        assert self._modern is not None
        part = next(child for child in self._modern.children if child.offset == offset & -PAGE)
        assert part.ops is not None
        data = slice(at + ACCESS_DATA, at + ACCESS_DATA + size)
        if write:
            part.ops.write(offset % PAGE, size, int.from_bytes(config[data], "little"))
        else:
            config[data] = (part.ops.read(offset % PAGE, size) & (1 << 8 * size) - 1).to_bytes(size, "little")

    # Interrupts and doorbells, for the device

    def queue_interrupt(self, vector: int) -> None:
        self._interrupt(regs.ISR_QUEUE, vector)

    def config_interrupt(self) -> None:
        self._interrupt(regs.ISR_QUEUE | regs.ISR_CONFIG, self.config_vector)

    def _interrupt(self, why: int, vector: int) -> None:
        self.isr |= why
        if self.msix.enabled:
            if vector != regs.NO_VECTOR:
                self.msix.notify(vector)
        else:
            self.set_intx(True)

    def queues_changed(self) -> None:
        legacy: list[RegionDoorbell] = []
        modern: list[RegionDoorbell] = []
        if self.ioeventfd and self.device.status & regs.DRIVER_OK:
            for queue in self.device.queues:
                if queue.enabled and self.device.is_modern:
                    modern.append(RegionDoorbell(queue.number * regs.NOTIFY_MULTIPLIER, 0, queue.notifier))
                elif queue.enabled:
                    legacy.append(RegionDoorbell(LEGACY_NOTIFY, 2, queue.notifier, queue.number))
        if self._legacy is not None:
            self._legacy.set_doorbells(legacy)
        if self._notify is not None:
            self._notify.set_doorbells(modern)

    # Both interfaces

    def _queue(self) -> VirtQueue | None:
        queues = self.device.queues
        return queues[self.queue_select] if self.queue_select < len(queues) else None

    def _valid_vector(self, value: int) -> int:
        return value if value < self.msix.vectors else regs.NO_VECTOR

    @on_read(0, bank="isr")
    def read_isr(self) -> int:
        """Reading lowers the interrupt."""
        isr, self.isr = self.isr, 0
        self.set_intx(False)
        return isr

    @on_write(0, bank="isr")
    def write_isr(self, value: int) -> None:
        """Read-only."""

    def write_status(self, value: int) -> None:
        self.device.set_status(value)
        if value == 0:
            self.isr = 0
            self.config_vector = regs.NO_VECTOR
            self.queue_select = self.device_feature_select = self.driver_feature_select = 0
            self.set_intx(False)

    # The legacy interface (4.1.4.8)

    @on_read(0, size=4, bank="legacy")
    def read_legacy_features(self) -> int:
        return self.device.offered & 0xFFFFFFFF

    @on_read(4, size=4, bank="legacy")
    def read_legacy_driver_features(self) -> int:
        return self.device.features & 0xFFFFFFFF

    @on_write(4, size=4, bank="legacy")
    def write_legacy_driver_features(self, value: int) -> None:
        if value & regs.F_BAD_FEATURE:
            value = 0  # it took all it was shown without understanding it
        self.device.features = value & self.device.offered

    @on_read(8, size=4, bank="legacy")
    def read_queue_pfn(self) -> int:
        queue = self._queue()
        return queue.desc >> 12 if queue is not None else 0

    @on_write(8, size=4, bank="legacy")
    def write_queue_pfn(self, value: int) -> None:
        """Where the ring lies decides where its parts do (2.7.2); 0 gives it back, with everything else."""
        queue = self._queue()
        if value == 0:
            self.write_status(0)
        elif queue is not None:
            queue.desc = value << 12
            queue.avail = queue.desc + 16 * queue.size
            queue.used = queue.avail + 6 + 2 * queue.size + 0xFFF & ~0xFFF
            self.device.enable_queue(queue)

    @on_read(12, size=2, bank="legacy")
    def read_queue_num(self) -> int:
        queue = self._queue()
        return queue.max_size if queue is not None else 0

    @on_read(14, size=2, bank="legacy")
    @on_read(22, size=2, bank="common")
    def read_queue_select(self) -> int:
        return self.queue_select

    @on_write(14, size=2, bank="legacy")
    @on_write(22, size=2, bank="common")
    def write_queue_select(self, value: int) -> None:
        self.queue_select = value

    @on_write(LEGACY_NOTIFY, size=2, bank="legacy")
    def write_legacy_notify(self, value: int) -> None:
        self.device.notify(value)

    @on_read(18, bank="legacy")
    @on_read(20, bank="common")
    def read_status(self) -> int:
        return self.device.status

    @on_write(18, bank="legacy")
    def write_legacy_status(self, value: int) -> None:
        self.write_status(value)

    @on_read(19, bank="legacy")
    def read_legacy_isr(self) -> int:
        return self.read_isr()

    @on_read(20, size=2, bank="legacy")
    @on_read(16, size=2, bank="common")
    def read_config_vector(self) -> int:
        return self.config_vector

    @on_write(20, size=2, bank="legacy")
    @on_write(16, size=2, bank="common")
    def write_config_vector(self, value: int) -> None:
        self.config_vector = self._valid_vector(value)

    @on_read(22, size=2, bank="legacy")
    @on_read(26, size=2, bank="common")
    def read_queue_vector(self) -> int:
        queue = self._queue()
        return queue.vector if queue is not None else regs.NO_VECTOR

    @on_write(22, size=2, bank="legacy")
    @on_write(26, size=2, bank="common")
    def write_queue_vector(self, value: int) -> None:
        queue = self._queue()
        if queue is not None:
            queue.vector = self._valid_vector(value)

    # The common configuration of the modern interface (4.1.4.3)

    @on_read(0, size=4, bank="common")
    def read_device_feature_select(self) -> int:
        return self.device_feature_select

    @on_write(0, size=4, bank="common")
    def write_device_feature_select(self, value: int) -> None:
        self.device_feature_select = value

    @on_read(4, size=4, bank="common")
    def read_device_features(self) -> int:
        word = self.device_feature_select
        return (self.device.offered & ~regs.LEGACY_ONLY) >> 32 * word & 0xFFFFFFFF if word < 2 else 0

    @on_read(8, size=4, bank="common")
    def read_driver_feature_select(self) -> int:
        return self.driver_feature_select

    @on_write(8, size=4, bank="common")
    def write_driver_feature_select(self, value: int) -> None:
        self.driver_feature_select = value

    @on_read(12, size=4, bank="common")
    def read_driver_features(self) -> int:
        word = self.driver_feature_select
        return self.device.features >> 32 * word & 0xFFFFFFFF if word < 2 else 0

    @on_write(12, size=4, bank="common")
    def write_driver_features(self, value: int) -> None:
        """Fixed once the driver said FEATURES_OK."""
        word, device = self.driver_feature_select, self.device
        if word < 2 and not device.status & regs.FEATURES_OK:
            device.features = device.features & ~(0xFFFFFFFF << 32 * word) | value << 32 * word

    @on_read(18, size=2, bank="common")
    def read_num_queues(self) -> int:
        return len(self.device.queues)

    @on_write(20, bank="common")
    def write_common_status(self, value: int) -> None:
        self.write_status(value)

    @on_read(21, bank="common")
    def read_generation(self) -> int:
        return self.device.generation

    @on_read(24, size=2, bank="common")
    def read_queue_size(self) -> int:
        queue = self._queue()
        return queue.size if queue is not None else 0

    @on_write(24, size=2, bank="common")
    def write_queue_size(self, value: int) -> None:
        queue = self._queue()
        if queue is not None and not queue.enabled and value and value <= queue.max_size and not value & value - 1:
            queue.size = value

    @on_read(28, size=2, bank="common")
    def read_queue_enable(self) -> int:
        queue = self._queue()
        return int(queue is not None and queue.enabled)

    @on_write(28, size=2, bank="common")
    def write_queue_enable(self, value: int) -> None:
        queue = self._queue()
        if queue is not None and value == 1 and not queue.enabled and not queue.resetting:
            self.device.enable_queue(queue)

    @on_read(30, size=2, bank="common")
    def read_notify_offset(self) -> int:
        return self.queue_select if self._queue() is not None else 0

    @on_read(32, 36, 40, 44, 48, 52, size=4, bank="common")
    def read_queue_address(self, offset: int) -> int:
        queue = self._queue()
        if queue is None:
            return 0
        whole: int = getattr(queue, ("desc", "avail", "used")[offset - 32 >> 3])
        return whole >> 8 * (offset & 4) & 0xFFFFFFFF

    @on_write(32, 36, 40, 44, 48, 52, size=4, bank="common")
    def write_queue_address(self, offset: int, value: int) -> None:
        queue = self._queue()
        if queue is None or queue.enabled:
            return
        name, shift = ("desc", "avail", "used")[offset - 32 >> 3], 8 * (offset & 4)
        setattr(queue, name, getattr(queue, name) & ~(0xFFFFFFFF << shift) | value << shift)

    @on_read(56, size=2, bank="common")
    def read_notify_data(self) -> int:
        return self.queue_select

    @on_read(58, size=2, bank="common")
    def read_queue_reset(self) -> int:
        queue = self._queue()
        return int(queue is not None and queue.resetting)

    @on_write(58, size=2, bank="common")
    def write_queue_reset(self, value: int) -> None:
        queue = self._queue()
        if queue is not None and value == 1 and self.device.features & regs.F_RING_RESET:
            self.device.reset_queue(queue)


def _structure(kind: int, bar: int, offset: int, length: int, more: bytes = b"") -> bytes:
    """A vendor capability from its third byte on (4.1.4)."""
    body = bytes((16 + len(more), kind, bar, 0, 0, 0))
    return body + offset.to_bytes(4, "little") + length.to_bytes(4, "little") + more


class DeviceConfig:
    """The device-specific configuration."""

    def __init__(self, device: VirtioDevice) -> None:
        self._device = device

    def read(self, offset: int, size: int) -> int:
        data = self._device.read_config()[offset : offset + size]
        return int.from_bytes(data.ljust(size, b"\xff"), "little")

    def write(self, offset: int, size: int, value: int) -> None:
        if offset + size <= self._device.config_size:
            self._device.config_written(offset, value.to_bytes(size, "little"))


class LegacyPorts:
    """The header registers and, behind them, the device's configuration, whose place depends on MSI-X."""

    def __init__(self, owner: VirtioPci) -> None:
        self._owner, self._bank = owner, owner.bank("legacy")
        self._config = DeviceConfig(owner.device)

    def _config_at(self) -> int:
        return LEGACY_HEADER + (4 if self._owner.msix.enabled else 0)

    def read(self, offset: int, size: int) -> int:
        base = self._config_at()
        return self._config.read(offset - base, size) if offset >= base else self._bank.read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        base = self._config_at()
        if offset >= base:
            self._config.write(offset - base, size, value)
        else:
            self._bank.write(offset, size, value)


class NotifyPage:
    """One doorbell for each queue; what is written does not matter."""

    def __init__(self, device: VirtioDevice) -> None:
        self._device = device

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        self._device.notify(offset // regs.NOTIFY_MULTIPLIER)
