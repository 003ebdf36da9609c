"""A chardev that keeps the last bytes written, for `ringbuf_read`; `ringbuf_write` types into it."""

from __future__ import annotations

from qemupy.backends.chardev.base import Chardev
from qemupy.errors import BackendError


class RingbufChardev(Chardev):
    def __init__(self, label: str, size: int = 65536) -> None:
        super().__init__(label, "ringbuf")
        if size <= 0 or size & (size - 1):
            raise BackendError("size of ringbuf chardev must be power of two")
        self._size = size
        self._ring = bytearray()
        self.open = True

    def write(self, data: bytes) -> None:
        self._ring += data
        if len(self._ring) > self._size:
            del self._ring[: len(self._ring) - self._size]

    def take(self, count: int) -> bytes:
        """The oldest `count` bytes; they are gone from the ring."""
        data = bytes(self._ring[:count])
        del self._ring[:count]
        return data
