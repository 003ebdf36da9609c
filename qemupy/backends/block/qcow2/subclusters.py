"""L2 tables with extended entries: 16 bytes, of which the second 8 say of 32 subclusters whether they are allocated
(low half) or zeros (high half). Source: qcow2.txt, "Extended L2 Entries".

In memory such a table looks like any other where all subclusters of a cluster are alike, which is all that we write; an
entry whose subclusters differ has the flag PARTIAL and its bitmap in `partial`.
"""

from __future__ import annotations

import array

from qemupy.backends.block.qcow2.tables import SPAN, Buffer, Table, decode, encode

COPIED = 1 << 63  # the cluster has exactly one reference, so it may be written in place
COMPRESSED = 1 << 62
ZERO = 1 << 0
OFFSET_MASK = 0x00FFFFFFFFFFFE00
PARTIAL = 1 << 1  # in memory only, in tables that have `partial`
_ALL_ALLOCATED, _ALL_ZERO = (1 << 32) - 1, (1 << 64) - (1 << 32)


class ExtendedTable(Table):
    __slots__ = ("partial",)
    partial: dict[int, int]

    def __init__(self, offset: int, values: array.array[int], partial: dict[int, int] | None = None) -> None:
        super().__init__(offset, values)
        self.partial = partial if partial is not None else {}

    @classmethod
    def load(cls, offset: int, data: Buffer) -> ExtendedTable:
        words = decode(data)
        values, bitmaps, partial = words[0::2], words[1::2], {}
        for index, (entry, bitmap) in enumerate(zip(values, bitmaps, strict=True)):
            if entry & COMPRESSED:
                continue
            entry &= COPIED | OFFSET_MASK
            if bitmap == _ALL_ZERO:
                entry |= ZERO
            elif bitmap != (_ALL_ALLOCATED if entry & OFFSET_MASK else 0):
                entry |= PARTIAL
                partial[index] = bitmap
            values[index] = entry
        return cls(offset, values, partial)

    def copy_at(self, offset: int) -> ExtendedTable:
        return ExtendedTable(offset, self.values[:], dict(self.partial))

    def take(self) -> tuple[int, bytes]:
        low, high = self._take_range(SPAN // 16)
        words = array.array("Q", bytes((high - low) * 16))
        for index in range(low, high):
            words[(index - low) * 2], words[(index - low) * 2 + 1] = self._stored(index)
        return self.offset + low * 16, encode(words)

    def _stored(self, index: int) -> tuple[int, int]:
        entry = self.values[index]
        if entry & COMPRESSED:
            return entry, 0
        if entry & PARTIAL:
            return entry & ~PARTIAL, self.partial[index]
        if entry & ZERO:
            return entry & ~ZERO, _ALL_ZERO
        return entry, _ALL_ALLOCATED if entry & OFFSET_MASK else 0
