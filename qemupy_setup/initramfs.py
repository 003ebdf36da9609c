"""Small root file systems in memory: a cpio archive (Linux initramfs buffer format) with busybox and our /init."""

import gzip
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

READY = "qemupy-init-ready"
PROMPT = "guest# "

# A shell on the console, as job-control-less child of init; `poweroff -f` leaves the machine. From here on the kernel
# speaks through `dmesg` alone: what it says of its own accord would break into what commands print.
INIT = f"""#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin:/usr/bin HOME=/ TERM=dumb PS1='{PROMPT}'
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
dmesg -n 1
echo {READY} $(uname -r -m)
exec setsid -c sh -i
"""


@dataclass(frozen=True)
class Entry:
    """One member of the archive."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def cpio(entries: Iterable[Entry]) -> bytes:
    """The archive of these entries."""
    out = bytearray()
    trailer = Entry("TRAILER!!!", 0)
    for inode, entry in enumerate([*entries, trailer], 1):
        name = entry.name.encode() + b"\0"
        fields = (inode, entry.mode, 0, 0, 1, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        out += b"\0" * (-len(out) % 4) + entry.data
        out += b"\0" * (-len(out) % 4)
    return bytes(out)


def tree_entries(tree: Path, names: Iterable[str]) -> list[Entry]:
    """These files and folders of an unpacked package, with what lies in them and the folders above."""
    found: dict[str, Entry] = {}
    for name in names:
        for path in (tree / name, *sorted((tree / name).rglob("*"))):
            inside = path.relative_to(tree)
            for folder in reversed(inside.parents[:-1]):
                found.setdefault(str(folder), Entry(str(folder), stat.S_IFDIR | 0o755))
            if path.is_symlink():
                found[str(inside)] = Entry(str(inside), stat.S_IFLNK | 0o777, str(path.readlink()).encode())
            elif path.is_file():
                found[str(inside)] = Entry(str(inside), stat.S_IFREG | path.stat().st_mode & 0o777, path.read_bytes())
    return list(found.values())


def busybox_initramfs(busybox: Path, init: str = INIT, modules: Iterable[Path] = (),
                      files: Iterable[Entry] = ()) -> bytes:  # fmt: skip
    """A gzipped initramfs with this statically linked busybox, these files and /init, which loads the modules in their
    order."""
    modules = list(modules)
    loads = "".join(f"insmod /modules/{path.name}\n" for path in modules)
    init = init.replace(f"echo {READY}", f"{loads}echo {READY}")
    folders = [Entry(name, stat.S_IFDIR | 0o755) for name in ("bin", "dev", "proc", "sys", "tmp", "mnt", "modules")]
    return gzip.compress(cpio([
        *folders,
        Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
        Entry("bin/busybox", stat.S_IFREG | 0o755, busybox.read_bytes()),
        *(Entry(f"modules/{path.name}", stat.S_IFREG | 0o644, path.read_bytes()) for path in modules),
        *files,
        Entry("init", stat.S_IFREG | 0o755, init.encode()),
    ]), mtime=0)
