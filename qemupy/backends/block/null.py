"""`null-co` and `null-aio`: a disk that forgets what is written to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from qemupy.backends.block.node import Buffer, Extent, Node
from qemupy.backends.block.opening import Opening


class NullNode(Node):
    """`size` bytes (1 GiB) of zeroes. `read-zeroes=off` makes no difference: what a buffer held before is nobody's
    business."""

    driver = "null-co"
    is_protocol = True

    def __init__(self, length: int, readonly: bool = False) -> None:
        self.length, self.readonly, self.filename = length, readonly, f"{self.driver}://"

    @classmethod
    def open(cls, opening: Opening) -> Self:
        opening.switch("read-zeroes", True)
        return cls(opening.size("size", 1 << 30), opening.flags.readonly)

    def read_cached(self, offset: int, buffers: Sequence[memoryview]) -> bool:
        self.readv(offset, buffers)
        return True

    def read(self, offset: int, data: memoryview) -> None:
        data[:] = bytes(len(data))

    def write(self, offset: int, data: Buffer) -> None:
        pass

    def write_zeroes(self, offset: int, length: int, unmap: bool = False) -> None:
        pass

    def truncate(self, length: int) -> None:
        self.length = length

    def block_status(self, offset: int, length: int) -> Extent:
        return Extent(length, data=False, zero=True)

    def allocated_size(self) -> int:
        return 0

    def reopen(self, readonly: bool) -> None:
        self.readonly = readonly


class NullAioNode(NullNode):
    driver = "null-aio"
