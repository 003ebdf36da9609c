"""Internal snapshots: the snapshot table, and what taking, applying and deleting one does to the metadata.

A snapshot is a copy of the L1 table; L2 tables and data clusters are shared by reference count, and the COPIED flag is
off wherever a count is above one. Source: qcow2.txt, "Snapshots" and "Snapshot table". The machine's state lies behind
the end of the disk, in L1 entries of its own (`vm_index` on): taking a snapshot moves them from the active table to the
snapshot's, and applying one does not bring them back (they are read from the snapshot).
"""

from __future__ import annotations

import array
import errno
import os
import struct
from collections import Counter

from qemupy.backends.block.qcow2.header import MAX_L1_BYTES, MAX_SNAPSHOTS, Header
from qemupy.backends.block.qcow2.mapping import Mapping
from qemupy.backends.block.qcow2.metadata import Metadata
from qemupy.backends.block.qcow2.subclusters import COMPRESSED, COPIED, OFFSET_MASK, ZERO
from qemupy.backends.block.qcow2.tables import Table, decode, encode, read_bytes, zeros
from qemupy.errors import BackendError
from qemupy.records import record, replace

_FIXED = ">QIHHIIQII"
_FIXED_LENGTH = struct.calcsize(_FIXED)
_MAX_EXTRA = 1024
_MAX_TABLE_BYTES = 64 << 20
_CHUNK = 64  # entries compared at once


@record(frozen=True)
class SnapshotInfo:
    """What the table says about a snapshot. Sizes are bytes; `icount` is -1 where none was recorded."""

    id: str
    name: str
    vm_state_size: int
    date_sec: int
    date_nsec: int
    vm_clock_nsec: int
    icount: int
    disk_size: int


@record()
class Snapshot:
    info: SnapshotInfo
    l1_offset: int
    l1_size: int
    more: bytes = b""  # extra data of later versions of the format
    l1: array.array[int] | None = None  # its L1 entries without flags, once they have been needed


