"""`bootindex=`: the firmware's order of boot devices, as Open Firmware paths in fw_cfg's file `bootorder`."""

from __future__ import annotations

from qemupy import options
from qemupy.errors import ConfigError

FILE = "bootorder"


class BootOrder:
    def __init__(self) -> None:
        self._paths: dict[int, str] = {}

    def take(self, given: dict[str, str]) -> int | None:
        """The device's `bootindex`, out of its options; None if it has none."""
        text = given.pop("bootindex", "-1")
        if text == "-1":
            return None
        index = options.number("bootindex", text, high=(1 << 31) - 1)
        if index in self._paths:
            raise ConfigError(f"The bootindex {index} has already been used")
        return index

    def add(self, index: int | None, path: str) -> None:
        if index is not None:
            self._paths[index] = path

    def content(self, first: str = "") -> bytes:
        """The file: one path a line, `first` before all others. Empty if nobody cares."""
        paths = [first] if first else []
        paths += [path for _index, path in sorted(self._paths.items())]
        return "\n".join(paths).encode() + b"\0" if paths else b""


def virtio_disk(devfn: int) -> str:
    return f"/pci@i0cf8/scsi@{_slot(devfn)}/disk@0,0"


def ide_drive(index: int) -> str:
    """The drive with this number on the PIIX3."""
    return f"/pci@i0cf8/ide@1,1/drive@{index // 2}/disk@{index % 2}"


def _slot(devfn: int) -> str:
    return f"{devfn >> 3:x}" + (f",{devfn & 7:x}" if devfn & 7 else "")
