"""The container of a saved machine: sections in a byte stream.

    magic "QEMUPYVM", u32 format version
    section*: u8 kind, u16 name length, name, u64 payload length, payload, u32 CRC-32 of name and payload
    last section: END, its payload the CRC-32 of all bytes before it

All integers are little-endian. TABLE payloads are field tables (`values.py`), PAGES payloads stretches of RAM space.
The reader trusts nothing: lengths are checked before memory is taken, checksums before a byte is used.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from qemupy.errors import StateError
from qemupy.migration import values
from qemupy.records import record

MAGIC = b"QEMUPYVM"
FORMAT = 2
PAGE = 4096
END, TABLE, PAGES = 0, 1, 3
_HEAD = struct.Struct("<BH")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_RUN = struct.Struct("<QQ")
_ZERO = 1  # bit of a run's offset: its bytes are zero and not in the payload
_MAX_NAME = 256
_MAX_TABLE = 64 << 20  # the largest device (VGA memory is RAM) stays far below
_BATCH = 4096  # bytes of tables written at once
MAX_PAGES = 1 << 20  # bytes of RAM in one PAGES section
MAX_RUNS = MAX_PAGES // PAGE

CATCH_UP = "catch-up"  # a table with nothing in it: the destination answers when it has come so far

Run = tuple[int, int]  # offset in RAM space and length, whole pages


class StreamWriter:
    """Writes sections through `write`, which takes all it is given. Nothing need be seekable."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._sum = 0
        self.sent = 0
        self._put(MAGIC + _U32.pack(FORMAT))

    def _put(self, data: bytes) -> None:
        self._write(data)
        self.sent += len(data)
        self._sum = zlib.crc32(data, self._sum)

    def table(self, name: str, table: dict[str, Any]) -> None:
        self._put(_section(TABLE, name, values.encode(table)))

    def tables(self, tables: dict[str, dict[str, Any]]) -> None:
        """Several at a time go to `write`: most have a hundred bytes, and waking the other side costs more."""
        batch = bytearray()
        for name, table in tables.items():
            batch += _section(TABLE, name, values.encode(table))
            if len(batch) >= _BATCH:
                self._put(bytes(batch))
                batch.clear()
        self._put(bytes(batch))

    def pages(self, filled: list[tuple[int, bytes]], zero: list[Run]) -> None:
        """Stretches of RAM space with their bytes, and stretches of zeros: at most MAX_RUNS and MAX_PAGES of both."""
        runs = [_RUN.pack(offset, len(data)) for offset, data in filled]
        runs += [_RUN.pack(offset | _ZERO, length) for offset, length in zero]
        self._put(_section(PAGES, "", b"".join((_U32.pack(len(runs)), *runs, *(data for _, data in filled)))))

    def end(self) -> None:
        self._put(_section(END, "", _U32.pack(self._sum)))


def _section(kind: int, name: str, payload: bytes) -> bytes:
    raw = name.encode()
    head = _HEAD.pack(kind, len(raw)) + raw + _U64.pack(len(payload))
    crc = zlib.crc32(payload, zlib.crc32(raw))
    return b"".join((head, payload, _U32.pack(crc)))


@record(frozen=True)
class Section:
    kind: int
    name: str
    length: int


class StreamReader:
    """Reads what StreamWriter wrote. `read(n)` gives n bytes, fewer only at the end. Errors are StateErrors that begin
    with `where`."""

    def __init__(self, read: Callable[[int], bytes], where: str) -> None:
        self._read = read
        self._where = where
        self._at = 0
        self._sum = 0
        self._name_crc = 0
        if self._take(len(MAGIC)) != MAGIC:
            raise StateError(f"{where}: Not a migration stream")
        (version,) = _U32.unpack(self._take(_U32.size))
        if version != FORMAT:
            raise StateError(f"{where}: stream format {version}, this program reads {FORMAT}")

    def _take(self, size: int) -> bytes:
        data = self._read(size)
        if len(data) != size:
            raise StateError(f"{self._where}: truncated at byte {self._at + len(data)}")
        self._at += size
        self._sum = zlib.crc32(data, self._sum)
        return data

    def next(self) -> Section:
        before = self._sum
        kind, name_length = _HEAD.unpack(self._take(_HEAD.size))
        if kind not in (END, TABLE, PAGES) or name_length > _MAX_NAME:
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
        crc = zlib.crc32(payload, self._name_crc)
        if _U32.unpack(self._take(_U32.size))[0] != crc:
            raise StateError(f"{self._where}: checksum of section {section.name!r} differs")
        return payload

    def table(self, section: Section) -> dict[str, Any]:
        table = values.decode(self._payload(section, _MAX_TABLE), f"{self._where}: {section.name}")
        if not isinstance(table, dict):
            raise StateError(f"{self._where}: section {section.name!r} holds no field table")
        return table

    def pages(self, section: Section, ram_size: int) -> Iterator[tuple[int, int, memoryview | None]]:
        """(offset, length, bytes or None for zeros) of a PAGES section, all of them inside `ram_size`."""
        payload = self._payload(section, _U32.size + MAX_RUNS * _RUN.size + MAX_PAGES)
        runs, data_at = self._runs(payload, ram_size)
        return _split(memoryview(payload), data_at, runs)

    def _runs(self, payload: bytes, ram_size: int) -> tuple[list[tuple[int, int, bool]], int]:
        count = _U32.unpack_from(payload)[0] if len(payload) >= _U32.size else MAX_RUNS + 1
        data_at = _U32.size + count * _RUN.size
        if count > MAX_RUNS or data_at > len(payload):
            raise StateError(f"{self._where}: damaged list of pages")
        runs = [(o & ~_ZERO, n, bool(o & _ZERO)) for o, n in _RUN.iter_unpack(payload[_U32.size : data_at])]
        for offset, length, _ in runs:
            if offset % PAGE or length % PAGE or not length or offset + length > ram_size:
                raise StateError(f"{self._where}: pages {offset:#x}+{length:#x} out of place, RAM has {ram_size:#x}")
        if data_at + sum(n for _, n, zero in runs if not zero) != len(payload):
            raise StateError(f"{self._where}: {len(payload)} bytes do not match their list of pages")
        return runs, data_at


def _split(
    payload: memoryview, at: int, runs: Iterable[tuple[int, int, bool]]
) -> Iterator[tuple[int, int, memoryview | None]]:
    for offset, length, zero in runs:
        yield offset, length, None if zero else payload[at : at + length]
        if not zero:
            at += length
