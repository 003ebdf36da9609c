"""From guest offsets to host clusters: look up, allocate for a write, link, discard.

A write that needs new clusters goes in three steps: `plan` (allocate; the guest range is locked against other writers),
the data is written with no lock held, `link` (the L2 entries point to it). Source of the entries: qcow2.txt, "Cluster
mapping". Every call is made inside a request (`Metadata.request`); the lock is taken here.
"""

from __future__ import annotations

import array
import enum
from typing import NamedTuple

from qemupy.backends.block.qcow2.header import SUBCLUSTERS
from qemupy.backends.block.qcow2.metadata import Metadata
from qemupy.backends.block.qcow2.subclusters import COMPRESSED, COPIED, OFFSET_MASK, PARTIAL, ZERO
from qemupy.backends.block.qcow2.tables import Table, corrupt
from qemupy.records import record


class Kind(enum.Enum):
    UNALLOCATED = 0  # the backing file's, or zeros
    ZERO = 1
    NORMAL = 2
    COMPRESSED = 3
    PARTIAL = 4  # the subclusters differ; a run is never of this kind


class Run(NamedTuple):
    """`length` guest bytes of one kind. `host`: where they begin in the file (NORMAL, and ZERO with a cluster kept for
    it), or the L2 entry (COMPRESSED, one cluster at a time)."""

    kind: Kind
    host: int
    length: int


@record()
class Plan:
    """The next part of a write: `length` guest bytes from `offset` go to `host` on."""

    offset: int
    length: int
    host: int
    new: bool = False  # the clusters are to be linked afterwards
    first: int = 0  # guest cluster index
    count: int = 0
    kept: bool = False  # the entry had the cluster already, marked as zeros in whole or in part
    blank: bool = False  # the new clusters read as zeros where nothing is written


