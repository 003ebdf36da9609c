"""A small AML encoder (ACPI 6.4, chapter 20): every function returns the bytes of one term.

    device("PCI0", name("_HID", eisa_id("PNP0A03")), method("_STA", 0, ret(integer(15))))

Names are four-letter segments joined by dots, with `\\` or `^` in front where needed; short ones are padded.
"""

from __future__ import annotations

import struct

ZERO, ONE, ONES = b"\x00", b"\x01", b"\xff"
SYSTEM_MEMORY, SYSTEM_IO, PCI_CONFIG = 0, 1, 2
BYTE_ACCESS, WORD_ACCESS, DWORD_ACCESS = 1, 2, 3


def pkg_length(body: bytes) -> bytes:
    """`body` preceded by its length, which counts itself (20.2.4)."""
    if len(body) + 1 < 1 << 6:
        return bytes((len(body) + 1,)) + body
    for extra in (1, 2, 3):
        total = len(body) + 1 + extra
        if total < 1 << 4 + 8 * extra:
            return bytes((extra << 6 | total & 0xF,)) + (total >> 4).to_bytes(extra, "little") + body
    raise ValueError("AML package too long")


def name_string(path: str) -> bytes:
    stripped = path.lstrip("\\^")
    prefix = path[: len(path) - len(stripped)].encode()
    if not stripped:
        return prefix + b"\0"
    segments = [segment.ljust(4, "_").encode() for segment in stripped.split(".")]
    if len(segments) == 1:
        return prefix + segments[0]
    if len(segments) == 2:
        return prefix + b"\x2e" + b"".join(segments)
    return prefix + b"\x2f" + bytes((len(segments),)) + b"".join(segments)


def integer(value: int) -> bytes:
    if value in (0, 1):
        return bytes((value,))
    for prefix, size in ((0x0A, 1), (0x0B, 2), (0x0C, 4), (0x0E, 8)):
        if value < 1 << 8 * size:
            return bytes((prefix,)) + value.to_bytes(size, "little")
    raise ValueError(f"{value:#x} does not fit an AML integer")


def string(text: str) -> bytes:
    return b"\x0d" + text.encode("ascii") + b"\0"


def buffer(data: bytes) -> bytes:
    return b"\x11" + pkg_length(integer(len(data)) + data)


def package(*items: bytes) -> bytes:
    return b"\x12" + pkg_length(bytes((len(items),)) + b"".join(items))


def eisa_id(text: str) -> bytes:
    """`PNP0A03` compressed (19.3.4)."""
    letters = [ord(c) - 0x40 for c in text[:3]]
    value = letters[0] << 26 | letters[1] << 21 | letters[2] << 16 | int(text[3:], 16)
    return b"\x0c" + struct.pack(">I", value)


def name(path: str, value: bytes) -> bytes:
    return b"\x08" + name_string(path) + value


def scope(path: str, *body: bytes) -> bytes:
    return b"\x10" + pkg_length(name_string(path) + b"".join(body))


def device(path: str, *body: bytes) -> bytes:
    return b"\x5b\x82" + pkg_length(name_string(path) + b"".join(body))


def method(path: str, arguments: int, *body: bytes, serialized: bool = False) -> bytes:
    return b"\x14" + pkg_length(name_string(path) + bytes((arguments | serialized << 3,)) + b"".join(body))


def operation_region(path: str, space: int, offset: int, length: int) -> bytes:
    return b"\x5b\x80" + name_string(path) + bytes((space,)) + integer(offset) + integer(length)


def field(region: str, access: int, *entries: tuple[str, int]) -> bytes:
    """Named bit fields one after the other, no lock, writes preserve the rest."""
    body = name_string(region) + bytes((access,))
    for entry, bits in entries:
        body += entry.ljust(4, "_").encode() + bytes((bits,))
    return b"\x5b\x81" + pkg_length(body)


def arg(n: int) -> bytes:
    return bytes((0x68 + n,))


def local(n: int) -> bytes:
    return bytes((0x60 + n,))


def ret(value: bytes) -> bytes:
    return b"\xa4" + value


def store(value: bytes, target: bytes) -> bytes:
    return b"\x70" + value + target


def if_(condition: bytes, *body: bytes) -> bytes:
    return b"\xa0" + pkg_length(condition + b"".join(body))


def and_(a: bytes, b: bytes) -> bytes:
    return b"\x7b" + a + b + ZERO


def or_(a: bytes, b: bytes, target: bytes = ZERO) -> bytes:
    return b"\x7d" + a + b + target


def less(a: bytes, b: bytes) -> bytes:
    return b"\x95" + a + b


def create_dword_field(source: bytes, offset: int, path: str) -> bytes:
    return b"\x8a" + source + integer(offset) + name_string(path)


def call(path: str, *arguments: bytes) -> bytes:
    return name_string(path) + b"".join(arguments)


# Resource descriptors (6.4)


def resources(*descriptors: bytes) -> bytes:
    return buffer(b"".join(descriptors) + b"\x79\x00")


def io(base: int, length: int, alignment: int = 1) -> bytes:
    return struct.pack("<BBHHBB", 0x47, 1, base, base, alignment, length)


def irq(n: int) -> bytes:
    """Edge-triggered, exclusive."""
    return struct.pack("<BH", 0x22, 1 << n)


def dma(channel: int) -> bytes:
    """8-bit transfers, compatibility timing."""
    return bytes((0x2A, 1 << channel, 0))


def fixed_memory(base: int, length: int) -> bytes:
    return struct.pack("<BHBII", 0x86, 9, 0, base, length)


def interrupts(*numbers: int) -> bytes:
    """Level, active high, shared; the numbers begin 5 bytes into the descriptor."""
    body = struct.pack("<BB", 0b1001, len(numbers)) + struct.pack(f"<{len(numbers)}I", *numbers)
    return struct.pack("<BH", 0x89, len(body)) + body


def word_space(kind: int, low: int, high: int, flags: int = 0) -> bytes:
    """A range that the bridge passes on: kind 1 I/O, 2 bus numbers."""
    return struct.pack("<BHBBBHHHHH", 0x88, 13, kind, 0x0C, flags, 0, low, high, 0, high - low + 1 & 0xFFFF)


def dword_memory(low: int, high: int, *, cacheable: bool) -> bytes:
    return struct.pack("<BHBBBIIIII", 0x87, 23, 0, 0x0C, 1 | cacheable << 1, 0, low, high, 0, high - low + 1)
