"""HMP: `info` about the machine as a whole."""

from __future__ import annotations

from qemupy.monitor import commands, trees
from qemupy.monitor.command import hmp
from qemupy.monitor.hmp import Hmp


@hmp("info version", "", "", "show the version of QEMU")
def hmp_info_version(mon: Hmp) -> None:
    info = commands.query_version(mon.vm)
    mon.print(f"{'.'.join(map(str, info.qemu))} ({info.package})")


@hmp("info status", "", "", "show the current VM status (running|paused)")
def hmp_info_status(mon: Hmp) -> None:
    info = commands.query_status(mon.vm)
    text = "running" if info.running else "paused"
    extra = "" if info.running or info.status == "paused" else f" ({info.status})"
    step = " (single step mode)" if info.singlestep else ""
    mon.print(f"VM status: {text}{step}{extra}")


@hmp("info name", "", "", "show the current VM name")
def hmp_info_name(mon: Hmp) -> None:
    if name := commands.query_name(mon.vm):
        mon.print(name)


@hmp("info uuid", "", "", "show the current VM UUID")
def hmp_info_uuid(mon: Hmp) -> None:
    mon.print(commands.query_uuid(mon.vm))


@hmp("info chardev", "", "", "show the character devices")
def hmp_info_chardev(mon: Hmp) -> None:
    for line in mon.vm.chardevs.describe():
        mon.print(line)


@hmp("info mtree", "flat:-f", "[-f]", "show memory tree (-f: dump flat view for address spaces)")
def hmp_info_mtree(mon: Hmp, flat: bool) -> None:
    for line in trees.flat_lines(mon.vm) if flat else trees.mtree_lines(mon.vm):
        mon.print(line)


@hmp("info qtree", "", "", "show device tree")
def hmp_info_qtree(mon: Hmp) -> None:
    for line in trees.qtree_lines(mon.vm):
        mon.print(line)


@hmp("info pci", "", "", "show PCI info")
def hmp_info_pci(mon: Hmp) -> None:
    for line in trees.pci_lines(mon.vm):
        mon.print(line)


@hmp("info roms", "", "", "show roms")
def hmp_info_roms(mon: Hmp) -> None:
    for address, size, name in mon.vm.roms:
        mon.print(f'addr={address:016x} size=0x{size:06x} mem=rom name="{name}"')


@hmp("info memory_size_summary", "", "", "show the amount of initially allocated memory in bytes")
def hmp_info_memory_size_summary(mon: Hmp) -> None:
    mon.print(f"base memory: {mon.vm.config.ram}")
    mon.print("plugged memory: 0")


@hmp("info kvm", "", "", "show KVM information")
def hmp_info_kvm(mon: Hmp) -> None:
    mon.print("kvm support: not compiled")


@hmp("info history", "", "", "show the command line history")
def hmp_info_history(mon: Hmp) -> None:
    for n, line in enumerate(mon.history()):
        mon.print(f"{n}: '{line}'")
