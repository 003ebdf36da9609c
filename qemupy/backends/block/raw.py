"""`raw`: the bytes of the child `file` as they are, or a part of them (`offset`, `size`)."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import Self

from qemupy.backends.block.drivers import probe
from qemupy.backends.block.node import SECTOR, Buffer, Extent, Node
from qemupy.backends.block.opening import Opening
from qemupy.backends.block.permissions import Use, joint_use
from qemupy.errors import BackendError


class RawNode(Node):
    """A probed image (`guarded`) refuses to have a first sector written that would make it another format: a guest
    could otherwise turn its raw disk into an image that names any file of the host as its backing file."""

    driver = "raw"

    def __init__(self, file: Node, offset: int = 0, size: int | None = None, *, readonly: bool = False,
                 guarded: bool = False) -> None:  # fmt: skip
        self.file, self._offset, self._size, self._guarded = file, offset, size, guarded
        self.filename, self.readonly, self.buffered = file.filename, readonly or file.readonly, file.buffered
        self.uses = []
        self._file_use: Use | None = None
        if offset > file.length:
            raise BackendError(f"Offset ({offset}) cannot be greater than size of the containing file ({file.length})")
        if size is not None and size > file.length - offset:
            raise BackendError(
                f"The sum of offset ({offset}) and size ({size}) has to be smaller or equal to the actual size of the "
                f"containing file ({file.length})"
            )
        self._refresh()

    @classmethod
    def open(cls, opening: Opening) -> Self:
        file = opening.child()
        offset = opening.size("offset", 0)
        size = opening.size("size", -1) if "size" in opening.options else None
        if size is not None and size % SECTOR:
            raise BackendError("Specified size is not multiple of 512")
        guarded = opening.probed and not file.readonly
        if guarded:
            opening.graph.warnings.append(
                f"Image format was not specified for '{file.filename}' and probing guessed raw. Automatically "
                "detecting the format is dangerous for raw images, write operations on block 0 will be restricted. "
                "Specify the 'raw' format explicitly to remove the restrictions."
            )
        return cls(file, offset, size, readonly=opening.flags.readonly, guarded=guarded)

    def _refresh(self) -> None:
        self.length = self._size if self._size is not None else self.file.length - self._offset
        self.length -= self.length % SECTOR

    def children(self) -> dict[str, Node]:
        return {"file": self.file}

    def uses_changed(self) -> None:
        """What is done with this node is done with the file."""
        used, shared = joint_use(self.uses)
        new = Use(f"node '{self.node_name}'", "file", used, shared)
        if self._file_use is None:
            self.file.add_use(new)
        else:
            self.file.replace_use(self._file_use, new)
        self._file_use = new

    # Data

    def read_cached(self, offset: int, buffers: Sequence[memoryview]) -> bool:
        return self.file.read_cached(self._offset + offset, buffers)

    def read(self, offset: int, data: memoryview) -> None:
        self.file.read(self._offset + offset, data)

    def write(self, offset: int, data: Buffer) -> None:
        self.writev(offset, (memoryview(data),))

    def readv(self, offset: int, buffers: Sequence[memoryview]) -> None:
        self.file.readv(self._offset + offset, buffers)

    def writev(self, offset: int, buffers: Sequence[memoryview]) -> None:
        if self._guarded and offset < SECTOR:
            self._guard(offset, buffers)
        self.file.writev(self._offset + offset, buffers)

    def writev_durable(self, offset: int, buffers: Sequence[memoryview]) -> None:
        if self._guarded and offset < SECTOR:
            self._guard(offset, buffers)
        self.file.writev_durable(self._offset + offset, buffers)

    def _guard(self, offset: int, buffers: Sequence[memoryview]) -> None:
        head = bytearray(SECTOR)
        self.file.read(self._offset, memoryview(head))
        new = b"".join(buffers)[: SECTOR - offset]
        head[offset : offset + len(new)] = new
        if probe(bytes(head)) != "raw":
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def flush(self) -> None:
        self.file.flush()

    def begin_writeback(self) -> None:
        self.file.begin_writeback()

    def discard(self, offset: int, length: int) -> None:
        self.file.discard(self._offset + offset, length)

    def write_zeroes(self, offset: int, length: int, unmap: bool = False) -> None:
        self.file.write_zeroes(self._offset + offset, length, unmap)

    def truncate(self, length: int) -> None:
        if self._size is not None:
            raise OSError(errno.ENOTSUP, "Cannot resize fixed-size raw disks")
        self.file.truncate(self._offset + length)
        self._refresh()

    def block_status(self, offset: int, length: int) -> Extent:
        found = self.file.block_status(self._offset + offset, length)
        return found._replace(offset=self._offset + offset)
