"""IDENTIFY DEVICE and IDENTIFY PACKET DEVICE data (ATA/ATAPI-6 8.15, 8.16)."""

from __future__ import annotations

import struct

MULTIPLE_MAX = 16


def ata_string(text: str, size: int) -> bytes:
    """Padded with blanks, bytes swapped in each word."""
    raw = bytearray(text.encode("ascii", "replace").ljust(size)[:size])
    raw[0::2], raw[1::2] = raw[1::2], raw[0::2]
    return bytes(raw)


class Words:
    """The 256 words under construction."""

    def __init__(self) -> None:
        self.data = bytearray(512)

    def put(self, at: int, *values: int) -> None:
        struct.pack_into(f"<{len(values)}H", self.data, at * 2, *values)

    def put32(self, at: int, value: int) -> None:
        struct.pack_into("<I", self.data, at * 2, value)

    def names(self, serial: str, firmware: str, model: str) -> None:
        self.data[20:40] = ata_string(serial, 20)
        self.data[46:54] = ata_string(firmware, 8)
        self.data[54:94] = ata_string(model, 40)

    def transfer_modes(self, mwdma: int, udma: int) -> None:
        """Which multiword and Ultra DMA mode is selected, as one bit each; all up to MWDMA2 and UDMA5 exist."""
        self.put(63, 0x07 | mwdma << 8)
        self.put(64, 3, 120, 120, 120, 120)
        self.put(88, 0x3F | udma << 8)


def identify_disk(
    *, geometry: tuple[int, int, int], sectors: int, multiple: int, modes: tuple[int, int], write_cache: bool,
    names: tuple[str, str, str], defaults: tuple[int, int, int],
) -> bytes:  # fmt: skip
    """`geometry` is the one now in force, `defaults` that of power-on; both cylinders, heads, sectors per track."""
    w = Words()
    cylinders, heads, per_track = geometry
    w.put(0, 0x0040, defaults[0])
    w.put(3, defaults[1], 512 * defaults[2], 512, defaults[2])
    w.put(20, 3, 512, 4)
    w.names(*names)
    w.put(47, 0x8000 | MULTIPLE_MAX)
    w.put(48, 1)  # dword I/O
    w.put(49, 1 << 11 | 1 << 9 | 1 << 8)  # IORDY, LBA, DMA
    w.put(51, 0x200, 0x200, 1 | 1 << 1 | 1 << 2)
    w.put(54, cylinders, heads, per_track)
    w.put32(57, cylinders * heads * per_track)
    w.put(59, 0x100 | multiple if multiple else 0)
    w.put32(60, min(sectors, (1 << 28) - 1))
    w.transfer_modes(*modes)
    w.put(69, 1 << 14)  # reads after TRIM are deterministic
    w.put(80, 0xF0, 0x16)  # ATA-4 to ATA-7
    w.put(82, 1 << 14 | 1 << 5 | 1, 1 << 14 | 1 << 13 | 1 << 12 | 1 << 10, 1 << 14)
    w.put(85, 1 << 14 | (1 << 5 if write_cache else 0) | 1, 1 << 13 | 1 << 12 | 1 << 10, 1 << 14)
    w.put(93, 1 | 1 << 14 | 0x2000)
    w.put32(100, sectors & 0xFFFFFFFF)
    w.put32(102, sectors >> 32)
    w.put(105, 1)  # blocks of TRIM ranges a command takes
    w.put(106, 0x6000)
    w.put(169, 1)  # TRIM
    return bytes(w.data)


def identify_cdrom(*, modes: tuple[int, int], names: tuple[str, str, str]) -> bytes:
    w = Words()
    w.put(0, 2 << 14 | 5 << 8 | 1 << 7 | 2 << 5)  # ATAPI CD-ROM, removable, 12-byte packets
    w.put(20, 3, 512, 4)
    w.names(*names)
    w.put(48, 1)
    w.put(49, 1 << 9 | 1 << 8)
    w.put(53, 7)
    w.transfer_modes(*modes)
    w.put(64, 1, 0xB4, 0xB4, 0x12C, 0xB4)
    w.put(71, 30, 30)
    w.put(80, 0x1E)
    return bytes(w.data)
