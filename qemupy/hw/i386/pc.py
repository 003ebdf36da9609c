"""The `pc` board: an i440FX PC as QEMU's pc-i440fx-7.2 builds it.

    00:00.0  i440FX host bridge         00:01.1  PIIX3 IDE
    00:01.0  PIIX3 ISA bridge           00:01.3  PIIX4 power management
    00:02.0  VGA (-vga std)             then -device ones in their order

There is no network card unless asked for. Interrupts of PCI devices go through the PIIX3 to ISA IRQs 5, 10 or 11.
"""

from __future__ import annotations

from qemupy import options
from qemupy.hw.acpi import smbios, tables
from qemupy.hw.acpi.dsdt import Hardware
from qemupy.hw.acpi.piix4_pm import Piix4Pm
from qemupy.hw.acpi.pm1 import Pm1
from qemupy.hw.core import IrqLine
from qemupy.hw.display.vga import VgaCore
from qemupy.hw.display.vga_pci import VgaPci
from qemupy.hw.i386 import boot_order, firmware, kernel_boot, pc_fw_cfg, pc_isa
from qemupy.hw.i386.boot_order import BootOrder
from qemupy.hw.i386.pc_devices import add_device
from qemupy.hw.i386.pc_drives import Floppies, IdeDrives
from qemupy.hw.i386.pc_isa import FROM_PCI, FROM_SCI, SHARED, Interrupts
from qemupy.hw.i386.pc_memory import PcMemory
from qemupy.hw.isa.system_ports import ApmControl
from qemupy.hw.misc.fw_cfg import FwCfg
from qemupy.hw.pci import PciBus, PciDevice, PciHost
from qemupy.hw.pci.i440fx import I440FX
from qemupy.hw.pci.piix3 import Piix3
from qemupy.hw.timer import cmos_layout
from qemupy.records import replace
from qemupy.vm import Vm

SCI_IRQ = 9
VGA_BIOS = "vgabios-stdvga.bin"
VGA_PORTS = ((0x04, 2), (0x0A, 1), (0x10, 16), (0x24, 2), (0x2A, 1))  # from 3B0h


def build(vm: Vm) -> None:
    Pc(vm)


