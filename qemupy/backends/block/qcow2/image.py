"""`Qcow2Image`: an open qcow2 image with its snapshots and the machine's state that they hold.

The state lies in guest clusters behind the end of the disk, so that `qemu-img` sees what it expects; its clusters
can be mapped from the file (`vmstate_extents`, `pin`). Threads and errors are as in `disk.py`.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable

from qemupy.backends.block.qcow2.disk import Qcow2Disk
from qemupy.backends.block.qcow2.mapping import Kind
from qemupy.backends.block.qcow2.snapshots import Snapshot, SnapshotInfo
from qemupy.backends.block.qcow2.tables import Buffer


class Qcow2Image(Qcow2Disk):
    _applied: Snapshot | None = None

    # Snapshots

    def snapshots(self) -> list[SnapshotInfo]:
        """Never waits, so that a monitor can ask while one is being taken."""
        return [snapshot.info for snapshot in tuple(self._snapshots.list)]

    def _find(self, which: str | SnapshotInfo) -> Snapshot:
        """By id or name, or by the entry that `snapshots` gave; OSError (ENOENT) if it is gone."""
        if isinstance(which, SnapshotInfo):
            snapshot = next((s for s in self._snapshots.list if s.info == which), None)
        else:
            snapshot = self._snapshots.find(which)
        if snapshot is None:
            name = which.name if isinstance(which, SnapshotInfo) else which
            raise OSError(errno.ENOENT, f"snapshot '{name}' does not exist")
        return snapshot

    def snapshot_create(self, name: str, date_sec: int, date_nsec: int, vm_clock_nsec: int, vm_state_size: int,
                        icount: int = -1) -> SnapshotInfo:  # fmt: skip
        """Take a snapshot of the disk with the state written by `vmstate_write`; durable when it returns. A crash
        before leaves the image without it. OSError leaves the image as it was."""
        self._must_be_writable()
        info = SnapshotInfo("", name, vm_state_size, date_sec, date_nsec, vm_clock_nsec, icount, 0)
        with self.meta.exclusive():
            return self._snapshots.create(info)

    def snapshot_apply(self, which: str | SnapshotInfo) -> SnapshotInfo:
        """Go back to a snapshot: its disk content and size. Ordered like a write, stable after the next `flush`.

        Costs what differs between the active state and the snapshot; `vmstate_read` reads its state afterwards."""
        self._must_be_writable()
        with self.meta.exclusive():
            snapshot = self._find(which)
            self._bitmaps.written(0, max(self.length, snapshot.info.disk_size))
            self._snapshots.apply(snapshot)
            self._clusters.clear()
            self._applied = snapshot
        self.on_resize(snapshot.info.disk_size)
        return snapshot.info

    def snapshot_delete(self, which: str | SnapshotInfo) -> None:
        """Durable when it returns. Pinned clusters are evicted first."""
        self._must_be_writable()
        with self.meta.exclusive():
            snapshot = self._find(which)
            self._snapshots.delete(snapshot)
            if self._applied is snapshot:
                self._applied = None

    def changed_since(self, which: str | SnapshotInfo) -> int:
        """Guest bytes, in whole clusters, in which the disk differs from the snapshot's; 0 right after applying it."""
        with self.meta.lock:
            return self._snapshots.changed(self._find(which)) << self.meta.geometry.cluster_bits

    # The machine's state

    def _vm_offset(self, disk_size: int) -> int:
        return self._snapshots.vm_index(disk_size) << self.meta.geometry.l1_shift

    def vmstate_begin(self) -> None:
        """The state area is empty; `vmstate_write` fills it, `snapshot_create` takes it into the snapshot."""
        self._must_be_writable()
        with self.meta.exclusive():
            self._applied = None
            self._snapshots.drop_vm_state()

    def vmstate_write(self, offset: int, data: Buffer) -> None:
        """Write to the state area. Whole clusters in one call come to lie in a row in the file."""
        self.write(self._vm_offset(self.length) + offset, data)

    def vmstate_push(self) -> None:
        """What was written so far is to go to the disk, without waiting for it."""
        self.file.begin_writeback()

    def vmstate_share(self, snapshot: str | SnapshotInfo, source: int, offset: int, length: int) -> None:
        """Let a part of the state area be what a snapshot's state holds at `source`, without copying: the two share
        clusters. All three numbers are multiples of `cluster_size`, OSError (EINVAL) else."""
        self._must_be_writable()
        size = self.cluster_size
        if source % size or offset % size or length % size:
            raise OSError(errno.EINVAL, f"{source:#x}, {offset:#x} and {length:#x} are not multiples of {size:#x}")
        with self.meta.exclusive():
            self._snapshots.share_vm_state(self._find(snapshot), source // size, offset // size, length // size)

    def vmstate_read(self, offset: int, data: memoryview, snapshot: str | SnapshotInfo | None = None) -> None:
        """Read the state of a snapshot: of the one named, else of the one applied last; else what is being written."""
        with self.meta.request():
            with self.meta.lock:
                found = self._find(snapshot) if snapshot is not None else self._applied
                l1 = self._snapshots.l1_of(found) if found is not None else None
                start = self._vm_offset(found.info.disk_size if found is not None else self.length) + offset
            self._read_runs(self.mapping.lookup(start, len(data), l1), start, [data], backed=False)

    def vmstate_extents(self, snapshot: str | SnapshotInfo, offset: int,
                        length: int) -> list[tuple[int, int | None, int]] | None:  # fmt: skip
        """Where a snapshot's state lies: (offset in the state, offset in the file, length), the file offset None for
        what reads as zeros. None in place of the list if parts are compressed: these only `vmstate_read` can read."""
        with self.meta.request():
            with self.meta.lock:
                found = self._find(snapshot)
                l1 = self._snapshots.l1_of(found)
            runs = self.mapping.lookup(self._vm_offset(found.info.disk_size) + offset, length, l1)
        if any(run.kind is Kind.COMPRESSED for run in runs):
            return None
        extents: list[tuple[int, int | None, int]] = []
        for run in runs:
            extents.append((offset, run.host if run.kind is Kind.NORMAL else None, run.length))
            offset += run.length
        return extents

    def fileno(self) -> int | None:
        """The descriptor of the file in which the extents lie; None unless that is a plain local file."""
        fileno: Callable[[], int] | None = getattr(self.file, "fileno", None)
        return fileno() if fileno is not None else None

    def pin(self, extents: Iterable[tuple[int, int]], evict: Callable[[], None]) -> Callable[[], None]:
        """`evict` is called once before any cluster of these (file offset, length) ranges is freed. It is called with
        the image locked: it must not call the image or wait for who does."""
        self.meta.pin(extents, evict)
        return evict

    def unpin(self, evict: Callable[[], None]) -> None:
        """Take back what was pinned with this callback (`pin` returns it)."""
        self.meta.unpin(evict)