class Snapshots:
    def __init__(self, meta: Metadata, mapping: Mapping) -> None:
        self._meta, self._mapping = meta, mapping
        self.table_length = 0
        self.list = self._read()

    # The table

    def _read(self) -> list[Snapshot]:
        header, file = self._meta.header, self._meta.file
        found: list[Snapshot] = []
        at = header.snapshots_offset
        for _ in range(header.snapshots):
            at = -(-at // 8) * 8
            if at >= file.length:
                raise BackendError("Snapshot table offset invalid")
            fixed = struct.unpack(_FIXED, read_bytes(file, at, _FIXED_LENGTH))
            id_length, name_length, extra_length = fixed[2], fixed[3], fixed[8]
            if extra_length > _MAX_EXTRA:
                raise BackendError(f"Too much extra metadata in snapshot table entry {len(found)}")
            rest = bytes(read_bytes(file, at + _FIXED_LENGTH, extra_length + id_length + name_length))
            at += _FIXED_LENGTH + len(rest)
            if at - header.snapshots_offset > _MAX_TABLE_BYTES:
                raise BackendError("Snapshot table is too big")
            found.append(self._entry(fixed, rest))
        self.table_length = at - header.snapshots_offset
        return found

    def _entry(self, fixed: tuple[int, ...], rest: bytes) -> Snapshot:
        l1_offset, l1_size, id_length, _, seconds, nanoseconds, clock, state_size, extra_length = fixed
        extra, names = rest[:extra_length], rest[extra_length:]
        disk_size, icount = self._meta.header.size, -1
        if len(extra) >= 8:
            state_size = int.from_bytes(extra[:8], "big")
        if len(extra) >= 16:
            disk_size = int.from_bytes(extra[8:16], "big")
        if len(extra) >= 24:
            icount = int.from_bytes(extra[16:24], "big", signed=True)
        if disk_size >= 1 << 63:
            raise BackendError("Snapshot table entry is invalid: disk size too large")
        info = SnapshotInfo(
            names[:id_length].decode(errors="surrogateescape"), names[id_length:].decode(errors="surrogateescape"),
            state_size, seconds, nanoseconds, clock, icount, disk_size,
        )  # fmt: skip
        return Snapshot(info, l1_offset, l1_size, extra[24:])

    def _encode(self) -> bytes:
        table = bytearray()
        for snapshot in self.list:
            info = snapshot.info
            table += bytes(-len(table) % 8)
            extra = struct.pack(">QQq", info.vm_state_size, info.disk_size, info.icount) + snapshot.more
            name_id = info.id.encode(errors="surrogateescape")
            name = info.name.encode(errors="surrogateescape")
            # As in QEMU the old 32-bit field takes what fits
            table += struct.pack(
                _FIXED, snapshot.l1_offset, snapshot.l1_size, len(name_id), len(name), info.date_sec, info.date_nsec,
                info.vm_clock_nsec, info.vm_state_size if info.vm_state_size < 1 << 32 else 0, len(extra),
            )  # fmt: skip
            table += extra + name_id + name
        return bytes(table)

    def _write_table(self) -> None:
        """Put the list into a new place, which the next header names; the old one is freed after that."""
        meta, table = self._meta, self._encode()
        if len(table) > _MAX_TABLE_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        old, old_length = meta.header.snapshots_offset, self.table_length
        offset = 0
        if table:
            offset = meta.allocate_bytes(len(table))
            meta.extra.append((offset, table))
        meta.header.snapshots, meta.header.snapshots_offset = len(self.list), offset
        meta.header_changed = True
        self.table_length = len(table)
        if old_length:
            meta.release_run(old, old_length)

    def find(self, id_or_name: str) -> Snapshot | None:
        """By id first, then by name, as QEMU does."""
        by_id = (snapshot for snapshot in self.list if snapshot.info.id == id_or_name)
        by_name = (snapshot for snapshot in self.list if snapshot.info.name == id_or_name)
        return next(by_id, None) or next(by_name, None)

    def l1_of(self, snapshot: Snapshot) -> array.array[int]:
        """The snapshot's L1 entries, flags taken off. OSError if the table cannot be one."""
        if snapshot.l1 is None:
            meta = self._meta
            if snapshot.l1_size > MAX_L1_BYTES // 8:
                raise OSError(errno.EFBIG, "Snapshot L1 table too large")
            if snapshot.l1_offset % meta.geometry.cluster_size or snapshot.l1_offset >= 1 << 56:
                raise OSError(errno.EINVAL, "Snapshot L1 table offset invalid")
            values = decode(read_bytes(meta.file, snapshot.l1_offset, snapshot.l1_size * 8))
            snapshot.l1 = array.array("Q", [entry & OFFSET_MASK for entry in values])
        return snapshot.l1

    def vm_index(self, disk_size: int) -> int:
        """The L1 entry with which the machine's state begins."""
        return self._meta.geometry.l1_entries(disk_size)

    def drop_vm_state(self) -> None:
        """Empty the state area of the active tables. Inside `Metadata.exclusive`."""
        meta = self._meta
        first, end = self.vm_index(meta.header.size), len(meta.l1.values)
        for index in range(first, end):
            table = meta.l2_to_read(index)
            if table is not None:
                for entry in table.values:
                    if entry:
                        self._mapping.release_entry(entry)
                meta.set_l1(index, 0)
                meta.release_l2(table.offset)

    def share_vm_state(self, snapshot: Snapshot, source: int, target: int, count: int) -> None:
        """Let `count` clusters of the state being written be those of a snapshot's state; `source` and `target` are
        cluster numbers from the begin of each. Inside `Metadata.exclusive`."""
        meta, bits = self._meta, self._meta.geometry.l2_bits
        l1 = self.l1_of(snapshot)
        source += self.vm_index(snapshot.info.disk_size) << bits
        target += self.vm_index(meta.header.size) << bits
        while count:
            low, to = source & (1 << bits) - 1, target & (1 << bits) - 1
            length = min(count, (1 << bits) - max(low, to))
            index = source >> bits
            table = meta.l2_at(l1[index], index) if index < len(l1) else None
            shared = table.values[low : low + length] if table is not None else zeros(length)
            if table is not None and table.partial:
                raise OSError(errno.ENOTSUP, "clusters with different subclusters cannot be shared")
            self._mapping.retain_entries(shared)
            into = meta.l2_to_write(target >> bits)
            for entry in into.values[to : to + length]:
                self._mapping.release_entry(entry)
            into.values[to : to + length] = array.array("Q", [entry & ~COPIED for entry in shared])
            meta.l2.mark(into, to, to + length)
            source, target, count = source + length, target + length, count - length

    # Taking

    def create(self, info: SnapshotInfo) -> SnapshotInfo:
        """Durable when it returns; on OSError the image is as before. Inside `Metadata.exclusive`.

        All that is dirty goes out in the same sync, whose last step is the header that names the new table."""
        meta = self._meta
        if len(self.list) >= MAX_SNAPSHOTS:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        info = replace(info, id=self._next_id(), disk_size=meta.header.size)
        l1 = array.array("Q", [entry & OFFSET_MASK for entry in meta.l1.values])
        vm_index = self.vm_index(meta.header.size)
        self._retain_tree(l1[:vm_index])
        before = (list(self.list), self.table_length, replace(meta.header), meta.l1.values[vm_index:])
        try:
            offset = meta.allocate_bytes(len(l1) * 8)
            meta.extra.append((offset, encode(l1)))
            self.list.append(Snapshot(info, offset, len(l1), l1=l1))
            self._share(vm_index)
            self._write_table()
            meta.sync()
        except OSError:
            self._undo_create(l1[:vm_index], *before)
            raise
        return info

    def _next_id(self) -> str:
        numbers = [int(s.info.id) for s in self.list if s.info.id.isascii() and s.info.id.isdecimal()]
        return str(max(numbers, default=0) + 1)

    def _retain_tree(self, l1: array.array[int]) -> None:
        """One more reference to all L2 tables of an L1 table and to all they refer to; all or none."""
        self._check_room(l1)
        for index, entry in enumerate(l1):
            table = self._meta.l2_at(entry, index)
            if table is not None:
                self._mapping.retain_entries(table.values)
                self._meta.retain(entry >> self._meta.geometry.cluster_bits)

    def _check_room(self, l1: array.array[int]) -> None:
        """Narrow reference counts: can each of them take what a copy of this L1 table adds?"""
        refcounts = self._meta.refcounts
        if refcounts.maximum >= MAX_SNAPSHOTS - 1:
            return
        added: Counter[int] = Counter()
        for index, entry in enumerate(l1):
            table = self._meta.l2_at(entry, index)
            if table is not None:
                added[entry >> self._meta.geometry.cluster_bits] += 1
                for l2_entry in table.values:
                    added.update(self._mapping.host_clusters(l2_entry))
        if any(refcounts.get(cluster) + count > refcounts.maximum for cluster, count in added.items()):
            raise OSError(errno.EINVAL, f"reference counts of this image cannot exceed {refcounts.maximum}")

    def _release_tree(self, l1: array.array[int]) -> None:
        for index, entry in enumerate(l1):
            table = self._meta.l2_at(entry, index)
            if table is not None:
                for l2_entry in table.values:
                    if l2_entry:
                        self._mapping.release_entry(l2_entry)
                self._meta.release_l2(entry)

    def _share(self, vm_index: int) -> None:
        """Take the COPIED flags off the active tables and the machine's state out of them."""
        meta = self._meta
        for index, entry in enumerate(meta.l1.values):
            if not entry:
                continue
            if index >= vm_index:
                meta.set_l1(index, 0)
                continue
            if entry & COPIED:
                meta.set_l1(index, entry & ~COPIED)
            table = meta.l2_at(entry, index)
            if table is not None:
                self._clear_copied(table)

    def _clear_copied(self, table: Table) -> None:
        values = table.values
        flagged = [at for at, entry in enumerate(values) if entry & COPIED]
        for at in flagged:
            values[at] &= ~COPIED
        if flagged:
            self._meta.l2.mark(table, flagged[0], flagged[-1] + 1)

    def changed(self, snapshot: Snapshot) -> int:
        """Guest clusters in which the active state differs from the snapshot's."""
        meta, count = self._meta, 1 << self._meta.geometry.l2_bits
        l1 = self.l1_of(snapshot)[: self.vm_index(snapshot.info.disk_size)]
        differing = 0
        for index, entry in enumerate(l1):
            active = meta.l1.values[index] if index < len(meta.l1.values) else 0
            if active & OFFSET_MASK != entry:
                tables = [meta.l2_at(active, index), meta.l2_at(entry, index)]
                one, other = (table.values if table is not None else zeros(count) for table in tables)
                for start in range(0, count, _CHUNK):
                    a, b = one[start : start + _CHUNK], other[start : start + _CHUNK]
                    if a != b:
                        differing += sum((x ^ y) & ~COPIED != 0 for x, y in zip(a, b, strict=True))
        return differing

    # Applying

    def apply(self, snapshot: Snapshot) -> None:
        """Make the active state the snapshot's. In memory; the next sync orders it. Inside `Metadata.exclusive`.

        Only what differs is touched, so going back to the snapshot applied last costs what was written since."""
        meta, bits = self._meta, self._meta.geometry.cluster_bits
        vm_index = self.vm_index(snapshot.info.disk_size)
        new = self.l1_of(snapshot)[:vm_index]
        if len(new) > len(meta.l1.values):
            meta.grow_l1(len(new))
        old = meta.l1.values
        new.extend(zeros(len(old) - len(new)))
        changed = [i for i, entry in enumerate(new) if entry != old[i] & OFFSET_MASK]
        leaving: list[int] = []
        for index in changed:
            self._switch(meta.l2_at(old[index], index), meta.l2_at(new[index], index), leaving)
            if new[index]:
                meta.retain(new[index] >> bits)
        for index in changed:
            offset = old[index] & OFFSET_MASK
            meta.set_l1(index, new[index])
            if offset:
                meta.release_l2(offset)
        for entry in leaving:
            self._mapping.release_entry(entry)
        meta.l1_replaced = meta.l1_replaced or bool(changed)
        if meta.header.size != snapshot.info.disk_size:
            meta.header.size = snapshot.info.disk_size
            meta.header_changed = True

    def _switch(self, old: Table | None, new: Table | None, leaving: list[int]) -> None:
        """Count the references when `new` takes the place of `old`; entries to be released go to `leaving`."""
        count = 1 << self._meta.geometry.l2_bits
        before = old.values if old is not None else zeros(count)
        after = new.values if new is not None else zeros(count)
        arriving, flagged = array.array("Q"), []
        for start in range(0, count, _CHUNK):
            if before[start : start + _CHUNK] == after[start : start + _CHUNK]:
                continue
            for at in range(start, min(start + _CHUNK, count)):
                gone, come = before[at], after[at]
                if come & COPIED:
                    flagged.append(at)
                if (gone ^ come) & ~(COPIED | ZERO):
                    leaving.append(gone)
                    arriving.append(come)
        self._mapping.retain_entries(arriving)
        if new is not None and flagged:
            for at in flagged:
                new.values[at] &= ~COPIED
            self._meta.l2.mark(new, flagged[0], flagged[-1] + 1)

    # Deleting

    def delete(self, snapshot: Snapshot) -> None:
        """Inside `Metadata.exclusive`. Gone durably when it returns; its clusters are free in memory then."""
        meta = self._meta
        l1 = self.l1_of(snapshot)
        before = (list(self.list), self.table_length, replace(meta.header))
        self.list.remove(snapshot)
        try:
            self._write_table()
            meta.sync()
        except OSError:
            self._undo(*before)
            raise
        meta.release_run(snapshot.l1_offset, snapshot.l1_size * 8)
        self._release_tree(l1)
        meta.free_pending()
        self._restore_copied(l1)

    def _restore_copied(self, l1: array.array[int]) -> None:
        """Set the COPIED flag where, of what a deleted snapshot shared, only the active state is left."""
        meta, bits = self._meta, self._meta.geometry.cluster_bits
        for index, entry in enumerate(l1[: len(meta.l1.values)]):
            active = meta.l1.values[index]
            table = meta.l2_at(active, index)
            if not entry or table is None:
                continue
            if not active & COPIED and meta.refcounts.get((active & OFFSET_MASK) >> bits) == 1:
                meta.set_l1(index, active | COPIED)
            for at, l2_entry in enumerate(table.values):
                if l2_entry & OFFSET_MASK and not l2_entry & (COPIED | COMPRESSED) \
                        and meta.refcounts.get((l2_entry & OFFSET_MASK) >> bits) == 1:  # fmt: skip
                    table.values[at] = l2_entry | COPIED
                    meta.l2.mark(table, at, at + 1)

    # When the disk is full

    def _undo(self, snapshots: list[Snapshot], table_length: int, header: Header) -> None:
        """Back to the list, table and header fields of before; what was allocated for the new ones is given up."""
        meta, bits = self._meta, self._meta.geometry.cluster_bits
        made, old = meta.header.snapshots_offset, header.snapshots_offset
        if made != old:
            if made:
                meta.extra = [part for part in meta.extra if part[0] != made]
                meta.release_run(made, self.table_length)
            if table_length:
                meta.retain(old >> bits, meta.geometry.clusters(old + table_length) - (old >> bits))
        self.list, self.table_length = snapshots, table_length
        meta.header.snapshots, meta.header.snapshots_offset = header.snapshots, old
        meta.header_changed = True

    def _undo_create(self, l1: array.array[int], snapshots: list[Snapshot], table_length: int, header: Header,
                     vm_entries: array.array[int]) -> None:  # fmt: skip
        """As `_undo`; the data stay shared by one reference too many until a sync has succeeded."""
        meta = self._meta
        if len(self.list) > len(snapshots):
            made = self.list[-1]
            meta.extra = [part for part in meta.extra if part[0] != made.l1_offset]
            meta.release_run(made.l1_offset, made.l1_size * 8)
        self._undo(snapshots, table_length, header)
        for index, entry in enumerate(vm_entries, len(l1)):
            if entry:
                meta.set_l1(index, entry)
        self._release_tree(l1)
        meta.after_sync.append(lambda: self._restore_copied(l1))
