"""ACPI and SMBIOS tables: structure, checksums, both ways of placing them, and what iasl makes of the AML."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from qemupy.hw.acpi import aml, smbios, tables
from qemupy.hw.acpi.dsdt import Hardware

HW = Hardware(cpus=2, below_4g=128 << 20, parallels=((0x378, 7),), floppy=True)
BASE = 0x7FE0000


def run_loader(built: tables.AcpiTables) -> tuple[bytes, bytes]:
    """What firmware does with the script."""
    files = {tables.TABLES_FILE: bytearray(built.block), tables.RSDP_FILE: bytearray(built.rsdp)}
    address = {tables.TABLES_FILE: BASE, tables.RSDP_FILE: 0xF5000}
    script = built.loader_script()

    def text(raw: bytes) -> str:
        return raw.rstrip(b"\0").decode()

    for at in range(0, len(script), 128):
        entry = script[at : at + 128]
        command = entry[0]
        if command == 2:
            dest, source, offset, size = struct.unpack_from("<56s56sIB", entry, 4)
            data = files[text(dest)]
            value = int.from_bytes(data[offset : offset + size], "little") + address[text(source)]
            data[offset : offset + size] = value.to_bytes(size, "little")
        elif command == 3:
            file, offset, start, length = struct.unpack_from("<56sIII", entry, 4)
            data = files[text(file)]
            data[offset] = 0
            data[offset] = -sum(data[start : start + length]) & 0xFF
    return bytes(files[tables.TABLES_FILE]), bytes(files[tables.RSDP_FILE])


def listed(block: bytes, rsdp: bytes) -> dict[bytes, bytes]:
    def table(address: int) -> bytes:
        at = address - BASE
        return block[at : at + struct.unpack_from("<I", block, at + 4)[0]]

    rsdt = table(struct.unpack_from("<I", rsdp, 16)[0])
    assert sum(rsdt) & 0xFF == 0
    found = {b"RSDT": rsdt}
    for (address,) in struct.iter_unpack("<I", rsdt[36:]):
        found[table(address)[:4]] = table(address)
    facs, dsdt = struct.unpack_from("<II", found[b"FACP"], 36)
    found[b"DSDT"] = table(dsdt)
    assert table(facs)[:4] == b"FACS" and facs % 64 == 0
    return found


def test_checksums_and_contents() -> None:
    block, rsdp = tables.build(HW).place(BASE)
    assert len(rsdp) == 20 and sum(rsdp) & 0xFF == 0
    found = listed(block, rsdp)
    assert set(found) == {b"RSDT", b"FACP", b"APIC", b"HPET", b"WAET", b"DSDT"}
    for name, table in found.items():
        assert sum(table) & 0xFF == 0, name
    assert len(found[b"FACP"]) == 116 and found[b"APIC"].count(b"\x00\x08") >= 2


def test_tables_equal_qemus() -> None:
    """FADT, HPET and WAET of QEMU 7.2's pc machine, addresses aside."""
    found = listed(*tables.build(HW).place(BASE))
    assert found[b"FACP"][44:] == bytes.fromhex(
        "01000900b2000000f1f00000 0006000000000000 0406000000000000 0000000008060000 e0af000000000000"
        "0402000404000000 ff0fff0f00000000 0000000032000000 a5800000"
    )
    assert found[b"HPET"][36:] == bytes.fromhex("01a28680 00000000 0000d0fe00000000 00000000")
    assert found[b"APIC"][52 + 8 : 60 + 12] == bytes.fromhex("010c00000000c0fe00000000")


def test_loader_and_direct_placement_agree() -> None:
    built = tables.build(HW)
    assert run_loader(built) == built.place(BASE)


def test_package_lengths() -> None:
    for size in (0, 62, 63, 64, 4093, 4094, 70000):
        body = b"x" * size
        encoded = aml.pkg_length(body)
        lead = encoded[0]
        extra = lead >> 6
        total = lead & 0x3F if not extra else lead & 0xF | int.from_bytes(encoded[1 : 1 + extra], "little") << 4
        assert total == len(encoded), size
    assert aml.eisa_id("PNP0A03") == bytes.fromhex("0c41d00a03")
    assert aml.name_string("\\_SB.PCI0.ISA") == b"\\\x2f\x03_SB_PCI0ISA_"


@pytest.mark.skipif(shutil.which("iasl") is None, reason="iasl (package acpica-tools) is not installed")
def test_iasl_accepts_the_aml(tmp_path: Path) -> None:
    """Disassembled, and compiled again without an error."""
    dsdt = listed(*tables.build(HW).place(BASE))[b"DSDT"]
    (tmp_path / "dsdt.aml").write_bytes(dsdt)
    done = subprocess.run(["iasl", "-d", "dsdt.aml"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    source = (tmp_path / "dsdt.dsl").read_text()
    for wanted in ("Device (LNKS)", "PNP0A03", "Device (COM1)", "Name (\\_S5", "Device (FDC0)", "Device (HPET)"):
        assert wanted in source, wanted
    assert "DMA (Compatibility, NotBusMaster, Transfer8, )" in source
    done = subprocess.run(["iasl", "-p", "again", "dsdt.dsl"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert " 0 Errors" in done.stdout and done.returncode == 0, done.stdout


def test_smbios() -> None:
    who = smbios.Identity(cpus=1, below_4g=128 << 20, above_4g=0, uuid=bytes(range(16)))
    anchor, data = smbios.build(who)
    placed = smbios.place(anchor, 0xF0000)
    assert len(placed) == 31 and sum(placed) & 0xFF == 0 and sum(placed[16:]) & 0xFF == 0
    assert struct.unpack_from("<HIHB", placed, 22) == (len(data), 0xF0000, 8, 0x28)
    kinds, at = [], 0
    while at < len(data):
        kind, size = data[at], data[at + 1]
        end = data.index(b"\0\0", at + size) + 2
        kinds.append((kind, size))
        at = end
    assert kinds == [(1, 27), (3, 22), (4, 42), (16, 23), (17, 40), (19, 31), (32, 11), (127, 4)]
    assert data[8:24] == bytes((3, 2, 1, 0, 5, 4, 7, 6, *range(8, 16)))
