"""Drives and block nodes as typed functions on a Vm, by QMP's names where it has one.

All run in the main loop with the BQL held. Mistakes are MonitorError; a `PlainError` is shown without "Error: " in
front, as QEMU's older commands do.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator

from qemupy.backends.block.commit import commit_slices
from qemupy.backends.block.drive import Drive
from qemupy.backends.block.node import Node
from qemupy.backends.block.open import open_blockdev
from qemupy.config import parse_drive
from qemupy.errors import MonitorError, QemupyError
from qemupy.main_loop.jobs import Body
from qemupy.monitor.commands import exclusive
from qemupy.records import record, replace
from qemupy.vm import Vm

# drive_add names an interface by its number
_INTERFACES = {"none": 0, "ide": 1, "scsi": 2, "floppy": 3, "virtio": 7}
_READ_ONLY_MODES = ("retain", "read-only", "read-write")
Done = Callable[[QemupyError | None], None]


class PlainError(MonitorError):
    plain = True


@record(frozen=True)
class ImageInfo:
    """One image of a backing chain. Sizes in bytes; `disk_size` None if the host does not say."""

    filename: str
    format: str
    virtual_size: int
    disk_size: int | None
    details: list[str]


@record(frozen=True)
class NodeInfo:
    node_name: str
    file: str
    driver: str
    readonly: bool
    writethrough: bool
    direct: bool
    no_flush: bool
    detect_zeroes: str
    backing_file: str | None
    chain_depth: int
    images: list[ImageInfo]


@record(frozen=True)
class BlockInfo:
    """A drive; `device` is empty for one that a device made for itself. `inserted` None: no medium."""

    device: str
    attached_to: str
    removable: bool
    locked: bool
    tray_open: bool
    inserted: NodeInfo | None


@record()
class CommitProgress:
    """Of the commit that runs: bytes looked at, of how many, on which drive ("" if none runs)."""

    device: str = ""
    offset: int = 0
    length: int = 0


def commit_progress(vm: Vm) -> CommitProgress:
    return vm.service(_new_progress)


def _new_progress(vm: Vm) -> CommitProgress:
    return CommitProgress()


# Looking


def query_block(vm: Vm) -> list[BlockInfo]:
    return [_block_info(drive) for drive in vm.drives.values()]


def _block_info(drive: Drive) -> BlockInfo:
    node = drive.node
    return BlockInfo(
        device="" if drive.anonymous else drive.name,
        attached_to=drive.attached_to,
        removable=drive.removable or not drive.attached_to,
        locked=drive.locked,
        tray_open=drive.tray_open,
        inserted=_node_info(node, drive.policy.writethrough) if node is not None else None,
    )


def query_named_block_nodes(vm: Vm) -> list[NodeInfo]:
    """The newest first, as QEMU lists them."""
    return [_node_info(node, False) for node in reversed(vm.graph.nodes.values())]


def _node_info(node: Node, writethrough: bool) -> NodeInfo:
    chain = list(backing_chain(node))
    return NodeInfo(
        node_name=node.node_name,
        file=node.filename,
        driver=node.driver,
        readonly=node.readonly,
        writethrough=writethrough,
        direct=node.flags.direct,
        no_flush=node.flags.no_flush,
        detect_zeroes=node.flags.detect_zeroes,
        backing_file=chain[1].filename if len(chain) > 1 else None,
        chain_depth=len(chain) - 1,
        images=[_image_info(image) for image in chain],
    )


def backing_chain(node: Node) -> Iterator[Node]:
    """The node and what lies behind it."""
    at: Node | None = node
    while at is not None:
        yield at
        at = at.children().get("backing")


def _image_info(node: Node) -> ImageInfo:
    try:
        disk_size = node.allocated_size()
    except OSError:
        disk_size = None
    return ImageInfo(node.filename, node.driver, node.length, disk_size, node.details())


def find_drive(vm: Vm, device: str, error: type[MonitorError] = MonitorError) -> Drive:
    drive = vm.drives.get(device)
    if drive is None or drive.anonymous:
        raise error(f"Device '{device}' not found")
    return drive


# Media


def _removable(vm: Vm, device: str, force: bool) -> Drive:
    drive = find_drive(vm, device)
    if not drive.removable:
        raise MonitorError(f"Device '{device}' is not removable")
    if drive.locked and not force:
        raise MonitorError(
            f"Device '{device}' is locked and force was not specified, wait for tray to open and try again"
        )
    return drive


@exclusive
def eject(vm: Vm, device: str, force: bool = False) -> None:
    drive = _removable(vm, device, force)
    vm.drain()
    drive.change(None)


@exclusive
def blockdev_change_medium(vm: Vm, device: str, filename: str, format: str | None = None,
                           read_only_mode: str = "retain", force: bool = False) -> None:  # fmt: skip
    """`read_only_mode`: retain (as before), read-only or read-write."""
    if read_only_mode not in _READ_ONLY_MODES:
        raise MonitorError(f"invalid parameter value: {read_only_mode}")
    drive = _removable(vm, device, force)
    flags = drive.flags
    if read_only_mode != "retain":
        flags = replace(flags, readonly=read_only_mode == "read-only")
    node = vm.graph.open({"driver": format} if format is not None else {}, flags, filename)
    vm.drain()
    drive.change(node)


@exclusive
def block_resize(vm: Vm, device: str, size: int) -> None:
    """The guest sees the new size when it next asks; bytes."""
    drive = vm.drives.get(device)
    if drive is None:
        raise MonitorError(f"Cannot find device='{device}' nor node-name=''")
    node = drive.node
    if node is None:
        raise MonitorError(f"Device '{device}' has no medium")
    if node.readonly:
        raise MonitorError("Image is read-only")
    vm.drain()
    try:
        node.truncate(size)
    except OSError as e:
        raise MonitorError(f"Failed to resize '{device}': {e.strerror}") from None
    drive.media_changed()


# Drives and nodes that come and go


@exclusive
def drive_add(vm: Vm, text: str) -> None:
    """`if=none,...`, as -drive takes it: for a device added later."""
    config = parse_drive(text, [])
    if config.interface != "none":
        raise PlainError(f"Can't hot-add drive to type {_INTERFACES.get(config.interface, 1)}")
    if config.id in vm.drives:
        raise PlainError(f"Duplicate ID '{config.id}' for drive")
    vm.add_drive(config)


@exclusive
def blockdev_add(vm: Vm, given: dict[str, str]) -> None:
    open_blockdev(given, vm.graph)


@exclusive
def blockdev_del(vm: Vm, node_name: str) -> None:
    node = vm.graph.nodes.get(node_name)
    if node is None:
        raise MonitorError(f"Failed to find node with node-name='{node_name}'")
    if node not in vm.graph.held:
        raise MonitorError(f"Node {node_name} is not owned by the monitor")
    if node.references > 1:
        raise MonitorError(f"Block device {node_name} is in use")
    vm.graph.held.remove(node)
    vm.graph.release(node)


@exclusive
def drive_del(vm: Vm, device: str) -> None:
    """The name and the medium go; a device that has the drive sees it without medium from now on."""
    if device in vm.graph.nodes and device not in vm.drives:
        blockdev_del(vm, device)
        return
    drive = find_drive(vm, device, PlainError)
    vm.drain()
    if drive.attached_to:
        drive.change(None)
        drive.anonymous = True
    else:
        drive.close()
        del vm.drives[device]


# commit


def commit(vm: Vm, device: str, done: Done) -> None:
    """Write what the drive's image holds into its backing image (`all`: of every drive), as a job."""
    vm.jobs.check_idle("commit")
    if device == "all":
        drives = [drive for drive in vm.drives.values() if _has_backing(drive)]
    else:
        drives = [find_drive(vm, device, PlainError)]
        if not _has_backing(drives[0]):
            raise PlainError(f"'commit' error for '{device}': {os.strerror(errno.ENOTSUP)}")
    vm.jobs.start("commit", _commit_body(vm, drives), done)


def _has_backing(drive: Drive) -> bool:
    return drive.node is not None and "backing" in drive.node.children()


def _commit_body(vm: Vm, drives: list[Drive]) -> Body:
    """The guest runs on; its requests to the drive wait until the drive is done."""
    progress = commit_progress(vm)
    for drive in drives:
        drive.hold()
        try:
            while drive.in_flight:
                yield None
            assert drive.node is not None
            slices = commit_slices(drive.node)
            progress.device, progress.length = drive.name, drive.node.length
            yield from _steps(slices, progress)
        except OSError as e:
            raise PlainError(f"'commit' error for '{drive.name}': {e.strerror}") from None
        finally:
            progress.device = ""
            drive.resume()


def _steps(slices: Iterator[int], progress: CommitProgress) -> Body:
    try:
        while (at := (yield lambda: next(slices, None))) is not None:
            progress.offset = at
    finally:
        slices.close()  # type: ignore[attr-defined]
