"""fw_cfg: how the machine tells the firmware what it consists of (QEMU docs/specs/fw_cfg.rst).

Items are byte strings behind 16-bit selector keys: a few dozen legacy numbers, and files, which the item FILE_DIR lists
by name. The guest selects a key through port 510h and reads the item byte by byte from 511h, or has a whole command
carried out by DMA (514h, big endian). The items themselves are the board's and are never saved; a callable item is
evaluated when the guest first selects it after a reset, so that tables can describe what firmware has set up by then.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from qemupy.errors import DeviceError, PageInError
from qemupy.hw.core import (
    Device,
    Dma,
    log_guest_error,
    on_read,
    on_read_burst,
    on_write,
    register,
    transient,
    u16,
    u32,
)
from qemupy.scatter import table

SIGNATURE, ID, UUID, RAM_SIZE, NOGRAPHIC, NB_CPUS, MACHINE_ID = range(0x07)
KERNEL_ADDR, KERNEL_SIZE, KERNEL_CMDLINE, INITRD_ADDR, INITRD_SIZE = range(0x07, 0x0C)
BOOT_DEVICE, NUMA, BOOT_MENU, MAX_CPUS, KERNEL_ENTRY = range(0x0C, 0x11)
KERNEL_DATA, INITRD_DATA, CMDLINE_ADDR, CMDLINE_SIZE, CMDLINE_DATA = range(0x11, 0x16)
SETUP_ADDR, SETUP_SIZE, SETUP_DATA, FILE_DIR = range(0x16, 0x1A)
FILE_FIRST = 0x20
FILE_SLOTS = 0x20
ARCH_LOCAL = 0x8000
ACPI_TABLES, SMBIOS_ENTRIES, IRQ0_OVERRIDE, E820_TABLE, HPET = range(ARCH_LOCAL, ARCH_LOCAL + 5)
INVALID = 0xFFFF

ID_TRADITIONAL, ID_DMA = 1, 2
DMA_SIGNATURE = b"QEMU CFG"
DMA_PADDING = 1 << 24  # bytes written past the end of an item
DMA_ERROR, DMA_READ, DMA_SKIP, DMA_SELECT, DMA_WRITE = 1, 2, 4, 8, 16
NAME_LENGTH = 55  # 56 with the terminating zero

Content = bytes | bytearray | Callable[[], bytes]


class File:
    __slots__ = ("content", "name", "on_select", "on_write")

    def __init__(
        self, name: str, content: Content, on_select: Callable[[], None] | None, on_write: Callable[[], None] | None
    ) -> None:
        self.name, self.content, self.on_select, self.on_write = name, content, on_select, on_write


@register("fw_cfg_io", bus="System", help="firmware configuration")
class FwCfg(Device):
    """Board: `add_*` the items, map `bank()` at 510h (2 ports) and `bank("dma")` at 514h (8 ports)."""

    dma: Dma
    key: int = u16(reset=INVALID)
    offset: int = u32()
    dma_address_high: int = u32()

    items: dict[int, Content] = transient(factory=dict)
    files: dict[str, File] = transient(factory=dict)
    cache: dict[int, bytes | bytearray] = transient(factory=dict)
    current: bytes | bytearray = transient(b"")

    def realize(self) -> None:
        self.items[SIGNATURE] = b"QEMU"
        self.items[ID] = struct.pack("<I", ID_TRADITIONAL | ID_DMA)
        self.items[FILE_DIR] = self._directory

    # -- the board's side ---------------------------------------------------------------------------------------------

    def add_bytes(self, key: int, content: Content) -> None:
        self.items[key] = content
        self.cache.pop(key, None)

    def add_string(self, key: int, text: str) -> None:
        self.add_bytes(key, text.encode() + b"\0")

    def add_u16(self, key: int, value: int) -> None:
        self.add_bytes(key, struct.pack("<H", value))

    def add_u32(self, key: int, value: int) -> None:
        self.add_bytes(key, struct.pack("<I", value))

    def add_u64(self, key: int, value: int) -> None:
        self.add_bytes(key, struct.pack("<Q", value))

    def add_file(
        self,
        name: str,
        content: Content,
        on_select: Callable[[], None] | None = None,
        on_write: Callable[[], None] | None = None,
    ) -> None:
        """A file, replacing one of the same name. With `on_write`, `content` is a bytearray the guest may change by
        DMA; `on_write` is called after each change."""
        if len(name.encode()) > NAME_LENGTH:
            raise DeviceError(f"fw_cfg file name too long: {name}")
        if name not in self.files and len(self.files) >= FILE_SLOTS:
            raise DeviceError(f"fw_cfg: no slot left for file {name}")
        if on_write is not None and not isinstance(content, bytearray):
            raise DeviceError(f"fw_cfg: a file the guest writes needs a bytearray: {name}")
        self.files[name] = File(name, content, on_select, on_write)
        self.cache.clear()

    def _sorted_files(self) -> list[File]:
        """In the order of their keys."""
        return [self.files[name] for name in sorted(self.files)]

    def file_key(self, name: str) -> int:
        return FILE_FIRST + sorted(self.files).index(name)

    def _directory(self) -> bytes:
        files = self._sorted_files()
        out = bytearray(struct.pack(">I", len(files)))
        for i, file in enumerate(files):
            size = len(self._evaluate(FILE_FIRST + i, file.content))
            out += struct.pack(">IHH56s", size, FILE_FIRST + i, 0, file.name.encode())
        return bytes(out)

    def _evaluate(self, key: int, content: Content) -> bytes | bytearray:
        found = self.cache.get(key)
        if found is None:
            found = content() if callable(content) else content
            self.cache[key] = found
        return found

    def _file(self, key: int) -> File | None:
        files = self._sorted_files()
        at = key - FILE_FIRST
        return files[at] if 0 <= at < len(files) else None

    def item(self, key: int) -> bytes | bytearray:
        """The bytes behind `key`, none for an unknown one."""
        if key in self.items:
            return self._evaluate(key, self.items[key])
        file = self._file(key)
        return self._evaluate(key, file.content) if file else b""

    def reset(self) -> None:
        super().reset()
        self.cache.clear()
        self.current = b""

    def post_load(self) -> None:
        self.cache.clear()
        self.current = self.item(self.key)

    # -- the guest's side ---------------------------------------------------------------------------------------------

    @on_write(0, size=2)
    def select(self, key: int) -> None:
        self.key, self.offset = key, 0
        file = self._file(key)
        if file is not None and file.on_select is not None:
            file.on_select()
        self.current = self.item(key)

    @on_write(0, 1)
    def write_data(self, value: int) -> None:
        log_guest_error("fw_cfg: write of %#x to the data port", value)

    @on_read(0, 1)
    def read_data(self) -> int:
        at = self.offset
        current = self.current
        if at >= len(current):
            return 0
        self.offset = at + 1
        return current[at]

    @on_read_burst(1, size=1)
    def read_data_burst(self, count: int) -> bytes:
        data = self._take(count)
        return bytes(data).ljust(count, b"\0")

    def _take(self, count: int) -> bytes:
        data = bytes(self.current[self.offset : self.offset + count])
        self.offset += len(data)
        return data

    @on_read(0, 4, size=4, bank="dma")
    def read_dma_signature(self, offset: int) -> int:
        return int.from_bytes(DMA_SIGNATURE[offset : offset + 4], "little")

    @on_write(0, size=4, bank="dma")
    def write_dma_high(self, value: int) -> None:
        self.dma_address_high = _swap32(value)

    @on_write(4, size=4, bank="dma")
    def write_dma_low(self, value: int) -> None:
        address = self.dma_address_high << 32 | _swap32(value)
        self.dma_address_high = 0
        self._run_command(address)

    def _run_command(self, address: int) -> None:
        """One FWCfgDmaAccess: control, length, address; the control word is the guest's sign of completion."""
        try:
            control, length, target = struct.unpack(">IIQ", self.dma.read(address, 16))
            touched = min(length, len(self.current) + DMA_PADDING) if control & (DMA_READ | DMA_WRITE) else 0
            self.dma.claim(table(((address, 16), (target, touched))))
        except PageInError:
            self.dma.later(lambda: self._run_command(address))
            return
        if control & DMA_SELECT:
            self.select(control >> 16)
        if control & DMA_READ:
            error = self._dma_read(target, length)
        elif control & DMA_WRITE:
            error = self._dma_write(target, length)
        else:
            error = False
            if control & DMA_SKIP:
                self.offset = min(self.offset + length, len(self.current))
        self.dma.write(address, struct.pack(">I", DMA_ERROR if error else 0))

    def _dma_read(self, target: int, length: int) -> bool:
        """Past the end of the item the guest gets zeros, in pieces so that a huge length costs no memory."""
        data = self._take(length)
        if data:
            self.dma.write(target, data)
        at = len(data)
        while at < length and at - len(data) < DMA_PADDING:
            step = min(length - at, 1 << 16)
            self.dma.write(target + at, bytes(step))
            at += step
        return at < length

    def _dma_write(self, target: int, length: int) -> bool:
        file = self._file(self.key)
        current = self.current
        if file is None or file.on_write is None or self.offset + length > len(current):
            log_guest_error("fw_cfg: refused DMA write of %d bytes to item %#x", length, self.key)
            return True
        assert isinstance(current, bytearray)
        current[self.offset : self.offset + length] = self.dma.read(target, length)
        self.offset += length
        file.on_write()
        return False


def _swap32(value: int) -> int:
    return int.from_bytes(value.to_bytes(4, "little"), "big")
