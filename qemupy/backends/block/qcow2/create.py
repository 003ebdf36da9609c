"""Making qcow2 images."""

from __future__ import annotations

import struct
from typing import Protocol

from qemupy.backends.block.qcow2 import header as fmt
from qemupy.backends.block.qcow2.image import Qcow2Image
from qemupy.backends.block.qcow2.tables import ByteFile, encode, zeros
from qemupy.errors import BackendError


class GrowingFile(ByteFile, Protocol):
    def truncate(self, length: int) -> None: ...


def create(file: GrowingFile, size: int, *, cluster_size: int = 65536, version: int = 3, refcount_bits: int = 16,
           backing_file: str = "", backing_format: str = "", lazy_refcounts: bool = False,
           compression: str = "zlib", extended_l2: bool = False) -> None:  # fmt: skip
    """Write an empty image with a disk of `size` bytes into `file`, whose content is lost. Durable when it returns.

    BackendError for what the format cannot do, in qemu-img's words where it has them."""
    bits, order = cluster_size.bit_length() - 1, refcount_bits.bit_length() - 1
    if cluster_size != 1 << max(bits, 0) or not fmt.MIN_CLUSTER_BITS <= bits <= fmt.MAX_CLUSTER_BITS:
        raise BackendError("Cluster size must be a power of two between 512 and 2048k")
    if refcount_bits != 1 << max(order, 0) or order > 6:
        raise BackendError("Refcount width must be a power of two and may not exceed 64 bits")
    if version not in (2, 3):
        raise BackendError(f"Unsupported qcow2 version {version}")
    if version == 2 and (order != 4 or lazy_refcounts or compression != "zlib" or extended_l2):
        raise BackendError("Different refcount widths than 16 bits, lazy refcounts, other compression types than zlib "
                           "and extended L2 entries require compatibility level 1.1 or above (use version=3 or "
                           "greater)")  # fmt: skip
    if extended_l2 and cluster_size < 16384:
        raise BackendError("Extended L2 entries are only supported with cluster sizes of at least 16384 bytes")
    if len(backing_file.encode(errors="surrogateescape")) > fmt.MAX_BACKING_NAME:
        raise BackendError("Backing file name too long")
    if compression not in fmt.COMPRESSIONS.values():
        raise BackendError(f"qcow2: unknown compression type: {compression}")
    header = fmt.Header(version, bits, 0, reftable_offset=cluster_size, reftable_clusters=1, refcount_order=order,
                        backing_file=backing_file, l1_offset=3 * cluster_size)  # fmt: skip
    if compression == "zstd":
        header.compression, header.incompatible = fmt.COMPRESSION_ZSTD, fmt.INCOMPATIBLE_COMPRESSION
    header.incompatible |= fmt.INCOMPATIBLE_EXTENDED_L2 if extended_l2 else 0
    header.compatible = fmt.COMPATIBLE_LAZY_REFCOUNTS if lazy_refcounts else 0
    if version >= 3 and cluster_size >= 4096:
        header.extensions.append((fmt.EXTENSION_FEATURES, fmt.feature_table()))
    if backing_format:
        header.set_extension(fmt.EXTENSION_BACKING_FORMAT, backing_format.encode())
    _write_empty(file, header)
    image = Qcow2Image(file, "", readonly=False)
    image.truncate(-(-size // 512) * 512)
    image.close()


def _write_empty(file: GrowingFile, header: fmt.Header) -> None:
    """An image with a disk of no bytes: header, reference table, one reference block, room for an L1 table."""
    geometry = header.geometry
    size = geometry.cluster_size
    counts = zeros(geometry.refcounts_per_block, geometry.refcount_order)
    for cluster in range(3):
        counts[cluster] = 1
    file.truncate(0)
    file.write(2 * size, encode(counts, geometry.refcount_order))
    file.write(size, struct.pack(">Q", 2 * size).ljust(size, b"\0"))
    file.write(0, header.encode().ljust(size, b"\0"))
    file.flush()
