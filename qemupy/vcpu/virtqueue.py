"""Virtqueues in guest memory by the core (csrc/virtq): one call takes a batch of chains."""

from __future__ import annotations

import errno
from typing import Any

from qemupy._core import ffi, lib
from qemupy.errors import PageInError
from qemupy.memory.virtqueue import MAX_SIZE, Chain, VirtqueueError
from qemupy.scatter import Scatter

_push = lib.qpy_virtq_push  # found once: it is called for each request


class CoreVirtqueue:
    def __init__(self, machine: Any) -> None:
        self._handle = ffi.gc(lib.qpy_virtq_new(machine), lib.qpy_virtq_free)
        self._out = ffi.new("uint64_t[]", lib.QPY_VIRTQ_ROOM)
        self._words = memoryview(ffi.buffer(self._out)).cast("B").cast("Q")

    def setup(self, size: int, desc: int, avail: int, used: int, flags: int) -> None:
        if lib.qpy_virtq_setup(self._handle, size, desc, avail, used, flags):
            raise VirtqueueError(f"a ring of {size} entries")

    def restore(self, last_avail: int, used_idx: int) -> None:
        lib.qpy_virtq_restore(self._handle, last_avail, used_idx)

    def indices(self) -> tuple[int, int]:
        values = ffi.new("uint16_t[2]")
        lib.qpy_virtq_indices(self._handle, values, values + 1)
        return int(values[0]), int(values[1])

    def _check(self, result: int) -> int:
        if result >= 0:
            return result
        if result == -errno.EPROTO:
            raise VirtqueueError(ffi.string(lib.qpy_virtq_error(self._handle)).decode())
        if result == -errno.EIO:
            raise PageInError("a virtqueue in guest memory cannot be read from the image: Input/output error")
        raise ValueError(f"not a chain that was taken ({result})")

    def _chains(self, count: int) -> list[Chain]:
        words, chains, at = self._words, [], 0
        while at < count:
            head, readable, writable, read_size, write_size = words[at : at + 5]
            first, middle = at + 5, at + 5 + 2 * readable
            at = middle + 2 * writable
            chains.append(Chain(head, Scatter(words[first:middle].tobytes(), read_size),
                                Scatter(words[middle:at].tobytes(), write_size)))  # fmt: skip
        return chains

    def pop(self, limit: int) -> list[Chain]:
        return self._chains(self._check(lib.qpy_virtq_pop(self._handle, self._out, limit)))

    def retake(self, head: int) -> Chain:
        return self._chains(self._check(lib.qpy_virtq_retake(self._handle, head, self._out)))[0]

    def push(self, head: int, written: int) -> bool:
        wanted = _push(self._handle, head, written)
        return (wanted if wanted >= 0 else self._check(wanted)) > 0

    def taken(self) -> list[int]:
        heads = ffi.new("uint16_t[]", MAX_SIZE)
        return list(heads[0 : lib.qpy_virtq_taken(self._handle, heads, MAX_SIZE)])
