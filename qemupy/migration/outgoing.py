"""Live migration, the source's side: RAM goes out while the guest runs, again and again what it wrote meanwhile, until
the rest fits the downtime; then the machine stops, the rest and the state of devices and vCPUs follow.

Whatever fails before the destination has taken over leaves this machine running.
"""

from __future__ import annotations

import time

from qemupy.errors import ConfigError, MonitorError
from qemupy.main_loop.jobs import Body, Job, JobCancelled
from qemupy.memory.core import DirtyClient
from qemupy.migration import channel as channels
from qemupy.migration import machine
from qemupy.migration.pages import PageSender
from qemupy.migration.stream import CATCH_UP, PAGE, StreamWriter
from qemupy.records import record
from qemupy.vm import RunState, Vm

_WORTH_A_ROUND = 1 << 20  # bytes: less goes out in a millisecond or two


@record()
class Progress:
    """What `info migrate` tells; times in ns of the realtime clock."""

    status: str = "none"
    error: str = ""
    begun: int = 0
    ended: int = 0
    setup_ended: int = 0
    stopped: int = 0  # when the guest stopped
    rounds: int = 0
    sent: int = 0
    sent_before_stop: int = 0
    expected_downtime_ms: int = 300
    pages: PageSender | None = None

    @property
    def downtime_ms(self) -> int:
        return (self.ended - self.stopped) // 1_000_000 if self.stopped else 0


class Migration:
    """`vm`'s migrations, one after the other: their parameters and the progress of the last."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self.downtime_limit_ms = 300
        self.max_bandwidth = 128 << 20  # bytes a second
        self.progress = Progress()

    def body(self, uri: str) -> Body:
        """The job."""
        try:
            channels.split(uri)
        except ConfigError as e:
            unknown = str(e).startswith("unknown")
            raise MonitorError("Parameter 'uri' expects a valid migration protocol" if unknown else str(e)) from None
        return self._body(uri)

    def _body(self, uri: str) -> Body:
        vm = self._vm
        progress = self.progress = Progress("setup", begun=time.monotonic_ns())
        progress.expected_downtime_ms = self.downtime_limit_ms
        channel: channels.Channel | None = None
        running, before = vm.running, vm.run_state
        try:
            channel = yield lambda: channels.connect(uri)
            self._on_cancel(channel)
            yield from self._send(channel, running)
        except BaseException as e:
            self._failed(e)
            if running and not vm.running:
                vm.cont()
            elif not running:
                vm.stop(before)
            raise
        finally:
            vm.accel.memory.dirty_log(DirtyClient.MIGRATION, False)
            progress.ended = progress.ended or time.monotonic_ns()
            if channel is not None:
                channel.close()
        progress.status = "completed"
        vm.stop(RunState.POSTMIGRATE)

    def _job(self) -> Job:
        assert self._vm.jobs.current is not None
        return self._vm.jobs.current

    def _on_cancel(self, channel: channels.Channel) -> None:

        def cancel() -> None:
            self.progress.status = "cancelling"
            if self.progress.pages is not None:
                self.progress.pages.cancelled = True
            channel.abort()

        self._job().on_cancel = cancel

    def _failed(self, error: BaseException) -> None:
        cancelled = isinstance(error, JobCancelled)
        self.progress.status = "cancelled" if cancelled else "failed"
        self.progress.error = "" if cancelled else str(error)

    def _send(self, channel: channels.Channel, running: bool) -> Body:
        vm, progress, memory = self._vm, self.progress, self._vm.accel.memory
        writer = StreamWriter(channel.write)
        writer.table("machine", machine.describe(vm))
        memory.dirty_log(DirtyClient.MIGRATION, True)
        pages = progress.pages = PageSender(memory, writer)
        progress.setup_ended, progress.status = time.monotonic_ns(), "active"
        yield from self._rounds(pages, writer, channel)
        progress.sent_before_stop = writer.sent
        progress.stopped = time.monotonic_ns() if running else 0
        vm.stop(RunState.FINISH_MIGRATE)
        pages.add(memory.dirty_fetch(DirtyClient.MIGRATION))
        progress.rounds += 1
        tables = machine.collect(vm, running)

        def rest() -> None:
            pages.everything()
            writer.tables(tables)
            writer.end()
            channel.finish()
            progress.ended = time.monotonic_ns()  # the destination runs: tidying up here is no downtime
            progress.sent = writer.sent

        self._job().final = True  # from here on the destination may be running it
        yield rest

    def _rounds(self, pages: PageSender, writer: StreamWriter, channel: channels.Channel) -> Body:
        """Until what is left fits the downtime and a further round would not make it much less."""
        before = 1 << 62
        while True:
            while pages.remaining:
                pages.limit = self.max_bandwidth
                yield pages.slice
                self.progress.sent = writer.sent
            if not self._vm.running:
                return
            if channel.answers:
                writer.table(CATCH_UP, {})
                yield channel.catch_up
            pages.add(self._vm.accel.memory.dirty_fetch(DirtyClient.MIGRATION))
            self.progress.rounds += 1
            left = pages.remaining * PAGE
            allowed = pages.bandwidth * self.downtime_limit_ms / 1000
            self.progress.expected_downtime_ms = int(left * 1000 / pages.bandwidth) if pages.bandwidth else 0
            if left <= allowed and (left < _WORTH_A_ROUND or left > before // 2):
                return
            before = left


def set_parameter(migration: Migration, name: str, text: str) -> None:
    """`migrate_set_parameter`: times in ms, rates in bytes a second with a suffix (MiB without)."""
    from qemupy import options

    try:
        if name == "downtime-limit":
            migration.downtime_limit_ms = options.number(name, text, 0, 2_000_000)
        elif name == "max-bandwidth":
            migration.max_bandwidth = options.size(name, text, "m")
        else:
            raise MonitorError(f"invalid parameter value: {name}")
    except ConfigError:
        if name == "downtime-limit":
            raise MonitorError(
                "Parameter 'downtime_limit' expects an integer in the range of 0 to (2000 * 1000) ms"
            ) from None
        raise MonitorError(f"Parameter '{name}' expects a size") from None
