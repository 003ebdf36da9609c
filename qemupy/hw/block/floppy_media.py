"""Floppy formats by the size of an image."""

from __future__ import annotations

from qemupy.records import record

RATE_500K, RATE_300K, RATE_250K, RATE_1M = range(4)
CMOS_NONE, CMOS_1200K, CMOS_720K, CMOS_1440K, CMOS_2880K = 0, 2, 3, 4, 5


@record(frozen=True)
class Geometry:
    cylinders: int
    heads: int
    sectors: int
    rate: int
    cmos: int

    @property
    def size(self) -> int:
        return self.cylinders * self.heads * self.sectors * 512

    def lba(self, cylinder: int, head: int, sector: int) -> int:
        return (cylinder * self.heads + head) * self.sectors + sector - 1


FORMATS = (
    Geometry(80, 2, 18, RATE_500K, CMOS_1440K),
    Geometry(80, 2, 20, RATE_500K, CMOS_1440K),
    Geometry(80, 2, 21, RATE_500K, CMOS_1440K),
    Geometry(82, 2, 21, RATE_500K, CMOS_1440K),
    Geometry(80, 2, 36, RATE_1M, CMOS_2880K),
    Geometry(80, 2, 15, RATE_500K, CMOS_1200K),
    Geometry(80, 2, 9, RATE_250K, CMOS_1440K),
    Geometry(40, 2, 9, RATE_300K, CMOS_1200K),
    Geometry(40, 2, 8, RATE_300K, CMOS_1200K),
    Geometry(40, 1, 9, RATE_300K, CMOS_1200K),
    Geometry(40, 1, 8, RATE_300K, CMOS_1200K),
)


def geometry(size: int) -> Geometry:
    """The format of exactly this size, else the smallest that holds it, else 1.44 MB."""
    exact = next((g for g in FORMATS if g.size == size), None)
    if exact is not None:
        return exact
    larger = sorted((g for g in FORMATS if g.size > size and g.cylinders == 80), key=lambda g: g.size)
    return larger[0] if larger else FORMATS[0]
