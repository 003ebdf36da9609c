"""`Node`: one node of the block graph, a driver instance with its children.

A node answers synchronous calls made on worker threads, several at once: a driver that keeps state of its own locks it.
Offsets and lengths are bytes and lie within `length` (the drive has checked them); errors are OSError. A protocol node
(`file`, `nbd`) is a leaf; a format node (`raw`, `qcow2`) reads and writes its child `file`, and what it does not hold
itself comes from its child `backing`.

The base class carries what a driver need not write itself: vectors as single calls, zeroes as written zeroes.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from qemupy.backends.block.permissions import Use, check_uses

if TYPE_CHECKING:
    from qemupy.backends.block.opening import Flags, Opening

SECTOR = 512
Buffer = bytes | bytearray | memoryview
_ZEROES = bytes(1 << 16)


class Extent(NamedTuple):
    """The answer of `block_status`: what the first `length` bytes of the range asked for are.

    `data`: there are bytes to be read here. `zero`: they read as zeroes. `allocated`: they come from this node, not
    from its backing node. `offset`: where they lie in the child `file`, None if they do not lie there as they are."""

    length: int
    data: bool
    zero: bool
    allocated: bool = True
    offset: int | None = None


class Node:
    """`length`, `filename` and `readonly` are set by the driver when it opens; the graph gives the name."""

    driver: ClassVar[str]
    is_protocol: ClassVar[bool] = False

    length: int
    filename: str
    readonly: bool = False
    buffered: bool = False  # what is written goes to the host's page cache, and waits for nobody as a rule
    node_name: str = ""
    flags: Flags
    references: int = 0  # parents: drives, other nodes, and the user for what -blockdev made
    uses: list[Use]

    @classmethod
    def open(cls, opening: Opening) -> Node:
        """Make the node that the options ask for; what it needs of others it gets from `opening`."""
        raise NotImplementedError

    @property
    def format(self) -> str:
        return self.driver

    def children(self) -> dict[str, Node]:
        """By QEMU's names: `file`, `backing`."""
        return {}

    # Data

    def read_cached(self, offset: int, buffers: Sequence[memoryview]) -> bool:
        """Fill the buffers if that takes no waiting; may be called on any thread."""
        return False

    def read(self, offset: int, data: memoryview) -> None:
        """Fill all of `data`."""
        raise NotImplementedError

    def write(self, offset: int, data: Buffer) -> None:
        """Write all of `data`; it is on stable storage after the next `flush`."""
        raise NotImplementedError

    def readv(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill the buffers in order."""
        for buffer in buffers:
            self.read(offset, buffer)
            offset += len(buffer)

    def writev(self, offset: int, buffers: Sequence[memoryview]) -> None:
        for buffer in buffers:
            self.write(offset, buffer)
            offset += len(buffer)

    def flush(self) -> None:
        """What was written before is on stable storage."""

    def begin_writeback(self) -> None:
        """Let the host begin with what was written, so that `flush` has less to wait for; a hint."""

    def writev_durable(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Forced unit access: on stable storage when this returns."""
        self.writev(offset, buffers)
        self.flush()

    def discard(self, offset: int, length: int) -> None:
        """The range's content does not matter any more; a hint."""

    def write_zeroes(self, offset: int, length: int, unmap: bool = False) -> None:
        """The range reads as zeroes from now on; with `unmap` its space may be given back."""
        while length:
            piece = min(length, len(_ZEROES))
            self.write(offset, _ZEROES[:piece])
            offset += piece
            length -= piece

    def truncate(self, length: int) -> None:
        """Change the size; new space reads as zeroes."""
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    def block_status(self, offset: int, length: int) -> Extent:
        """What lies at `offset`, for at least one byte and at most `length`."""
        return Extent(length, data=True, zero=False)

    def make_empty(self) -> None:
        """Forget what this node holds itself: everything comes from its backing node again."""
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    # Life

    def add_use(self, use: Use) -> None:
        """A parent begins to use this node; BackendError if other users, here or in other processes, forbid it."""
        check_uses(self.node_name, [*self.uses, use])
        self.uses.append(use)
        try:
            self.uses_changed()
        except BaseException:
            self.uses.remove(use)
            raise

    def replace_use(self, old: Use, new: Use) -> None:
        """Like `add_use` for a parent that already is one."""
        at = self.uses.index(old)
        check_uses(self.node_name, [*self.uses[:at], new, *self.uses[at + 1 :]])
        self.uses[at] = new
        try:
            self.uses_changed()
        except BaseException:
            self.uses[at] = old
            raise

    def remove_use(self, use: Use) -> None:
        self.uses.remove(use)
        self.uses_changed()

    def uses_changed(self) -> None:
        """For a driver that locks its image or hands on what its parents do (`raw`)."""

    def allocated_size(self) -> int | None:
        """Bytes taken on the host, None if unknown."""
        file = self.children().get("file")
        return file.allocated_size() if file is not None else None

    def details(self) -> list[str]:
        """Further lines for `info block -v`, in the words of `qemu-img info`."""
        return []

    def reopen(self, readonly: bool) -> None:
        """Change between read-only and writable; OSError or BackendError leave the node as it was."""
        for name, child in self.children().items():
            if name != "backing":
                child.reopen(readonly)
        self.readonly = readonly

    def close(self) -> None:
        """Let go of everything; the children are closed by the graph afterwards. No requests are under way."""
