"""What `-kernel` was given: a Linux bzImage, an ELF kernel with a PVH entry, a Multiboot 1 kernel; or a clear refusal.

Documentation/x86/boot.rst (Linux boot protocol 2.15); xen/include/public/arch-x86/hvm/start_info.h; Multiboot
specification 0.6.96.
"""

from __future__ import annotations

import io
import struct

from qemupy.errors import BackendError, ConfigError
from qemupy.records import record

SECTOR = 512
BZIMAGE_DIRECT = 0x20C  # from this protocol on a kernel can be entered at its 32-bit entry with everything set up
LOADED_HIGH, CAN_USE_HEAP = 0x01, 0x80
MULTIBOOT_MAGIC = 0x1BADB002
PVH_NOTE = 18  # XEN_ELFNOTE_PHYS32_ENTRY
EM_386, EM_X86_64 = 3, 62


@record(frozen=True)
class BzImage:
    data: bytes
    setup_size: int
    protocol: int
    loadflags: int

    @property
    def setup(self) -> bytes:
        return self.data[: self.setup_size]

    @property
    def payload(self) -> memoryview:
        return memoryview(self.data)[self.setup_size :]

    def u32(self, at: int) -> int:
        return int.from_bytes(self.data[at : at + 4], "little")

    @property
    def direct(self) -> bool:
        return self.protocol >= BZIMAGE_DIRECT and bool(self.loadflags & LOADED_HIGH) and self.relocatable

    @property
    def relocatable(self) -> bool:
        return self.protocol >= 0x205 and bool(self.data[0x234])


@record(frozen=True)
class ElfKernel:
    """`segments` are (physical address, contents, size in memory). `entry` is 32-bit code without paging."""

    kind: str  # "pvh" or "multiboot"
    segments: tuple[tuple[int, bytes, int], ...]
    entry: int
    flags: int = 0

    @property
    def end(self) -> int:
        return max(address + size for address, _, size in self.segments)


Kernel = BzImage | ElfKernel


def read_file(path: str, what: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as e:
        raise BackendError(f"could not open {what} '{path}': {e.strerror}") from None


def parse(path: str, data: bytes) -> Kernel:
    if data[0x202:0x206] == b"HdrS" and data[0x1FE:0x200] == b"\x55\xaa":
        return _bzimage(path, data)
    header = _find_multiboot(data)
    if header is not None:
        return _multiboot(path, data, header)
    if data[:4] == b"\x7fELF":
        return _pvh(path, data)
    raise ConfigError(f"kernel '{path}': {_what_it_is(data)}")


def _what_it_is(data: bytes) -> str:
    """Why it cannot be booted."""
    if data[:2] == b"\x1f\x8b" or data[:6] == b"\xfd7zXZ\0" or data[:4] == b"\x28\xb5\x2f\xfd":
        return "the file is compressed; decompress it first"
    if data[0x38:0x3C] in (b"ARM\x64", b"RSCV") or data[0x24:0x28] == bytes.fromhex("18286f01"):
        return "it is a kernel for another machine (ARM or RISC-V), not for x86"
    if data[:2] == b"MZ":
        return "it is an EFI program, not a kernel that can be booted directly"
    if data[:4] == bytes.fromhex("27051956"):
        return "it is a U-Boot image, not an x86 kernel"
    return "invalid kernel header: neither a bzImage nor an ELF kernel with a PVH or Multiboot entry"


def _bzimage(path: str, data: bytes) -> BzImage:
    protocol, loadflags = struct.unpack_from("<H", data, 0x206)[0], data[0x211]
    setup_size = ((data[0x1F1] or 4) + 1) * SECTOR
    if setup_size > len(data):
        raise ConfigError(f"kernel '{path}': invalid kernel header (truncated: {len(data)} bytes)")
    return BzImage(data, setup_size, protocol, loadflags)


def _find_multiboot(data: bytes) -> int | None:
    for at in range(0, min(len(data), 8192) - 11, 4):
        magic, flags, checksum = struct.unpack_from("<III", data, at)
        if magic == MULTIBOOT_MAGIC and (magic + flags + checksum) & 0xFFFFFFFF == 0:
            return at
    return None


def _multiboot(path: str, data: bytes, at: int) -> ElfKernel:
    flags = struct.unpack_from("<I", data, at + 4)[0]
    if not flags & 1 << 16:
        segments, entry, _ = _elf_segments(path, data)
        return ElfKernel("multiboot", segments, entry, flags)
    header, load, load_end, bss_end, entry = struct.unpack_from("<5I", data, at + 12)
    start = at - (header - load)
    if header < load or start < 0 or (load_end and load_end < load) or (bss_end and bss_end < load_end):
        raise ConfigError(f"kernel '{path}': invalid load addresses in its Multiboot header")
    contents = data[start : start + load_end - load] if load_end else data[start:]
    return ElfKernel("multiboot", ((load, contents, max(bss_end - load, len(contents))),), entry, flags)


def _pvh(path: str, data: bytes) -> ElfKernel:
    segments, _, entry = _elf_segments(path, data)
    if entry is None:
        raise ConfigError(f"kernel '{path}': Error loading uncompressed kernel without PVH ELF Note")
    return ElfKernel("pvh", segments, entry)


def _elf_segments(path: str, data: bytes) -> tuple[tuple[tuple[int, bytes, int], ...], int, int | None]:
    """The loadable segments by physical address, the physical entry, and the PVH entry if a note tells one."""
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    try:
        elf = ELFFile(io.BytesIO(data))
        machine, entry = elf.header["e_machine"], int(elf.header["e_entry"])
        if machine not in ("EM_386", "EM_X86_64"):
            raise ConfigError(f"kernel '{path}': it is for another machine ({str(machine)[3:]}), not for x86")
        segments, pvh = [], None
        for segment in elf.iter_segments():
            head = segment.header
            if head["p_type"] == "PT_LOAD" and head["p_memsz"]:
                segments.append((int(head["p_paddr"]), segment.data(), int(head["p_memsz"])))
                if head["p_vaddr"] <= entry < head["p_vaddr"] + head["p_memsz"]:
                    entry += head["p_paddr"] - head["p_vaddr"]
            elif head["p_type"] == "PT_NOTE":
                pvh = _pvh_entry(segment.data()) or pvh
    except (ELFError, struct.error, KeyError, ValueError) as e:
        raise ConfigError(f"kernel '{path}': invalid ELF file ({e})") from None
    if not segments:
        raise ConfigError(f"kernel '{path}': the ELF file has nothing to load")
    if max(a + n for a, _, n in segments) > 1 << 32:
        raise ConfigError(f"kernel '{path}': the ELF file asks for memory above 4 GiB")
    return tuple(segments), entry, pvh


def _pvh_entry(notes: bytes) -> int | None:
    at = 0
    while at + 12 <= len(notes):
        name_size, size, kind = struct.unpack_from("<III", notes, at)
        name = notes[at + 12 : at + 12 + name_size]
        body = at + 12 + (name_size + 3 & ~3)
        if kind == PVH_NOTE and name.rstrip(b"\0") == b"Xen" and size in (4, 8):
            return int.from_bytes(notes[body : body + size], "little")
        at = body + (size + 3 & ~3)
    return None
