"""HMP: drives, media and block nodes, in QEMU's words."""

from __future__ import annotations

from qemupy import options
from qemupy.backends.block.qcow2.details import size_text
from qemupy.monitor import block_commands as commands
from qemupy.monitor.block_commands import BlockInfo, ImageInfo, NodeInfo
from qemupy.monitor.command import hmp
from qemupy.monitor.hmp import Hmp


@hmp("eject", "force:-f,device:B", "[-f] device", "eject a removable medium (use -f to force it)")
def hmp_eject(mon: Hmp, force: bool, device: str) -> None:
    commands.eject(mon.vm, device, force)


@hmp("change", "force:-f,device:B,filename:F,format:s?,mode:s?", "[-f] device filename [format [read-only-mode]]",
     "change a removable medium, optional format, use -f to force the operation")  # fmt: skip
def hmp_change(mon: Hmp, force: bool, device: str, filename: str, format: str | None, mode: str | None) -> None:
    commands.blockdev_change_medium(mon.vm, device, filename, format, mode or "retain", force)


@hmp("commit", "device:B", "device|all", "commit changes to the disk images (if -snapshot is used) or backing files")
def hmp_commit(mon: Hmp, device: str) -> None:
    commands.commit(mon.vm, device, mon.hold())


@hmp("block_resize", "device:B,size:s", "device size", "resize a block image")
def hmp_block_resize(mon: Hmp, device: str, size: str) -> None:
    commands.block_resize(mon.vm, device, options.size("size", size, "m"))


@hmp("drive_add", "node:-n,pci_addr:s,opts:s",
     "[-n] [[<domain>:]<bus>:]<slot> [file=file][,if=type][,bus=n][,unit=m][,media=d][,index=i][,snapshot=on|off]"
     "[,cache=on|off][,readonly=on|off][,copy-on-read=on|off]", "add drive to PCI storage controller")  # fmt: skip
def hmp_drive_add(mon: Hmp, node: bool, pci_addr: str, opts: str) -> None:
    """The address means nothing for drives that wait for a device."""
    if node:
        commands.blockdev_add(mon.vm, options.parse(opts))
    else:
        commands.drive_add(mon.vm, opts)
        mon.print("OK")


@hmp("drive_del", "device:B", "device", "remove host block device")
def hmp_drive_del(mon: Hmp, device: str) -> None:
    commands.drive_del(mon.vm, device)


@hmp("info block", "nodes:-n,verbose:-v,device:B?", "[-n] [-v] [device]",
     "show info of one block device or all block devices (-n: show named nodes; -v: show details)")  # fmt: skip
def hmp_info_block(mon: Hmp, nodes: bool, verbose: bool, device: str | None) -> None:
    shown = [] if nodes else commands.query_block(mon.vm)
    first = True
    for drive in shown:
        if device is None or drive.device == device:
            if not first or device is not None:
                mon.print()
            first = False
            _show_drive(mon, drive, verbose)
    if device is None and not nodes:
        return
    for node in commands.query_named_block_nodes(mon.vm) if first else []:
        if device is None or node.node_name == device:
            if not first or not nodes:
                mon.print()
            first = False
            mon.print(f"{node.node_name}: {_image(node)}")
            _show_node(mon, node, verbose)


def _image(node: NodeInfo) -> str:
    return f"{node.file} ({node.driver}{', read-only' if node.readonly else ''})"


def _show_drive(mon: Hmp, drive: BlockInfo, verbose: bool) -> None:
    node = drive.inserted
    if drive.device:
        name = f"{drive.device} ({node.node_name})" if node is not None else drive.device
    else:
        name = node.node_name if node is not None else drive.attached_to or "<anonymous>"
    mon.print(f"{name}: {_image(node) if node is not None else '[not inserted]'}")
    if drive.attached_to:
        mon.print(f"    Attached to:      {drive.attached_to}")
    if drive.removable:
        locked, tray = "locked" if drive.locked else "not locked", "open" if drive.tray_open else "closed"
        mon.print(f"    Removable device: {locked}, tray {tray}")
    if node is not None:
        _show_node(mon, node, verbose)


def _show_node(mon: Hmp, node: NodeInfo, verbose: bool) -> None:
    cache = "writethrough" if node.writethrough else "writeback"
    cache += ", direct" if node.direct else ""
    cache += ", ignore flushes" if node.no_flush else ""
    mon.print(f"    Cache mode:       {cache}")
    if node.backing_file is not None:
        mon.print(f"    Backing file:     {node.backing_file} (chain depth: {node.chain_depth})")
    if node.detect_zeroes != "off":
        mon.print(f"    Detect zeroes:    {node.detect_zeroes}")
    if verbose:
        mon.print("\nImages:")
        for image in node.images:
            _show_image(mon, image)


def _show_image(mon: Hmp, image: ImageInfo) -> None:
    mon.print(f"image: {image.filename}")
    mon.print(f"file format: {image.format}")
    mon.print(f"virtual size: {size_text(image.virtual_size)} ({image.virtual_size} bytes)")
    mon.print(f"disk size: {size_text(image.disk_size) if image.disk_size is not None else 'unavailable'}")
    for line in image.details:
        mon.print(line)


@hmp("info blockstats", "", "", "show block device statistics")
def hmp_info_blockstats(mon: Hmp) -> None:
    for name, drive in mon.vm.drives.items():
        mon.print(f"{'' if drive.anonymous else name}: {drive.counts.describe()}")


@hmp("info block-jobs", "", "", "show progress of ongoing block device operations")
def hmp_info_block_jobs(mon: Hmp) -> None:
    at = commands.commit_progress(mon.vm)
    if not at.device:
        mon.print("No active jobs")
    else:
        mon.print(
            f"Type commit, device {at.device}: Completed {at.offset} of {at.length} bytes, speed limit 0 bytes/s"
        )
