"""`commit`: write what a node holds itself into its backing node, and make it empty."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from qemupy.backends.block.node import Node
from qemupy.backends.block.permissions import Permission
from qemupy.errors import BackendError
from qemupy.records import replace

SLICE = 1 << 20


def commit_node(top: Node) -> None:
    """All at once; OSError leaves the data where it was (pieces of it may be in the backing node as well)."""
    for _ in commit_slices(top):
        pass


def commit_slices(top: Node) -> Iterator[int]:
    """Step by step: yields how far it has come, in bytes of `top.length`. The backing node is writable meanwhile."""
    base = top.children()["backing"]
    with _writable(base, f"node '{top.node_name}'"):
        if base.length < top.length:
            base.truncate(top.length)
        yield from _copy(top, base)
        base.flush()
        top.make_empty()
        top.flush()


@contextmanager
def _writable(base: Node, parent: str) -> Iterator[None]:
    """The use the top node makes of its backing node becomes one that writes."""
    was_readonly = base.readonly
    reading = next(use for use in base.uses if use.parent == parent)
    writing = replace(reading, used=reading.used | Permission.WRITE | Permission.RESIZE)
    try:
        base.reopen(False)
        if base.readonly:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        base.replace_use(reading, writing)
    except BackendError as e:
        raise OSError(errno.EACCES, str(e)) from None
    try:
        yield
    finally:
        base.replace_use(writing, reading)
        if was_readonly:
            base.reopen(True)


def _copy(top: Node, base: Node) -> Iterator[int]:
    at = 0
    buffer = bytearray(SLICE)
    while at < top.length:
        extent = top.block_status(at, min(SLICE, top.length - at))
        if extent.allocated and extent.zero:
            base.write_zeroes(at, extent.length, unmap=True)
        elif extent.allocated:
            piece = memoryview(buffer)[: extent.length]
            top.read(at, piece)
            base.write(at, piece)
        at += extent.length
        yield at
