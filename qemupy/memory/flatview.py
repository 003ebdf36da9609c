"""A FlatView: the region tree of an address space resolved to sorted, disjoint ranges."""

from __future__ import annotations

from bisect import bisect_right

from qemupy.memory.core import MMIO, NO_WRITE, PAGE, RAM, ROM, CoreRange, Doorbell, Doorbells
from qemupy.memory.region import MemoryRegion
from qemupy.records import record


@record()
class FlatRange:
    """[start, end) shows `region` from `offset` on. `readonly` includes read-only aliases on the way."""

    start: int
    end: int
    region: MemoryRegion
    offset: int
    readonly: bool

    @property
    def direct_read(self) -> bool:
        return self.region.kind in ("ram", "rom") or (self.region.kind == "romd" and self.region.romd_mode)

    @property
    def direct_write(self) -> bool:
        return self.region.kind == "ram" and not self.readonly

    def ram_offset(self, address: int) -> int:
        assert self.region.block is not None
        return self.region.block.offset + self.offset + address - self.start


class FlatView:
    __slots__ = ("_starts", "ranges")

    def __init__(self, root: MemoryRegion) -> None:
        self.ranges: list[FlatRange] = []
        self._render(root, 0, 0, root.size, root.readonly)
        self._starts = [r.start for r in self.ranges]

    def _render(self, region: MemoryRegion, base: int, low: int, high: int, readonly: bool) -> None:
        """Show `region`, whose byte 0 lies at `base`, in the window [low, high) where nothing is shown yet."""
        if not region.enabled:
            return
        low, high = max(low, base), min(high, base + region.size)
        if low >= high:
            return
        readonly = readonly or region.readonly
        if region.target is not None:
            target = region.target
            enabled, target.enabled = target.enabled, True
            self._render(target, base - region.target_offset, low, high, readonly)
            target.enabled = enabled
            return
        for child in region.children:
            self._render(child, base + child.offset, low, high, readonly)
        if region.kind != "container":
            self._fill_gaps(region, base, low, high, readonly)

    def _fill_gaps(self, region: MemoryRegion, base: int, low: int, high: int, readonly: bool) -> None:
        added: list[FlatRange] = []
        at = low
        for shown in self.ranges:
            if shown.end <= at:
                continue
            if shown.start >= high:
                break
            if shown.start > at:
                added.append(FlatRange(at, shown.start, region, at - base, readonly))
            at = shown.end
        if at < high:
            added.append(FlatRange(at, high, region, at - base, readonly))
        if added:
            self.ranges = sorted(self.ranges + added, key=lambda r: r.start)

    def find(self, address: int) -> FlatRange | None:
        at = bisect_right(self._starts, address) - 1
        if at >= 0 and address < self.ranges[at].end:
            return self.ranges[at]
        return None

    def doorbells(self, mmio: bool) -> set[Doorbell]:
        """The doorbells that the view shows."""
        return {
            Doorbell(mmio, r.start + bell.offset - r.offset, bell.size, bell.value, bell.fd)
            for r in self.ranges
            for bell in r.region.doorbells
            if r.offset <= bell.offset < r.offset + r.end - r.start and not r.readonly
        }

    def core_ranges(self) -> list[CoreRange]:
        """The view in whole pages, as the core takes it. A page shared by several ranges goes to the dispatcher."""
        out: list[CoreRange] = []
        for r in self.ranges:
            start, end = r.start, r.end
            aligned = r.direct_read and (r.ram_offset(start) - start) % PAGE == 0
            first, last = -(-start // PAGE) * PAGE, end // PAGE * PAGE
            if not aligned or first >= last:
                _append_mmio(out, start // PAGE * PAGE, -(-end // PAGE) * PAGE)
                continue
            if start < first:
                _append_mmio(out, first - PAGE, first)
            out.append(_direct(r, first, last))
            if last < end:
                _append_mmio(out, last, last + PAGE)
        return out


def _append_mmio(out: list[CoreRange], low: int, high: int) -> None:
    if out:
        low = max(low, out[-1].gpa + out[-1].size)
        if low >= high:
            return
        last = out[-1]
        if last.kind == MMIO and last.gpa + last.size == low:
            out[-1] = CoreRange(last.gpa, last.size + high - low, MMIO)
            return
    out.append(CoreRange(low, high - low, MMIO))


def _direct(r: FlatRange, low: int, high: int) -> CoreRange:
    offset = r.ram_offset(low)
    if r.direct_write:
        return CoreRange(low, high - low, RAM, offset, offset)
    return CoreRange(low, high - low, ROM, offset, NO_WRITE, write_upcall=r.region.kind == "romd")


class ShownDoorbells:
    """Keeps a watcher told which doorbells an address space shows."""

    def __init__(self, watcher: Doorbells | None, mmio: bool) -> None:
        self._watcher, self._mmio = watcher, mmio
        self._shown: set[Doorbell] = set()

    def update(self, view: FlatView) -> None:
        if self._watcher is None:
            return
        now = view.doorbells(self._mmio)
        for bell in self._shown - now:
            self._watcher.remove_doorbell(bell)
        taken = {bell for bell in now - self._shown if self._watcher.add_doorbell(bell)}
        self._shown = self._shown & now | taken
