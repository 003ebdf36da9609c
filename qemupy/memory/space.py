"""Address spaces: guest-physical memory with its MMIO dispatcher, and the 64 KiB of I/O ports.

Both are region trees. An access goes whole to the region that holds its first byte (so that the dword register CF8h
works although CF9h lies over its second byte), and is split where it runs past that region's own end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qemupy import trace
from qemupy.memory.core import CoreMemory, Doorbells
from qemupy.memory.flatview import FlatRange, FlatView, ShownDoorbells
from qemupy.memory.region import MemoryRegion, Ops, transaction

_ONES = {1: 0xFF, 2: 0xFFFF, 4: 0xFFFFFFFF, 8: 0xFFFFFFFFFFFFFFFF}


class AddressSpace:
    """Guest-physical memory. `read`/`write` are the MMIO upcalls; they also serve pages shared with RAM."""

    def __init__(self, name: str, root: MemoryRegion, core: CoreMemory, doorbells: Doorbells | None = None) -> None:
        self.name, self.root, self.core = name, root, core
        self._doorbells = ShownDoorbells(doorbells, mmio=True)
        self.view = FlatView(root)
        self._last: FlatRange | None = None
        root.listen(self._rebuild)
        self._rebuild()

    def _rebuild(self) -> None:
        self.view = FlatView(self.root)
        self._last = None
        self.core.set_ranges(self.view.core_ranges())
        self._doorbells.update(self.view)

    def find(self, gpa: int) -> FlatRange | None:
        hit = self._last
        if hit is None or not hit.start <= gpa < hit.end:
            hit = self.view.find(gpa)
            if hit is not None:
                self._last = hit
        return hit

    def read(self, gpa: int, size: int) -> int:
        hit = self.find(gpa)
        if hit is None:
            trace.log_guest_error("Invalid read at addr 0x%X, size %d, region '(null)', reason: rejected", gpa, size)
            return _ONES[size]
        offset = hit.offset + gpa - hit.start
        if size > 1 and (offset + size > hit.region.size or (hit.direct_read and gpa + size > hit.end)):
            half = size // 2
            return self.read(gpa, half) | self.read(gpa + half, half) << half * 8
        if hit.direct_read:
            return int.from_bytes(self.core.view(hit.ram_offset(gpa), size), "little")
        assert hit.region.ops is not None
        return hit.region.ops.read(offset, size)

    def write(self, gpa: int, size: int, value: int) -> None:
        hit = self.find(gpa)
        if hit is None:
            trace.log_guest_error("Invalid write at addr 0x%X, size %d, region '(null)', reason: rejected", gpa, size)
            return
        offset = hit.offset + gpa - hit.start
        if size > 1 and (offset + size > hit.region.size or (hit.direct_read and gpa + size > hit.end)):
            half = size // 2
            self.write(gpa, half, value & _ONES[half])
            self.write(gpa + half, half, value >> half * 8)
        elif hit.direct_write:
            self.core.store(hit.ram_offset(gpa), value.to_bytes(size, "little"))
        elif hit.region.ops is not None and not hit.readonly:
            hit.region.ops.write(offset, size, value)


class PortSpace:
    """The I/O ports. `map` is the short way to put a register bank at a port; `root` takes regions as well."""

    SIZE = 0x10000

    def __init__(self, doorbells: Doorbells | None = None) -> None:
        self.root = MemoryRegion("io", self.SIZE)
        self._doorbells = ShownDoorbells(doorbells, mmio=False)
        self._table: list[tuple[Any, int, int] | None] = [None] * self.SIZE
        self._readers: dict[int, Callable[[], int]] = {}  # handlers met so far, by `port << 4 | size`
        self._writers: dict[int, Callable[[int], None]] = {}
        self.view = FlatView(self.root)
        self.root.listen(self._rebuild)

    def map(self, port: int, ops: Ops, length: int | None = None, *, offset: int = 0, priority: int = 0,
            name: str = "") -> MemoryRegion:  # fmt: skip
        """Show `length` registers of `ops` from `offset` on at `port`. The region answered can be moved or removed."""
        span: int = getattr(ops, "span", 0) - offset if length is None else length
        whole = MemoryRegion.mmio(name or getattr(ops, "name", "ports"), offset + span, ops)
        region = MemoryRegion.alias(whole.name, whole, offset, span) if offset else whole
        self.root.add(region, port, priority)
        return region

    def unmap(self, region: MemoryRegion) -> None:
        self.root.remove(region)

    def _rebuild(self) -> None:
        """Fill the table of (ops, port of its offset 0, port behind its end); only the changed parts are touched."""
        old, self.view = self.view, FlatView(self.root)
        self._readers.clear()
        self._writers.clear()
        for r in old.ranges:
            self._table[r.start : r.end] = [None] * (r.end - r.start)
        for r in self.view.ranges:
            base = r.start - r.offset
            entry = (r.region.ops, base, base + r.region.size)
            self._table[r.start : min(r.end, self.SIZE)] = [entry] * (min(r.end, self.SIZE) - r.start)
        self._doorbells.update(self.view)

    def read(self, port: int, size: int) -> int:
        handler = self._readers.get(port << 4 | size)
        return handler() if handler is not None else self._look_up_and_read(port, size)

    def write(self, port: int, size: int, value: int) -> None:
        handler = self._writers.get(port << 4 | size)
        if handler is not None:
            handler(value)
        else:
            self._look_up_and_write(port, size, value)

    def _look_up_and_read(self, port: int, size: int) -> int:
        entry = self._table[port]
        if entry is not None:
            ops, base, end = entry
            if port + size <= end:
                if (handler := getattr(ops, "reads", {}).get(port - base << 4 | size)) is not None:
                    self._readers[port << 4 | size] = handler
                return ops.read(port - base, size)  # type: ignore[no-any-return]
        elif size == 1:
            trace.log_unimp("in: nothing at port %#06x", port)
        return self._read_split(port, size)

    def _read_split(self, port: int, size: int) -> int:
        if size == 1:
            return 0xFF
        half = size // 2
        high = self.read(port + half & 0xFFFF, half)
        return self.read(port, half) | high << half * 8

    def _look_up_and_write(self, port: int, size: int, value: int) -> None:
        entry = self._table[port]
        if entry is not None:
            ops, base, end = entry
            if port + size <= end:
                if (handler := getattr(ops, "writes", {}).get(port - base << 4 | size)) is not None:
                    self._writers[port << 4 | size] = handler
                ops.write(port - base, size, value)
                return
        if size == 1:
            trace.log_unimp("out: nothing at port %#06x (value %#x)", port, value)
            return
        half = size // 2
        self.write(port, half, value & _ONES[half])
        self.write(port + half & 0xFFFF, half, value >> half * 8)

    def read_string(self, port: int, size: int, count: int) -> bytes:
        entry = self._table[port]
        if entry is not None and port + size <= entry[2] and hasattr(entry[0], "read_string"):
            return entry[0].read_string(port - entry[1], size, count)  # type: ignore[no-any-return]
        return b"".join(self.read(port, size).to_bytes(size, "little") for _ in range(count))

    def write_string(self, port: int, size: int, data: bytes) -> None:
        entry = self._table[port]
        if entry is not None and port + size <= entry[2] and hasattr(entry[0], "write_string"):
            entry[0].write_string(port - entry[1], size, data)
            return
        for at in range(0, len(data), size):
            self.write(port, size, int.from_bytes(data[at : at + size], "little"))


__all__ = ["AddressSpace", "PortSpace", "transaction"]