class Mapping:
    def __init__(self, meta: Metadata) -> None:
        self.meta = meta
        self.zero_flag = ZERO if meta.header.version >= 3 else 0
        self._writing: list[Plan] = []

    # Looking up

    def lookup(self, offset: int, length: int, l1: array.array[int] | None = None) -> list[Run]:
        """The runs of a guest range, neighbours joined where they are contiguous; `l1` is another table's entries."""
        meta, geometry = self.meta, self.meta.geometry
        runs: list[Run] = []
        with meta.lock:
            while length > 0:
                index, within = offset >> geometry.l1_shift, offset & (1 << geometry.l1_shift) - 1
                span = min(length, (1 << geometry.l1_shift) - within)
                if l1 is None:
                    table = meta.l2_to_read(index)
                else:
                    table = meta.l2_at(l1[index], index) if index < len(l1) else None
                if table is None:
                    _join(runs, Run(Kind.UNALLOCATED, 0, span))
                else:
                    self._lookup_in(table, within, span, runs)
                offset += span
                length -= span
        return runs

    def _lookup_in(self, table: Table, within: int, span: int, runs: list[Run]) -> None:
        """Add the runs of `span` bytes from `within` the range of one L2 table."""
        bits, size = self.meta.geometry.cluster_bits, self.meta.geometry.cluster_size
        index, skip = within >> bits, within & size - 1
        end = (within + span - 1 >> bits) + 1
        kind, host, joined = Kind.UNALLOCATED, 0, 0
        while index < end:
            entry, count = table.values[index], 1
            here, at = self.classify(entry, table, index) if entry else (Kind.UNALLOCATED, 0)
            if here is not Kind.PARTIAL and here is not Kind.COMPRESSED:
                count = _in_a_row(table.values, index, end, size if at else 0)
                at += skip if at else 0
            length = min(count * size - skip, span)
            if here is Kind.PARTIAL:
                if joined:
                    _join(runs, Run(kind, host, joined))
                joined = 0
                self._lookup_subclusters(table, index, (skip, length), runs)
            elif joined and here is kind and here is not Kind.COMPRESSED and at == (host + joined if host else 0):
                joined += length
            else:
                if joined:
                    _join(runs, Run(kind, host, joined))
                kind, host, joined = here, at, length
            index += count
            span -= length
            skip = 0
        if joined:
            _join(runs, Run(kind, host, joined))

    def _lookup_subclusters(self, table: Table, index: int, part: tuple[int, int], runs: list[Run]) -> None:
        """The runs of one cluster, `part` of it (offset, length), whose subclusters differ."""
        size = self.meta.geometry.cluster_size // SUBCLUSTERS
        bitmap, host = (table.partial or {})[index], table.values[index] & OFFSET_MASK
        at, end = part[0], sum(part)
        while at < end:
            number = at // size
            stop = min((number + 1) * size, end)
            allocated, zero = bitmap >> number & 1, bitmap >> 32 + number & 1
            if allocated and (zero or not host):
                self.meta.report(f"Invalid subcluster bitmap {bitmap:#018x} (L2 offset: {table.offset:#x}, "
                                 f"L2 index: {index:#x})")  # fmt: skip
                raise corrupt("a cluster has a bad subcluster bitmap")
            kind = Kind.NORMAL if allocated else Kind.ZERO if zero else Kind.UNALLOCATED
            _join(runs, Run(kind, host + at if allocated else 0, stop - at))
            at = stop

    def classify(self, entry: int, table: Table, index: int) -> tuple[Kind, int]:
        """What an L2 entry says: the kind, and the host offset (the entry itself if compressed)."""
        if entry & COMPRESSED:
            return Kind.COMPRESSED, entry
        offset = entry & OFFSET_MASK
        if offset & self.meta.geometry.cluster_size - 1:
            self.meta.report(f"Cluster allocation offset {offset:#x} unaligned (L2 offset: {table.offset:#x}, "
                             f"L2 index: {index:#x})")  # fmt: skip
            raise corrupt("a cluster has a bad offset")
        if entry & PARTIAL and table.partial is not None:
            return Kind.PARTIAL, offset
        if entry & ZERO:
            if not self.zero_flag:
                self.meta.report(f"Zero cluster entry found in pre-v3 image (L2 offset: {table.offset:#x}, "
                                 f"L2 index: {index:#x})")  # fmt: skip
                raise corrupt("a zero cluster in a version 2 image")
            return Kind.ZERO, offset
        return (Kind.NORMAL, offset) if offset else (Kind.UNALLOCATED, 0)

    # Writing

    def plan(self, offset: int, length: int) -> Plan:
        """How to write the first part of a guest range; waits while another write allocates there."""
        meta, bits = self.meta, self.meta.geometry.cluster_bits
        with meta.lock:
            while True:
                plan = self._plan(offset, length)
                if not plan.new:
                    return plan
                free = self._unlocked(plan.first, plan.count)
                if free:
                    break
                meta.changed.wait()
            if free < plan.count:
                plan.count = free
                plan.length = ((plan.first + free) << bits) - offset
            if not plan.kept:
                untouched = meta.refcounts.untouched
                plan.host = meta.allocate(plan.count) + (offset & (1 << bits) - 1)
                plan.blank = plan.host >> bits >= untouched
            self._writing.append(plan)
            return plan

    def _plan(self, offset: int, length: int) -> Plan:
        meta, geometry = self.meta, self.meta.geometry
        bits, size = geometry.cluster_bits, geometry.cluster_size
        l1_index, within = offset >> geometry.l1_shift, offset & (1 << geometry.l1_shift) - 1
        length = min(length, (1 << geometry.l1_shift) - within)
        at, skip = within >> bits, within & size - 1
        limit = (within + length - 1 >> bits) + 1 - at
        table = meta.l2_to_read(l1_index)
        if table is None:
            return Plan(offset, length, 0, True, offset >> bits, limit)
        shared = not meta.l1.values[l1_index] & COPIED
        entries = table.values[at : at + limit]
        if shared or not any(entries):
            host, count = 0, limit
        elif not _writable(entries[0]):
            host, count = 0, next((n for n, entry in enumerate(entries) if _writable(entry)), limit)
        else:
            kind, host = self.classify(entries[0], table, at)
            zero = kind is not Kind.NORMAL
            count = 1 if kind is Kind.PARTIAL else _row(entries, size)
            if not meta.refcounts.forbidden.isdisjoint(range(host >> bits, (host >> bits) + count)):
                meta.report(f"Preventing invalid write on metadata (cluster at offset {host:#x})")
                raise corrupt("data lie in a metadata cluster")
            if not zero:
                return Plan(offset, min(length, count * size - skip), host + skip)
        return Plan(offset, min(length, count * size - skip), host + skip, True, offset >> bits, count, kept=bool(host))

    def _unlocked(self, first: int, count: int) -> int:
        """How many of these guest clusters, from the first on, no write under way is allocating."""
        for other in self._writing:
            if other.first < first + count and first < other.first + other.count:
                count = max(other.first - first, 0)
        return count

    def link(self, plan: Plan) -> None:
        """The data of a plan has been written: let the guest range refer to it."""
        meta, geometry = self.meta, self.meta.geometry
        size, low = geometry.cluster_size, plan.first & (1 << geometry.l2_bits) - 1
        with meta.lock:
            table = meta.l2_to_write(plan.first >> geometry.l2_bits)
            host = plan.host & -size
            new = range(host | COPIED, (host | COPIED) + plan.count * size, size)
            old = table.values[low : low + plan.count]
            if not plan.kept and any(old):
                for entry in filter(None, old):
                    self.release_entry(entry)
            table.values[low : low + plan.count] = array.array("Q", new)
            meta.l2.mark(table, low, low + plan.count)
            self._done(plan)

    def cancel(self, plan: Plan) -> None:
        """The data of a plan could not be written."""
        with self.meta.lock:
            if not plan.kept:
                first = plan.host >> self.meta.geometry.cluster_bits
                for cluster in range(first, first + plan.count):
                    self.meta.release(cluster)
            self._done(plan)

    def _done(self, plan: Plan) -> None:
        self._writing.remove(plan)
        self.meta.changed.notify_all()

    # References

    def host_clusters(self, entry: int) -> range:
        """The host clusters an L2 entry refers to."""
        bits = self.meta.geometry.cluster_bits
        if entry & COMPRESSED:
            offset, length = self.compressed_place(entry)
            return range(offset >> bits, (offset + length - 1 >> bits) + 1)
        first = (entry & OFFSET_MASK) >> bits
        return range(first, first + 1) if first else range(0)

    def compressed_place(self, entry: int) -> tuple[int, int]:
        """Host offset and length of compressed data; the length may be up to 511 bytes too long."""
        shift = 62 - (self.meta.geometry.cluster_bits - 8)
        offset = entry & (1 << shift) - 1
        sectors = (entry >> shift & (1 << 62 - shift) - 1) + 1
        return offset, sectors * 512 - offset % 512

    def release_entry(self, entry: int) -> None:
        for cluster in self.host_clusters(entry):
            self.meta.release(cluster)

    def retain_entries(self, entries: array.array[int]) -> None:
        """One more reference to what each entry refers to; runs of neighbours are counted at once."""
        bits, start, count = self.meta.geometry.cluster_bits, 0, 0
        for entry in entries:
            if not entry:
                continue
            if entry & COMPRESSED:
                for cluster in self.host_clusters(entry):
                    self.meta.retain(cluster)
                continue
            first = (entry & OFFSET_MASK) >> bits
            if count and first == start + count:
                count += 1
            elif first:
                if count:
                    self.meta.retain(start, count)
                start, count = first, 1
        if count:
            self.meta.retain(start, count)

    # Discarding

    def clear(self, offset: int, length: int, entry_for: ZeroRule) -> None:
        """Give whole guest clusters, `offset` to `offset + length`, new entries without data by a rule."""
        meta, geometry = self.meta, self.meta.geometry
        first, end = offset >> geometry.cluster_bits, (offset + length) >> geometry.cluster_bits
        per_table = 1 << geometry.l2_bits
        with meta.lock:
            while self._unlocked(first, end - first) < end - first:
                meta.changed.wait()
            while first < end:
                stop = min(end, (first // per_table + 1) * per_table)
                self._clear_in_table(first, stop, entry_for)
                first = stop

    def _clear_in_table(self, first: int, stop: int, rule: ZeroRule) -> None:
        meta, per_table = self.meta, 1 << self.meta.geometry.l2_bits
        index, low = divmod(first, per_table)
        high = low + stop - first
        old_table = meta.l2_to_read(index)
        if old_table is None and not rule.entry(0):
            return
        old = old_table.values[low:high] if old_table is not None else array.array("Q", bytes(8 * (high - low)))
        new = array.array("Q", [rule.entry(entry) for entry in old])
        if new == old:
            return
        table = meta.l2_to_write(index)
        for before, after in zip(old, new, strict=True):
            if before and before & OFFSET_MASK and not after & OFFSET_MASK:
                self.release_entry(before)
        table.values[low:high] = new
        meta.l2.mark(table, low, high)


@record(frozen=True)
class ZeroRule:
    """What becomes of an entry whose cluster shall read as zeros (or, `full`, shall not be there at all)."""

    zero_flag: int
    has_backing: bool
    keep: bool = False  # the host cluster stays for later writes
    full: bool = False

    def entry(self, old: int) -> int:
        if self.full:
            return 0
        if old == 0:
            return self.zero_flag if self.has_backing else 0
        if self.keep and self.zero_flag and not old & COMPRESSED and old & OFFSET_MASK:
            return old & ~PARTIAL | ZERO
        if old & ZERO and not old & OFFSET_MASK:
            return old
        return self.zero_flag


def _writable(entry: int) -> bool:
    """May the cluster be written in place?"""
    return entry & (COPIED | COMPRESSED) == COPIED and entry & OFFSET_MASK != 0


def _row(entries: array.array[int], step: int) -> int:
    """How many entries, from the first on, are of neighbouring clusters and alike otherwise."""
    row = array.array("Q", range(entries[0], entries[0] + len(entries) * step, step))
    return len(row) if row == entries else next(n for n, entry in enumerate(entries) if entry != row[n])


def _in_a_row(values: array.array[int], index: int, end: int, step: int) -> int:
    """For how many entries from `index` on it is known that each is the one before it and `step`; one at least."""
    first, count = values[index], end - index
    while count > 1:
        last = first + (count - 1) * step
        if values[index + count - 1] == last:
            row = array.array("Q", range(first, last + 1, step) if step else [first]) * (1 if step else count)
            if values[index : index + count] == row:
                break
        count //= 2
    return count


def _join(runs: list[Run], run: Run) -> None:
    """Add a run, to the last one if they belong together."""
    if runs and run.kind is not Kind.COMPRESSED:
        last = runs[-1]
        if last.kind is run.kind and run.host == (last.host + last.length if last.host else 0):
            runs[-1] = Run(run.kind, last.host, last.length + run.length)
            return
    runs.append(run)
