"""The order in which metadata reaches the disk.

A `Batch` is everything that was dirty at one moment, as bytes. It is written in steps with a flush between them, so
that whatever part of a step survives a power cut, nothing on the disk refers to what is not there:

1. reference counts (they may only be too high meanwhile) and new tables that nothing refers to yet; the flush after
   this step also makes the guest's data stable to which the tables of step 3 will point;
2. the reference table: its own entries, a sector at a time since a later block may lie in a cluster that an earlier one
   counts, or the header's pointer to a new reference table;
3. L1 and L2 tables that the image already refers to;
4. the header: a new L1 table, the snapshot table.

After the last flush what nothing refers to any more may be freed.
"""

from __future__ import annotations

from collections.abc import Callable

from qemupy.backends.block.qcow2.tables import ByteFile, Table
from qemupy.records import field, record

Part = tuple[int, bytes]


@record()
class Batch:
    first: list[Part] = field(factory=list)
    reftable: list[Part] = field(factory=list)
    early_header: bytes | None = None
    linked: list[Part] = field(factory=list)
    header: bytes | None = None
    tables: list[Table] = field(factory=list)
    extra: list[Part] = field(factory=list)
    frees: dict[int, int] = field(factory=dict)
    actions: list[Callable[[], None]] = field(factory=list)
    flags: tuple[bool, bool, bool] = (False, False, False)

    def add(self, table: Table, new: bool) -> None:
        """The dirty part of a table, which stays in memory until the batch is done."""
        (self.first if new else self.linked).append(table.take())
        table.busy += 1
        self.tables.append(table)


def _write_parts(file: ByteFile, parts: list[Part]) -> None:
    """Neighbouring parts go out in one call."""
    parts = sorted(parts)
    at = 0
    while at < len(parts):
        offset, buffers = parts[at][0], [memoryview(parts[at][1])]
        end = offset + len(buffers[0])
        at += 1
        while at < len(parts) and parts[at][0] == end:
            buffers.append(memoryview(parts[at][1]))
            end += len(parts[at][1])
            at += 1
        file.writev(offset, buffers)


def write_batch(file: ByteFile, batch: Batch, header_written: Callable[[bytes], None]) -> None:
    """Write a batch durably; `header_written` is told what the header on disk is now."""
    _write_parts(file, batch.first)
    if batch.reftable or batch.early_header or batch.linked or batch.header:
        file.flush()
    for part in batch.reftable:
        _write_parts(file, [part])
        file.flush()
    if batch.early_header is not None:
        file.write(0, batch.early_header)
        header_written(batch.early_header)
        file.flush()
    if batch.linked:
        _write_parts(file, batch.linked)
        if batch.header is not None:
            file.flush()
    if batch.header is not None:
        file.write(0, batch.header)
        header_written(batch.header)
    file.flush()
