"""`Vm`: one machine as a whole: clocks, memory, ports, devices, vCPUs, backends, and the run state.

A board (hw/i386) builds into a Vm: it maps regions and ports, adds devices and vCPUs. Afterwards `start` runs it.

Run-state changes may be asked for anywhere, also inside a device handler on a vCPU thread: `request_*` only notes the
wish and shuts the vCPU gate, so that the vCPU stops at the end of its instruction; the main loop then serves the wish
with all vCPUs idle. `stop`, `cont` and `paused` are for code that runs in the main loop (monitors).
"""

from __future__ import annotations

import enum
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from qemupy import trace
from qemupy.backends.block.opening import Graph
from qemupy.backends.chardev import CharBackend
from qemupy.backends.chardev.options import Chardevs
from qemupy.config import Config, DriveConfig
from qemupy.errors import MonitorError
from qemupy.hw.core import Device, State
from qemupy.main_loop.jobs import Jobs
from qemupy.main_loop.loop import MainLoop
from qemupy.main_loop.workers import TimedWorkers, Workers
from qemupy.memory import AddressSpace, GuestRam, MemoryRegion, PortSpace
from qemupy.vcpu.accel import Accel, Exit, Vcpu
from qemupy.vcpu.threads import VcpuManager

if TYPE_CHECKING:
    from qemupy.backends.block.drive import Drive

T = TypeVar("T")


class RunState(enum.StrEnum):
    """QEMU's names."""

    PRELAUNCH = "prelaunch"
    RUNNING = "running"
    PAUSED = "paused"
    SHUTDOWN = "shutdown"
    DEBUG = "debug"
    IO_ERROR = "io-error"
    INTERNAL_ERROR = "internal-error"
    INMIGRATE = "inmigrate"
    FINISH_MIGRATE = "finish-migrate"
    POSTMIGRATE = "postmigrate"
    RESTORE_VM = "restore-vm"
    SAVE_VM = "save-vm"


class Screen(Protocol):
    """A display device, for screendump."""

    def screenshot(self) -> tuple[int, int, bytes]:
        """Width, height and RGB bytes, rows from the top."""


class Keyboard(Protocol):
    def key(self, qcode: str, down: bool) -> bool:
        """One key by its QEMU name (`a`, `shift`, `ret`, `f1`, ...) goes down or up; False if there is none such."""


