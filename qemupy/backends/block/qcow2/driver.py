"""`Qcow2Node`: a qcow2 image as a node of the block graph, with the child `file` it lies in and its backing image."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NamedTuple, Self

from qemupy.backends.block.filenames import has_protocol
from qemupy.backends.block.node import Buffer, Extent, Node
from qemupy.backends.block.opening import Opening
from qemupy.backends.block.permissions import Permission, Use, metadata_use
from qemupy.backends.block.qcow2.image import Qcow2Image
from qemupy.backends.block.qcow2.mapping import Kind
from qemupy.backends.block.qcow2.metadata import L2_CACHE, REFCOUNT_CACHE
from qemupy.errors import BackendError


class Discards(NamedTuple):
    """Are the guest's carried out, and whose freed clusters become holes in the file?"""

    honoured: bool
    passed: bool
    snapshots: bool


class Qcow2Node(Node):
    """`image` is the open image; snapshots and the machine's state are its business."""

    driver = "qcow2"

    def __init__(self, file: Node, file_use: Use, discards: Discards, caches: tuple[int, int]) -> None:
        self.file, self._file_use, self._discards, self._caches = file, file_use, discards, caches
        self.backing: Node | None = None
        self.filename, self.readonly = file.filename, not file_use.used & Permission.WRITE
        self.buffered = file.buffered
        self.uses = []
        self.image = self._open_image()

    def _open_image(self) -> Qcow2Image:
        image = Qcow2Image(self.file, self.filename, self.readonly, self._discards.honoured, self._caches)
        image.meta.pass_discard, image.meta.pass_discard_snapshot = self._discards.passed, self._discards.snapshots
        image.set_backing(self.backing)
        image.on_resize = self._resized
        self._resized(image.length)
        return image

    def _resized(self, length: int) -> None:
        self.length = length

    @classmethod
    def open(cls, opening: Opening) -> Self:
        """QEMU's options; reference counts are always kept right, so `lazy-refcounts` makes no difference."""
        file = opening.child()
        use = metadata_use(f"node '{opening.node_name}'", opening.flags.readonly or file.readonly)
        file.add_use(use)
        opening.switch("lazy-refcounts", False)
        honoured = opening.flags.discard
        discards = Discards(honoured, opening.switch("pass-discard-request", honoured),
                            opening.switch("pass-discard-snapshot", True))  # fmt: skip
        caches = opening.size("l2-cache-size", L2_CACHE), opening.size("refcount-cache-size", REFCOUNT_CACHE)
        node = cls(file, use, discards, caches)
        try:
            node._set_backing(opening)
        except BackendError as e:
            raise BackendError(f"Could not open backing file: {e}") from None
        return node

    def _set_backing(self, opening: Opening) -> None:
        name = self.image.backing_file
        if name and not has_protocol(name):
            name = os.path.join(os.path.dirname(self.filename), name)
        self.backing = opening.backing(name, self.image.backing_format or None)
        self.image.set_backing(self.backing)

    def children(self) -> dict[str, Node]:
        return {"file": self.file} if self.backing is None else {"file": self.file, "backing": self.backing}

    # Data

    def read_cached(self, offset: int, buffers: Sequence[memoryview]) -> bool:
        return self.image.read_cached(offset, buffers)

    def read(self, offset: int, data: memoryview) -> None:
        self.image.read(offset, data)

    def readv(self, offset: int, buffers: Sequence[memoryview]) -> None:
        self.image.readv(offset, buffers)

    def write(self, offset: int, data: Buffer) -> None:
        self.image.write(offset, data)

    def writev(self, offset: int, buffers: Sequence[memoryview]) -> None:
        self.image.writev(offset, buffers)

    def flush(self) -> None:
        self.image.flush()

    def discard(self, offset: int, length: int) -> None:
        self.image.discard(offset, length)

    def write_zeroes(self, offset: int, length: int, unmap: bool = False) -> None:
        self.image.write_zeroes(offset, length, unmap)

    def truncate(self, length: int) -> None:
        self.image.truncate(length)

    def make_empty(self) -> None:
        self.image.make_empty()

    def block_status(self, offset: int, length: int) -> Extent:
        run = self.image.runs(offset, length)[0]
        if run.kind is Kind.NORMAL:
            return Extent(run.length, data=True, zero=False, offset=run.host)
        if run.kind is Kind.COMPRESSED:
            return Extent(run.length, data=True, zero=False)
        if run.kind is Kind.ZERO:
            return Extent(run.length, data=False, zero=True)
        blank = self.backing is None or offset >= self.backing.length
        return Extent(run.length, data=False, zero=blank, allocated=False)

    # Life

    def details(self) -> list[str]:
        from qemupy.backends.block.qcow2.details import describe

        return describe(self.image, self.filename)

    def reopen(self, readonly: bool) -> None:
        if readonly == self.readonly:
            return
        self.image.close()
        try:
            self.file.reopen(readonly)
            use = metadata_use(self._file_use.parent, readonly)
            self.file.replace_use(self._file_use, use)
            self._file_use, self.readonly = use, readonly
        finally:
            self.image = self._open_image()

    def close(self) -> None:
        try:
            self.image.close()
        except OSError as e:
            print(f"qemupy: Failed to flush the metadata of '{self.filename}': {e.strerror}", file=sys.stderr)