class Pc:
    """The order of steps is the order of reset."""

    def __init__(self, vm: Vm) -> None:
        self.vm = vm
        for _ in range(vm.config.smp):
            vm.add_vcpu(vm.config.cpu)
        self.boot_order = BootOrder()
        self.memory = PcMemory(vm.memory_root, vm.accel.memory, vm.config.ram)
        name, bios = firmware.load_bios(vm.config.bios, vm.config.data_dirs)
        self.memory.add_bios(bios)
        vm.roms.append(((1 << 32) - len(bios), len(bios), name))
        self.irqs = Interrupts(vm)
        self.irqs.join_shared()
        self._add_bridges()
        self.has_hpet = options.boolean("hpet", vm.config.machine_options.get("hpet", "on"))
        self.rtc = pc_isa.add_chips(vm, self.irqs, self.has_hpet)
        self.dma = pc_isa.add_dma(vm)
        pc_isa.add_system_ports(vm, self.irqs)
        pc_isa.add_keyboard(vm, self.irqs)
        self.serial_count = pc_isa.add_serial_ports(vm, self.irqs)
        self.has_parallel = pc_isa.add_parallel_port(vm, self.irqs)
        self._add_vga()
        self._add_ide()
        self.floppies = Floppies(vm, self.irqs, self.dma)
        self._add_power_management()
        self._add_fw_cfg()
        if any(drive.interface == "virtio" for drive in vm.config.drives):
            from qemupy.hw.i386 import pc_virtio

            pc_virtio.add_configured(self)
        for given in vm.config.devices:
            add_device(self, given)
        self._fill_cmos()
        if vm.config.kernel is not None:
            kernel_boot.prepare(self, vm.config.kernel)
        elif order := self.boot_order.content():
            self.fw_cfg.add_file(boot_order.FILE, order)

    def direct_identity(self) -> smbios.Identity:
        """With a firmware structure of our own, which SeaBIOS would otherwise add."""
        return replace(self.identity, firmware=("qemupy", "direct kernel boot"))

    def _add_pci(self, name: str, device: PciDevice, devfn: int) -> None:
        self.bus.plug(device, devfn)
        self.vm.add(name, device)

    def _add_bridges(self) -> None:
        vm = self.vm
        self.bus = PciBus(vm.ports.root, self.memory.pci)
        self.bus.send_message = vm.accel.msi
        host = PciHost(bus=self.bus)
        vm.add("pci-host", host)
        vm.ports.map(0xCF8, host.bank("address"), name="pci-conf-idx")
        vm.ports.map(0xCFC, host.bank("data"), name="pci-conf-data")
        bridge = I440FX(system=vm.memory_root, ram=self.memory.ram, pci=self.memory.pci)
        self._add_pci("i440fx", bridge, 0)
        lines = [self.irqs.isa(n, FROM_PCI) if n in SHARED else IrqLine(lambda n, level: None, n) for n in range(16)]
        self.piix3 = Piix3(irqs=lines, multifunction=True)
        self.bus.route = self.piix3.set_interrupt
        self._add_pci("piix3", self.piix3, 8)

    def _add_vga(self) -> None:
        vm = self.vm
        self.vga: VgaCore | None = None
        self.vga_rom: bytes | None = None
        if (vm.config.vga or ("none" if vm.config.nodefaults else "std")) == "none":
            return
        rom = firmware.load_rom(VGA_BIOS, vm.config.data_dirs)
        vga = VgaCore(memory=vm.accel.memory, pci=self.memory.pci)
        vm.add("vga", vga)
        for offset, length in VGA_PORTS:
            vm.ports.map(0x3B0 + offset, vga.bank("vga"), length, offset=offset, name="vga")
        vm.ports.map(0x1CE, vga.bank("vbe-index"), 2, name="vbe")
        vm.ports.map(0x1CF, vga.bank("vbe"), 3, priority=1, name="vbe")
        card = VgaPci(vga=vga, memory=vm.accel.memory, rom=rom)
        self._add_pci("vga-pci", card, 16)
        vm.screen = card
        self.vga, self.vga_rom = vga, rom

    def _add_ide(self) -> None:
        self.ide = IdeDrives(self.vm, self.irqs, self.boot_order)
        self._add_pci("piix3-ide", self.ide.function, 9)
        self.ide.attach_configured()

    def _add_power_management(self) -> None:
        vm = self.vm
        pm1 = Pm1(
            clock=vm.loop.virtual,
            sci=self.irqs.isa(SCI_IRQ, FROM_SCI),
            power_off=lambda: vm.request_shutdown("guest-shutdown"),
        )
        vm.add("pm1", pm1)
        power = Piix4Pm(pm1=pm1, ports=vm.ports.root, has_parallel=self.has_parallel, serial_count=self.serial_count)
        self._add_pci("piix4-pm", power, 11)
        apm = ApmControl(command=power.apm_command)
        vm.add("apm", apm)
        vm.ports.map(0xB2, apm.bank(), name="apm-io")
        vm.on_powerdown(pm1.press_power_button)

    def _add_fw_cfg(self) -> None:
        vm = self.vm
        self.fw_cfg = FwCfg(dma=vm.dma)
        vm.add("fw_cfg", self.fw_cfg)
        vm.ports.map(0x510, self.fw_cfg.bank(), 2, name="fwcfg")
        vm.ports.map(0x514, self.fw_cfg.bank("dma"), 8, name="fwcfg.dma")
        split = self.memory.split
        pc_fw_cfg.add_items(vm, self.fw_cfg, split, self.has_hpet)
        self.acpi = tables.build(self._hardware())
        self.identity = smbios.Identity(
            cpus=vm.config.smp, below_4g=split.below_4g, above_4g=split.above_4g, uuid=pc_fw_cfg.machine_uuid(vm)
        )
        pc_fw_cfg.add_tables(self.fw_cfg, self.acpi, self.identity)

    def _hardware(self) -> Hardware:
        return Hardware(
            cpus=self.vm.config.smp,
            below_4g=self.memory.split.below_4g,
            serials=tuple(pc_isa.SERIAL_PORTS[n] for n, backend in enumerate(self.vm.serials[:4]) if backend),
            parallels=(pc_isa.PARALLEL_PORT,) if self.has_parallel else (),
            floppy=self.floppies.present,
            hpet=self.has_hpet,
        )

    def _fill_cmos(self) -> None:
        rtc, split, boot = self.rtc, self.memory.split, self.vm.config.boot
        cmos_layout.set_memory(rtc, split.below_4g, split.above_4g)
        cmos_layout.set_cpus(rtc, self.vm.config.smp)
        cmos_layout.set_floppies(rtc, *self.floppies.cmos_types())
        cmos_layout.set_disks(rtc, self.ide.geometries())
        order = boot.get("order", "cad")
        if "once" in boot:
            cmos_layout.set_boot_order(rtc, boot["once"])
            self._restore_order_on_reset(order)
        else:
            cmos_layout.set_boot_order(rtc, order)

    def _restore_order_on_reset(self, order: str) -> None:
        """`-boot once=`: the first reset is the power-on itself."""
        resets = iter((False,))

        def restore() -> None:
            if next(resets, True):
                cmos_layout.set_boot_order(self.rtc, order)

        self.vm.on_reset(restore)
