"""`MemoryRegion`: a tree that says what lies where in an address space, as in QEMU's memory API.

A region is a container, RAM, ROM, a ROM device (reads from memory, writes to handlers; `set_romd(False)` sends reads to
the handlers too), MMIO, or an alias of a part of another region. Children lie at an offset in their parent; where
children overlap the higher priority wins, and where priorities are equal the one added later. Any change tells the
address spaces, which rebuild their FlatView at the end of the transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, Protocol

from qemupy.memory.core import RamBlock
from qemupy.records import record

Kind = Literal["container", "ram", "rom", "romd", "mmio", "alias"]


class Ops(Protocol):
    """Register access by offset. `RegisterBank` is one; it has `read_string` and `write_string` as well."""

    def read(self, offset: int, size: int) -> int: ...

    def write(self, offset: int, size: int, value: int) -> None: ...


@record(frozen=True)
class RegionDoorbell:
    """A register of an MMIO region that only notifies (memory/core.py: Doorbell)."""

    offset: int
    size: int
    fd: int
    value: int | None = None


class MemoryRegion:
    __slots__ = (
        "_aliases",
        "_listeners",
        "block",
        "children",
        "doorbells",
        "enabled",
        "kind",
        "name",
        "offset",
        "ops",
        "parent",
        "priority",
        "readonly",
        "romd_mode",
        "size",
        "target",
        "target_offset",
    )  # fmt: skip

    def __init__(self, name: str, size: int, kind: Kind = "container") -> None:
        self.name, self.size, self.kind = name, size, kind
        self.block: RamBlock | None = None
        self.ops: Ops | None = None
        self.target: MemoryRegion | None = None
        self.target_offset = 0
        self.parent: MemoryRegion | None = None
        self.offset = 0
        self.priority = 0
        self.enabled = True
        self.readonly = kind == "rom"
        self.romd_mode = True
        self.children: list[MemoryRegion] = []
        self.doorbells: list[RegionDoorbell] = []
        self._aliases: list[MemoryRegion] = []
        self._listeners: list[Callable[[], None]] = []

    @classmethod
    def ram(cls, name: str, block: RamBlock) -> MemoryRegion:
        region = cls(name, block.size, "ram")
        region.block = block
        return region

    @classmethod
    def rom(cls, name: str, block: RamBlock) -> MemoryRegion:
        region = cls(name, block.size, "rom")
        region.block = block
        return region

    @classmethod
    def rom_device(cls, name: str, block: RamBlock, ops: Ops) -> MemoryRegion:
        region = cls(name, block.size, "romd")
        region.block, region.ops = block, ops
        return region

    @classmethod
    def mmio(cls, name: str, size: int, ops: Ops) -> MemoryRegion:
        region = cls(name, size, "mmio")
        region.ops = ops
        return region

    @classmethod
    def alias(cls, name: str, target: MemoryRegion, offset: int, size: int, readonly: bool = False) -> MemoryRegion:
        region = cls(name, size, "alias")
        region.target, region.target_offset, region.readonly = target, offset, readonly
        target._aliases.append(region)
        return region

    def add(self, child: MemoryRegion, offset: int, priority: int = 0) -> None:
        if child.parent is not None:
            raise ValueError(f"{child.name} is already mapped in {child.parent.name}")
        child.parent, child.offset, child.priority = self, offset, priority
        at = 0
        while at < len(self.children) and self.children[at].priority > priority:
            at += 1
        self.children.insert(at, child)
        self.changed()

    def remove(self, child: MemoryRegion) -> None:
        self.children.remove(child)
        child.parent = None
        self.changed()

    def set_doorbells(self, doorbells: list[RegionDoorbell]) -> None:
        """The handlers are still there, for writes of another size and where nobody watches doorbells."""
        if doorbells != self.doorbells:
            self.doorbells = doorbells
            self.changed()

    def set_enabled(self, enabled: bool) -> None:
        if enabled != self.enabled:
            self.enabled = enabled
            self.changed()

    def set_offset(self, offset: int) -> None:
        if offset != self.offset:
            self.offset = offset
            self.changed()

    def set_readonly(self, readonly: bool) -> None:
        if readonly != self.readonly:
            self.readonly = readonly
            self.changed()

    def set_romd(self, romd_mode: bool) -> None:
        if romd_mode != self.romd_mode:
            self.romd_mode = romd_mode
            self.changed()

    def listen(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)

    def changed(self) -> None:
        """Tell everybody above: the listeners of the roots reached through parents and aliases."""
        if _Transaction.depth:
            _Transaction.pending.append(self)
            return
        done: set[Callable[[], None]] = set()
        for listener in self._upward():
            if listener not in done:
                done.add(listener)
                listener()

    def _upward(self) -> Iterator[Callable[[], None]]:
        yield from self._listeners
        if self.parent is not None:
            yield from self.parent._upward()
        for alias in self._aliases:
            yield from alias._upward()


class _Transaction:
    depth = 0
    pending: list[MemoryRegion] = []


@contextmanager
def transaction() -> Iterator[None]:
    """Batch changes of any regions: the flat views are rebuilt once, at the end of the outermost transaction."""
    _Transaction.depth += 1
    try:
        yield
    finally:
        _Transaction.depth -= 1
        if _Transaction.depth == 0:
            regions, _Transaction.pending = _Transaction.pending, []
            listeners = dict.fromkeys(listener for region in regions for listener in region._upward())
            for listener in listeners:
                listener()