class Vm:
    DRAIN_SECONDS = 30.0

    def __init__(self, config: Config, accel: Accel) -> None:
        self.config, self.accel = config, accel
        self.bql = accel.bql
        self.loop = MainLoop(accel.bql)
        self.loop.on_exception = self.fail
        self.loop.virtual.core = accel.clock
        self.workers = Workers(self.loop)
        self.drive_workers = self.workers
        if config.icount is not None and accel.clock is not None:
            clock = self.loop.count_instructions(accel.clock)
            accel.upcalls.timers = clock.run_due
            self.drive_workers = TimedWorkers(self.loop, clock)
        self.jobs = Jobs(self.loop, self.workers)
        self.chardevs = Chardevs(self.loop)
        self.chardevs.on_quit = lambda: self.request_shutdown("host-ui")
        self.graph = Graph()
        self.drives: dict[str, Drive] = {}
        self.serials: list[CharBackend | None] = []  # one for each serial port asked for
        self.memory_root = MemoryRegion("system", 1 << 64)
        with self.bql:
            self.memory = AddressSpace("memory", self.memory_root, accel.memory, accel)
        self.ports = PortSpace(accel)
        self.dma = GuestRam(self.memory)
        self.devices: dict[str, State] = {}
        self.manager = VcpuManager(self.bql, self._vcpu_exited)
        self.run_state = RunState.PRELAUNCH
        self.exit_status = 0
        self.screen: Screen | None = None
        self.keyboard: Keyboard | None = None
        self.monitored = False  # somebody could look at a stopped machine
        self.roms: list[tuple[int, int, str]] = []  # (address, size, name), for `info roms`
        self.user_ids: set[str] = set()  # names of devices that came from -device id=
        self.services: dict[Any, object] = {}
        self.a20 = True
        self._closers: list[Callable[[], None]] = []
        self._resets: list[Callable[[], None]] = []
        self._after_resets: list[Callable[[], None]] = []
        self._powerdowns: list[Callable[[], None]] = []
        self._state_listeners: list[Callable[[RunState], None]] = []
        self._requests: list[Callable[[], None]] = []
        self._connect_upcalls()

    def _connect_upcalls(self) -> None:
        up = self.accel.upcalls
        up.pio_read, up.pio_write = self.ports.read, self.ports.write
        up.pio_read_string, up.pio_write_string = self.ports.read_string, self.ports.write_string
        up.mmio_read, up.mmio_write = self.memory.read, self.memory.write
        up.failed = self.fail
        up.callers = self.drive_workers.callers

    # What boards call

    def add(self, name: str, device: State) -> None:
        """Give a device its place in snapshots and `info qtree`. Devices are reset in the order they were added."""
        if name in self.devices:
            raise ValueError(f"two devices are named {name}")
        self.devices[name] = device
        self.on_reset(device.reset)

    def on_reset(self, call: Callable[[], None]) -> None:
        self._resets.append(call)

    def after_reset(self, call: Callable[[], None]) -> None:
        """For what must find devices and vCPUs in their power-on state: direct kernel boot."""
        self._after_resets.append(call)

    def on_powerdown(self, call: Callable[[], None]) -> None:
        """`system_powerdown`: the ACPI power button."""
        self._powerdowns.append(call)

    def on_run_state(self, call: Callable[[RunState], None]) -> None:
        self._state_listeners.append(call)

    def on_close(self, call: Callable[[], None]) -> None:
        """Called at the end, when nothing runs any more."""
        self._closers.append(call)

    def set_a20(self, enabled: bool) -> None:
        """The A20 gate, as the board's OR of its sources says."""
        self.a20 = enabled
        self.accel.set_a20(enabled)

    def set_log_mask(self, mask: int) -> None:
        """`-d`, for Python's part and the core's."""
        trace.set_mask(mask)
        self.accel.set_log(mask)

    def add_vcpu(self, model: str) -> Vcpu:
        vcpu = self.accel.create_vcpu(model)
        self.manager.add(vcpu)
        return vcpu

    def add_drive(self, config: DriveConfig) -> Drive:
        """Open a drive; an error its policy does not let pass stops the machine, and `cont` tries again."""
        from qemupy.backends.block.open import open_drive

        return self._adopt_drive(open_drive(config, self.loop, self.drive_workers, self.graph))

    def drive_for(self, name: str) -> Drive | None:
        """The drive with this id, or a new one over the node of this name; None if there is neither."""
        from qemupy.backends.block.open import drive_on_node

        if name in self.drives:
            return self.drives[name]
        if name not in self.graph.nodes:
            return None
        return self._adopt_drive(drive_on_node(name, self.loop, self.drive_workers, self.graph))

    def _adopt_drive(self, drive: Drive) -> Drive:
        drive.on_stop = lambda drive, error: self.request_stop(RunState.IO_ERROR)
        self.drives[drive.name] = drive
        return drive

    def drive_at(self, interface: str, index: int) -> Drive | None:
        """The drive with this `if=` and `index=`."""
        for config in self.config.drives:
            if config.interface == interface and config.index == index:
                return self.drives[config.id]
        return None

    def service(self, make: Callable[[Vm], T]) -> T:
        """The one thing of its kind that a higher part of the program keeps for this machine, made when first asked
        for."""
        if make not in self.services:
            self.services[make] = make(self)
        return cast(T, self.services[make])

    @property
    def vcpus(self) -> list[Vcpu]:
        return self.manager.vcpus

    # Running: in the main loop, with the BQL

    @property
    def running(self) -> bool:
        return self.run_state == RunState.RUNNING

    def run(self, begin: Callable[[], None] | None = None) -> int:
        """Power on and stay in the main loop until the machine ends; the exit status. `begin`, instead of starting the
        vCPUs, makes the machine, just reset, a saved one, and lets it go on."""
        try:
            with self.bql:
                self.reset(placing=begin is None)
                self.manager.start_threads()
                if begin is not None:
                    begin()
                elif not self.config.paused:
                    self.cont()
            self.loop.run()
        finally:
            self.close()
        return self.exit_status

    def cont(self) -> None:
        if self.running:
            return
        if self.run_state == RunState.SHUTDOWN:
            self.reset()
        self._set_state(RunState.RUNNING)
        self.loop.virtual.start()
        for drive in self.drives.values():
            drive.retry()
        self.dma.resume()
        self.manager.open()

    def stop(self, state: RunState = RunState.PAUSED) -> None:
        """All vCPUs idle, guest time standing, disk requests completed. Of two errors the worse one is remembered."""
        if not self.running:
            if state == RunState.IO_ERROR and self.run_state == RunState.INTERNAL_ERROR:
                return
            if self.run_state != RunState.PRELAUNCH or state != RunState.PAUSED:
                self._set_state(state)
            return
        self.manager.shut()
        self.manager.wait_idle()
        self.loop.virtual.stop()
        self._set_state(state)
        self.drain()

    def _set_state(self, state: RunState) -> None:
        self.run_state = state
        for listener in self._state_listeners:
            listener(state)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A moment with all vCPUs idle, for looking at registers; guest time goes on."""
        with self.manager.paused():
            yield

    def reset(self, *, placing: bool = True) -> None:
        """Power-on state of everything; the vCPUs are idle. Disk requests write to the memory of the machine as it was,
        so they come first. Without `placing` nothing is put in place for a guest to begin with: a saved one follows."""
        self.drain()
        self.forget_waiting()
        for call in self._resets:
            call()
        for vcpu in self.vcpus:
            vcpu.reset()
        for call in self._after_resets if placing else ():
            call()

    def drain(self) -> None:
        """Complete the disk requests in flight, and the guest's queued output."""
        end = time.monotonic() + self.DRAIN_SECONDS
        while any(d.in_flight for d in self.drives.values()) and time.monotonic() < end:
            self.drive_workers.finish_all()
            self.loop.iterate(50_000_000)

    def forget_waiting(self) -> None:
        """The machine is reset or becomes another one: what waited for it to go on is gone."""
        for drive in self.drives.values():
            drive.forget_suspended()
        self.dma.waiting.clear()

    def check_disks_settled(self, *, stopped: bool = True) -> None:
        """MonitorError if a disk request waits: what the guest waits for is not part of a saved machine. `stopped`: the
        disks have been drained, and nothing may be under way."""
        if self.dma.waiting:
            raise MonitorError("devices wait for guest memory that could not be read; 'cont' tries it again")
        for drive in self.drives.values():
            if drive.suspended:
                raise MonitorError(f"disk requests of '{drive.name}' wait after an I/O error; 'cont' tries them again")
            if stopped and drive.in_flight:
                raise MonitorError(f"disk requests of '{drive.name}' do not come to an end")

    # Requests: from anywhere, also inside upcalls

    def _request(self, serve: Callable[[], None]) -> None:
        self._requests.append(serve)
        self.manager.shut()
        self.loop.post(self._serve_requests)

    def _serve_requests(self) -> None:
        if self.jobs.stepping:  # a job turns the loop to drain the disks: it comes first
            self.loop.post(self._serve_requests)
            return
        while self._requests:
            serve = self._requests.pop(0)
            self.manager.wait_idle()
            try:
                serve()
            finally:
                self.manager.open()

    def request_stop(self, state: RunState = RunState.PAUSED) -> None:
        self._request(lambda: self.stop(state))

    def request_reset(self, reason: str) -> None:
        if self.config.reboot:
            self._request(self.reset)
        else:
            self.request_shutdown(reason)

    def request_shutdown(self, reason: str, status: int = 0) -> None:
        """The guest powered off (`guest-shutdown`), or the host wants the end (`host-signal`, `host-ui`)."""

        def serve() -> None:
            self.jobs.cancel()
            self.jobs.run_to_end()
            self.exit_status = status
            if self.config.shutdown or reason.startswith("host"):
                self.stop(RunState.SHUTDOWN)
                self.loop.quit()
            else:
                self.stop(RunState.SHUTDOWN)

        self._request(serve)

    def powerdown(self) -> None:
        """Press the power button. In the main loop."""
        for call in self._powerdowns:
            call()

    def nmi(self) -> None:
        for vcpu in self.vcpus:
            vcpu.nmi()

    def _vcpu_exited(self, vcpu: Vcpu, reason: Exit) -> None:
        """On the vCPU's thread, without the BQL."""
        with self.bql:
            if reason in (Exit.SHUTDOWN, Exit.RESET):
                self.request_reset("guest-reset")
            elif reason == Exit.PAGE_IN:
                self.request_stop(RunState.IO_ERROR)
            elif reason == Exit.DEBUG:
                self.request_stop(RunState.DEBUG)
            elif reason == Exit.ERROR:
                self.fail(RuntimeError(f"the core cannot go on with vCPU {vcpu.index}"))

    def fail(self, error: BaseException) -> None:
        """A device handler or a main-loop callback raised: a fault of ours. Report it and stop the machine; without a
        monitor to look at it, end."""
        sys.stderr.write("qemupy: internal error, the machine is stopped\n")
        import traceback

        traceback.print_exception(error, file=sys.stderr)

        def serve() -> None:
            self.exit_status = 1
            self.stop(RunState.INTERNAL_ERROR)
            if not self.monitored:
                self.loop.quit()

        if self.run_state != RunState.INTERNAL_ERROR:
            self._request(serve)

    # The end

    def close(self) -> None:
        """Complete and flush what the guest wrote, end the threads, give the terminal back."""
        with self.bql:
            self.jobs.cancel()
            self.jobs.run_to_end()
            self.manager.end()
            self.loop.virtual.stop()
            self.drain()
        for drive in self.drives.values():
            drive.close()
        self.graph.close()
        self.drive_workers.stop()
        self.workers.stop()
        for call in self._closers:
            call()
        self.chardevs.close()
        self.accel.close()
        self.loop.close()


__all__ = ["Device", "Keyboard", "RunState", "Screen", "Vm"]
