"""A guest driver for virtio devices, in Python: PCI set-up through the registers, rings written byte by byte. The rings
are walked by the real core, over RAM of a machine without vCPUs."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import Any

from qemupy._core import lib

from qemupy.hw.pci import PciBus
from qemupy.hw.virtio import VirtioDevice, VirtioPci, regs
from qemupy.memory import AddressSpace, Doorbell, MemoryRegion, PortSpace, Virtqueue
from qemupy.vcpu.interp import InterpAccel

RAM = 8 << 20
BAR_IO, BAR_MSIX, BAR_MODERN = 0xC000, 0xFE000000, 0xFE004000
NEXT, WRITE, INDIRECT = 1, 2, 4


class Watcher:
    """Remembers which doorbells are shown."""

    def __init__(self) -> None:
        self.bells: set[Doorbell] = set()

    def add_doorbell(self, bell: Doorbell) -> bool:
        self.bells.add(bell)
        return True

    def remove_doorbell(self, bell: Doorbell) -> None:
        self.bells.remove(bell)


class Host:
    def __init__(self, accel: InterpAccel) -> None:
        self.accel, self.running = accel, True
        self.notifiers: dict[int, Callable[[], None]] = {}
        self.posted: list[Callable[[], None]] = []
        self.resumers: list[Callable[[], None]] = []

    def virtqueue(self) -> Virtqueue:
        return self.accel.virtqueue()

    def notifier(self, call: Callable[[], None]) -> int:
        fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.notifiers[fd] = call
        return fd

    def ring(self, notifier: int) -> None:
        os.eventfd_write(notifier, 1)

    def post(self, call: Callable[[], None]) -> None:
        self.posted.append(call)

    def on_resume(self, call: Callable[[], None]) -> None:
        self.resumers.append(call)

    def turn(self) -> None:
        """The main loop until nothing is left to do."""
        while True:
            for fd, call in self.notifiers.items():
                try:
                    os.eventfd_read(fd)
                except BlockingIOError:
                    continue
                call()
            if not self.posted:
                return
            self.posted.pop(0)()

    def resume(self) -> None:
        self.running = True
        for call in self.resumers:
            call()

    def close(self) -> None:
        for fd in self.notifiers:
            os.close(fd)


class Board:
    """RAM, a PCI bus with one virtio function, interrupts that are written down."""

    def __init__(self, make: Callable[[Host], tuple[VirtioDevice, VirtioPci]]) -> None:
        self.accel = InterpAccel(RAM + (1 << 20))
        self.owns_bql = not lib.qpy_bql_held()  # there is one for the process
        if self.owns_bql:
            self.accel.bql.acquire()
        self.watcher = Watcher()
        system = MemoryRegion("system", 1 << 48)
        system.add(MemoryRegion.ram("ram", self.accel.memory.alloc("ram", RAM)), 0)
        self.pci_memory = MemoryRegion("pci", 1 << 48)
        system.add(self.pci_memory, 0, priority=-1)
        self.memory = AddressSpace("memory", system, self.accel.memory, self.watcher)
        self.ports = PortSpace(self.watcher)
        self.bus = PciBus(self.ports.root, self.pci_memory)
        self.messages: list[tuple[int, int]] = []
        self.bus.send_message = lambda address, data: self.messages.append((address, data))
        self.levels: list[bool] = []
        self.bus.route = lambda devfn, pin, level: self.levels.append(level)
        self.host = Host(self.accel)
        try:
            self.device, self.function = make(self.host)
        except BaseException:
            self.close()  # a BQL left locked would hang the next test that runs a vCPU
            raise
        self.devfn = self.bus.plug(self.function)

    def close(self) -> None:
        self.host.close()
        self.accel.close()
        if self.owns_bql:
            self.accel.bql.release()

    def read(self, gpa: int, size: int) -> bytes:
        return bytes(self.accel.memory.view(gpa, size))

    def store(self, gpa: int, data: bytes) -> None:
        self.accel.memory.store(gpa, data)

    def config(self, offset: int, size: int) -> int:
        return self.bus.config_read(self.devfn, offset, size)

    def set_config(self, offset: int, size: int, value: int) -> None:
        self.bus.config_write(self.devfn, offset, size, value)

    def map_bars(self) -> None:
        for offset, address in ((0x10, BAR_IO), (0x14, BAR_MSIX), (0x20, BAR_MODERN), (0x24, 0)):
            self.set_config(offset, 4, address)
        self.set_config(4, 2, 7)

    def capability(self, kind: int, structure: int = 0) -> int:
        at = self.config(0x34, 1)
        while at:
            if self.config(at, 1) == kind and structure in (0, self.config(at + 3, 1)):
                return at
            at = self.config(at + 1, 1)
        raise AssertionError(f"no capability {kind:#x}")

    def enable_msix(self, vectors: int) -> None:
        """Vector n becomes the message (FEE0_0000h, 40h + n)."""
        for n in range(vectors):
            for at, value in ((0, 0xFEE00000), (4, 0), (8, 0x40 + n), (12, 0)):
                self.memory.write(BAR_MSIX + 16 * n + at, 4, value)
        self.set_config(self.capability(0x11) + 2, 2, 0x8000)

    def vectors_seen(self) -> list[int]:
        seen, self.messages[:] = [data - 0x40 for _address, data in self.messages], []
        return seen

    def save(self) -> dict[str, Any]:
        parts = {f"queue{q.number}": q for q in self.device.queues}
        whole = {**parts, "device": self.device, "function": self.function}
        return {name: part.save() for name, part in whole.items()}

    def load(self, state: dict[str, Any]) -> None:
        for queue in self.device.queues:
            queue.load(state[f"queue{queue.number}"])
        self.device.load(state["device"])
        self.function.load(state["function"])


class Driver:
    """The driver's side of one queue, split ring at `base`: descriptors, available ring, used ring."""

    def __init__(self, board: Board, size: int, base: int, event_idx: bool = False) -> None:
        self.board, self.size, self.base, self.event_idx = board, size, base, event_idx
        self.desc, self.avail = base, base + 16 * size
        self.used = self.avail + 6 + 2 * size + 0xFFF & ~0xFFF
        self.data = self.used + 0x2000
        self.next_avail = self.seen_used = 0
        board.store(base, bytes(self.data - base))

    def describe(self, index: int, gpa: int, length: int, flags: int = 0, following: int = 0, at: int = 0) -> None:
        self.board.store((at or self.desc) + 16 * index, struct.pack("<QIHH", gpa, length, flags, following))

    def offer(self, head: int) -> None:
        self.board.store(self.avail + 4 + 2 * (self.next_avail % self.size), struct.pack("<H", head))
        self.next_avail += 1
        self.board.store(self.avail + 2, struct.pack("<H", self.next_avail & 0xFFFF))

    def answers(self) -> list[tuple[int, int]]:
        """(head, written) of what came back since the last call."""
        (now,) = struct.unpack("<H", self.board.read(self.used + 2, 2))
        found = []
        while self.seen_used & 0xFFFF != now:
            at = self.used + 4 + 8 * (self.seen_used % self.size)
            found.append(struct.unpack("<II", self.board.read(at, 8)))
            self.seen_used += 1
        return found

    def used_event(self, index: int) -> None:
        """Interrupt after the used element with this number."""
        self.board.store(self.avail + 4 + 2 * self.size, struct.pack("<H", index & 0xFFFF))

    def avail_event(self) -> int:
        return int.from_bytes(self.board.read(self.used + 4 + 8 * self.size, 2), "little")


