"""`PciDevice`: a Device with a configuration space, BARs and an interrupt pin (PCI 3.0, chapter 6).

    class Card(PciDevice):
        vendor_id, device_id, class_code = 0x1234, 0x1111, 0x030000
        config_reset = {0x52: b"\\x01"}       # what differs from zero at power-on
        config_mask = {0x52: b"\\x0f"}        # bits the guest may write, from 40h on all by default

        def realize(self) -> None:
            super().realize()
            self.add_bar(0, MemoryRegion.mmio("card", 4096, self.bank("mmio")))

The 256 bytes of the space are the saved state; where the BARs lie is derived from them after every write and load.
A device does not know where it is plugged: it has a `slot`, through which it is mapped and raises its pin.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

from qemupy.hw.core import Device, boolean, buffer, prop, transient
from qemupy.hw.pci import regs
from qemupy.memory import MemoryRegion
from qemupy.records import record


@record()
class Bar:
    """`address` is where it is mapped now, None while it is not."""

    index: int
    region: MemoryRegion
    flags: int
    size: int
    address: int | None = None

    @property
    def is_io(self) -> bool:
        return bool(self.flags & regs.BAR_IO)

    @property
    def width(self) -> int:
        """Bytes of the register."""
        return 8 if self.flags & regs.BAR_64 and not self.is_io else 4

    @property
    def offset(self) -> int:
        return regs.ROM if self.index == regs.ROM_SLOT else regs.BAR0 + 4 * self.index


class Slot(Protocol):
    """A place on a bus, as the device in it sees it."""

    def map_bar(self, bar: Bar, address: int | None) -> None:
        """Show the region at `address` of the bus's memory or ports, or take it away."""

    def set_interrupt(self, pin: int, level: bool) -> None: ...

    def send_message(self, address: int, data: int) -> None:
        """A memory write of 32 bits, for MSI and MSI-X."""


