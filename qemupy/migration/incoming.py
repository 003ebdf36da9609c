"""The destination's side: a fresh machine becomes the one that comes in, or the program ends.

RAM is written as it comes, each piece behind its checksum; devices and vCPUs only when the stream has ended well.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable

from qemupy.errors import MonitorError, QemupyError, StateError
from qemupy.main_loop.jobs import Body, JobCancelled
from qemupy.memory import CoreMemory
from qemupy.migration import machine
from qemupy.migration.channel import Channel, Listener
from qemupy.migration.pages import pieces, runs
from qemupy.migration.stream import CATCH_UP, END, PAGES, TABLE, StreamReader
from qemupy.vm import RunState, Vm


class Incoming:
    """What `-incoming URI` stands for; with `defer` a monitor says where from."""

    def __init__(self, vm: Vm, uri: str) -> None:
        self._vm = vm
        self._listener: Listener | None = None if uri == "defer" else Listener(uri)
        self.deferred = uri == "defer"

    def begin(self) -> None:
        """The machine is reset and its threads wait at the gate."""
        self._vm.run_state = RunState.INMIGRATE
        self._vm.chardevs.hold_input(monitors=False)  # what is typed is for the machine that comes
        if self._listener is not None:
            self._start(self._listener)

    def migrate_incoming(self, uri: str, done: Callable[[QemupyError | None], None]) -> None:
        """The monitor's command after `-incoming defer`; it ends when the source may begin."""
        if not self.deferred:
            raise MonitorError("The incoming migration has already been started")
        listener = Listener(uri)
        self.deferred = False
        self._start(listener)
        done(None)

    def _start(self, listener: Listener) -> None:
        job = self._vm.jobs.start("migrate_incoming", self._body(listener), self._ended)
        job.on_cancel = listener.abort

    def _ended(self, error: QemupyError | None) -> None:
        """Without the machine that was to come there is nothing to run."""
        if error is None or isinstance(error, JobCancelled):
            return
        sys.stderr.write(f"qemupy: load of migration failed: {error}\n")
        self._vm.request_shutdown("host-error", 1)

    def _body(self, listener: Listener) -> Body:
        vm = self._vm
        channel: Channel | None = None
        try:
            channel = yield listener.accept
            tables = yield lambda: receive(vm, channel, listener.what)
            state = machine.Checked(vm, tables, listener.what)
            vm.accel.memory.changed(array("Q", (0, vm.accel.memory.size)))
            state.commit()
            channel.answer()
        except QemupyError as e:
            if channel is not None:
                _say_why(channel, e)
            raise
        finally:
            listener.close()
        vm.run_state = RunState.PAUSED
        vm.chardevs.release_input()
        if state.running and not vm.config.paused:
            vm.cont()


def _say_why(channel: Channel, error: QemupyError) -> None:
    try:
        channel.answer(str(error))
    except QemupyError:
        pass  # the source has gone, or is not listening


def receive(vm: Vm, channel: Channel, where: str) -> machine.Tables:
    """RAM into place, everything else returned. On a worker; no vCPU runs."""
    memory = vm.accel.memory
    stream = StreamReader(channel.read, where)
    section = stream.next()
    if section.kind != TABLE or section.name != "machine":
        raise StateError(f"{where}: begins with {section.name!r}, not with the machine's description")
    machine.check_machine(vm, stream.table(section), where)
    _zero(memory, 0, memory.size)
    tables: machine.Tables = {}
    while (section := stream.next()).kind != END:
        if section.kind == PAGES:
            for offset, length, data in stream.pages(section, memory.size):
                if data is None:
                    _zero(memory, offset, length)
                else:
                    memory.view(offset, length)[:] = data
        elif section.name == CATCH_UP:
            stream.table(section)
            channel.caught_up()
        elif section.name in tables or len(tables) > 4096:
            raise StateError(f"{where}: section {section.name[:40]!r} out of place")
        else:
            tables[section.name] = stream.table(section)
    return tables


def _zero(memory: CoreMemory, offset: int, size: int) -> None:
    """Without touching pages that are zero already: they may not be allocated."""
    for at, length in pieces(runs(memory.nonzero(offset, size))):
        memory.view(offset + at, length)[:] = bytes(length)
