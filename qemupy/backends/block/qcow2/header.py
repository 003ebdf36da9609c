"""The header of a qcow2 image: its fields, the checks a hostile image must pass, its extensions, and geometry.

Source: QEMU's docs/interop/qcow2.txt, sections "Header", "Header extensions", "Feature name table". All numbers of the
format are big-endian. Error texts are QEMU's where it has one.
"""

from __future__ import annotations

import struct

from qemupy.errors import BackendError
from qemupy.records import field, record

MAGIC = b"QFI\xfb"
MIN_CLUSTER_BITS, MAX_CLUSTER_BITS = 9, 21
MAX_L1_BYTES = 32 << 20
MAX_REFTABLE_BYTES = 8 << 20
MAX_SNAPSHOTS = 65536
MAX_BACKING_NAME = 1023

V2_FORMAT, V3_FORMAT = ">4sIQIIQIIQQIIQ", ">QQQIIB7x"
V2_LENGTH, V3_LENGTH, OWN_LENGTH = 72, 104, 112  # OWN_LENGTH: with the compression type, padded

INCOMPATIBLE_DIRTY, INCOMPATIBLE_CORRUPT, INCOMPATIBLE_DATA_FILE = 1 << 0, 1 << 1, 1 << 2
INCOMPATIBLE_COMPRESSION, INCOMPATIBLE_EXTENDED_L2 = 1 << 3, 1 << 4
KNOWN_INCOMPATIBLE = (1 << 5) - 1
SUBCLUSTERS = 32  # of a cluster, with extended L2 entries
COMPATIBLE_LAZY_REFCOUNTS = 1 << 0
AUTOCLEAR_BITMAPS = 1 << 0
COMPRESSION_ZLIB, COMPRESSION_ZSTD = 0, 1
COMPRESSIONS = {COMPRESSION_ZLIB: "zlib", COMPRESSION_ZSTD: "zstd"}

EXTENSION_END, EXTENSION_BACKING_FORMAT, EXTENSION_FEATURES = 0, 0xE2792ACA, 0x6803F857
EXTENSION_BITMAPS, EXTENSION_CRYPTO, EXTENSION_DATA_FILE = 0x23852875, 0x0537BE77, 0x44415441

# (kind: 0 incompatible, 1 compatible, 2 autoclear; bit; name), the table that goes into images we create
FEATURE_NAMES = (
    (0, 0, "dirty bit"), (0, 1, "corrupt bit"), (0, 2, "external data file"), (0, 3, "compression type"),
    (0, 4, "extended L2 entries"), (1, 0, "lazy refcounts"), (2, 0, "bitmaps"), (2, 1, "raw external data"),
)  # fmt: skip


class Geometry:
    """What follows from the cluster size. Offsets and sizes are bytes, indices count entries. `extended`: L2 entries
    have 16 bytes and say of each of 32 subclusters what it is."""

    __slots__ = (
        "cluster_bits", "cluster_size", "extended", "l1_shift", "l2_bits", "refcount_order", "refcounts_per_block",
    )  # fmt: skip

    def __init__(self, cluster_bits: int, refcount_order: int, extended: bool) -> None:
        self.cluster_bits, self.refcount_order, self.extended = cluster_bits, refcount_order, extended
        self.cluster_size = 1 << cluster_bits
        self.l2_bits = cluster_bits - (4 if extended else 3)  # log2 of the entries of one L2 table
        self.l1_shift = cluster_bits + self.l2_bits  # log2 of the guest bytes one L1 entry stands for
        self.refcounts_per_block = 1 << (cluster_bits + 3 - refcount_order)

    def clusters(self, length: int) -> int:
        """Clusters that `length` bytes occupy."""
        return -(-length >> self.cluster_bits)

    def l1_entries(self, size: int) -> int:
        return -(-size >> self.l1_shift)


