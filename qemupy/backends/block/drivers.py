"""The drivers by name, and which format the first bytes of an image tell. Drivers are imported when they are used."""

from __future__ import annotations

from importlib import import_module

from qemupy import options as syntax
from qemupy.backends.block.node import Node
from qemupy.errors import BackendError

# name -> module and class
DRIVERS: dict[str, tuple[str, str]] = {
    "file": ("file", "FileNode"),
    "host_device": ("file", "HostDeviceNode"),
    "nbd": ("nbd.node", "NbdNode"),
    "null-aio": ("null", "NullAioNode"),
    "null-co": ("null", "NullNode"),
    "qcow2": ("qcow2.driver", "Qcow2Node"),
    "raw": ("raw", "RawNode"),
}

# (name, offset, magic): what formats begin with, also those we have no driver for
_MAGICS = (
    ("qcow2", 0, b"QFI\xfb\0\0\0\2"),
    ("qcow2", 0, b"QFI\xfb\0\0\0\3"),
    ("qcow", 0, b"QFI\xfb\0\0\0\1"),
    ("qed", 0, b"QED\0"),
    ("vmdk", 0, b"KDMV"),
    ("vmdk", 0, b"COWD"),
    ("vmdk", 0, b"# Disk DescriptorFile"),
    ("vhdx", 0, b"vhdxfile"),
    ("vpc", 0, b"conectix"),
    ("vdi", 0x40, b"\x7f\x10\xda\xbe"),
    ("luks", 0, b"LUKS\xba\xbe"),
    ("parallels", 0, b"WithoutFreeSpace"),
    ("parallels", 0, b"WithouFreSpacExt"),
    ("bochs", 0, b"Bochs Virtual HD Image"),
    ("cloop", 0, b"#!/bin/sh\n#V2.0 Format"),
)


def find_driver(name: str) -> type[Node]:
    """The driver class; BackendError names those there are."""
    if name not in DRIVERS:
        known = sorted(DRIVERS)
        raise BackendError(f"Unknown driver '{name}'{syntax.did_you_mean(name, known)} (supported: {', '.join(known)})")
    module, cls = DRIVERS[name]
    found: type[Node] = getattr(import_module(f"qemupy.backends.block.{module}"), cls)
    return found


def probe(head: bytes) -> str:
    """The format whose magic the first bytes of an image bear, raw without any."""
    for name, at, magic in _MAGICS:
        if head[at : at + len(magic)] == magic:
            return name
    return "raw"
