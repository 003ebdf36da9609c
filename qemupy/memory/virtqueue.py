"""What a virtio device needs of a split ring in guest memory (virtio 1.2, 2.7). The core checks and walks the rings;
`qemupy.vcpu.virtqueue` is the real one."""

from __future__ import annotations

from typing import Protocol

from qemupy.scatter import Scatter

EVENT_IDX, NOTIFY_ON_EMPTY = 1, 2  # flags of `setup` (csrc/api.h)
MAX_SIZE = 1024


class VirtqueueError(Exception):
    """The guest broke the rules of its ring; it is dead until it is set up again. The text says how."""


class Chain:
    """One descriptor chain: guest memory that the device may read, then memory that it may write. They must not be kept
    beyond `push`."""

    __slots__ = ("head", "readable", "writable")

    def __init__(self, head: int, readable: Scatter, writable: Scatter) -> None:
        self.head, self.readable, self.writable = head, readable, writable


class Virtqueue(Protocol):
    """All calls with the BQL held. A ring whose content breaks the rules raises `VirtqueueError`; PageInError: memory
    cannot be read, and nothing has happened. The memory of a chain that was taken is there to stay."""

    def setup(self, size: int, desc: int, avail: int, used: int, flags: int) -> None:
        """Start on a ring of `size` (a power of two up to MAX_SIZE), its parts at these guest-physical addresses."""

    def restore(self, last_avail: int, used_idx: int) -> None:
        """Go on where another queue was; no chain counts as taken."""

    def indices(self) -> tuple[int, int]:
        """`last_avail` and `used_idx`, for `restore`."""

    def pop(self, limit: int) -> list[Chain]:
        """Take up to `limit` chains. None: there are none, and the guest will notify when there are."""

    def retake(self, head: int) -> Chain:
        """Take a chain again that was in the device's hands when the machine was saved."""

    def push(self, head: int, written: int) -> bool:
        """Give a chain back after `written` bytes of its writable part changed; True: interrupt the guest."""

    def taken(self) -> list[int]:
        """Heads of the chains not given back."""
