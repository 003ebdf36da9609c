"""HMP: savevm, loadvm, delvm, and QEMU's table of snapshots."""

from __future__ import annotations

import time
from typing import Any

from qemupy.errors import MonitorError
from qemupy.monitor import snapshot_commands as commands
from qemupy.monitor.command import hmp
from qemupy.monitor.hmp import Hmp


@hmp("savevm", "name:s?", "tag", "save a VM snapshot. If no tag is provided, a new snapshot is created")
def hmp_savevm(mon: Hmp, name: str | None) -> None:
    commands.snapshot_save(mon.vm, name, mon.hold())


@hmp("loadvm", "name:s", "tag", "restore a VM snapshot from its tag")
def hmp_loadvm(mon: Hmp, name: str) -> None:
    commands.snapshot_load(mon.vm, name, mon.hold())


@hmp("delvm", "name:s", "tag", "delete a VM snapshot from its tag")
def hmp_delvm(mon: Hmp, name: str) -> None:
    commands.snapshot_delete(mon.vm, name, mon.hold())


@hmp("info snapshots", "", "", "show the currently saved VM snapshots")
def hmp_info_snapshots(mon: Hmp) -> None:
    try:
        whole, partial = commands.query_snapshots(mon.vm)
    except MonitorError as e:
        mon.print(str(e) if str(e).startswith("no block") else "no block device can store vmstate for snapshot")
        return
    if not whole and not partial:
        mon.print("There is no snapshot available.")
        return
    mon.print("List of snapshots present on all disks:")
    if whole:
        mon.print(snapshot_header())
        for info in whole:
            mon.print(snapshot_line(info, "--"))
    else:
        mon.print("None")
    for disk, rest in partial.items():
        mon.print(f"\nList of partial (non-loadable) snapshots on '{disk}':")
        mon.print(snapshot_header())
        for info in rest:
            mon.print(snapshot_line(info, info.id))


@hmp("info snapshot-work", "", "", "show what the last savevm and loadvm had to write and to copy back")
def hmp_info_snapshot_work(mon: Hmp) -> None:
    work = commands.query_snapshot_work(mon.vm)
    if work.saved:
        mon.print(
            f"savevm: {work.pages_written} pages in {work.state_clusters} clusters written, {work.pages_stopped} pages "
            f"of these while the guest stood; {work.pages_shared} pages shared with the snapshot before"
        )
    if work.loaded:
        pages = "memory replaced" if work.pages_restored is None else f"{work.pages_restored} pages copied back"
        mon.print(f"loadvm: {pages}, {work.disk_clusters} disk clusters had changed")


def snapshot_header() -> str:
    return f"{'ID':<10}{'TAG':<17}{'VM SIZE':>8}{'DATE':>20}{'VM CLOCK':>13}{'ICOUNT':>11}"


def snapshot_line(info: Any, id: str) -> str:
    date = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(info.date_sec))
    seconds, rest = divmod(info.vm_clock_nsec, 1_000_000_000)
    clock = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{rest // 1_000_000:03}"
    icount = "" if info.icount == -1 else str(info.icount)
    return f"{id:<9} {info.name:<16} {human_size(info.vm_state_size):>8}{date:>20}{clock:>13}{icount:>11}"


def human_size(size: int) -> str:
    """Three digits and a binary unit, as QEMU rounds: 1.68 MiB, 512 KiB, 0 B."""
    units = ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")
    # QEMU changes the unit at 1000 of the one below
    at = next((i for i in range(len(units)) if size / 1024**i < 1000), len(units) - 1)
    return f"{size / 1024**at:0.3g} {units[at]}B"
