"""Persistent dirty bitmaps, which other programs (incremental backup) keep in the image: they stay true while we write.

A bitmap with the `auto` flag records writes. As in QEMU it is marked `in_use` in the image before the first write, what
is written is noted in memory, and closing the image adds that to the stored bits and takes the mark off; after a crash
the mark tells others not to trust the bitmap. Bitmaps without `auto` are left alone. Source: qcow2.txt, "Bitmaps
extension", "Bitmap directory", "Bitmap table". The chunks of a bitmap are what one bitmap table entry stands for.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from qemupy.backends.block.qcow2.header import AUTOCLEAR_BITMAPS, EXTENSION_BITMAPS
from qemupy.backends.block.qcow2.metadata import Metadata
from qemupy.backends.block.qcow2.subclusters import OFFSET_MASK
from qemupy.backends.block.qcow2.tables import corrupt, decode, encode, read_bytes
from qemupy.errors import BackendError
from qemupy.records import field, record

_ENTRY = ">QIIBBHI"
_ENTRY_LENGTH = struct.calcsize(_ENTRY)
_IN_USE, _AUTO = 1 << 0, 1 << 1
_TYPE_DIRTY = 1
_MAX_BITMAPS, _MAX_DIRECTORY = 65535, 64 << 20
_MAX_NOTED = 64  # chunks of one write; more of them count as the whole disk
_ALL_ONES = 1 << 0


@record()
class Bitmap:
    name: str
    table_offset: int
    table_size: int
    flags: int
    kind: int
    granularity_bits: int
    flags_offset: int  # where the flags lie in the image
    chunks: dict[int, bytearray] = field(factory=dict)  # bits to be added
    everything: bool = False  # all bits are to be added


def read_directory(meta: Metadata) -> list[Bitmap]:
    """The bitmaps of the image; none if it has no valid extension. BackendError in QEMU's words if it is malformed."""
    data = meta.header.extension(EXTENSION_BITMAPS)
    if data is None or not meta.header.autoclear & AUTOCLEAR_BITMAPS:
        return []
    if len(data) != 24:
        raise BackendError("bitmaps_ext: Invalid extension length")
    count, _reserved, size, offset = struct.unpack(">IIQQ", data)
    if not 0 < count <= _MAX_BITMAPS or not 0 < size <= _MAX_DIRECTORY:
        raise BackendError("bitmaps_ext: invalid number of bitmaps or directory size")
    if offset % meta.geometry.cluster_size or not 0 < offset < 1 << 56:
        raise BackendError("bitmaps_ext: invalid bitmap directory offset")
    directory, at, found = bytes(read_bytes(meta.file, offset, size)), 0, []
    for _ in range(count):
        if at + _ENTRY_LENGTH > size:
            raise BackendError("Broken bitmap directory")
        table, entries, flags, kind, granularity, name_length, extra = struct.unpack_from(_ENTRY, directory, at)
        name_at = at + _ENTRY_LENGTH + extra
        if name_at + name_length > size or entries * 8 > meta.file.length or not 9 <= granularity <= 31 \
                or table % meta.geometry.cluster_size or table >= 1 << 56:  # fmt: skip
            raise BackendError("Broken bitmap directory")
        name = directory[name_at : name_at + name_length].decode(errors="replace")
        found.append(Bitmap(name, table, entries, flags, kind, granularity, offset + at + 12))
        at = -(-(name_at + name_length) // 8) * 8
    return found


def host_ranges(meta: Metadata) -> Iterator[tuple[int, int]]:
    """(offset, length) of all that bitmaps occupy, for counting references."""
    bitmaps = read_directory(meta)
    if bitmaps:
        _count, _, size, offset = struct.unpack(">IIQQ", meta.header.extension(EXTENSION_BITMAPS) or b"")
        yield offset, size
    for bitmap in bitmaps:
        yield bitmap.table_offset, bitmap.table_size * 8
        for entry in decode(read_bytes(meta.file, bitmap.table_offset, bitmap.table_size * 8)):
            if entry & OFFSET_MASK:
                yield entry & OFFSET_MASK, meta.geometry.cluster_size


class Bitmaps:
    """Of an image that is open for writing."""

    def __init__(self, meta: Metadata) -> None:
        self._meta = meta
        self._size = meta.geometry.cluster_size
        self._tracking = [b for b in read_directory(meta)
                          if b.flags & _AUTO and not b.flags & _IN_USE and b.kind == _TYPE_DIRTY]  # fmt: skip
        self._marked = False

    def written(self, offset: int, length: int) -> None:
        """Guest bytes are about to change. With the metadata lock taken here."""
        if not self._tracking or not length:
            return
        with self._meta.lock:
            if not self._marked:
                self._set_flags(_IN_USE)
                self._marked = True
            for bitmap in self._tracking:
                self._note(bitmap, offset >> bitmap.granularity_bits, offset + length - 1 >> bitmap.granularity_bits)

    def _note(self, bitmap: Bitmap, first: int, last: int) -> None:
        per_chunk = self._size * 8
        if last // per_chunk - first // per_chunk >= _MAX_NOTED:
            bitmap.everything = True
        if bitmap.everything:
            return
        while first <= last:
            index, bit = divmod(first, per_chunk)
            stop = min(last, (index + 1) * per_chunk - 1)
            chunk = bitmap.chunks.setdefault(index, bytearray(self._size))
            low, high = bit, stop % per_chunk
            while low <= high and low % 8:
                chunk[low >> 3] |= 1 << (low & 7)
                low += 1
            whole = max((high + 1 - low) // 8, 0)
            chunk[low >> 3 : (low >> 3) + whole] = b"\xff" * whole
            for late in range(low + whole * 8, high + 1):
                chunk[late >> 3] |= 1 << (late & 7)
            first = stop + 1

    def _set_flags(self, extra: int) -> None:
        for bitmap in self._tracking:
            self._meta.file.write(bitmap.flags_offset, struct.pack(">I", bitmap.flags | extra))
        self._meta.file.flush()

    def store(self) -> None:
        """Closing: add what was noted to the image and declare the bitmaps true again. The image has been synced."""
        if not self._marked:
            return
        with self._meta.exclusive():
            tables = [(bitmap.table_offset, self._store(bitmap)) for bitmap in self._tracking]
            self._meta.sync()  # counts the new chunks before the tables refer to them
            for offset, table in tables:
                self._meta.file.write(offset, table)
            self._meta.file.flush()
            self._set_flags(0)
            self._marked = False

    def _store(self, bitmap: Bitmap) -> bytes:
        """Write the chunks that have changed; the bitmap's new table."""
        meta = self._meta
        entries = decode(read_bytes(meta.file, bitmap.table_offset, bitmap.table_size * 8))
        for index in range(len(entries)) if bitmap.everything else sorted(bitmap.chunks):
            if index >= len(entries):
                break  # the bitmap does not cover the whole disk
            chunk = bytearray(b"\xff" * self._size) if bitmap.everything else bitmap.chunks[index]
            offset = entries[index] & OFFSET_MASK
            if offset:
                if offset % self._size or offset // self._size in meta.refcounts.forbidden:
                    raise corrupt(f"bitmap '{bitmap.name}' lies in metadata")
                stored = int.from_bytes(read_bytes(meta.file, offset, self._size), "little")
                chunk = bytearray((stored | int.from_bytes(chunk, "little")).to_bytes(self._size, "little"))
            elif bitmap.everything or entries[index] & _ALL_ONES:
                entries[index] = _ALL_ONES
                continue
            else:
                offset = entries[index] = meta.allocate()
            meta.file.write(offset, chunk)
        bitmap.chunks, bitmap.everything = {}, False
        return encode(entries)
