"""The guest's page tables as `info mem` and `info tlb` show them (Intel SDM vol 3A 4.3-4.5). No side effects."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

PRESENT, WRITE, USER, LARGE = 1, 2, 4, 0x80
CR4_PSE, CR4_PAE, CR4_LA57 = 1 << 4, 1 << 5, 1 << 12
CR0_PG, EFER_LMA = 1 << 31, 1 << 10
_ADDRESS = 0x000FFFFFFFFFF000


class Page(NamedTuple):
    """A mapped page: `rights` is the AND of user and write over all levels, `entry` the last level's."""

    linear: int
    size: int
    entry: int
    rights: int
    physical: int


def _entries(read: Callable[[int, int], bytes], table: int, count: int, size: int) -> Iterator[tuple[int, int]]:
    data = read(table, count * size)
    for n in range(count):
        entry = int.from_bytes(data[n * size : n * size + size], "little")
        if entry & PRESENT:
            yield n, entry


def pages(s: Any, read: Callable[[int, int], bytes]) -> Iterator[Page]:
    """All present pages in order of address. `read(gpa, size)` reads guest-physical memory."""
    if not s.cr0 & CR0_PG:
        return
    if s.efer & EFER_LMA:
        levels = 5 if s.cr4 & CR4_LA57 else 4
        yield from _walk64(read, s.cr3 & _ADDRESS, levels, 0, USER | WRITE, levels)
    elif s.cr4 & CR4_PAE:
        for n, entry in _entries(read, s.cr3 & 0xFFFFFFE0, 4, 8):
            yield from _walk64(read, entry & _ADDRESS, 2, n << 30, USER | WRITE, 3)
    else:
        yield from _walk32(read, s.cr3 & 0xFFFFF000, bool(s.cr4 & CR4_PSE))


def _walk64(
    read: Callable[[int, int], bytes], table: int, level: int, base: int, rights: int, top: int
) -> Iterator[Page]:
    shift = 12 + 9 * (level - 1)
    for n, entry in _entries(read, table, 512, 8):
        linear = base | n << shift
        if level == top and top >= 4 and n & 0x100:
            linear |= -1 << (shift + 9)
        both = rights & entry
        if level == 1 or (level <= 3 and entry & LARGE):
            physical = entry & _ADDRESS & -(1 << shift)
            yield Page(linear & (1 << 64) - 1, 1 << shift, entry, both, physical)
        else:
            yield from _walk64(read, entry & _ADDRESS, level - 1, linear, both, top)


def _walk32(read: Callable[[int, int], bytes], table: int, pse: bool) -> Iterator[Page]:
    for n, entry in _entries(read, table, 1024, 4):
        if pse and entry & LARGE:
            physical = entry & 0xFFC00000 | (entry >> 13 & 0xFF) << 32
            yield Page(n << 22, 1 << 22, entry, entry & (USER | WRITE), physical)
            continue
        for m, leaf in _entries(read, entry & 0xFFFFF000, 1024, 4):
            yield Page(n << 22 | m << 12, 4096, leaf, entry & leaf & (USER | WRITE), leaf & 0xFFFFF000)


def ranges(found: Iterator[Page]) -> Iterator[tuple[int, int, int]]:
    """(start, end, rights) of neighbouring pages with the same rights, for `info mem`."""
    start = end = rights = -1
    for page in found:
        here = page.rights & (USER | WRITE)
        if page.linear == end and here == rights:
            end += page.size
            continue
        if start >= 0:
            yield start, end, rights
        start, end, rights = page.linear, page.linear + page.size, here
    if start >= 0:
        yield start, end, rights


def rights_text(rights: int) -> str:
    return f"{'u' if rights & USER else '-'}r{'w' if rights & WRITE else '-'}"


def tlb_line(page: Page) -> str:
    """`info tlb`: address, physical address, and the entry's bits."""
    e = page.entry
    bits = ((63, "X"), (8, "G"), (7, "P"), (6, "D"), (5, "A"), (4, "C"), (3, "T"), (2, "U"), (1, "W"))
    if page.size == 4096:
        e &= ~LARGE
    letters = "".join(letter if e >> bit & 1 else "-" for bit, letter in bits)
    return f"{page.linear:016x}: {page.physical:016x} {letters}"