@record()
class Header:
    """The fields as they are on disk; `extensions` keeps those we do not know so that they survive a rewrite."""

    version: int
    cluster_bits: int
    size: int
    l1_size: int = 0
    l1_offset: int = 0
    reftable_offset: int = 0
    reftable_clusters: int = 0
    snapshots: int = 0
    snapshots_offset: int = 0
    crypt_method: int = 0
    incompatible: int = 0
    compatible: int = 0
    autoclear: int = 0
    refcount_order: int = 4
    compression: int = COMPRESSION_ZLIB
    backing_file: str = ""
    extensions: list[tuple[int, bytes]] = field(factory=list)
    tail: bytes = b""  # header fields beyond those we know, kept as found

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.cluster_bits, self.refcount_order, bool(self.incompatible & INCOMPATIBLE_EXTENDED_L2))

    def extension(self, kind: int) -> bytes | None:
        return next((data for number, data in self.extensions if number == kind), None)

    def set_extension(self, kind: int, data: bytes | None) -> None:
        """Replace an extension, or remove it with None."""
        self.extensions = [(number, old) for number, old in self.extensions if number != kind]
        if data is not None:
            self.extensions.insert(0, (kind, data))

    @property
    def backing_format(self) -> str:
        return (self.extension(EXTENSION_BACKING_FORMAT) or b"").decode(errors="replace")

    def encode(self) -> bytes:
        """The header with its extensions and the backing file's name; BackendError if one cluster cannot hold them."""
        length = OWN_LENGTH + len(self.tail) if self.version >= 3 else V2_LENGTH
        body = bytearray()
        for kind, data in self.extensions:
            body += struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8)
        body += struct.pack(">II", EXTENSION_END, 0)
        name = self.backing_file.encode(errors="surrogateescape")
        name_at = length + len(body) if name else 0
        if length + len(body) + len(name) > 1 << self.cluster_bits:
            raise BackendError("qcow2: header, extensions and backing file name do not fit into one cluster")
        head = struct.pack(
            V2_FORMAT, MAGIC, self.version, name_at, len(name), self.cluster_bits, self.size, self.crypt_method,
            self.l1_size, self.l1_offset, self.reftable_offset, self.reftable_clusters, self.snapshots,
            self.snapshots_offset,
        )  # fmt: skip
        if self.version >= 3:
            head += struct.pack(V3_FORMAT, self.incompatible, self.compatible, self.autoclear, self.refcount_order,
                                length, self.compression) + self.tail  # fmt: skip
        return bytes(head + body + name)


def feature_table() -> bytes:
    return b"".join(struct.pack(">BB46s", kind, bit, name.encode()) for kind, bit, name in FEATURE_NAMES)


def decode(data: bytes, writable: bool) -> Header:
    """The header from the first bytes of an image (its first cluster, 2 MiB at most).

    BackendError with one line for everything that is malformed or asks for what we do not do.
    """
    if len(data) < V2_LENGTH or data[:4] != MAGIC:
        raise BackendError("Image is not in qcow2 format")
    fields = struct.unpack_from(V2_FORMAT, data)
    version, name_at, name_length, cluster_bits, size = fields[1:6]
    if version not in (2, 3):
        raise BackendError(f"Unsupported qcow2 version {version}")
    if not MIN_CLUSTER_BITS <= cluster_bits <= MAX_CLUSTER_BITS:
        raise BackendError(f"Unsupported cluster size: 2^{cluster_bits}")
    header = Header(version, cluster_bits, size, crypt_method=fields[6], l1_size=fields[7], l1_offset=fields[8],
                    reftable_offset=fields[9], reftable_clusters=fields[10], snapshots=fields[11],
                    snapshots_offset=fields[12])  # fmt: skip
    length = _decode_v3(header, data) if version >= 3 else V2_LENGTH
    data = data[: 1 << cluster_bits]
    if name_at and name_at > 1 << cluster_bits:
        raise BackendError("Invalid backing file offset")
    header.extensions = _decode_extensions(data, length, name_at or len(data))
    _check_features(header, writable)
    _check_geometry(header)
    if name_at:
        if name_length > min(MAX_BACKING_NAME, (1 << cluster_bits) - name_at):
            raise BackendError("Backing file name too long")
        header.backing_file = data[name_at : name_at + name_length].decode(errors="surrogateescape")
        if "\0" in header.backing_file:
            raise BackendError("Invalid backing file name: it contains a zero byte")
    return header


def _decode_v3(header: Header, data: bytes) -> int:
    """Take the fields of version 3; the length of the header."""
    if len(data) < V3_LENGTH:
        raise BackendError("qcow2 header too short")
    found = struct.unpack_from(V3_FORMAT, data.ljust(OWN_LENGTH, b"\0"), V2_LENGTH)
    header.incompatible, header.compatible, header.autoclear, header.refcount_order = found[:4]
    length: int = found[4]
    if length < V3_LENGTH:
        raise BackendError("qcow2 header too short")
    if length > 1 << header.cluster_bits:
        raise BackendError("qcow2 header exceeds cluster size")
    if length > V3_LENGTH:
        header.compression = found[5]
        header.tail = data[OWN_LENGTH:length]
    return length


