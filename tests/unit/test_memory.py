"""Region trees, flat views, ports and DMA."""

from __future__ import annotations

from qemupy.hw.core import Device, on_read, on_write, u8
from qemupy.memory import AddressSpace, GuestRam, MemoryRegion, PortSpace, PyCoreMemory, transaction
from qemupy.memory.core import MMIO, NO_WRITE, RAM, ROM, CoreRange
from qemupy.scatter import table


class Log:
    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def read(self, offset: int, size: int) -> int:
        self.calls.append(("r", offset, size))
        return 0x1122334455667788 & (1 << size * 8) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        self.calls.append(("w", offset, size, value))


def build() -> tuple[PyCoreMemory, AddressSpace, MemoryRegion, Log]:
    core, root, ops = PyCoreMemory(), MemoryRegion("system", 1 << 64), Log()
    root.add(MemoryRegion.ram("ram", core.alloc("ram", 0x10000)), 0)
    space = AddressSpace("memory", root, core)
    root.add(MemoryRegion.mmio("dev", 0x1000, ops), 0x2000, priority=1)
    return core, space, root, ops


def test_overlap_by_priority_reaches_the_core() -> None:
    core, _, _, _ = build()
    assert core.ranges == [
        CoreRange(0, 0x2000, RAM, 0, 0),
        CoreRange(0x2000, 0x1000, MMIO),
        CoreRange(0x3000, 0xD000, RAM, 0x3000, 0x3000),
    ]


def test_alias_readonly_and_transaction() -> None:
    core, space, root, _ = build()
    ram = root.children[1]
    window = MemoryRegion.alias("pam", ram, 0xC000, 0x1000, readonly=True)
    rebuilt: list[int] = []
    root.listen(lambda: rebuilt.append(1))
    with transaction():
        root.add(window, 0xC000, 2)
        window.set_enabled(False)
        window.set_enabled(True)
    assert len(rebuilt) == 1
    assert CoreRange(0xC000, 0x1000, ROM, 0xC000, NO_WRITE) in core.ranges
    space.write(0xC000, 4, 5)
    window.set_readonly(False)
    assert CoreRange(0xC000, 0x1000, RAM, 0xC000, 0xC000) in core.ranges
    space.write(0xC000, 4, 6)
    assert space.read(0xC000, 4) == 6


def test_a_change_below_an_alias_is_seen() -> None:
    core, root = PyCoreMemory(), MemoryRegion("system", 1 << 32)
    pci = MemoryRegion("pci", 1 << 32)
    root.add(MemoryRegion.alias("hole", pci, 0xE0000000, 0x10000000), 0xE0000000)
    space = AddressSpace("memory", root, core)
    bar = MemoryRegion.mmio("bar", 0x100, Log())
    pci.add(bar, 0xE0001000)
    assert space.read(0xE0001004, 4) == 0x55667788
    bar.set_offset(0xE0002000)
    assert core.ranges == [CoreRange(0xE0002000, 0x1000, MMIO)]
    assert space.read(0xE0001004, 4) == 0xFFFFFFFF


def test_page_shared_with_ram_goes_through_the_dispatcher() -> None:
    core, root, ops = PyCoreMemory(), MemoryRegion("system", 1 << 32), Log()
    root.add(MemoryRegion.ram("ram", core.alloc("ram", 0x3000)), 0)
    root.add(MemoryRegion.mmio("dev", 0x10, ops), 0x1100, 1)
    space = AddressSpace("memory", root, core)
    assert [(r.gpa, r.size, r.kind) for r in core.ranges] == [
        (0, 0x1000, RAM), (0x1000, 0x1000, MMIO), (0x2000, 0x1000, RAM),
    ]  # fmt: skip
    space.write(0x1000, 8, 0x0807060504030201)
    assert space.read(0x1000, 8) == 0x0807060504030201
    assert space.read(0x1104, 4) == 0x55667788 and ops.calls == [("r", 4, 4)]
    space.write(0x10FE, 4, 0xAABBCCDD)
    assert ops.calls[1:] == [("w", 0, 2, 0xAABB)]


