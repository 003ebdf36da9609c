"""`Qcow2Disk`: the disk in a qcow2 image: reading, writing, discarding, resizing.

Calls are synchronous, made on worker threads, several at once; errors are OSError. The lock of the metadata is not held
while data are read or written. What was written is stable after `flush`; before that, a crash loses some or all of it,
as on a real disk with a write cache, but the image stays sound (transaction.py).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from qemupy.backends.block.qcow2 import header as fmt
from qemupy.backends.block.qcow2.bitmaps import Bitmaps
from qemupy.backends.block.qcow2.check import repair
from qemupy.backends.block.qcow2.compress import Codec
from qemupy.backends.block.qcow2.mapping import Kind, Mapping, Plan, Run, ZeroRule
from qemupy.backends.block.qcow2.metadata import L2_CACHE, REFCOUNT_CACHE, Metadata
from qemupy.backends.block.qcow2.snapshots import Snapshots
from qemupy.backends.block.qcow2.tables import Buffer, ByteFile, read_bytes
from qemupy.errors import BackendError
from qemupy.scatter import cut, total

_ZEROS = bytes(1 << 16)
_SYNC_PENDING = 1 << 16  # clusters waiting to be freed before a sync is made for their sake
_CACHED_CLUSTERS = 4 << 20  # bytes of decompressed clusters kept


class Backing(Protocol):
    """The image below: what a cluster that is not allocated reads as."""

    @property
    def length(self) -> int: ...

    def readv(self, offset: int, buffers: Sequence[memoryview]) -> None: ...


class Qcow2Disk:
    format = "qcow2"

    def __init__(self, file: ByteFile, filename: str, readonly: bool, discard: bool = False,
                 caches: tuple[int, int] = (L2_CACHE, REFCOUNT_CACHE)) -> None:  # fmt: skip
        """Open the image in `file`; the caller gives it its backing image by `set_backing`. BackendError if it is none
        or not one that we can open. `caches`: bytes of L2 tables and refcount blocks to hold in memory."""
        self.file, self.filename, self.readonly = file, filename, readonly
        self._discard = discard
        try:
            head = bytes(read_bytes(file, 0, min(file.length, 1 << fmt.MAX_CLUSTER_BITS)))
            self.header = fmt.decode(head, not readonly)
            self.meta = Metadata(file, self.header, readonly, caches)
            self._codec = Codec(self.header.compression, self.meta.geometry.cluster_size)
            self.mapping = Mapping(self.meta)
            self._snapshots = Snapshots(self.meta, self.mapping)
            self._bitmaps = Bitmaps(self.meta)
            if not readonly:
                self._begin_writing()
        except OSError as e:
            raise BackendError(f"Could not open '{filename}': {e.strerror}") from None
        self.meta.pass_discard = discard
        self._backing: Backing | None = None
        self.on_resize: Callable[[int], None] = lambda length: None
        self._clusters: dict[int, bytes] = {}  # decompressed, by L2 entry

    def _begin_writing(self) -> None:
        """Clear the autoclear bits we do not keep true; repair what a program that died with lazy counts left."""
        if self.header.incompatible & fmt.INCOMPATIBLE_DIRTY:
            repair(self.meta, self.mapping, self._snapshots)
            self.header.incompatible &= ~fmt.INCOMPATIBLE_DIRTY
            self.meta.header_changed = True
        if self.header.autoclear & ~fmt.AUTOCLEAR_BITMAPS:
            self.header.autoclear &= fmt.AUTOCLEAR_BITMAPS
            self.meta.header_changed = True
        if self.meta.header_changed:
            self.meta.sync()

    def set_backing(self, backing: Backing | None) -> None:
        self._backing = backing

    @property
    def length(self) -> int:
        """The virtual size in bytes."""
        return self.header.size

    @property
    def cluster_size(self) -> int:
        return self.meta.geometry.cluster_size

    @property
    def backing_file(self) -> str:
        return self.header.backing_file

    @property
    def backing_format(self) -> str:
        return self.header.backing_format

    # Reading

    def read(self, offset: int, data: memoryview) -> None:
        self.readv(offset, [data])

    def readv(self, offset: int, buffers: Sequence[memoryview]) -> None:
        with self.meta.request():
            self._read_runs(self.mapping.lookup(offset, total(buffers)), offset, buffers)

    def read_cached(self, offset: int, buffers: Sequence[memoryview]) -> bool:
        """Fill the buffers if they lie in one piece of the file below, and that has it in memory."""
        meta = self.meta
        cached = getattr(self.file, "read_cached", None)
        if cached is None or not meta.lock.acquire(blocking=False):
            return False
        try:
            index = offset >> meta.geometry.l1_shift
            entry = meta.l1.values[index] if index < len(meta.l1.values) else 0
            if not entry or meta.l2.cached(entry & ~(1 << 63)) is None:
                return False
            runs = self.mapping.lookup(offset, total(buffers))
            return len(runs) == 1 and runs[0].kind is Kind.NORMAL and bool(cached(runs[0].host, buffers))
        except OSError:
            return False
        finally:
            meta.lock.release()

    def _read_runs(self, runs: Iterable[Run], offset: int, buffers: Sequence[memoryview], backed: bool = True) -> None:
        done = 0
        for run in runs:
            piece = cut(buffers, done, run.length)
            if run.kind is Kind.NORMAL:
                self.file.readv(run.host, piece)
            elif run.kind is Kind.COMPRESSED:
                skip = (offset + done) & (self.meta.geometry.cluster_size - 1)
                _scatter(piece, self._decompressed(run.host), skip)
            elif run.kind is Kind.ZERO or not backed:
                _fill_zeros(piece)
            else:
                self._read_backing(offset + done, run.length, piece)
            done += run.length

    def _read_backing(self, offset: int, length: int, buffers: Sequence[memoryview]) -> None:
        end = min(self._backing.length, self.length) if self._backing is not None else 0
        inside = max(min(end - offset, length), 0)
        if inside and self._backing is not None:
            self._backing.readv(offset, cut(buffers, 0, inside))
        if inside < length:
            _fill_zeros(cut(buffers, inside, length - inside))

    def _decompressed(self, entry: int) -> bytes:
        cluster = self._clusters.get(entry)
        if cluster is None:
            offset, length = self.mapping.compressed_place(entry)
            cluster = self._codec.decompress(read_bytes(self.file, offset, length))
            with self.meta.lock:
                if len(self._clusters) * len(cluster) >= _CACHED_CLUSTERS:
                    self._clusters.clear()
                self._clusters[entry] = cluster
        return cluster

    # Writing

    def write(self, offset: int, data: Buffer) -> None:
        self.writev(offset, [memoryview(data)])

    def writev(self, offset: int, buffers: Sequence[memoryview]) -> None:
        self._must_be_writable()
        length, done = total(buffers), 0
        self._bitmaps.written(offset, length)
        with self.meta.request():
            while done < length:
                plan = self.mapping.plan(offset + done, length - done)
                piece = cut(buffers, done, plan.length)
                if plan.new:
                    self._write_new(plan, piece)
                else:
                    self.file.writev(plan.host, piece)
                done += plan.length
            self._sync_if_crowded()

    def _must_be_writable(self) -> None:
        if self.readonly:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def _sync_if_crowded(self) -> None:
        meta = self.meta
        if meta.l2.crowded or meta.refcounts.blocks.crowded or len(meta.pending) > _SYNC_PENDING:
            meta.sync()

    def _write_new(self, plan: Plan, data: Sequence[memoryview]) -> None:
        """Write the data with what else their clusters hold, then link the clusters."""
        size = self.meta.geometry.cluster_size
        head = plan.offset & (size - 1)
        tail = -(plan.offset + plan.length) & (size - 1)
        try:
            before = self._around(plan, plan.offset - head, head)
            after = self._around(plan, plan.offset + plan.length, tail)
            whole = [*before, *data, *after] if before or after else data
            self.file.writev(plan.host - total(before), whole)
            self.mapping.link(plan)
        except BaseException:
            self.mapping.cancel(plan)
            raise

    def _around(self, plan: Plan, offset: int, length: int) -> list[memoryview]:
        """What a partly written cluster holds beside the new data; nothing if that is zeros and so is the file."""
        if not length:
            return []
        runs = self.mapping.lookup(offset, length)
        if plan.blank and all(self._is_zero(run) for run in runs):
            return []
        data = memoryview(bytearray(length))
        self._read_runs(runs, offset, [data])
        return [data]

    def _is_zero(self, run: Run) -> bool:
        return run.kind is Kind.ZERO or (run.kind is Kind.UNALLOCATED and self._backing is None)

    def flush(self) -> None:
        if self.readonly:
            return
        with self.meta.request():
            self.meta.sync()

    # Zeros and space

    def discard(self, offset: int, length: int) -> None:
        """Whole clusters in the range read as zeros from now on and their space is free; a hint otherwise."""
        self._must_be_writable()
        if not self._discard or (self.header.version < 3 and self._backing is not None):
            return
        start, end = self._inner(offset, length)
        if start < end:
            self._bitmaps.written(start, end - start)
            with self.meta.request():
                self.mapping.clear(start, end - start, self._rule())
                self._sync_if_crowded()

    def write_zeroes(self, offset: int, length: int, unmap: bool = False) -> None:
        """The range reads as zeros; its clusters stay allocated unless `unmap`."""
        self._must_be_writable()
        start, end = self._inner(offset, length)
        if start >= end or (self.header.version < 3 and (self._backing is not None or not unmap)):
            self._write_zeros(offset, length)
            return
        self._write_zeros(offset, start - offset)
        self._bitmaps.written(start, end - start)
        with self.meta.request():
            self.mapping.clear(start, end - start, self._rule(keep=not unmap))
            self._sync_if_crowded()
        self._write_zeros(end, offset + length - end)

    def _write_zeros(self, offset: int, length: int) -> None:
        while length > 0:
            piece = min(length, len(_ZEROS))
            self.write(offset, _ZEROS[:piece])
            offset += piece
            length -= piece

    def _rule(self, keep: bool = False, full: bool = False) -> ZeroRule:
        return ZeroRule(self.mapping.zero_flag, self._backing is not None, keep, full)

    def _inner(self, offset: int, length: int) -> tuple[int, int]:
        """The whole clusters of a range; the last cluster of the image is whole at the image's end."""
        size, end = self.meta.geometry.cluster_size, offset + length
        if end >= self.length:
            end = -(-end // size) * size
        return -(-offset // size) * size, end // size * size

    def truncate(self, length: int) -> None:
        """Change the virtual size, durably."""
        self._must_be_writable()
        if length % 512:
            raise OSError(errno.EINVAL, "The new size must be a multiple of 512")
        if self._snapshots.list and self.header.version < 3:
            raise OSError(errno.ENOTSUP, "Can't resize a v2 image which has snapshots")
        if self.header.extension(fmt.EXTENSION_BITMAPS) is not None:
            raise OSError(errno.ENOTSUP, "Can't resize an image which has persistent bitmaps")
        if length < self.length:
            with self.meta.request():
                size = self.meta.geometry.cluster_size
                start, end = -(-length // size) * size, -(-self.length // size) * size
                self.mapping.clear(start, end - start, self._rule(full=True))
        with self.meta.exclusive():
            self._snapshots.drop_vm_state()
            entries = self.meta.geometry.l1_entries(length)
            if entries > len(self.meta.l1.values):
                self.meta.grow_l1(entries)
            self.header.size = length
            self.meta.header_changed = True
            self.meta.sync()
        self.on_resize(length)

    def make_empty(self) -> None:
        """Give up all data of the disk, so that it reads as its backing image. Durable when it returns."""
        self._must_be_writable()
        size = self.meta.geometry.cluster_size
        self._bitmaps.written(0, self.length)
        with self.meta.request():
            self.mapping.clear(0, -(-self.length // size) * size, self._rule(full=True))
            self.meta.sync()

    def runs(self, offset: int, length: int) -> list[Run]:
        """Of what kind the parts of a range are, and where they lie in the file below."""
        with self.meta.request():
            return self.mapping.lookup(offset, length)

    def close(self) -> None:
        """Write what is dirty and let go. The file below is the caller's. OSError if it could not be written."""
        if not self.readonly and not self.meta.broken:
            self.flush()
            while self.meta.dirty:  # the frees of a sync are written by the next
                self.flush()
            self._bitmaps.store()


def _fill_zeros(buffers: Sequence[memoryview]) -> None:
    for buffer in buffers:
        for at in range(0, len(buffer), len(_ZEROS)):
            part = buffer[at : at + len(_ZEROS)]
            part[:] = _ZEROS[: len(part)]


def _scatter(buffers: Sequence[memoryview], data: bytes, start: int) -> None:
    for buffer in buffers:
        buffer[:] = data[start : start + len(buffer)]
        start += len(buffer)