def common(board: Board, offset: int, size: int) -> int:
    return board.memory.read(BAR_MODERN + offset, size)


def set_common(board: Board, offset: int, size: int, value: int) -> None:
    board.memory.write(BAR_MODERN + offset, size, value)


def start_modern(board: Board, features: int, *, size: int = 16, base: int = 0x10000, queue: int = 0) -> Driver:
    """Virtio 1.2, 3.1.1, with one queue; vector 1 + n for queue n if MSI-X is enabled."""
    if not common(board, 20, 1) & regs.DRIVER_OK:
        set_common(board, 20, 1, 0)
        assert common(board, 20, 1) == 0
        set_common(board, 20, 1, regs.ACKNOWLEDGE | regs.DRIVER)
        for word in range(2):
            set_common(board, 8, 4, word)
            set_common(board, 12, 4, (features | regs.F_VERSION_1) >> 32 * word & 0xFFFFFFFF)
        set_common(board, 20, 1, regs.ACKNOWLEDGE | regs.DRIVER | regs.FEATURES_OK)
        assert common(board, 20, 1) & regs.FEATURES_OK
    driver = Driver(board, size, base, bool(features & regs.F_EVENT_IDX))
    set_common(board, 22, 2, queue)
    set_common(board, 24, 2, size)
    set_common(board, 16, 2, 0)
    set_common(board, 26, 2, 1 + queue)
    for offset, address in ((32, driver.desc), (40, driver.avail), (48, driver.used)):
        set_common(board, offset, 8, address)
    set_common(board, 28, 2, 1)
    set_common(board, 20, 1, regs.ACKNOWLEDGE | regs.DRIVER | regs.FEATURES_OK | regs.DRIVER_OK)
    return driver


def start_legacy(board: Board, features: int, base: int = 0x10000) -> Driver:
    """Virtio 1.2, 4.1.5.1.2, by the ports of BAR 0."""
    ports = board.ports
    ports.write(BAR_IO + 18, 1, 0)
    ports.write(BAR_IO + 18, 1, regs.ACKNOWLEDGE | regs.DRIVER)
    ports.write(BAR_IO + 4, 4, features)
    ports.write(BAR_IO + 14, 2, 0)
    driver = Driver(board, ports.read(BAR_IO + 12, 2), base, bool(features & regs.F_EVENT_IDX))
    ports.write(BAR_IO + 8, 4, base >> 12)
    ports.write(BAR_IO + 18, 1, regs.ACKNOWLEDGE | regs.DRIVER | regs.DRIVER_OK)
    return driver
