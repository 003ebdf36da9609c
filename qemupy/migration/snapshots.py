"""savevm, loadvm, delvm: a machine and all its disks at one moment, in the disks' own snapshots.

The first writable disk holds the machine's state; every writable disk gets a snapshot of the same name. RAM of the
snapshot loaded last is mapped from the file, and its pages written since are logged, so that loading it again puts back
only these. Before such a snapshot goes away the pages still in the file are copied into memory.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from array import array
from collections.abc import Callable, Generator, Iterable
from typing import Any, Protocol

from qemupy.backends.block.drive import Drive
from qemupy.errors import MonitorError, QemupyError, StateError
from qemupy.main_loop.jobs import Body, Step
from qemupy.memory.core import DirtyClient, RamExtent
from qemupy.migration import machine, vmstate
from qemupy.migration.pages import pieces
from qemupy.migration.stream import PAGE, Run
from qemupy.migration.vmstate import RamWriter, StateImage
from qemupy.records import record
from qemupy.vm import RunState, Vm

_WRITING = "Error while writing VM state"
RESTORE_LIMIT = 1 << 14  # pages; with more of them written it is cheaper to map anew


class Info(Protocol):
    """An entry of a disk's snapshot table. Sizes are bytes, `icount` -1 where there is none."""

    id: str
    name: str
    vm_state_size: int
    date_sec: int
    date_nsec: int
    vm_clock_nsec: int
    icount: int


class Image(StateImage, Protocol):
    """A disk with snapshots (backends/block/qcow2)."""

    filename: str

    @property
    def cluster_size(self) -> int: ...

    def snapshots(self) -> list[Any]: ...

    def snapshot_create(self, name: str, date_sec: int, date_nsec: int, vm_clock_nsec: int, vm_state_size: int,
                        icount: int = -1) -> Any: ...  # fmt: skip

    def snapshot_apply(self, which: Any) -> Any: ...

    def changed_since(self, which: Any) -> int:
        """Bytes, in whole clusters, in which the disk differs from the snapshot's."""

    def snapshot_delete(self, which: Any) -> None: ...

    def pin(self, extents: Iterable[tuple[int, int]], evict: Callable[[], None]) -> Any:
        """`evict` is called once, with the image locked, before one of these stretches of the file is freed."""

    def unpin(self, evict: Callable[[], None]) -> None: ...

    def flush(self) -> None: ...


@record()
class Disk:
    drive: Drive
    image: Image

    def named(self, name: str) -> list[Info]:
        return [s for s in self.image.snapshots() if s.name == name]


@record()
class Work:
    """What the last savevm and the last loadvm had to do, for `info snapshot-work`."""

    saved: bool = False
    pages_written: int = 0
    pages_stopped: int = 0  # of these, while the guest stood
    pages_shared: int = 0  # with the snapshot before
    state_clusters: int = 0  # that the pages written take
    loaded: bool = False
    pages_restored: int | None = None  # copied back because they were written; None: memory was mapped or read anew
    disk_clusters: int = 0  # that differed from the snapshot's


@record()
class State:
    """Everything a snapshot's head says, checked."""

    machine: machine.Checked
    stored: list[Run]