def _decode_extensions(data: bytes, at: int, end: int) -> list[tuple[int, bytes]]:
    extensions: list[tuple[int, bytes]] = []
    while at + 8 <= end:
        kind, length = struct.unpack_from(">II", data, at)
        if kind == EXTENSION_END:
            break
        at += 8
        if length > end - at:
            raise BackendError("Header extension too large")
        extensions.append((kind, data[at : at + length]))
        at += -(-length // 8) * 8
    return extensions


def _check_features(header: Header, writable: bool) -> None:
    unknown = header.incompatible & ~KNOWN_INCOMPATIBLE
    if unknown:
        raise BackendError(f"Unsupported qcow2 feature(s): {', '.join(_feature_names(header, unknown))}")
    subcluster = (1 << header.cluster_bits) // SUBCLUSTERS
    if header.incompatible & INCOMPATIBLE_EXTENDED_L2 and subcluster < 512:
        raise BackendError(f"Unsupported subcluster size: {subcluster}")
    if header.incompatible & INCOMPATIBLE_DATA_FILE:
        name = (header.extension(EXTENSION_DATA_FILE) or b"").decode(errors="replace")
        raise BackendError(f"Unsupported qcow2 feature(s): external data file{f' ({name})' if name else ''}")
    if header.incompatible & INCOMPATIBLE_CORRUPT and writable:
        raise BackendError("qcow2: Image is corrupt; cannot be opened read/write")
    if header.crypt_method:
        kind = {1: "AES", 2: "LUKS"}.get(header.crypt_method)
        raise BackendError(f"Unsupported encryption method {header.crypt_method}{f' ({kind})' if kind else ''}")
    if header.compression not in COMPRESSIONS:
        raise BackendError(f"qcow2: unknown compression type: {header.compression}")
    marked = bool(header.incompatible & INCOMPATIBLE_COMPRESSION)
    if marked != (header.compression != COMPRESSION_ZLIB):
        must = "must not be set" if marked else "must be set"
        raise BackendError(f"qcow2: Compression type incompatible feature bit {must}")


def _feature_names(header: Header, bits: int) -> list[str]:
    """Names from the image's own feature table; what it does not name comes as one number, as in QEMU."""
    table = header.extension(EXTENSION_FEATURES) or b""
    names = []
    for at in range(0, len(table) - 47, 48):
        kind, bit, name = struct.unpack_from(">BB46s", table, at)
        if kind == 0 and bit < 64 and bits >> bit & 1:
            names.append(name.rstrip(b"\0").decode(errors="replace"))
            bits &= ~(1 << bit)
    return names + ([f"Unknown incompatible feature: {bits:x}"] if bits else [])


def _check_geometry(header: Header) -> None:
    if header.refcount_order > 6:
        raise BackendError("Reference count entry width too large; may not exceed 64 bits")
    geometry = header.geometry
    if header.reftable_clusters > MAX_REFTABLE_BYTES >> header.cluster_bits:
        raise BackendError("Reference count table too large")
    if header.reftable_clusters == 0:
        raise BackendError("Image does not contain a reference count table")
    reftable_bytes = header.reftable_clusters << header.cluster_bits
    _check_table(header, "Reference count table", header.reftable_offset, reftable_bytes)
    if header.snapshots > MAX_SNAPSHOTS:
        raise BackendError("Snapshot table too large")
    _check_table(header, "Snapshot table", header.snapshots_offset, header.snapshots * 40)
    if header.l1_size > MAX_L1_BYTES // 8:
        raise BackendError("Active L1 table too large")
    needed = geometry.l1_entries(header.size)
    if needed > 0x7FFFFFFF // 8 or header.size >= 1 << 63:
        raise BackendError("Image is too big")
    if header.l1_size < needed:
        raise BackendError("L1 table is too small")
    _check_table(header, "Active L1 table", header.l1_offset, header.l1_size * 8)


def _check_table(header: Header, what: str, offset: int, length: int) -> None:
    if offset > (1 << 63) - 1 - length or offset % (1 << header.cluster_bits):
        raise BackendError(f"{what} offset invalid")
