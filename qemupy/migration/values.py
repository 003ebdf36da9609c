"""Field tables as bytes: the plain values a device saves (None, bool, int, str, bytes, list, dict with text keys).

Each value is a tag byte and its content; counts and lengths are unsigned LEB128, integers are signed LEB128. A decoder
meets hostile input: every length is checked against the bytes that are really there before anything is allocated, and
nesting is bounded. docs/snapshot-format.md gives the grammar.
"""

from __future__ import annotations

from typing import Any

from qemupy.errors import StateError

_NONE, _FALSE, _TRUE, _INT, _TEXT, _BYTES, _LIST, _TABLE = range(8)
_MAX_DEPTH = 16
_MAX_INT_BYTES = 19  # 128 bits and a sign in seven-bit groups


def encode(value: Any) -> bytes:
    """The bytes of `value`. TypeError for what no field can hold: that is a programming error, not bad input."""
    out = bytearray()
    _put(out, value)
    return bytes(out)


def decode(data: bytes | bytearray | memoryview, where: str) -> Any:
    """The value in `data`, which must hold exactly one. StateError names `where`."""
    reader = _Reader(bytes(data), where)
    value = reader.value(0)
    if reader.at != len(reader.data):
        raise StateError(f"{where}: {len(reader.data) - reader.at} bytes too many")
    return value


def _put_count(out: bytearray, n: int) -> None:
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)


def _put_int(out: bytearray, n: int) -> None:
    while not -0x40 <= n < 0x40:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n & 0x7F)


def _put(out: bytearray, value: Any) -> None:
    if value is None:
        out.append(_NONE)
    elif value is True or value is False:
        out.append(_TRUE if value else _FALSE)
    elif isinstance(value, int):
        out.append(_INT)
        _put_int(out, value)
    elif isinstance(value, str):
        _put_blob(out, _TEXT, value.encode())
    elif isinstance(value, bytes | bytearray):
        _put_blob(out, _BYTES, value)
    elif isinstance(value, list | tuple):
        out.append(_LIST)
        _put_count(out, len(value))
        for item in value:
            _put(out, item)
    elif isinstance(value, dict):
        out.append(_TABLE)
        _put_count(out, len(value))
        for key, item in value.items():
            raw = key.encode()
            _put_count(out, len(raw))
            out += raw
            _put(out, item)
    else:
        raise TypeError(f"{type(value).__name__} has no place in a saved state")


def _put_blob(out: bytearray, tag: int, raw: bytes | bytearray) -> None:
    out.append(tag)
    _put_count(out, len(raw))
    out += raw


class _Reader:
    """A stream's tables hold some thousands of values, read while a machine waits: common cases come first."""

    def __init__(self, data: bytes, where: str) -> None:
        self.data, self.where, self.at = data, where, 0

    def _ends(self) -> StateError:
        return StateError(f"{self.where}: ends in the middle of a value")

    def group(self) -> tuple[int, int]:
        """A LEB128 number's bits and how many there are."""
        data, at = self.data, self.at
        n = shift = 0
        for byte in data[at : at + _MAX_INT_BYTES]:
            n |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                self.at = at + shift // 7
                return n, shift
        if len(data) - at < _MAX_INT_BYTES:
            raise self._ends()
        raise StateError(f"{self.where}: a number of more than {_MAX_INT_BYTES} bytes")

    def count(self) -> int:
        """A length; what it counts takes at least one byte each, so more than what is left is a lie."""
        at, left = self.at, len(self.data) - self.at - 1
        if left >= 0 and (n := self.data[at]) < 0x80:
            self.at = at + 1
        else:
            n, _ = self.group()
            left = len(self.data) - self.at
        if n > left:
            raise StateError(f"{self.where}: {n} bytes or entries announced, {left} left")
        return n

    def blob(self) -> bytes:
        n = self.count()
        self.at += n
        return self.data[self.at - n : self.at]

    def text(self) -> str:
        try:
            n, at = self.count(), self.at
            self.at = at + n
            return self.data[at : at + n].decode()
        except UnicodeDecodeError:
            raise StateError(f"{self.where}: a text is not UTF-8") from None

    def value(self, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise StateError(f"{self.where}: nested deeper than {_MAX_DEPTH}")
        at = self.at
        if at >= len(self.data):
            raise self._ends()
        tag = self.data[at]
        self.at = at + 1
        if tag == _INT:
            n, bits = self.group()
            return n - (1 << bits) if n >> bits - 1 else n
        if tag in (_NONE, _FALSE, _TRUE):
            return (None, False, True)[tag]
        if tag == _TEXT:
            return self.text()
        if tag == _BYTES:
            return self.blob()
        if tag == _LIST:
            return [self.value(depth + 1) for _ in range(self.count())]
        if tag == _TABLE:
            return self.table(depth)
        raise StateError(f"{self.where}: unknown kind of value {tag}")

    def table(self, depth: int) -> dict[str, Any]:
        table: dict[str, Any] = {}
        for _ in range(self.count()):
            key = self.text()
            if key in table:
                raise StateError(f"{self.where}: field {key[:40]!r} twice")
            table[key] = self.value(depth + 1)
        return table
