"""The ACPI tables of a PC (ACPI 6.4, chapter 5), as one block of memory that somebody has yet to place.

Firmware places it by the commands of fw_cfg's `etc/table-loader` (QEMU's bios-linker interface): allocate the files,
add their addresses to the pointers, fix the checksums. Direct kernel boot places it with `place`. Both give the guest
the same bytes. The FADT is one of revision 1 (ACPI 1.0), as QEMU has it for this machine.
"""

from __future__ import annotations

import struct

from qemupy.hw.acpi import dsdt
from qemupy.hw.acpi.dsdt import Hardware
from qemupy.hw.acpi.piix4_pm import GPE_BASE
from qemupy.records import record

TABLES_FILE, RSDP_FILE, LOADER_FILE = "etc/acpi/tables", "etc/acpi/rsdp", "etc/table-loader"
PM_BASE = 0x600
ZONE_HIGH, ZONE_FSEG = 1, 2
WBINVD, C1, SLP_BUTTON, RTC_S4, PLATFORM_CLOCK = 1 << 0, 1 << 2, 1 << 5, 1 << 7, 1 << 15
LEVEL_HIGH = 0x000D  # MPS INTI flags: active high, level triggered


def _checksum(data: bytes | bytearray) -> int:
    return -sum(data) & 0xFF


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    """With the standard header; the checksum is put in when all pointers are known."""
    return (
        struct.pack("<4sIBB6s8sI4sI", signature, len(body) + 36, revision, 0, b"BOCHS ", b"BXPC    ", 1, b"BXPC", 1)
        + body
    )


def madt(cpus: int) -> bytes:
    body = struct.pack("<II", 0xFEE00000, 1)
    for n in range(cpus):
        body += struct.pack("<BBBBI", 0, 8, n, n, 1)
    body += struct.pack("<BBBBII", 1, 12, 0, 0, 0xFEC00000, 0)
    body += struct.pack("<BBBBIH", 2, 10, 0, 0, 2, 0)  # the timer comes in at pin 2
    for line in sorted({*dsdt.LINK_IRQS, dsdt.SCI_IRQ}):
        body += struct.pack("<BBBBIH", 2, 10, 0, line, line, LEVEL_HIGH)
    body += struct.pack("<BBBHB", 4, 6, 0xFF, 0, 1)  # NMI at LINT1 of every processor
    return _table(b"APIC", 1, body)


def fadt() -> bytes:
    body = struct.pack("<IIBBHIBBBB", 0, 0, 1, 0, dsdt.SCI_IRQ, 0xB2, 0xF1, 0xF0, 0, 0)
    body += struct.pack("<8I", PM_BASE, 0, PM_BASE + 4, 0, 0, PM_BASE + 8, GPE_BASE, 0)
    body += struct.pack("<8B", 4, 2, 0, 4, 4, 0, 0, 0)
    body += struct.pack("<HHHHBBBBBHB", 0xFFF, 0xFFF, 0, 0, 0, 0, 0, 0, 0x32, 0, 0)
    body += struct.pack("<I", WBINVD | C1 | SLP_BUTTON | RTC_S4 | PLATFORM_CLOCK)
    return _table(b"FACP", 1, body)


def hpet() -> bytes:
    return _table(b"HPET", 1, struct.pack("<IBBBBQBHB", 0x8086A201, 0, 0, 0, 0, dsdt.HPET_BASE, 0, 0, 0))


def waet() -> bytes:
    return _table(b"WAET", 1, struct.pack("<I", 1 << 1))  # the PM timer needs no second read


@record()
class AcpiTables:
    """`pointers`: places in `block` that hold an offset in it and need its address added; `tables`: (offset, length)
    of those with a checksum."""

    block: bytearray
    rsdp: bytes
    rsdt: int
    pointers: list[int]
    tables: list[tuple[int, int]]

    def place(self, address: int) -> tuple[bytes, bytes]:
        """Block and RSDP for a block at `address`."""
        block = bytearray(self.block)
        for at in self.pointers:
            (offset,) = struct.unpack_from("<I", block, at)
            struct.pack_into("<I", block, at, offset + address)
        for start, length in self.tables:
            block[start + 9] = 0
            block[start + 9] = _checksum(block[start : start + length])
        rsdp = bytearray(self.rsdp)
        struct.pack_into("<I", rsdp, 16, self.rsdt + address)
        rsdp[8] = _checksum(rsdp)
        return bytes(block), bytes(rsdp)

    def loader_script(self) -> bytes:
        """The same as commands for firmware, 128 bytes each."""
        script = _allocate(RSDP_FILE, 16, ZONE_FSEG) + _allocate(TABLES_FILE, 64, ZONE_HIGH)
        for at in self.pointers:
            script += _add_pointer(TABLES_FILE, at)
        script += b"".join(_add_checksum(TABLES_FILE, start + 9, start, length) for start, length in self.tables)
        script += _add_pointer(RSDP_FILE, 16) + _add_checksum(RSDP_FILE, 8, 0, 20)
        return script


def _allocate(file: str, alignment: int, zone: int) -> bytes:
    return struct.pack("<I56sIB", 1, file.encode(), alignment, zone).ljust(128, b"\0")


def _add_pointer(file: str, offset: int) -> bytes:
    return struct.pack("<I56s56sIB", 2, file.encode(), TABLES_FILE.encode(), offset, 4).ljust(128, b"\0")


def _add_checksum(file: str, offset: int, start: int, length: int) -> bytes:
    return struct.pack("<I56sIII", 3, file.encode(), offset, start, length).ljust(128, b"\0")


def build(hw: Hardware) -> AcpiTables:
    facs = struct.pack("<4sIIIII", b"FACS", 64, 0, 0, 0, 0).ljust(64, b"\0")
    block = bytearray(facs)
    tables: list[tuple[int, int]] = []

    def append(table: bytes) -> int:
        at = len(block)
        block.extend(table)
        tables.append((at, len(table)))
        return at

    dsdt_at = append(_table(b"DSDT", 1, dsdt.build(hw)))
    listed = [append(fadt()), append(madt(hw.cpus))]
    fadt_at = listed[0]
    struct.pack_into("<II", block, fadt_at + 36, 0, dsdt_at)
    if hw.hpet:
        listed.append(append(hpet()))
    listed.append(append(waet()))
    rsdt_at = append(_table(b"RSDT", 1, struct.pack(f"<{len(listed)}I", *listed)))
    pointers = [fadt_at + 36, fadt_at + 40, *(rsdt_at + 36 + 4 * n for n in range(len(listed)))]
    rsdp = struct.pack("<8sB6sBI", b"RSD PTR ", 0, b"BOCHS ", 0, rsdt_at)
    block.extend(bytes(-len(block) % 4096))
    return AcpiTables(block, rsdp, rsdt_at, pointers, tables)