def test_ports_cf8_and_cf9() -> None:
    ports, conf, reset = PortSpace(), Log(), Log()
    ports.map(0xCF8, conf, 4)
    region = ports.map(0xCF9, reset, 1, priority=1)
    ports.write(0xCF8, 4, 0x80000000)
    ports.write(0xCF9, 1, 6)
    ports.read(0xCF8, 1)
    assert conf.calls == [("w", 0, 4, 0x80000000), ("r", 0, 1)] and reset.calls == [("w", 0, 1, 6)]
    assert ports.read(0xCFC, 4) == 0xFFFFFFFF
    ports.unmap(region)
    ports.write(0xCF9, 1, 7)
    assert conf.calls[-1] == ("w", 1, 1, 7)


def test_a_port_that_was_used_follows_its_region() -> None:
    """Handlers are found anew after a change of the map."""

    class Register(Device):
        value: int = u8(reset=5)

        @on_read(0)
        def read(self) -> int:
            return self.value

        @on_write(0)
        def write(self, value: int) -> None:
            self.value = value

    ports, low, high = PortSpace(), Register(), Register()
    ports.map(0x300, low.bank(), 1)
    region = ports.map(0x300, high.bank(), 1, priority=1)
    for _ in range(2):
        ports.write(0x300, 1, ports.read(0x300, 1) + 1)
    assert (low.value, high.value) == (5, 7)
    region.set_offset(0x301)
    for _ in range(2):
        ports.write(0x300, 1, ports.read(0x300, 1) + 1)
    assert (low.value, high.value, ports.read(0x301, 1), ports.read(0x300, 2)) == (7, 7, 7, 0x0707)
    ports.unmap(region)
    assert ports.read(0x301, 1) == 0xFF and ports.read(0x300, 1) == 7


def test_port_access_across_two_devices_is_split() -> None:
    ports, one, two = PortSpace(), Log(), Log()
    ports.map(0x60, one, 1)
    ports.map(0x61, two, 1, offset=3)
    ports.write(0x60, 2, 0xABCD)
    assert one.calls == [("w", 0, 1, 0xCD)] and two.calls == [("w", 3, 1, 0xAB)]
    assert ports.read_string(0x60, 1, 3) == b"\x88" * 3


def test_dma_is_bounds_checked_and_announced() -> None:
    core, space, _, ops = build()
    dma = GuestRam(space)
    dma.write(0x1FFE, b"abcdef")
    assert dma.read(0x1FFE, 4) == b"ab\xff\xff" and not ops.calls
    assert core.stores == [(0x1FFE, 2)]
    dma.write(0xFFFF, b"xy")
    assert dma.read(0xFFFF, 2) == b"x\xff"
    dma.write_int(0x100, 4, 0x01020304)
    assert dma.read_int(0x102, 2) == 0x0102


def test_dma_views_are_the_memory_itself() -> None:
    """Stand-ins fill the holes, so that a request always has its length; landed bytes are announced where RAM is."""
    core, space, _, _ = build()
    ram = GuestRam(space)
    views = ram.views(table([(0x1F00, 0x1200)]), True)
    assert [len(v) for v in views] == [0x100, 0x1000, 0x100]
    for view in views:
        view[:] = b"x" * len(view)
    assert not core.stores
    ram.landed(table([(0x1F00, 0x1200)]), views)
    assert core.stores == [(0x1F00, 0x100), (0x3000, 0x100)]
    assert ram.read(0x1F00, 0x100) == b"x" * 0x100 and bytes(core.view(0x2000, 0x1000)) == bytes(0x1000)
    ram.landed(table([(0x100, 8), (0x200, 8), (0x4000, 8)]), views)
    assert core.stores[2:] == [(0x100, 8), (0x200, 8), (0x4000, 8)]
    assert [len(v) for v in ram.views(table([(0, 16), (32, 8), (0x5000, 4)]), True)] == [16, 8, 4]
    beyond = ram.views(table([(0xFFF0, 0x30)]), False)
    assert bytes(beyond[0]) == bytes(16) and bytes(beyond[1]) == b"\xff" * 32
