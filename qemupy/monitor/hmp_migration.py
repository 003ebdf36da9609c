"""HMP: sending the machine elsewhere and taking one over, in QEMU's words."""

from __future__ import annotations

import sys

from qemupy.errors import MonitorError, QemupyError
from qemupy.monitor import migration_commands as commands
from qemupy.monitor.command import hmp
from qemupy.monitor.hmp import Hmp

_GLOBALS = {
    "store-global-state": "on", "only-migratable": "off", "send-configuration": "on", "send-section-footer": "on",
    "decompress-error-check": "on", "clear-bitmap-shift": "18",
}  # fmt: skip

# In QEMU's order and with its defaults. Empty ones can be set here; the others belong to what this program does not do
# (compression, auto-converge, TLS, COLO, multifd, xbzrle, postcopy, announcing) and stand where QEMU starts.
_PARAMETERS = {
    "announce-initial": "50 ms", "announce-max": "550 ms", "announce-rounds": "5", "announce-step": "100 ms",
    "compress-level": "1", "compress-threads": "8", "compress-wait-thread": "on", "decompress-threads": "2",
    "throttle-trigger-threshold": "50", "cpu-throttle-initial": "20", "cpu-throttle-increment": "10",
    "cpu-throttle-tailslow": "off", "max-cpu-throttle": "99", "tls-creds": "''", "tls-hostname": "''",
    "max-bandwidth": "", "downtime-limit": "", "x-checkpoint-delay": "20000 ms", "block-incremental": "off",
    "multifd-channels": "2", "multifd-compression": "none", "xbzrle-cache-size": "67108864 bytes",
    "max-postcopy-bandwidth": "0", "tls-authz": "''",
}  # fmt: skip


@hmp("migrate", "detach:-d,blk:-b,inc:-i,resume:-r,uri:s", "[-d] [-b] [-i] [-r] uri",
     "migrate to URI (using -d to not wait for completion)")  # fmt: skip
def hmp_migrate(mon: Hmp, detach: bool, blk: bool, inc: bool, resume: bool, uri: str) -> None:
    for given, letter in ((blk, "b"), (inc, "i"), (resume, "r")):
        if given:
            raise MonitorError(f"migrate -{letter} is not supported")
    if detach:
        commands.migrate(mon.vm, uri, _report)
        return
    end = mon.hold()

    def done(error: QemupyError | None) -> None:
        _report(error)
        if error is not None:
            mon.print(str(error))
        end(None)

    commands.migrate(mon.vm, uri, done)


def _report(error: QemupyError | None) -> None:
    """As QEMU does, to whoever started the program."""
    if error is not None:
        sys.stderr.write(f"qemupy: {error}\n")


@hmp("migrate_cancel", "", "", "cancel the current VM migration")
def hmp_migrate_cancel(mon: Hmp) -> None:
    commands.migrate_cancel(mon.vm)


@hmp("migrate_incoming", "uri:s", "uri", "Continue an incoming migration from an -incoming defer")
def hmp_migrate_incoming(mon: Hmp, uri: str) -> None:
    commands.migrate_incoming(mon.vm, uri, mon.hold())


@hmp("migrate_set_parameter", "parameter:s,value:s", "parameter value", "Set the parameter for migration")
def hmp_migrate_set_parameter(mon: Hmp, parameter: str, value: str) -> None:
    if _PARAMETERS.get(parameter):
        raise MonitorError(f"migration parameter '{parameter}' is not supported")
    commands.migrate_set_parameter(mon.vm, parameter, value)


@hmp("info migrate_parameters", "", "", "show current migration parameters")
def hmp_info_migrate_parameters(mon: Hmp) -> None:
    values = commands.query_migrate_parameters(mon.vm)
    own = {
        "max-bandwidth": f"{values.max_bandwidth} bytes/second",
        "downtime-limit": f"{values.downtime_limit_ms} ms",
    }
    for name, value in {**_PARAMETERS, **own}.items():
        mon.print(f"{name}: {value}")


@hmp("info migrate", "", "", "show migration status")
def hmp_info_migrate(mon: Hmp) -> None:
    info = commands.query_migrate(mon.vm)
    mon.print("globals:")
    for name, value in _GLOBALS.items():
        mon.print(f"{name}: {value}")
    if info.status == "none":
        return
    mon.print(f"Migration status: {info.status}" + (f" ({info.error_desc})" if info.error_desc else ""))
    mon.print(f"total time: {info.total_time} ms")
    if info.ram is None:
        return
    if info.status == "completed":
        mon.print(f"downtime: {info.downtime} ms")
    else:
        mon.print(f"expected downtime: {info.expected_downtime} ms")
    mon.print(f"setup: {info.setup_time} ms")
    _show_ram(mon, info.ram)


def _show_ram(mon: Hmp, ram: commands.RamStats) -> None:
    mon.print(f"transferred ram: {ram.transferred >> 10} kbytes")
    mon.print(f"throughput: {ram.mbps:.2f} mbps")
    mon.print(f"remaining ram: {ram.remaining >> 10} kbytes")
    mon.print(f"total ram: {ram.total >> 10} kbytes")
    mon.print(f"duplicate: {ram.duplicate} pages")
    mon.print("skipped: 0 pages")
    mon.print(f"normal: {ram.normal} pages")
    mon.print(f"normal bytes: {ram.normal * 4} kbytes")
    mon.print(f"dirty sync count: {ram.dirty_sync_count}")
    mon.print("page size: 4 kbytes")
    mon.print("multifd bytes: 0 kbytes")
    mon.print(f"pages-per-second: {ram.pages_per_second}")
    if ram.precopy_bytes:
        mon.print(f"precopy ram: {ram.precopy_bytes >> 10} kbytes")
    if ram.downtime_bytes:
        mon.print(f"downtime ram: {ram.downtime_bytes >> 10} kbytes")
