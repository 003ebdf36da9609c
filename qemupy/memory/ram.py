"""`GuestRam`: how devices reach guest memory (DMA), bounds-checked, with stores announced to the core."""

from __future__ import annotations

from qemupy import trace
from qemupy.memory.space import AddressSpace


class GuestRam:
    """Implements the `Dma` Protocol of hw.core over an address space. Devices' registers are not reachable by DMA:
    a handler that met its own registers that way would run inside itself. Such accesses read ones and are logged."""

    def __init__(self, space: AddressSpace) -> None:
        self.space = space
        self._core = space.core

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

    def read_int(self, gpa: int, size: int) -> int:
        return int.from_bytes(self.read(gpa, size), "little")

    def write_int(self, gpa: int, size: int, value: int) -> None:
        self.write(gpa, value.to_bytes(size, "little"))
