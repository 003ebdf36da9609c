"""SMBIOS structures of a PC (DSP0134 2.8): what `dmidecode` shows. Texts are QEMU's, so that guests recognise it."""

from __future__ import annotations

import struct

from qemupy.records import record

ANCHOR_FILE, TABLES_FILE = "etc/smbios/smbios-anchor", "etc/smbios/smbios-tables"
PRODUCT, VERSION = "Standard PC (i440FX + PIIX, 1996)", "pc-i440fx-7.2"
MIB, GIB, DIMM = 1 << 20, 1 << 30, 16 << 30


@record(frozen=True)
class Identity:
    cpus: int
    below_4g: int
    above_4g: int
    uuid: bytes = bytes(16)
    processor_id: int = 0  # CPUID leaf 1: EAX, EDX << 32
    firmware: tuple[str, str] | None = None  # vendor, version: type 0, when no firmware adds it


class _Writer:
    def __init__(self) -> None:
        self.data = bytearray()
        self.count = 0
        self.largest = 0

    def add(self, kind: int, handle: int, body: bytes, *strings: str) -> None:
        structure = struct.pack("<BBH", kind, len(body) + 4, handle) + body
        structure += b"".join(s.encode() + b"\0" for s in strings) + (b"\0" if strings else b"\0\0")
        self.data += structure
        self.count += 1
        self.largest = max(self.largest, len(structure))


def build(who: Identity) -> tuple[bytes, bytes]:
    """Anchor (with address zero) and structures."""
    w = _Writer()
    if who.firmware is not None:
        body = struct.pack("<BBHBBQHBBBB", 1, 2, 0xE800, 3, 0, 8, 0x1400, 0, 0, 0xFF, 0xFF)
        w.add(0, 0x000, body, *who.firmware, "04/01/2014")
    # The UUID's first three fields are little-endian here (7.2.1)
    u = who.uuid
    wire = u[3::-1] + u[5:3:-1] + u[7:5:-1] + u[8:]
    w.add(1, 0x100, struct.pack("<BBBB16sBBB", 1, 2, 3, 0, wire, 6, 0, 0), "QEMU", PRODUCT, VERSION)
    body = struct.pack("<BBBBBBBBBIBBBBB", 1, 1, 2, 0, 0, 3, 3, 3, 2, 0, 0, 0, 0, 0, 0)
    w.add(3, 0x300, body, "QEMU", VERSION)
    for n in range(who.cpus):
        _processor(w, n, who.processor_id)
    _memory(w, who)
    w.add(32, 0x2000, bytes(7))
    w.add(127, 0x7F00, b"")
    return _anchor(w), bytes(w.data)


def _processor(w: _Writer, n: int, processor_id: int) -> None:
    body = struct.pack("<BBBBQBBHHHBBHHHBBBBBBHH", 1, 3, 1, 2, processor_id, 3, 0, 0, 2000, 2000, 0x41, 1, 0xFFFF,
                       0xFFFF, 0xFFFF, 0, 0, 0, 1, 1, 1, 2, 1)  # fmt: skip
    w.add(4, 0x400 + n, body, f"CPU {n}", "QEMU", VERSION)


def _memory(w: _Writer, who: Identity) -> None:
    total = who.below_4g + who.above_4g
    sizes = [min(DIMM, total - at) for at in range(0, total, DIMM)]
    kib = total >> 10
    w.add(16, 0x1000, struct.pack("<BBBIHHQ", 1, 3, 6, min(kib, 0x80000000), 0xFFFE, len(sizes),
                                  0 if kib < 0x80000000 else total))  # fmt: skip
    for n, size in enumerate(sizes):
        mib = size // MIB
        body = struct.pack("<HHHHHBBBBBHHBBBBBIHHHH", 0x1000, 0xFFFE, 0xFFFF, 0xFFFF, min(mib, 0x7FFF), 9, 0, 1, 0, 7,
                           2, 0, 2, 0, 0, 0, 0, mib if mib >= 0x7FFF else 0, 0, 0, 0, 0)  # fmt: skip
        w.add(17, 0x1100 + n, body, f"DIMM {n}", "QEMU")
    _mapped(w, 0, 0, who.below_4g, len(sizes))
    if who.above_4g:
        _mapped(w, 1, 4 * GIB, who.above_4g, len(sizes))


def _mapped(w: _Writer, n: int, start: int, size: int, width: int) -> None:
    low, high = start >> 10, (start + size >> 10) - 1
    fits = high < 0xFFFFFFFF
    body = struct.pack("<IIHBQQ", low if fits else 0xFFFFFFFF, high if fits else 0xFFFFFFFF, 0x1000, width,
                       0 if fits else start, 0 if fits else start + size - 1)  # fmt: skip
    w.add(19, 0x1300 + n, body)


def _anchor(w: _Writer, address: int = 0) -> bytes:
    inner = bytearray(struct.pack("<5sBHIHB", b"_DMI_", 0, len(w.data), address, w.count, 0x28))
    inner[5] = -sum(inner) & 0xFF
    outer = bytearray(struct.pack("<4sBBBBHB5s", b"_SM_", 0, 0x1F, 2, 8, w.largest, 0, bytes(5)) + inner)
    outer[4] = -sum(outer) & 0xFF
    return bytes(outer)


def place(anchor: bytes, address: int) -> bytes:
    """The anchor for structures at `address`."""
    out = bytearray(anchor)
    struct.pack_into("<I", out, 24, address)
    out[21] = 0
    out[21] = -sum(out[16:31]) & 0xFF
    out[4] = 0
    out[4] = -sum(out) & 0xFF
    return bytes(out)
