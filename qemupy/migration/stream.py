"""The container of a saved machine: sections in a byte stream.

    magic "QEMUPYVM", u32 format version
    section*: u8 kind, u16 name length, name, u64 payload length, padding, payload, u32 CRC-32 of name and payload
    last section: END, its payload the CRC-32 of all bytes before it

All integers are little-endian. TABLE payloads are field tables (`values.py`). A RAM payload starts on a page boundary
of the stream, so that a reader may map it; its section is preceded by a TABLE that says which pages it holds.
The reader trusts nothing: lengths are checked against what the caller allows before memory is taken.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from qemupy.errors import StateError
from qemupy.migration import values

MAGIC = b"QEMUPYVM"
FORMAT = 1
PAGE = 4096
END, TABLE, RAM = 0, 1, 2
_HEAD = struct.Struct("<BH")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_MAX_NAME = 256
_MAX_TABLE = 64 << 20  # the largest device (VGA memory is RAM) stays far below
_ZERO = bytes(PAGE)
_CHUNK = 1 << 20


class StreamWriter:
    """Writes sections to a file that need not be seekable."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._at = 0
        self._sum = 0
        self._put(MAGIC + _U32.pack(FORMAT))

    def _put(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._at += len(data)
        self._sum = zlib.crc32(data, self._sum)

    def _open(self, kind: int, name: str, length: int) -> int:
        raw = name.encode()
        self._put(_HEAD.pack(kind, len(raw)) + raw + _U64.pack(length))
        return zlib.crc32(raw)

    def table(self, name: str, table: dict[str, Any]) -> None:
        payload = values.encode(table)
        crc = self._open(TABLE, name, len(payload))
        self._put(payload)
        self._put(_U32.pack(zlib.crc32(payload, crc)))

    def ram(self, name: str, content: memoryview) -> None:
        """A RAM block, `content` a whole number of pages; pages of zeros are left out."""
        runs = list(nonzero_runs(content))
        self.table(f"{name}.pages", {"size": len(content), "runs": [n for run in runs for n in run]})
        crc = self._open(RAM, name, sum(length for _, length in runs))
        self._put(bytes(-self._at % PAGE))
        for start, length in runs:
            for at in range(start, start + length, _CHUNK):
                piece = content[at : min(at + _CHUNK, start + length)]
                self._put(piece)
                crc = zlib.crc32(piece, crc)
        self._put(_U32.pack(crc))

    def end(self) -> None:
        total = self._sum
        crc = self._open(END, "", _U32.size)
        self._put(_U32.pack(total))
        self._put(_U32.pack(zlib.crc32(_U32.pack(total), crc)))
        self._file.flush()


def nonzero_runs(content: memoryview) -> Iterator[tuple[int, int]]:
    """(offset, length) of the stretches of `content` with no page of zeros in them."""
    start = -1
    for chunk in range(0, len(content), _CHUNK):
        end = min(chunk + _CHUNK, len(content))
        if content[chunk:end] == bytes(end - chunk):
            if start >= 0:
                yield start, chunk - start
                start = -1
            continue
        for at in range(chunk, end, PAGE):
            zero = content[at : at + PAGE] == _ZERO
            if zero and start >= 0:
                yield start, at - start
            if zero:
                start = -1
            elif start < 0:
                start = at
    if start >= 0:
        yield start, len(content) - start


@dataclass(frozen=True)
class Section:
    kind: int
    name: str
    length: int


class StreamReader:
    """Reads what StreamWriter wrote. Errors are StateErrors that begin with `where`."""

    def __init__(self, file: BinaryIO, where: str) -> None:
        self._file = file
        self._where = where
        self._at = 0
        self._sum = 0
        self._name_crc = 0
        if self._take(len(MAGIC)) != MAGIC:
            raise StateError(f"{where}: not a saved machine")
        (version,) = _U32.unpack(self._take(_U32.size))
        if version != FORMAT:
            raise StateError(f"{where}: stream format {version}, this program reads {FORMAT}")

    def _take(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) != size:
            raise StateError(f"{self._where}: truncated at byte {self._at + len(data)}")
        self._at += size
        self._sum = zlib.crc32(data, self._sum)
        return data

    def next(self) -> Section:
        before = self._sum
        kind, name_length = _HEAD.unpack(self._take(_HEAD.size))
        if kind not in (END, TABLE, RAM) or name_length > _MAX_NAME:
            raise StateError(f"{self._where}: damaged before byte {self._at}")
        raw = self._take(name_length)
        self._name_crc = zlib.crc32(raw)
        (length,) = _U64.unpack(self._take(_U64.size))
        section = Section(kind, raw.decode("utf-8", "replace"), length)
        if kind == END:
            self._check_end(section, before)
        return section

    def _check_end(self, section: Section, total: int) -> None:
        payload = self._payload(section, _U32.size)
        if section.length != _U32.size or _U32.unpack(payload)[0] != total:
            raise StateError(f"{self._where}: checksum of the whole stream differs")

    def _payload(self, section: Section, limit: int) -> bytes:
        if section.length > limit:
            raise StateError(f"{self._where}: section {section.name!r} of {section.length} bytes, limit {limit}")
        payload = self._take(section.length)
        self._check_crc(section, zlib.crc32(payload, self._name_crc))
        return payload

    def _check_crc(self, section: Section, crc: int) -> None:
        if _U32.unpack(self._take(_U32.size))[0] != crc:
            raise StateError(f"{self._where}: checksum of section {section.name!r} differs")

    def table(self, section: Section) -> dict[str, Any]:
        table = values.decode(self._payload(section, _MAX_TABLE), f"{self._where}: {section.name}")
        if not isinstance(table, dict):
            raise StateError(f"{self._where}: section {section.name!r} holds no field table")
        return table

    def ram(self, section: Section, pages: dict[str, Any], content: memoryview) -> None:
        """Fill `content` from a RAM section whose page table was `pages`; pages left out become zero."""
        runs = self._runs(section, pages, len(content))
        self._take(-self._at % PAGE)
        crc = self._name_crc
        at = 0
        for start, length in runs:
            clear(content, at, start)
            for piece in range(start, start + length, _CHUNK):
                data = self._take(min(_CHUNK, start + length - piece))
                crc = zlib.crc32(data, crc)
                content[piece : piece + len(data)] = data
            at = start + length
        clear(content, at, len(content))
        self._check_crc(section, crc)

    def _runs(self, section: Section, pages: dict[str, Any], size: int) -> list[tuple[int, int]]:
        flat = pages.get("runs")
        if pages.get("size") != size:
            raise StateError(f"{self._where}: {section.name} of {pages.get('size')} bytes, this machine has {size}")
        if not isinstance(flat, list) or len(flat) % 2 or not all(type(n) is int for n in flat):
            raise StateError(f"{self._where}: {section.name}: no list of pages")
        runs = list(zip(flat[::2], flat[1::2], strict=True))
        at = 0
        for start, length in runs:
            if start < at or length <= 0 or start % PAGE or length % PAGE or start + length > size:
                raise StateError(f"{self._where}: {section.name}: pages {start:#x}+{length:#x} out of place")
            at = start + length
        if sum(length for _, length in runs) != section.length:
            raise StateError(f"{self._where}: {section.name}: {section.length} bytes do not match its pages")
        return runs


def clear(content: memoryview, start: int, end: int) -> None:
    """Zero a stretch, without touching pages that are zero already (they may not be allocated)."""
    for at in range(start, end, _CHUNK):
        stop = min(at + _CHUNK, end)
        if content[at:stop] != bytes(stop - at):
            content[at:stop] = bytes(stop - at)