class PciDevice(Device):
    vendor_id: ClassVar[int] = regs.VENDOR_INTEL
    device_id: ClassVar[int] = 0
    revision: ClassVar[int] = 0
    class_code: ClassVar[int] = 0  # base class, sub-class, programming interface
    subsystem: ClassVar[tuple[int, int]] = (regs.VENDOR_REDHAT, regs.SUBSYSTEM_QEMU)
    interrupt_pin: ClassVar[int] = 0  # 1 is INTA#
    command_mask: ClassVar[int] = (
        regs.COMMAND_IO | regs.COMMAND_MEMORY | regs.COMMAND_MASTER | regs.COMMAND_SERR | regs.COMMAND_INTX_DISABLE
    )
    config_reset: ClassVar[dict[int, bytes]] = {}
    config_mask: ClassVar[dict[int, bytes]] = {}

    addr: str = prop(default="", help="slot and function on the bus, as 05.0")
    multifunction: bool = prop(default=False, help="further functions follow in this slot")
    config: bytearray = buffer(256)
    intx_level: bool = boolean()
    bars: list[Bar] = transient(factory=list)
    slot: Slot | None = transient(None)
    _mask: bytearray = transient(factory=lambda: bytearray(256))
    _capabilities: list[tuple[int, bytes]] = transient(factory=list)

    def realize(self) -> None:
        self._init_mask()
        self._power_on()

    def _init_mask(self) -> None:
        mask = self._mask
        mask[regs.COMMAND : regs.STATUS] = self.command_mask.to_bytes(2, "little")
        mask[regs.CACHE_LINE] = mask[regs.INTERRUPT_LINE] = 0xFF
        mask[regs.HEADER_END :] = b"\xff" * (256 - regs.HEADER_END)
        for at, bits in self.config_mask.items():
            mask[at : at + len(bits)] = bits

    def _power_on(self) -> None:
        config = self.config
        for at, size, value in (
            (regs.VENDOR_ID, 2, self.vendor_id),
            (regs.DEVICE_ID, 2, self.device_id),
            (regs.REVISION, 4, self.class_code << 8 | self.revision),
            (regs.HEADER_TYPE, 1, regs.HEADER_MULTIFUNCTION if self.multifunction else 0),
            (regs.SUBSYSTEM_VENDOR, 2, self.subsystem[0]),
            (regs.SUBSYSTEM, 2, self.subsystem[1]),
            (regs.INTERRUPT_PIN, 1, self.interrupt_pin),
        ):
            config[at : at + size] = value.to_bytes(size, "little")
        for bar in self.bars:
            config[bar.offset : bar.offset + bar.width] = bar.flags.to_bytes(bar.width, "little")
        self._link_capabilities()
        for at, data in self.config_reset.items():
            config[at : at + len(data)] = data

    def reset(self) -> None:
        super().reset()
        self._power_on()
        self.post_load()

    def place(self) -> None:
        self.update_bars()

    def post_load(self) -> None:
        self.place()
        self._drive_pin()

    def add_capability(self, kind: int, body: bytes, mask: bytes = b"") -> int:
        """Append a capability (PCI 3.0, 6.7): `body` is what follows its id and link, `mask` which bits of it the guest
        may write. Its offset in the configuration space."""
        last = self._capabilities[-1] if self._capabilities else None
        at = regs.HEADER_END if last is None else last[0] + (len(last[1]) + 3 & ~3)
        whole = bytes((kind, 0)) + body
        if at + len(whole) > 256:
            raise ValueError(f"{type(self).__name__}: no room for capability {kind:#x}")
        self._mask[at : at + (len(whole) + 3 & ~3)] = (b"\0\0" + mask).ljust(len(whole) + 3 & ~3, b"\0")
        self._capabilities.append((at, whole))
        self._link_capabilities()
        return at

    def _link_capabilities(self) -> None:
        """The newest one first, as in QEMU."""
        following = 0
        for at, whole in self._capabilities:
            self.config[at : at + len(whole)] = whole
            self.config[at + 1] = following
            following = at
        if following:
            self.config[regs.CAPABILITIES] = following
            self.config[regs.STATUS] |= regs.STATUS_CAPABILITIES

    def add_bar(
        self, index: int, region: MemoryRegion, *, io: bool = False, prefetch: bool = False, wide: bool = False
    ) -> Bar:
        """Give the device a BAR of the region's size (a power of two); index 6 is the expansion ROM. A `wide` one may
        lie above 4 GiB and takes the next index as well."""
        size = region.size
        if size & (size - 1) or size < (4 if io else 16):
            raise ValueError(f"{type(self).__name__}: BAR{index} of {size:#x} bytes")
        flags = regs.BAR_IO if io else regs.BAR_PREFETCH if prefetch else 0
        flags |= regs.BAR_64 if wide else 0
        bar = Bar(index, region, flags, size)
        self.bars.append(bar)
        writable = -size & (1 << 8 * bar.width) - 1 | (regs.ROM_ENABLE if index == regs.ROM_SLOT else 0)
        self._mask[bar.offset : bar.offset + bar.width] = writable.to_bytes(bar.width, "little")
        self.config[bar.offset : bar.offset + bar.width] = flags.to_bytes(bar.width, "little")
        return bar

    def add_rom(self, region: MemoryRegion) -> Bar:
        return self.add_bar(regs.ROM_SLOT, region)

    @property
    def command(self) -> int:
        return self.config[regs.COMMAND] | self.config[regs.COMMAND + 1] << 8

    @property
    def is_master(self) -> bool:
        return bool(self.config[regs.COMMAND] & regs.COMMAND_MASTER)

    def config_read(self, offset: int, size: int) -> int:
        return int.from_bytes(self.config[offset : offset + size], "little")

    def config_write(self, offset: int, size: int, value: int) -> None:
        """A guest write: masked, with the side effects of the standard header. Devices extend `config_written`."""
        config, mask = self.config, self._mask
        for at, byte in enumerate(value.to_bytes(size, "little"), offset):
            config[at] = config[at] & ~mask[at] | byte & mask[at]
            if at == regs.STATUS + 1:
                config[at] &= ~(byte & regs.STATUS_W1C >> 8)
        end = offset + size
        if offset < regs.STATUS and end > regs.COMMAND:
            self.update_bars()
            self._drive_pin()
        elif offset < regs.CAPABILITIES and end > regs.BAR0:
            self.update_bars()
        self.config_written(offset, size)

    def config_written(self, offset: int, size: int) -> None:
        """Called after the guest wrote to the configuration space."""

    def _bar_address(self, bar: Bar) -> int | None:
        """Where the registers say the BAR is; None while it is disabled, unset, or being sized with all ones."""
        value = int.from_bytes(self.config[bar.offset : bar.offset + bar.width], "little")
        enable = regs.COMMAND_IO if bar.is_io else regs.COMMAND_MEMORY
        if not self.command & enable or (bar.index == regs.ROM_SLOT and not value & regs.ROM_ENABLE):
            return None
        address = value & -bar.size
        limit = 0x10000 if bar.is_io else regs.ADDRESS_END if bar.width == 8 else 0xFFFFFFFF
        return address if address and address + bar.size <= limit else None

    def update_bars(self) -> None:
        if self.slot is None:
            return
        for bar in self.bars:
            address = self._bar_address(bar)
            if address != bar.address:
                self.slot.map_bar(bar, address)
                bar.address = address

    def send_message(self, address: int, data: int) -> None:
        """MSI and MSI-X are memory writes of the device as bus master."""
        if self.slot is not None and self.is_master:
            self.slot.send_message(address, data)

    def set_intx(self, level: bool) -> None:
        if level != self.intx_level:
            self.intx_level = level
            self._drive_pin()

    def _drive_pin(self) -> None:
        if level := self.intx_level:
            self.config[regs.STATUS] |= regs.STATUS_INTERRUPT
        else:
            self.config[regs.STATUS] &= ~regs.STATUS_INTERRUPT & 0xFF
        if self.slot is not None and self.interrupt_pin:
            disabled = self.config[regs.COMMAND + 1] & regs.COMMAND_INTX_DISABLE >> 8
            self.slot.set_interrupt(self.interrupt_pin - 1, level and not disabled)
