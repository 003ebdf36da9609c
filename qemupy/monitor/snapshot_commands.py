"""Snapshots as typed functions on a Vm; `done` is called when the job has ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qemupy.errors import QemupyError
from qemupy.migration.snapshots import Snapshots, Work
from qemupy.vm import Vm

Done = Callable[[QemupyError | None], None]


def snapshot_save(vm: Vm, tag: str | None, done: Done) -> None:
    """The machine and its disks under `tag`, or a name made from the time. A snapshot of that name is replaced."""
    vm.jobs.check_idle("savevm")
    vm.jobs.start("savevm", vm.service(Snapshots).save(tag), done)


def snapshot_load(vm: Vm, tag: str, done: Done) -> None:
    """Machine and disks become what they were; the machine runs on if it ran before."""
    vm.jobs.check_idle("loadvm")
    vm.jobs.start("loadvm", vm.service(Snapshots).load(tag), done)


def snapshot_delete(vm: Vm, tag: str, done: Done) -> None:
    """From every disk that has it."""
    vm.jobs.check_idle("delvm")
    vm.jobs.start("delvm", vm.service(Snapshots).delete(tag), done)


def query_snapshots(vm: Vm) -> tuple[list[Any], dict[str, list[Any]]]:
    """Those on all disks, and by disk those that are not."""
    return vm.service(Snapshots).listing()


def query_snapshot_work(vm: Vm) -> Work:
    """What the last savevm and loadvm had to do."""
    return vm.service(Snapshots).work
