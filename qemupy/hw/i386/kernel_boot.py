"""`-kernel`, `-initrd`, `-append` on the pc board: which way a kernel is started."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qemupy.errors import ConfigError
from qemupy.hw.i386 import boot_order, boot_rom, direct_boot, elf_boot, linux_boot, text_mode
from qemupy.hw.i386.kernel_image import BzImage, ElfKernel, parse, read_file
from qemupy.hw.i386.linux_boot import Load
from qemupy.hw.misc import fw_cfg as keys

if TYPE_CHECKING:
    from qemupy.hw.i386.pc import Pc

FIRMWARE_ROOM = 1 << 20  # at the top of RAM below 4 GiB, for SeaBIOS's tables and buffers


def prepare(board: Pc, path: str) -> None:
    """Read and check the files now; the guest's memory is filled after every reset."""
    config = board.vm.config
    kernel = parse(path, read_file(path, "kernel"))
    if isinstance(kernel, ElfKernel) and kernel.kind == "multiboot":
        _start_multiboot(board, kernel, path)
        return
    initrd = read_file(config.initrd, "initrd") if config.initrd is not None else b""
    if isinstance(kernel, BzImage) and not kernel.direct:
        _start_old_bzimage(board, kernel, initrd)
        return
    if len(config.append) >= 0x8000:
        raise ConfigError("-append: the command line is too long")
    top, e820 = direct_boot.tables_address(board), direct_boot.memory_map(board)
    if isinstance(kernel, BzImage):
        screen = board.vga is not None and text_mode.find_font(board.vga_rom) is not None
        load = linux_boot.direct(kernel, initrd, config.append, top, e820, direct_boot.RSDP_AT, screen)
    else:
        load = elf_boot.pvh(kernel, initrd, config.append, top, e820, direct_boot.RSDP_AT)
    board.vm.after_reset(lambda: direct_boot.start(board, load))


def _start_old_bzimage(board: Pc, kernel: BzImage, initrd: bytes) -> None:
    top = board.memory.split.below_4g - FIRMWARE_ROOM
    load, segment, stack = linux_boot.through_firmware(kernel, initrd, board.vm.config.append, top)
    _add_rom(board, load, boot_rom.real_mode(keys.KERNEL_DATA, segment, stack))


def _start_multiboot(board: Pc, kernel: ElfKernel, path: str) -> None:
    config = board.vm.config
    top = board.memory.split.below_4g - FIRMWARE_ROOM
    load = elf_boot.multiboot(kernel, path, config.initrd, config.append, top, direct_boot.memory_map(board))
    _add_rom(board, load, boot_rom.protected_mode(keys.KERNEL_DATA, load.eip, load.eax, load.ebx))


def _add_rom(board: Pc, load: Load, rom: bytes) -> None:
    """The ROM is the first thing the firmware boots; selecting its item loads the kernel."""

    def deliver() -> bytes:
        for address, data in load.pieces:
            board.memory.fill(board.memory.ram, data, address)
        return b""

    board.fw_cfg.add_bytes(keys.KERNEL_DATA, deliver)
    board.fw_cfg.add_file(boot_rom.FILE, rom)
    board.fw_cfg.add_file(boot_order.FILE, board.boot_order.content(boot_rom.BOOT_ORDER))
