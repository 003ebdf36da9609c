"""System packages: what the build, the guests and the tests need, and how it gets installed through apt."""

import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from qemupy_setup.steps import SetupError, as_root, run, step

SYSTEM_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


@dataclass(frozen=True)
class Requirement:
    """One thing the host must have, the package that brings it, and how to tell that it is there."""

    package: str
    why: str
    present: Callable[[], bool]


def have_command(name: str) -> Callable[[], bool]:
    """A probe: is there a command of this name?"""
    return lambda: shutil.which(name, path=SYSTEM_PATH) is not None


def have_file(*candidates: str) -> Callable[[], bool]:
    """A probe: is one of these files there?"""
    return lambda: any(Path(name).exists() for name in candidates)


def _have_venv() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in ("venv", "ensurepip"))


def _have_python_headers() -> bool:
    return Path(sysconfig.get_path("include"), "Python.h").exists()


BUILD = [
    Requirement("python3-venv", "virtual environment", _have_venv),
    Requirement("python3-dev", "Python headers", _have_python_headers),
    Requirement("gcc", "C compiler", have_command("gcc")),
    Requirement("libc6-dev", "C library headers", have_file("/usr/include/stdio.h")),
    Requirement("ninja-build", "build tool", have_command("ninja")),
    Requirement("libzydis-dev", "x86 decoder", have_file("/usr/include/Zydis/Zydis.h")),
    Requirement("ca-certificates", "package downloads", have_file("/etc/ssl/certs/ca-certificates.crt")),
]
FIRMWARE = [
    Requirement("seabios", "PC BIOS and VGA BIOS",
                have_file("/usr/share/seabios/bios-256k.bin", "/usr/share/qemu/bios-256k.bin")),
]
DISK = [
    Requirement("mmdebstrap", "Debian guest", have_command("mmdebstrap")),
    Requirement("e2fsprogs", "ext4 file system of the guest", have_command("mke2fs")),
    Requirement("fdisk", "partition table of the guest", have_command("sfdisk")),
    Requirement("grub-common", "boot loader of the guest", have_command("grub-mkimage")),
]
TEST = [
    Requirement("clang-format", "C style test", have_command("clang-format")),
    Requirement("binutils", "object file test", have_command("nm")),
    Requirement("xorriso", "bootable CD-ROM guests", have_command("xorriso")),
    Requirement("qemu-utils", "disk image tests", have_command("qemu-img")),
    Requirement("mtools", "bootable CD-ROM guests", have_command("mformat")),
    Requirement("nbdkit", "NBD tests", have_command("nbdkit")),
]


def missing(requirements: Iterable[Requirement]) -> list[Requirement]:
    """Those of the requirements that the host does not meet."""
    return [req for req in requirements if not req.present()]


def update(prefix: list[str]) -> None:
    """Fetch the package lists. A mirror in the middle of a sync fails for one list; what is there may still do."""
    command = [*prefix, "apt-get", "-q", "update"]
    try:
        run(command)
    except SetupError:
        try:
            run(command)
        except SetupError as error:
            reasons = [line for line in str(error).splitlines() if line.startswith("E: ")]
            print("   warning: some package lists could not be fetched:", *reasons[:3], sep="\n   ")


def install(requirements: Iterable[Requirement]) -> None:
    """Install what is missing through apt; without root, sudo or apt raise with the packages in one line."""
    lacking = missing(requirements)
    if not lacking:
        return
    names = [req.package for req in lacking]
    command = f"apt-get install --no-install-recommends {' '.join(names)}"
    if not shutil.which("apt-get"):
        raise SetupError(f"missing (Debian's names): {' '.join(names)}")
    try:
        root = as_root()
    except SetupError:
        raise SetupError(f"missing packages, install them as root: {command}") from None
    apt = [*root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=300"]
    with step(f"install system packages: {' '.join(names)}"):
        update(["env", *root])
        run([*apt, "install", "--no-install-recommends", *names])
    importlib.invalidate_caches()
    still = [req.package for req in missing(lacking)]
    if still:
        raise SetupError(f"installed, but still not usable: {' '.join(still)}")
