"""Counting anew what refers to each cluster, to repair an image whose reference counts were left behind.

A program that uses lazy reference counts sets the dirty bit and updates them when it closes the image; if it died
before, they are rebuilt at the next opening for writing, as QEMU does (qcow2.txt, "Lazy refcounts").
"""

from __future__ import annotations

from collections import Counter

from qemupy.backends.block.qcow2.bitmaps import host_ranges
from qemupy.backends.block.qcow2.mapping import Mapping
from qemupy.backends.block.qcow2.metadata import Metadata
from qemupy.backends.block.qcow2.snapshots import Snapshots
from qemupy.backends.block.qcow2.subclusters import COMPRESSED, COPIED, OFFSET_MASK
from qemupy.backends.block.qcow2.tables import Table


def repair(meta: Metadata, mapping: Mapping, snapshots: Snapshots) -> None:
    """Make reference counts and COPIED flags right, in memory; the caller syncs. Nobody else uses the image yet."""
    references = count_references(meta, mapping, snapshots)
    refcounts = meta.refcounts
    refcounts.cursor = max(references, default=0) + 1
    for index in range(len(refcounts.table.values)):
        refcounts.set_block(index, references)
    blocks = {cluster // refcounts.per_block for cluster in references}
    for index in sorted(index for index in blocks if not refcounts.has_block(index)):
        refcounts.make_block(index)
        refcounts.set_block(index, references, new=True)
    refcounts.cursor = 0
    for index, entry in enumerate(meta.l1.values):
        table = meta.l2_at(entry, index)
        if table is not None:
            offset = entry & OFFSET_MASK
            once = references[offset >> meta.geometry.cluster_bits] == 1
            meta.set_l1(index, offset | (COPIED if once else 0))
            _flag(meta, table, references)


def _flag(meta: Metadata, table: Table, references: Counter[int]) -> None:
    """Set COPIED in an L2 table where there is one reference, clear it elsewhere."""
    for at, entry in enumerate(table.values):
        if entry & COMPRESSED or not entry & OFFSET_MASK:
            continue
        once = references[(entry & OFFSET_MASK) >> meta.geometry.cluster_bits] == 1
        right = entry & ~COPIED | (COPIED if once else 0)
        if right != entry:
            table.values[at] = right
            meta.l2.mark(table, at, at + 1)


def count_references(meta: Metadata, mapping: Mapping, snapshots: Snapshots) -> Counter[int]:
    """How often each host cluster is referred to. Clusters are counted by what is in memory."""
    header, geometry = meta.header, meta.geometry
    references: Counter[int] = Counter([0])

    def use(offset: int, length: int) -> None:
        references.update(range(offset >> geometry.cluster_bits, geometry.clusters(offset + length)))

    use(header.l1_offset, header.l1_size * 8)
    use(header.reftable_offset, header.reftable_clusters << geometry.cluster_bits)
    for entry in meta.refcounts.table.values:
        if entry:
            use(entry & OFFSET_MASK, geometry.cluster_size)
    use(header.snapshots_offset, snapshots.table_length)
    for offset, length in host_ranges(meta):
        use(offset, length)
    tables = Counter(entry & OFFSET_MASK for entry in meta.l1.values)
    for snapshot in snapshots.list:
        use(snapshot.l1_offset, snapshot.l1_size * 8)
        tables.update(snapshots.l1_of(snapshot))
    del tables[0]
    for offset, times in tables.items():
        references[offset >> geometry.cluster_bits] += times
        table = meta.l2_at(offset, 0)
        if table is not None:
            for entry in table.values:
                for cluster in mapping.host_clusters(entry) if entry else ():
                    references[cluster] += times
    return references
