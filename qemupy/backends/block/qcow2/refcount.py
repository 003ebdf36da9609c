"""Reference counts of host clusters, and the allocation of clusters.

The refcount table (held whole, 8 MiB at most) points to refcount blocks of one cluster each; a missing block means that
all clusters it would describe are free. Source: qcow2.txt, "Host cluster management". Nothing here orders writes:
`transaction.py` writes what is dirty. All calls are made with the metadata lock held.
"""

from __future__ import annotations

import array
import errno
import os
from collections.abc import Mapping

from qemupy.backends.block.qcow2.header import MAX_REFTABLE_BYTES, Header
from qemupy.backends.block.qcow2.tables import (
    Buffer,
    ByteFile,
    Report,
    Table,
    TableCache,
    corrupt,
    decode,
    read_bytes,
    zeros,
)

_OFFSET_MASK = ~0x1FF & (1 << 64) - 1
_MAX_HOST_OFFSET = 1 << 56


class Refcounts:
    """`get`, `add` and `allocate` by cluster index (host offset / cluster size)."""

    def __init__(self, file: ByteFile, header: Header, cache: int, report: Report) -> None:
        """`cache`: bytes of blocks to hold in memory."""
        geometry = header.geometry
        self._geometry, self._order, self._report = geometry, geometry.refcount_order, report
        self.per_block = geometry.refcounts_per_block
        self.maximum = (1 << (1 << self._order)) - 1
        size = geometry.cluster_size
        self.blocks = TableCache(file, size, max(cache // size, 4), self._load)
        offset, length = header.reftable_offset, header.reftable_clusters * size
        self.table = Table(offset, decode(read_bytes(file, offset, length)))
        self.moved = False  # the table has a new place that the header does not name yet
        self.outgrown: list[int] = []  # clusters of a table that was moved, to be freed by the owner
        self.cursor = 0  # no free cluster below, unless an allocation passed over it as too small a gap
        self.untouched = geometry.clusters(file.length)  # from here on nothing was ever written: it reads as zeros
        self.forbidden: set[int] = set()  # clusters that must never be handed out: header and active tables

    def _load(self, offset: int, data: Buffer) -> Table:
        return Table(offset, decode(data, self._order), self._order)

    @property
    def clusters(self) -> int:
        """Clusters the table occupies."""
        return self._geometry.clusters(len(self.table.values) * 8)

    def _block(self, index: int) -> Table | None:
        """Refcount block `index`; None where there is none."""
        if index >= len(self.table.values):
            return None
        entry = self.table.values[index]
        if entry == 0:
            return None
        offset = entry & _OFFSET_MASK
        if entry != offset or offset % self._geometry.cluster_size or offset >= _MAX_HOST_OFFSET:
            self._report(f"Refblock offset {offset:#x} unaligned (reftable index: {index:#x})")
            raise corrupt(f"refcount block {index} has a bad offset")
        return self.blocks.get(offset)

    def get(self, cluster: int) -> int:
        block = self._block(cluster // self.per_block)
        return block.values[cluster % self.per_block] if block is not None else 0

    def add(self, cluster: int, delta: int) -> int:
        """Change a count; the new one. OSError when it would leave 0..maximum (EINVAL, as in QEMU)."""
        index, at = divmod(cluster, self.per_block)
        block = self._block(index)
        if block is None:
            raise corrupt(f"nothing counts the references of the cluster at {self._offset(cluster)}")
        new = block.values[at] + delta
        if new < 0:
            raise corrupt(f"reference count of the cluster at {self._offset(cluster)} below zero")
        if new > self.maximum:
            raise OSError(errno.EINVAL, f"reference count above {self.maximum}, the most this image can hold")
        block.values[at] = new
        self.blocks.mark(block, at, at + 1)
        if new == 0 and cluster < self.cursor:
            self.cursor = cluster
        return new

    def has_block(self, index: int) -> bool:
        return index < len(self.table.values) and self.table.values[index] != 0

    def set_block(self, index: int, references: Mapping[int, int], new: bool = False) -> None:
        """Set all counts of a block to what has been counted; nothing if there is no such block.

        In a `new` one clusters that were not counted keep what they have: they were allocated after the counting."""
        block = self._block(index)
        if block is None:
            return
        first = index * self.per_block
        for at in range(self.per_block):
            count = references.get(first + at, 0)
            if block.values[at] != count and (count or not new):
                if count > self.maximum:
                    raise OSError(errno.EINVAL, f"reference count above {self.maximum}, the most this image can hold")
                block.values[at] = count
                self.blocks.mark(block, at, at + 1)

    def make_block(self, index: int) -> None:
        """A missing block, at the cursor (for repairs: nothing in use lies there)."""
        if index >= len(self.table.values):
            self._grow(index + 1)
        if not self.has_block(index):
            self._make_block(index, self.allocate(1))

    def add_run(self, first: int, count: int, delta: int) -> None:
        """`add` for a run of clusters: all of them or, with an OSError, none."""
        done = 0
        try:
            while done < count:
                done += self._add_in_block(first + done, count - done, delta)
        except OSError:
            while done:
                done -= self._add_in_block(first, done, -delta)
                first += self.per_block - first % self.per_block
            raise

    def _add_in_block(self, first: int, count: int, delta: int) -> int:
        """The part of a run that one block counts; its length."""
        index, at = divmod(first, self.per_block)
        block = self._block(index)
        stop = min(at + count, self.per_block)
        if block is None or stop == at + 1 or delta < 0:
            for cluster in range(first, first + stop - at):
                self.add(cluster, delta)
            return stop - at
        values = block.values
        if max(values[at:stop]) + delta > self.maximum:
            raise OSError(errno.EINVAL, f"reference count above {self.maximum}, the most this image can hold")
        values[at:stop] = array.array(values.typecode, [value + delta for value in values[at:stop]])
        self.blocks.mark(block, at, stop)
        return stop - at

    def _offset(self, cluster: int) -> str:
        return f"{cluster << self._geometry.cluster_bits:#x}"

    # Allocation

    def allocate(self, count: int) -> int:
        """The first of `count` free clusters in a row; each has one reference now."""
        reserve = 0
        while True:
            first = self._find(count + reserve)
            missing = self._missing(first, count + reserve)
            if len(missing) <= reserve:
                break
            reserve = len(missing)
        self._check_end(first + count + reserve)
        if missing and missing[-1] >= len(self.table.values):
            self._grow(missing[-1] + 1)
            return self.allocate(count)
        for place, index in enumerate(missing):
            self._make_block(index, first + place)
        first += len(missing)
        self._take(first, count)
        self.cursor = first + count
        return first

    def _check_end(self, end: int) -> None:
        if end > _MAX_HOST_OFFSET >> self._geometry.cluster_bits:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    def _missing(self, first: int, count: int) -> list[int]:
        """The blocks needed for a run of clusters that do not exist."""
        values = self.table.values
        blocks = range(first // self.per_block, (first + count - 1) // self.per_block + 1)
        return [index for index in blocks if index >= len(values) or values[index] == 0]

    def _find(self, count: int) -> int:
        """The first run of `count` clusters at or after the cursor that nothing refers to."""
        start, run = self.cursor, 0
        while run < count:
            index, at = divmod(start + run, self.per_block)
            block = self._block(index)
            if block is None:
                run += self.per_block - at
                continue
            values = block.values
            if run == 0:
                try:
                    found = values.index(0, at)
                except ValueError:
                    start = (index + 1) * self.per_block
                    continue
                start += found - at
                at = found
            stop = min(at + count - run, self.per_block)
            used = next((i for i in range(at, stop) if values[i]), None) if any(values[at:stop]) else None
            if used is None:
                run += stop - at
            else:
                start, run = index * self.per_block + used + 1, 0
        return start

    def _take(self, first: int, count: int) -> None:
        if not self.forbidden.isdisjoint(range(first, first + count)):
            self._report(f"Preventing invalid allocation of cluster at offset {self._offset(first)}")
            raise corrupt("a metadata cluster counts as free")
        self.untouched = max(self.untouched, first + count)
        done = 0
        while done < count:
            index, at = divmod(first + done, self.per_block)
            block = self._block(index)
            assert block is not None
            stop = min(at + count - done, self.per_block)
            for entry in range(at, stop):
                block.values[entry] = 1
            self.blocks.mark(block, at, stop)
            done += stop - at

    def _make_block(self, index: int, cluster: int) -> None:
        """A new block of zeros at `cluster`, which a block that exists already (or this very one) counts."""
        offset = cluster << self._geometry.cluster_bits
        block = Table(offset, zeros(self.per_block, self._order), self._order)
        self.blocks.add(block)
        block.mark_all()
        self.blocks.dirty[offset] = block
        self.table.values[index] = offset
        self.table.mark(index, index + 1)
        self._take(cluster, 1)
        self.forbidden.add(cluster)

    def _grow(self, entries: int) -> None:
        """Enlarge the table to at least `entries`, half as much again, and move it."""
        per_cluster = self._geometry.cluster_size // 8
        clusters = -(-(entries + entries // 2 + 1) // per_cluster)
        limit = MAX_REFTABLE_BYTES // self._geometry.cluster_size
        clusters = min(clusters, limit)
        if clusters * per_cluster < entries:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        old_first, old_count = self.table.offset >> self._geometry.cluster_bits, self.clusters
        self.table.values.extend(zeros(clusters * per_cluster - len(self.table.values)))
        first = self.allocate(clusters)
        self.table.offset = first << self._geometry.cluster_bits
        self.table.mark_all()
        self.moved = True
        self.outgrown.extend(range(old_first, old_first + old_count))
        self.forbidden.update(range(first, first + clusters))
