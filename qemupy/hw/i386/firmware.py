"""Finding and reading firmware images: the BIOS, VGA BIOSes, option ROMs.

Nothing of it is ours: SeaBIOS and its VGA BIOSes come from the distribution's `seabios` package. A name without a
slash is looked for in the `-L` folders and then in the usual ones.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from qemupy.errors import BackendError, ConfigError

FOLDERS = (
    "/usr/share/seabios", "/usr/share/qemu", "/usr/share/qemu-kvm", "/usr/share/seavgabios", "/usr/share/vgabios",
    "/usr/local/share/qemu", "/usr/local/share/seabios", "/usr/share/ipxe", "/usr/lib/ipxe/qemu",
)  # fmt: skip
BIOS = "bios-256k.bin"
MAX_ROM = 16 << 20


def find(name: str, extra_folders: Sequence[str] = ()) -> str | None:
    """The path of a firmware file, or None."""
    if os.path.isfile(name):
        return name
    if "/" in name:
        return None
    for folder in (*extra_folders, *FOLDERS):
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            return path
    return None


def read(path: str) -> bytes:
    try:
        if os.path.getsize(path) > MAX_ROM:
            raise ConfigError(f"could not load PC BIOS '{path}': larger than 16 MiB")
        with open(path, "rb") as file:
            return file.read()
    except OSError as e:
        raise BackendError(f"could not load firmware '{path}': {e.strerror}") from None


def load_bios(name: str | None, extra_folders: Sequence[str] = ()) -> tuple[str, bytes]:
    """Name and contents of the system firmware; `name` is that of `-bios`."""
    path = find(name or BIOS, extra_folders)
    if path is None and name:
        raise ConfigError(f"could not load PC BIOS '{name}': no such file")
    if path is None:
        raise ConfigError(f"PC BIOS '{BIOS}' not found: install the package seabios, or give its folder with -L")
    data = read(path)
    if not data or len(data) % 0x10000:
        raise ConfigError(f"could not load PC BIOS '{path}': its size {len(data)} is no multiple of 64 KiB")
    return os.path.basename(path), data


def load_rom(name: str, extra_folders: Sequence[str] = ()) -> bytes | None:
    """An option ROM padded to a power of two, or None if it is nowhere."""
    path = find(name, extra_folders)
    if path is None:
        return None
    data = read(path)
    return data.ljust(1 << max(len(data) - 1, 0x7FF).bit_length(), b"\0")
