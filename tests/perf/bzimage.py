"""A bzImage around a few bytes of code (Linux x86 boot protocol 2.12), for loaders that enter it directly."""

import struct

LOAD_ADDRESS = 0x100000


def bzimage(code: bytes) -> bytes:
    """A kernel image whose 32-bit entry point, at 1 MiB, is this code. Its real-mode part is empty."""
    setup = bytearray(2 * 512)  # the boot sector and one sector of real-mode code
    setup[0x1F1] = 1  # setup_sects
    body = code + b"\0" * (-len(code) % 16)
    struct.pack_into("<I", setup, 0x1F4, len(body) // 16)  # syssize, in paragraphs
    struct.pack_into("<H", setup, 0x1FE, 0xAA55)  # boot_flag
    setup[0x200:0x202] = b"\xeb\x68"  # the jump over the header tells its length
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, 0x020C)  # version
    setup[0x211] = 0x01  # loadflags: LOADED_HIGH
    struct.pack_into("<I", setup, 0x214, LOAD_ADDRESS)  # code32_start
    struct.pack_into("<I", setup, 0x22C, 0x7FFFFFFF)  # initrd_addr_max
    struct.pack_into("<I", setup, 0x230, 0x1000)  # kernel_alignment
    setup[0x234] = 1  # relocatable_kernel
    struct.pack_into("<I", setup, 0x238, 255)  # cmdline_size
    struct.pack_into("<Q", setup, 0x258, LOAD_ADDRESS)  # pref_address
    struct.pack_into("<I", setup, 0x260, 0x10000)  # init_size
    return bytes(setup) + body
