"""The metadata of an open image in memory: header, L1, L2 tables, reference counts; what is in use and what is freed.

Everything is changed in memory, under `lock`, and reaches the disk by `sync` (transaction.py) in an order that leaves a
sound image at every moment. Two rules make that order possible:

- a cluster that the image on disk may refer to is freed only when a sync has made the reference's removal stable
  (`release` notes it in `pending`); one that only memory refers to (`fresh`) is free at once;
- a cluster is handed out again only when no request that may still be reading or writing it is under way (`enter` and
  `leave` mark requests).
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator

from qemupy.backends.block.qcow2.header import INCOMPATIBLE_CORRUPT, MAX_L1_BYTES, Header
from qemupy.backends.block.qcow2.refcount import Refcounts
from qemupy.backends.block.qcow2.subclusters import COPIED, OFFSET_MASK, ExtendedTable
from qemupy.backends.block.qcow2.tables import (
    Buffer,
    ByteFile,
    Table,
    TableCache,
    corrupt,
    decode,
    encode,
    read_bytes,
    zeros,
)
from qemupy.backends.block.qcow2.transaction import Batch, write_batch

L2_CACHE, REFCOUNT_CACHE = 32 << 20, 16 << 20  # bytes
_MAX_LISTED_TABLES = 1 << 16


class Metadata:
    def __init__(self, file: ByteFile, header: Header, readonly: bool,
                 caches: tuple[int, int] = (L2_CACHE, REFCOUNT_CACHE)) -> None:  # fmt: skip
        self.file, self.header, self.readonly = file, header, readonly
        self.geometry = header.geometry
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        size = self.geometry.cluster_size
        self.l1 = Table(header.l1_offset, decode(read_bytes(file, header.l1_offset, header.l1_size * 8)))
        self.l2 = TableCache(file, size, max(caches[0] // size, 8), self._load_l2)
        self.refcounts = Refcounts(file, header, caches[1], self.report)
        self.l1_moved = self.l1_replaced = self.header_changed = False
        self.extra: list[tuple[int, bytes]] = []  # new structures that nothing on disk refers to yet
        self.fresh: set[int] = set()
        self.pending: dict[int, int] = {}
        self.pins: dict[int, list[Callable[[], None]]] = {}
        self.pass_discard = False  # give the space of freed clusters back to the file below
        self.pass_discard_snapshot = True  # that of deleted snapshots
        self.broken = self._reported = False
        self._disk_header = header.encode()
        self._sync_lock = threading.Lock()
        self._ticket, self._active, self._exclusive = 0, set[int](), False
        self._grace: list[tuple[int, Callable[[], None]]] = []
        self.after_sync: list[Callable[[], None]] = []  # run once when a sync has succeeded and its frees are done
        if not readonly:
            self.refcounts.forbidden.update(self._own_clusters())

    def _own_clusters(self) -> Iterator[int]:
        """Clusters that hold metadata in use; finding one of them free means that the image is corrupt."""
        bits, header = self.geometry.cluster_bits, self.header
        yield 0
        for offset, length in ((header.l1_offset, header.l1_size * 8),
                               (header.reftable_offset, header.reftable_clusters << bits)):  # fmt: skip
            yield from range(offset >> bits, self.geometry.clusters(offset + length))
        for values in (self.refcounts.table.values, self.l1.values):
            if len(values) <= _MAX_LISTED_TABLES:
                yield from {(entry & OFFSET_MASK) >> bits for entry in values if entry}

    def report(self, message: str) -> None:
        """The image contradicts itself: say so once, mark it, and refuse further requests if it is writable."""
        if self.broken or self._reported:
            return
        self._reported = True
        if self.readonly:
            print(f"qcow2: Image is corrupt: {message}; further non-fatal corruption events will be suppressed",
                  file=sys.stderr)  # fmt: skip
            return
        print(f"qcow2: Marking image as corrupt: {message}; further corruption events will be suppressed",
              file=sys.stderr)  # fmt: skip
        self.broken = True
        if self.header.version >= 3:
            self.header.incompatible |= INCOMPATIBLE_CORRUPT
            marked = bytearray(self._disk_header)
            marked[79] |= INCOMPATIBLE_CORRUPT
            self._disk_header = bytes(marked)
            with contextlib.suppress(OSError):
                self.file.write(0, self._disk_header)
                self.file.flush()

    # Requests

    def enter(self) -> int:
        """A request begins; the ticket is for `leave`."""
        with self.lock:
            while self._exclusive:
                self.changed.wait()
            if self.broken:
                raise corrupt("the image is corrupt")
            self._ticket += 1
            self._active.add(self._ticket)
            return self._ticket

    def leave(self, ticket: int) -> None:
        with self.lock:
            self._active.discard(ticket)
            if self._grace:
                self._end_grace()
            if self._exclusive and not self._active:
                self.changed.notify_all()

    def request(self) -> Request:
        """For `with`: a request is under way."""
        return Request(self)

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """With the lock, and no request under way."""
        with self.lock:
            while self._exclusive:
                self.changed.wait()
            self._exclusive = True
            try:
                while self._active:
                    self.changed.wait()
                if self.broken:
                    raise corrupt("the image is corrupt")
                yield
            finally:
                self._exclusive = False
                self.changed.notify_all()

    # Clusters

    def allocate(self, count: int = 1) -> int:
        """The host offset of `count` new clusters in a row."""
        first = self.refcounts.allocate(count)
        self.fresh.update(range(first, first + count))
        return first << self.geometry.cluster_bits

    def allocate_bytes(self, length: int) -> int:
        return self.allocate(max(self.geometry.clusters(length), 1))

    def count(self, cluster: int) -> int:
        """References, without those that are on their way out."""
        return self.refcounts.get(cluster) - self.pending.get(cluster, 0)

    def retain(self, first: int, count: int = 1) -> None:
        """One more reference to each cluster of a run."""
        if not self.pending:
            self.refcounts.add_run(first, count, 1)
            return
        for cluster in range(first, first + count):
            leaving = self.pending.get(cluster, 0)
            if leaving > 1:
                self.pending[cluster] = leaving - 1
            elif leaving:
                del self.pending[cluster]
            else:
                self.refcounts.add(cluster, 1)

    def release(self, cluster: int) -> None:
        """One reference less."""
        if self.pins and cluster in self.pins and self.count(cluster) <= 1:
            self._evict(cluster)
        if cluster in self.fresh:
            self.fresh.discard(cluster)
            self._when_idle(lambda: self._drop_references([cluster], False))  # soon used again: not worth a hole
        else:
            self.pending[cluster] = self.pending.get(cluster, 0) + 1

    def release_run(self, offset: int, length: int) -> None:
        bits = self.geometry.cluster_bits
        for cluster in range(offset >> bits, self.geometry.clusters(offset + length)):
            self.refcounts.forbidden.discard(cluster)
            self.release(cluster)

    def pin(self, extents: Iterable[tuple[int, int]], evict: Callable[[], None]) -> None:
        """`evict` is called before the first cluster of these (host offset, length) ranges is freed."""
        with self.lock:
            for offset, length in extents:
                for cluster in range(offset >> self.geometry.cluster_bits, self.geometry.clusters(offset + length)):
                    self.pins.setdefault(cluster, []).append(evict)

    def unpin(self, evict: Callable[[], None]) -> None:
        with self.lock:
            for cluster, callbacks in list(self.pins.items()):
                left = [callback for callback in callbacks if callback is not evict and callback != evict]
                if left:
                    self.pins[cluster] = left
                else:
                    del self.pins[cluster]

    def _evict(self, cluster: int) -> None:
        for evict in self.pins[cluster]:
            self.unpin(evict)
            evict()

    def free_pending(self) -> None:
        """Free what a deleted snapshot leaves. Inside `exclusive`, when a sync has made all removals stable."""
        frees, self.pending = self.pending, {}
        self._drop_references(_repeated(frees), self.pass_discard_snapshot)

    def _when_idle(self, action: Callable[[], None]) -> None:
        """Run it now, or when the requests that are under way have ended."""
        if self._active:
            self._grace.append((self._ticket, action))
        else:
            action()

    def _end_grace(self) -> None:
        oldest = min(self._active) if self._active else self._ticket + 1
        while self._grace and self._grace[0][0] < oldest:
            with contextlib.suppress(OSError):  # nobody to tell; what could not be freed is a leak at most
                self._grace.pop(0)[1]()

    def _drop_references(self, clusters: Iterable[int], punch: bool) -> None:
        """Take references off; what has none left is free. `punch`: and its space goes back to the file."""
        freed = [cluster for cluster in clusters if self.refcounts.add(cluster, -1) == 0]
        if punch and freed:
            self._discard(sorted(freed))

    def _discard(self, clusters: list[int]) -> None:
        """Give runs of free clusters back to the file below. With the lock held: nobody may take them meanwhile."""
        bits, start = self.geometry.cluster_bits, 0
        for at in range(1, len(clusters) + 1):
            if at == len(clusters) or clusters[at] != clusters[at - 1] + 1:
                with contextlib.suppress(OSError):  # only a hint
                    self.file.discard(clusters[start] << bits, (at - start) << bits)
                start = at

    # L1 and L2

    def _load_l2(self, offset: int, data: Buffer) -> Table:
        return ExtendedTable.load(offset, data) if self.geometry.extended else Table(offset, decode(data))

    def l2_at(self, entry: int, index: int) -> Table | None:
        """The L2 table an L1 entry points to."""
        offset = entry & OFFSET_MASK
        if not offset:
            return None
        if offset % self.geometry.cluster_size:
            self.report(f"L2 table offset {offset:#x} unaligned (L1 index: {index:#x})")
            raise corrupt("an L2 table has a bad offset")
        return self.l2.get(offset)

    def l2_to_read(self, index: int) -> Table | None:
        return self.l2_at(self.l1.values[index], index) if index < len(self.l1.values) else None

    def l2_to_write(self, index: int) -> Table:
        """The L2 table of L1 entry `index`, ours alone: a new one, or a copy of one that is shared with a snapshot."""
        if index >= len(self.l1.values):
            self.grow_l1(min(index + 1 + index // 2, MAX_L1_BYTES // 8))  # each growth moves the whole table
        entry = self.l1.values[index]
        old = self.l2_at(entry, index)
        if old is not None and entry & COPIED:
            return old
        offset = self.allocate()
        table = old.copy_at(offset) if old is not None else self._load_l2(offset, bytes(self.geometry.cluster_size))
        self.l2.add(table)
        self.l2.mark(table, 0, len(table.values))
        self.set_l1(index, table.offset | COPIED)
        self.refcounts.forbidden.add(table.offset >> self.geometry.cluster_bits)
        if old is not None:
            self.release_l2(old.offset)
        return table

    def set_l1(self, index: int, entry: int) -> None:
        self.l1.values[index] = entry
        self.l1.mark(index, index + 1)

    def release_l2(self, offset: int) -> None:
        """One reference to an L2 table less; its entries are the caller's business."""
        cluster = offset >> self.geometry.cluster_bits
        if self.count(cluster) <= 1:
            self.l2.drop(offset)
            self.refcounts.forbidden.discard(cluster)
        self.release(cluster)

    def grow_l1(self, entries: int) -> None:
        if entries > MAX_L1_BYTES // 8:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        self.l1.values.extend(zeros(entries - len(self.l1.values)))
        self.move_l1()

    def move_l1(self) -> None:
        """Give the L1 table a new place, so that one write of the header replaces it as a whole."""
        old, length = self.l1.offset, self.header.l1_size * 8
        self.l1.offset = self.allocate_bytes(len(self.l1.values) * 8)
        if length:
            self.release_run(old, length)
        self.header.l1_size, self.header.l1_offset = len(self.l1.values), self.l1.offset
        self.l1.mark_all()
        self.l1_moved = self.header_changed = True

    # Writing

    def sync(self) -> None:
        """All that was written and changed before is on stable storage. OSError leaves it to be done by the next."""
        with self._sync_lock:
            with self.lock:
                batch = self._take()
            try:
                write_batch(self.file, batch, self._header_written)
            except BaseException:
                with self.lock:
                    self._put_back(batch)
                raise
            with self.lock:
                self._settle(batch)

    @property
    def dirty(self) -> bool:
        """Is there anything that a sync would have to write?"""
        tables = self.l2.dirty or self.refcounts.blocks.dirty or self.l1.dirty
        return bool(tables or self.header_changed or self.pending)

    def _header_written(self, data: bytes) -> None:
        self._disk_header = data

    def _take(self) -> Batch:
        """Everything dirty as bytes in the order it must reach the disk; memory may change at once."""
        batch = Batch()
        if self.l1_replaced and not self.l1_moved and (self.l1.high - 1) // 64 > self.l1.low // 64:
            self.move_l1()  # entries in more than one sector: replace them all at once
        bits = self.geometry.cluster_bits
        for table in self.l2.dirty.values():
            batch.add(table, new=table.offset >> bits in self.fresh)
        self.l2.dirty = {}
        if self.l1.dirty:
            batch.add(self.l1, new=self.l1_moved)
        refcounts = self.refcounts
        if refcounts.moved:
            self.header.reftable_offset, self.header.reftable_clusters = refcounts.table.offset, refcounts.clusters
            batch.add(refcounts.table, new=True)
            early = bytearray(self._disk_header)
            early[48:60] = self.header.encode()[48:60]
            batch.early_header = bytes(early)
            for cluster in refcounts.outgrown:
                refcounts.forbidden.discard(cluster)
                self.release(cluster)
            refcounts.outgrown = []
        elif refcounts.table.dirty:
            batch.reftable = self._reftable_sectors()
        if self.header_changed:
            batch.header = self.header.encode()
        for block in refcounts.blocks.dirty.values():
            batch.add(block, new=True)
        refcounts.blocks.dirty = {}
        batch.first += self.extra
        batch.extra, batch.frees, batch.actions = self.extra, self.pending, self.after_sync
        batch.flags = (self.l1_moved, self.l1_replaced, refcounts.moved)
        self.extra, self.pending, self.fresh, self.after_sync = [], {}, set(), []
        self.l1_moved = self.l1_replaced = refcounts.moved = self.header_changed = False
        return batch

    def _reftable_sectors(self) -> list[tuple[int, bytes]]:
        table = self.refcounts.table
        starts = range(table.low // 64 * 64, table.high, 64)
        parts = [(table.offset + start * 8, encode(table.values[start : start + 64])) for start in starts]
        table.low, table.high = len(table.values), 0
        return parts

    def _put_back(self, batch: Batch) -> None:
        """A sync failed: all of it is dirty again. Nothing counts as fresh any more, for parts may be on the disk."""
        for table in batch.tables:
            table.busy -= 1
            for cache in (self.l2, self.refcounts.blocks):
                if cache.cached(table.offset) is table:
                    cache.mark(table, 0, len(table.values))
        if any(table is self.l1 for table in batch.tables):
            self.l1.mark_all()
        if batch.reftable or batch.early_header:
            self.refcounts.table.mark_all()
        self.extra = batch.extra + self.extra
        self.after_sync = batch.actions + self.after_sync
        for cluster, count in batch.frees.items():
            self.pending[cluster] = self.pending.get(cluster, 0) + count
        moved, replaced, table_moved = batch.flags
        self.l1_moved, self.l1_replaced = self.l1_moved or moved, self.l1_replaced or replaced
        self.refcounts.moved = self.refcounts.moved or table_moved
        self.header_changed = self.header_changed or batch.header is not None

    def _settle(self, batch: Batch) -> None:
        for table in batch.tables:
            table.busy -= 1
        if batch.frees:
            self._when_idle(lambda: self._drop_references(_repeated(batch.frees), self.pass_discard))
        for action in batch.actions:
            self._when_idle(action)


class Request:
    __slots__ = ("_meta", "_ticket")

    def __init__(self, meta: Metadata) -> None:
        self._meta = meta

    def __enter__(self) -> None:
        self._ticket = self._meta.enter()

    def __exit__(self, *_: object) -> None:
        self._meta.leave(self._ticket)


def _repeated(frees: dict[int, int]) -> Iterator[int]:
    return (cluster for cluster, count in frees.items() for _ in range(count))