class Loaded:
    """A snapshot whose RAM is known page by page: where it lies, and with `state` everything else. Its clusters are
    pinned and a descriptor of the file is kept until `close`."""

    def __init__(
        self, image: Image, info: Info, stored: list[Run], state: State | None, fd: int, extents: tuple[RamExtent, ...]
    ) -> None:
        self.image, self.id, self.stored, self.state, self.extents = image, info.id, stored, state, extents
        self.date = (info.date_sec, info.date_nsec)
        self.gone = False  # the image gave the clusters away
        self._fd = fd
        self._evict: Callable[[], None] | None = None

    @classmethod
    def locate(cls, image: Image, info: Info, stored: list[Run], size: int, state: State | None) -> Loaded | None:
        """None: the layout cannot be mapped."""
        own = image.fileno()
        if own is None or fcntl.fcntl(own, fcntl.F_GETFL) & os.O_DIRECT:
            return None
        fd = os.dup(own)
        try:
            extents = vmstate.ram_extents(image, fd, info, stored, size)
        except BaseException:
            os.close(fd)
            raise
        if extents is None:
            os.close(fd)
            return None
        return cls(image, info, stored, state, fd, extents)

    def is_of(self, image: Image, info: Info) -> bool:
        same = info.id == self.id and (info.date_sec, info.date_nsec) == self.date
        return not self.gone and image is self.image and same

    def pin(self, detach: Callable[[], None] | None) -> None:
        """`detach`: RAM is mapped from here; called, with the image locked, if the clusters are freed all the same."""

        def evict() -> None:
            self.gone = True
            if detach is not None:
                detach()

        self._evict = evict
        self.image.pin([(e.file_off, e.size) for e in self.extents], evict)

    def beyond_end(self) -> list[RamExtent]:
        """What is not in the file any more."""
        end = os.fstat(self._fd).st_size
        return [e for e in self.extents if e.file_off + e.size > -(-end // PAGE) * PAGE]

    def close(self) -> None:
        if self._evict is not None:
            self.image.unpin(self._evict)
            self._evict = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def snapshot_image(drive: Drive) -> Image | None:
    """What keeps the drive's snapshots, if anything does."""
    node: Any = drive.node
    image = getattr(node, "image", node)
    return image if hasattr(image, "snapshot_create") else None


class Snapshots:
    """The snapshots of one machine, and which of them its RAM stands on."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._memory = vm.accel.memory
        self.mapped: Loaded | None = None  # RAM is mapped from this one's clusters
        self.base: Loaded | None = None  # pages written since this one are logged
        self.work = Work()
        self._failures = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._memory.watch_page_in(self._failures)
        vm.loop.watch(self._failures, self._page_in_failed)
        vm.on_close(lambda: os.close(self._failures))

    def _page_in_failed(self) -> None:
        """Pages of RAM that lie in the image could not be read: the machine stops. Who needed one, be it a vCPU or a
        device, tries again when it goes on."""
        os.eventfd_read(self._failures)
        failed, lost = self._memory.page_in_failures()
        lost += self._cut_off()
        name = self.mapped.image.filename if self.mapped is not None else "the image"
        if failed:
            what = f"; {lost} pages are lost" if lost else ""
            sys.stderr.write(f"qemupy: {failed} reads of guest memory from '{name}' failed: Input/output error{what}\n")
            if self._vm.running or lost:
                self._vm.request_stop(RunState.INTERNAL_ERROR if lost else RunState.IO_ERROR)

    def _cut_off(self) -> int:
        """Pages written since the snapshot was loaded that are gone: when a file is made shorter, memory mapped from it
        loses what lay there, the process's own copies too, and once the file is back it has the snapshot's pages. Known
        while writes are logged, which this ends: the snapshot has to be loaded whole."""
        mapped = self.mapped
        if mapped is None or mapped is not self.base:
            return 0
        gone = mapped.beyond_end()
        if not gone:
            return 0
        dirty = self._memory.dirty_fetch(DirtyClient.SNAPSHOT)
        self._forget_base()
        return sum(dirty.count(1, e.ram_off // PAGE, (e.ram_off + e.size) // PAGE) for e in gone)

    # Disks

    def disks(self) -> list[Disk]:
        """The writable disks, all of which take snapshots; the first holds the machine's state."""
        disks = []
        for drive in self._vm.drives.values():
            if not drive.inserted or drive.readonly:
                continue
            image = snapshot_image(drive)
            if image is None:
                raise MonitorError(f"Device '{drive.name}' is writable but does not support snapshots{_advice(drive)}")
            disks.append(Disk(drive, image))
        if not disks:
            raise MonitorError("no block device can store vmstate for snapshot")
        return disks

    def _find(self, name: str) -> list[tuple[Disk, Info]]:
        """Of each disk the snapshot of that name. A savevm over an old one that was killed leaves some disks with both:
        what belongs together has the same date."""
        disks = self.disks()
        found = [disk.named(name) for disk in disks]
        if not all(found):
            raise MonitorError(f"Snapshot '{name}' does not exist in one or more devices")
        dates = [[(info.date_sec, info.date_nsec) for info in infos] for infos in found]
        common = next((date for date in dates[0] if all(date in others for others in dates)), None)
        chosen = [own.index(common) if common is not None else 0 for own in dates]
        return [(disk, infos[at]) for disk, infos, at in zip(disks, found, chosen, strict=True)]

    def listing(self) -> tuple[list[Any], dict[str, list[Any]]]:
        """Snapshots on all disks, which can be loaded, and by disk those that cannot."""
        disks = self.disks()
        names = [{s.name for s in disk.image.snapshots()} for disk in disks]
        common = set.intersection(*names)
        whole = [s for s in disks[0].image.snapshots() if s.name in common]
        partial = {disk.drive.name: [s for s in disk.image.snapshots() if s.name not in common] for disk in disks}
        return whole, {name: rest for name, rest in partial.items() if rest}

    # Saving

    def save(self, name: str | None) -> Body:
        """The job `savevm`."""
        disks = self.disks()
        seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
        tag = name or time.strftime("vm-%Y%m%d%H%M%S", time.localtime(seconds))
        return self._save(disks, tag, (seconds, nanoseconds))

    def _save(self, disks: list[Disk], name: str, date: tuple[int, int]) -> Body:
        vm, memory, image = self._vm, self._memory, disks[0].image
        running = vm.running
        writer = RamWriter(memory, image)
        self._on_cancel(writer)
        memory.dirty_log(DirtyClient.MIGRATION, True)
        try:
            yield _io(image.vmstate_begin, _WRITING)
            yield _io(self._first_pass(writer, image), _WRITING)
            yield _io(image.flush, _WRITING)
            running_bytes = writer.bytes_written
            self._stop(RunState.SAVE_VM)
            dirty = memory.dirty_fetch(DirtyClient.MIGRATION)
            tables = {"machine": machine.describe(vm), **machine.collect(vm, running)}
            yield _io(lambda: writer.again(dirty), _WRITING)
            stored = writer.stored
            tables["ram"] = {"stored": stored}
            length: int = yield _io(lambda: vmstate.write_head(image, tables), _WRITING)
            info = yield from self._create(disks, name, date, length + sum(stored[1::2]))
            self._count_saved(writer, running_bytes, image.cluster_size)
            self._stand_on(image, info, list(zip(stored[::2], stored[1::2], strict=True)))
        finally:
            memory.dirty_log(DirtyClient.MIGRATION, False)
            self._go_on(running)

    def _first_pass(self, writer: RamWriter, image: Image) -> Callable[[], None]:
        """All of RAM; or, if its last snapshot is there still, what was written since: the log ends with this."""
        base = self.base
        if base is None or base.image is not image or vmstate.GRANULE % image.cluster_size:
            return writer.everything
        info = next((s for s in image.snapshots() if base.is_of(image, s)), None)
        if info is None:
            return writer.everything
        dirty = self._memory.dirty_fetch(DirtyClient.SNAPSHOT)
        stored = base.stored
        self._forget_base()
        return lambda: writer.since(info, stored, dirty)

    def _count_saved(self, writer: RamWriter, running: int, cluster: int) -> None:
        work, written = self.work, writer.bytes_written
        work.saved, work.pages_written, work.pages_stopped = True, written // PAGE, (written - running) // PAGE
        work.pages_shared, work.state_clusters = writer.bytes_shared // PAGE, -(-written // cluster)

    def _on_cancel(self, writer: RamWriter) -> None:
        job = self._vm.jobs.current

        def cancel() -> None:
            writer.cancelled = True

        if job is not None:
            job.on_cancel = cancel

    def _create(
        self, disks: list[Disk], name: str, date: tuple[int, int], state_size: int
    ) -> Generator[Step, Any, Info]:
        """The snapshots on all disks, the one with the state last, then away with those that had the name before. A
        failure takes back what was made."""
        old = [(disk, info) for disk in disks for info in disk.image.snapshots() if info.name == name]
        clock = self._vm.loop.virtual.now()
        made: list[tuple[Disk, Info]] = []
        try:
            for disk in reversed(disks):
                size = state_size if disk is disks[0] else 0
                create = disk.image.snapshot_create
                info = yield _io(
                    lambda create=create, size=size: create(name, *date, clock, size),  # type: ignore[misc]
                    f"Could not create snapshot '{name}' on '{disk.drive.name}'",
                )
                made.append((disk, info or _newest(disk, name)))
        except QemupyError:
            for disk, info in made:
                yield _io(lambda disk=disk, info=info: disk.image.snapshot_delete(info))  # type: ignore[misc]
            raise
        self._job_is_done()
        for disk, info in old:
            yield from self._delete(disk, info)
        return made[-1][1]

    def _job_is_done(self) -> None:
        if self._vm.jobs.current is not None:
            self._vm.jobs.current.final = True

    def _stand_on(self, image: Image, info: Info, stored: list[Run]) -> None:
        """RAM is now what the snapshot just made holds: log what is written from here on."""
        self._forget_base()
        self.base = Loaded.locate(image, info, stored, self._memory.size, None)
        if self.base is not None:
            self.base.pin(None)
            self._memory.dirty_log(DirtyClient.SNAPSHOT, True)

    def _forget_base(self) -> None:
        base, self.base = self.base, None
        if base is not None:
            self._memory.dirty_log(DirtyClient.SNAPSHOT, False)
            if base is not self.mapped:
                base.close()

    def _stop(self, state: RunState) -> None:
        """Nothing runs and nothing is in flight; a machine that stood keeps the reason why."""
        if self._vm.running:
            self._vm.stop(state)
        else:
            self._vm.drain()

    def _go_on(self, running: bool) -> None:
        if running and not self._vm.running:
            self._vm.cont()

    # Loading

    def load(self, name: str) -> Body:
        """The job `loadvm`. An error found before anything changed leaves the machine as it was."""
        found = self._find(name)
        if found[0][1].vm_state_size == 0:
            raise MonitorError("This is a disk-only snapshot. Revert to it  offline using qemu-img")
        return self._load(found)

    def _load(self, found: list[tuple[Disk, Info]]) -> Body:
        vm, (disk, info) = self._vm, found[0]
        running = vm.running
        state = self.base.state if self.base is not None and self.base.is_of(disk.image, info) else None
        if state is None:
            state = yield _io(lambda: self._read_state(disk.image, info))
        self._stop(RunState.RESTORE_VM)
        touched, clusters = False, 0
        try:
            for each, entry in found:
                clusters += yield _io(
                    lambda image=each.image, entry=entry: _go_back(image, entry),  # type: ignore[misc]
                    f"Could not load snapshot '{entry.name}' on '{each.drive.name}'",
                )
                touched = True
            self.work.pages_restored = self._load_ram(disk.image, info, state)
            self.work.loaded, self.work.disk_clusters = True, clusters
            state.machine.commit()
        except BaseException as e:
            if touched:
                vm.stop(RunState.INTERNAL_ERROR)
                raise MonitorError(f"the machine is half loaded and stays stopped: {e}") from e
            self._go_on(running)
            raise
        if vm.run_state in (RunState.INTERNAL_ERROR, RunState.IO_ERROR, RunState.SHUTDOWN, RunState.POSTMIGRATE):
            vm.stop(RunState.PAUSED)  # what it stood for is gone
        self._go_on(running)

    def _read_state(self, image: Image, info: Info) -> State:
        """Everything but RAM, checked. On a worker; looks only at what does not change."""
        where = f"Snapshot '{info.name}'"

        def read(offset: int, data: memoryview) -> None:
            image.vmstate_read(offset, data, info)

        try:
            tables = vmstate.read_head(read, where, lambda saved: machine.check_machine(self._vm, saved, where))
        except StateError as e:
            if str(e).endswith("Not a migration stream"):
                raise MonitorError(f"{where} was not made by this program: its machine cannot be loaded") from None
            raise
        stored = vmstate.stored_runs(tables.get("ram", {}), self._memory.size, where)
        return State(machine.Checked(self._vm, tables, where), stored)

    def _load_ram(self, image: Image, info: Info, state: State) -> int | None:
        """How many pages were copied back; None: all of it is new."""
        memory, base = self._memory, self.base
        if base is not None and base.is_of(image, info):
            base.state = state
            restored = memory.restore(DirtyClient.SNAPSHOT, base.extents, RESTORE_LIMIT)
            if restored is not None:
                return restored
        new = Loaded.locate(image, info, state.stored, memory.size, state)
        self._forget_base()
        if new is None:
            self._read_ram(image, info, state.stored)
            self._unmap()
            return None
        memory.load(new.extents, True)
        self._unmap()
        self.base = self.mapped = new
        new.pin(lambda: memory.detach(new.extents))
        memory.dirty_log(DirtyClient.SNAPSHOT, True)
        return None

    def _read_ram(self, image: Image, info: Info, stored: list[Run]) -> None:
        """Where the layout cannot be mapped: into memory, piece by piece."""
        memory = self._memory
        memory.load((), False)
        for at, length in pieces(iter(stored)):
            piece = memory.view(at, min(length, memory.size - at))
            image.vmstate_read(vmstate.RAM_BASE + at, piece, info)
        memory.changed(array("Q", (0, memory.size)))

    def _unmap(self) -> None:
        """RAM no longer stands on the clusters it was mapped from."""
        mapped, self.mapped = self.mapped, None
        if mapped is not None and mapped is not self.base:
            mapped.close()

    def detach(self) -> None:
        """Copy what still lies only in the file into memory: the file is about to change."""
        if self.mapped is not None:
            self._memory.detach(self.mapped.extents)
            if self.mapped is self.base:
                self._forget_base()
            self._unmap()

    # Deleting

    def delete(self, name: str) -> Body:
        """The job `delvm`: on every disk that has it."""
        doomed = [(disk, info) for disk in self.disks() for info in disk.image.snapshots() if info.name == name]
        return self._delete_all(doomed)

    def _delete_all(self, doomed: list[tuple[Disk, Info]]) -> Body:
        running = self._vm.running
        try:
            for disk, info in doomed:
                yield from self._delete(disk, info)
        finally:
            self._go_on(running)

    def _delete(self, disk: Disk, info: Info) -> Body:
        if self.mapped is not None and self.mapped.is_of(disk.image, info):
            self._stop(RunState.SAVE_VM)
            try:
                self.detach()
            except OSError as e:
                raise MonitorError(f"Snapshot '{info.name}' is in use and cannot be read: {e.strerror}") from None
        if self.base is not None and self.base.is_of(disk.image, info):
            self._forget_base()
        where = f"Could not delete snapshot '{info.name}' on '{disk.drive.name}'"
        yield _io(lambda: disk.image.snapshot_delete(info), where)


def _go_back(image: Image, entry: Info) -> int:
    """Disk clusters that were not as the snapshot has them."""
    changed = image.changed_since(entry)
    image.snapshot_apply(entry)
    return changed // image.cluster_size


def _newest(disk: Disk, name: str) -> Info:
    return [s for s in disk.image.snapshots() if s.name == name][-1]  # type: ignore[no-any-return]


def _io(call: Callable[[], Any], failed: str = "") -> Step:
    """A worker's step whose OSErrors are for the user, in QEMU's words."""

    def run() -> Any:
        try:
            return call()
        except OSError as e:
            why = e.strerror or str(e)
            raise MonitorError(f"{failed}: {why}" if failed else why) from None

    return run


def _advice(drive: Drive) -> str:
    if drive.node is None or drive.node.format != "raw":
        return ""
    name = drive.node.filename
    return f"; 'qemu-img convert -O qcow2 {name} {os.path.splitext(name)[0]}.qcow2' makes an image that does"


def begin_with(vm: Vm, name: str) -> None:
    """`-loadvm TAG`: in place of starting the machine. Without the snapshot there is nothing to run. What is typed
    meanwhile, monitor commands too, is for the machine that is loaded."""
    vm.chardevs.hold_input(monitors=True)
    snapshots = vm.service(Snapshots)

    def done(error: QemupyError | None) -> None:
        if error is not None:
            sys.stderr.write(f"qemupy: {error}\n")
            vm.request_shutdown("host-error", 1)
            return
        if not vm.config.paused:
            vm.cont()
        vm.chardevs.release_input()  # last: a `stop` among it is to last

    try:
        vm.jobs.start("loadvm", snapshots.load(name), done)
    except QemupyError as e:
        done(e)
