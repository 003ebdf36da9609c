"""The disks of a PC: IDE drives on the two channels of the PIIX3, at the index their `-drive` says."""

from __future__ import annotations

from qemupy import options
from qemupy.backends.block.base import BlockBackend
from qemupy.backends.block.drive import Drive
from qemupy.errors import ConfigError
from qemupy.hw.block import floppy_media
from qemupy.hw.block.ata_disk import AtaDisk, guess_geometry
from qemupy.hw.block.atapi import AtapiDrive
from qemupy.hw.block.fdc import Fdc, IsaDma
from qemupy.hw.block.ide import IdeChannel
from qemupy.hw.block.piix_ide import PiixIde
from qemupy.hw.core import registry
from qemupy.hw.i386.boot_order import BootOrder, ide_drive
from qemupy.hw.i386.pc_isa import Interrupts
from qemupy.hw.timer.cmos_layout import DiskGeometry
from qemupy.vm import Vm

CHANNELS = ((0x1F0, 0x3F6, 14), (0x170, 0x376, 15))
IDE_DEVICES: dict[str, type[AtaDisk | AtapiDrive]] = {"ide-hd": AtaDisk, "ide-cd": AtapiDrive}


class IdeDrives:
    def __init__(self, vm: Vm, irqs: Interrupts, boot_order: BootOrder) -> None:
        self._vm, self._boot_order = vm, boot_order
        self.channels: list[IdeChannel] = []
        for n, (command, control, irq) in enumerate(CHANNELS):
            channel = IdeChannel(irq=irqs.isa(irq))
            vm.ports.map(command, channel.bank("command"), 8, name="ide")
            vm.ports.map(control, channel.bank("control"), 1, name="ide")
            vm.add(f"ide.{n}", channel)
            self.channels.append(channel)
        self.function = PiixIde(dma=vm.dma, channels=self.channels)

    def attach_configured(self) -> None:
        """The `-drive if=ide` ones, and -hda to -hdd."""
        for config in self._vm.config.drives:
            if config.interface == "ide":
                kind = "ide-cd" if config.media == "cdrom" else "ide-hd"
                given = {"serial": config.serial} if config.serial else {}
                self._attach(kind, self._vm.drives[config.id], config.index, given)

    def attach_device(self, kind: str, given: dict[str, str]) -> None:
        """`-device ide-hd,drive=ID[,bus=ide.N][,unit=N]`."""
        name = given.pop("drive", None)
        drive = self._vm.drive_for(name) if name is not None else None
        if drive is None and (kind == "ide-hd" or name is not None):
            raise ConfigError(f"-device {kind}: " + (f"Can't find value '{name}'" if name else "No drive specified"))
        bus, unit = given.pop("bus", ""), given.pop("unit", "")
        index = self._place(kind, bus, unit)
        self._boot_order.add(self._boot_order.take(given), ide_drive(index))
        if drive is None:
            raise ConfigError(f"-device {kind}: an empty drive needs a -drive if=none,media=cdrom,id=...")
        self._attach(kind, drive, index, given)

    def _place(self, kind: str, bus: str, unit: str) -> int:
        """2 * channel + unit: as asked for, or the first free one."""
        wanted = [
            2 * channel + place
            for channel in range(2)
            for place in range(2)
            if bus in ("", f"ide.{channel}") and unit in ("", str(place))
        ]
        if not wanted:
            raise ConfigError(f"-device {kind}: there is no place {bus or 'ide'} unit {unit or 'any'}")
        for index in wanted:
            if self.channels[index // 2].drives[index % 2] is None:
                return index
        raise ConfigError(f"-device {kind}: IDE unit {wanted[-1] % 2} is in use")

    def _attach(self, kind: str, drive: Drive, index: int, given: dict[str, str]) -> None:
        cls = IDE_DEVICES[kind]
        path = given.pop("id", "")
        share_rw = options.boolean("share-rw", given.pop("share-rw", "off"))
        if kind == "ide-cd" and not drive.removable:
            drive.removable = True
        given = {key: value for key, value in given.items() if key != "driver"}
        device = cls(block=drive, **registry.parse_props(cls, given))  # type: ignore[arg-type]
        channel = self.channels[index // 2]
        if channel.drives[index % 2] is not None:
            raise ConfigError(f"IDE unit {index % 2} of ide.{index // 2} is in use")
        channel.attach(device, index % 2)
        if not device.serial:
            device.serial = f"QM{index + 1:05}"
        drive.attach(
            path or f"/machine/unattached/device[ide.{index // 2}.{index % 2}]",
            share_rw=share_rw,
            writable=kind == "ide-hd",
        )
        self._vm.add(f"ide.{index // 2}.{index % 2}", device)

    def geometries(self) -> list[DiskGeometry | None]:
        """What the CMOS says about the disks: translation as QEMU guesses it from the size."""
        found: list[DiskGeometry | None] = []
        for channel in self.channels:
            for drive in channel.drives:
                if not isinstance(drive, AtaDisk):
                    found.append(None)
                    continue
                cylinders, heads, sectors = guess_geometry(drive.sectors)
                large = cylinders * heads > 131072
                translation = 0 if cylinders <= 1024 else 1 if large or cylinders * heads > 16 * 1024 else 2
                found.append(DiskGeometry(cylinders, heads, sectors, translation))
        return found


class Floppies:
    """The floppy controller with the drives of `-drive if=floppy`, -fda and -fdb; none without any."""

    def __init__(self, vm: Vm, irqs: Interrupts, dma: IsaDma) -> None:
        self.media: list[BlockBackend | None] = [None, None]
        for config in vm.config.drives:
            if config.interface == "floppy" and config.index < 2:
                self.media[config.index] = vm.drives[config.id]
                vm.drives[config.id].attach(f"/machine/unattached/device[floppy.{config.index}]")
        self.present = any(medium is not None for medium in self.media)
        if not self.present:
            return
        controller = Fdc(irq=irqs.isa(6), dma=dma, media=self.media)
        vm.add("fdc", controller)
        vm.ports.map(0x3F1, controller.bank(), 5, offset=1, name="fdc")
        vm.ports.map(0x3F7, controller.bank(), 1, offset=7, name="fdc")

    def cmos_types(self) -> tuple[int, int]:
        """An empty drive is one for 2.88 MB, which reads all formats."""
        first, second = (
            floppy_media.CMOS_NONE
            if medium is None
            else floppy_media.geometry(medium.length).cmos
            if medium.inserted
            else floppy_media.CMOS_2880K
            for medium in self.media
        )
        return first, second
