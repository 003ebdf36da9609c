"""Migration as typed functions on a Vm, by QMP's names; `done` is called when a job has ended."""

from __future__ import annotations

import time
from collections.abc import Callable

from qemupy.errors import BackendError, ConfigError, MonitorError, QemupyError
from qemupy.migration import outgoing
from qemupy.migration.incoming import Incoming
from qemupy.migration.outgoing import Migration
from qemupy.migration.stream import PAGE
from qemupy.records import record
from qemupy.vm import Vm

Done = Callable[[QemupyError | None], None]


@record(frozen=True)
class RamStats:
    """QMP's MigrationStats; bytes, pages and Mbit/s."""

    transferred: int
    remaining: int
    total: int
    duplicate: int
    normal: int
    mbps: float
    dirty_sync_count: int
    pages_per_second: int
    precopy_bytes: int
    downtime_bytes: int


@record(frozen=True)
class MigrationInfo:
    """Times in ms; `status` "none": there has been no migration."""

    status: str
    error_desc: str
    total_time: int
    setup_time: int
    downtime: int
    expected_downtime: int
    ram: RamStats | None


def migrate(vm: Vm, uri: str, done: Done) -> None:
    vm.jobs.check_idle("migrate")
    vm.check_disks_settled(stopped=False)
    vm.jobs.start("migrate", vm.service(Migration).body(uri), done)


def migrate_cancel(vm: Vm) -> None:
    """Without a migration there is nothing to do."""
    job = vm.jobs.current
    if job is not None and job.name == "migrate":
        vm.jobs.cancel()


def migrate_incoming(vm: Vm, uri: str, done: Done) -> None:
    vm.jobs.check_idle("migrate_incoming")
    incoming = vm.services.get(Incoming)
    if not isinstance(incoming, Incoming):
        raise MonitorError("'-incoming' was not specified on the command line")
    try:
        incoming.migrate_incoming(uri, done)
    except (BackendError, ConfigError) as e:
        raise MonitorError(str(e)) from None


def migrate_set_parameter(vm: Vm, name: str, value: str) -> None:
    outgoing.set_parameter(vm.service(Migration), name, value)


def query_migrate_parameters(vm: Vm) -> Migration:
    return vm.service(Migration)


def query_migrate(vm: Vm) -> MigrationInfo:
    p = vm.service(Migration).progress
    end = p.ended or time.monotonic_ns()
    return MigrationInfo(
        status=p.status,
        error_desc=p.error,
        total_time=(end - p.begun) // 1_000_000 if p.begun else 0,
        setup_time=(p.setup_ended - p.begun) // 1_000_000 if p.setup_ended else 0,
        downtime=p.downtime_ms,
        expected_downtime=p.expected_downtime_ms,
        ram=_ram_stats(vm, p, end) if p.pages is not None and p.status in _WITH_RAM else None,
    )


_WITH_RAM = ("active", "cancelling", "completed")


def _ram_stats(vm: Vm, p: outgoing.Progress, end: int) -> RamStats:
    assert p.pages is not None
    seconds = max((end - p.setup_ended) / 1e9, 1e-3)
    completed = p.status == "completed"
    return RamStats(
        transferred=p.sent,
        remaining=p.pages.remaining * PAGE,
        total=vm.accel.memory.size,
        duplicate=p.pages.duplicate,
        normal=p.pages.normal,
        mbps=p.sent * 8 / seconds / 1e6,
        dirty_sync_count=p.rounds + 1,
        pages_per_second=0 if completed else int(p.pages.bandwidth / PAGE),
        precopy_bytes=p.sent_before_stop if completed else p.sent,
        downtime_bytes=p.sent - p.sent_before_stop if completed else 0,
    )
