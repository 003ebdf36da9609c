"""Compressed clusters: raw deflate with a 12-bit window, or zstd (qcow2.txt, "Compressed Clusters Descriptor")."""

from __future__ import annotations

import errno
import zlib
from typing import Any

from qemupy.backends.block.qcow2.header import COMPRESSION_ZSTD
from qemupy.errors import BackendError

_WINDOW_BITS = 12


class Codec:
    """Decompression of clusters of `size` bytes. BackendError when the library for the method is not there."""

    def __init__(self, method: int, size: int) -> None:
        self._size = size
        self._zstd: Any = _zstandard() if method == COMPRESSION_ZSTD else None
        self._error: type[Exception] = self._zstd.ZstdError if self._zstd is not None else zlib.error

    def decompress(self, data: bytes | bytearray) -> bytes:
        """One cluster; `data` may have a tail that does not belong to it. OSError (EIO) if it is broken."""
        try:
            if self._zstd is not None:
                stream = self._zstd.ZstdDecompressor(max_window_size=1 << 27).stream_reader(
                    bytes(data), read_across_frames=True
                )
                cluster = bytes(stream.read(self._size))
            else:
                cluster = zlib.decompressobj(-_WINDOW_BITS).decompress(data, self._size)
        except self._error:
            raise OSError(errno.EIO, "broken compressed cluster") from None
        if len(cluster) != self._size:
            raise OSError(errno.EIO, "compressed cluster is too short")
        return cluster


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        raise BackendError(
            "qcow2: the image uses zstd compression, which needs the Python package zstandard (pip install zstandard)"
        ) from None
    return zstandard
