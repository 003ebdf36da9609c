"""`GuestRam`: how devices reach guest memory (DMA), bounds-checked, with stores announced to the core."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence

from qemupy import trace
from qemupy.memory.space import AddressSpace
from qemupy.scatter import Scatter, pairs


class GuestRam:
    """Implements the `Dma` Protocol of hw.core over an address space. Devices' registers are not reachable by DMA:
    a handler that met its own registers that way would run inside itself. Such accesses read ones and are logged."""

    def __init__(self, space: AddressSpace) -> None:
        self.space = space
        self._core = space.core
        self.waiting: list[Callable[[], None]] = []  # for memory that cannot be read

    def read(self, gpa: int, size: int) -> bytes:
        hit = self.space.find(gpa)
        if hit is not None and hit.direct_read and gpa + size <= hit.end:
            return bytes(self._core.view(hit.ram_offset(gpa), size))
        data = bytearray(size)
        self.read_into(gpa, data)
        return bytes(data)

    def read_into(self, gpa: int, data: bytearray | memoryview) -> None:
        done, view = 0, memoryview(data)
        while done < len(view):
            address = gpa + done
            hit = self.space.find(address)
            if hit is None or not hit.direct_read:
                trace.log_guest_error("DMA read outside RAM at %#x", address)
                view[done : done + 1] = b"\xff"
                done += 1
                continue
            count = min(len(view) - done, hit.end - address)
            view[done : done + count] = self._core.view(hit.ram_offset(address), count)
            done += count

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        done, view = 0, memoryview(data)
        while done < len(view):
            address = gpa + done
            hit = self.space.find(address)
            if hit is None or not hit.direct_write:
                trace.log_guest_error("DMA write outside RAM at %#x", address)
                skip = (hit.end if hit is not None else (address | 0xFFF) + 1) - address
                done += min(skip, len(view) - done)
                continue
            count = min(len(view) - done, hit.end - address)
            self._core.store(hit.ram_offset(address), view[done : done + count])
            done += count

    def views(self, pieces: bytes, to_memory: bool) -> Sequence[memoryview]:
        """RAM itself, by address and size as `scatter.table` packs them, for requests that go on after this call. What
        is not RAM is told to the log; ones are read there and what is written is lost."""
        scatter = self._core.scatter(pieces, to_memory)
        if scatter is not None:
            return scatter
        found: list[memoryview] = []
        for gpa, size in pairs(pieces):
            self._odd_views(gpa, size, to_memory, found)
        return found

    def _odd_views(self, gpa: int, size: int, to_memory: bool, found: list[memoryview]) -> None:
        """Stretch by stretch."""
        end = gpa + size
        while gpa < end:
            hit = self.space.find(gpa)
            if hit is not None and (hit.direct_write if to_memory else hit.direct_read):
                count = min(end, hit.end) - gpa
                self._core.claim(hit.ram_offset(gpa), count)
                found.append(self._core.view(hit.ram_offset(gpa), count))
            else:
                trace.log_guest_error("DMA outside RAM at %#x", gpa)
                count = min(end, hit.end if hit is not None else (gpa | 0xFFF) + 1) - gpa
                found.append(memoryview(bytearray(b"\xff" * count)))
            gpa += count

    def landed(self, pieces: bytes, views: Sequence[memoryview]) -> None:
        """Bytes have been written through `views`: the pages are dirty, code in them is not what it was."""
        if isinstance(views, Scatter):
            self._core.landed(views)
            return
        ranges = array("Q")
        for gpa, size in pairs(pieces):
            self._odd_landing(gpa, size, ranges)
        self._core.changed(ranges)

    def _odd_landing(self, gpa: int, size: int, ranges: array[int]) -> None:
        end = gpa + size
        while gpa < end:
            hit = self.space.find(gpa)
            count = min(end, hit.end if hit is not None else (gpa | 0xFFF) + 1) - gpa
            if hit is not None and hit.direct_write:
                ranges.extend((hit.ram_offset(gpa), count))
            gpa += count

    # Memory that lies in a snapshot's file, and cannot be read

    def claim(self, pieces: bytes) -> None:
        if not self._core.mapped or self._core.scatter(pieces, False) is not None:
            return
        for gpa, size in pairs(pieces):
            end = gpa + size
            while gpa < end:
                hit = self.space.find(gpa)
                count = min(end, hit.end if hit is not None else (gpa | 0xFFF) + 1) - gpa
                if hit is not None and hit.direct_read:
                    self._core.claim(hit.ram_offset(gpa), count)
                gpa += count

    def later(self, call: Callable[[], None]) -> None:
        self.waiting.append(call)

    def resume(self) -> None:
        """The machine goes on: what devices put off is tried again."""
        waiting, self.waiting = self.waiting, []
        for call in waiting:
            call()

    def read_int(self, gpa: int, size: int) -> int:
        return int.from_bytes(self.read(gpa, size), "little")

    def write_int(self, gpa: int, size: int, value: int) -> None:
        self.write(gpa, value.to_bytes(size, "little"))
