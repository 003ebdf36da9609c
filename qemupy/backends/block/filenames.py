"""File names with a protocol in front, as QEMU writes them, to a driver's options."""

from __future__ import annotations

import os
import re
import stat

from qemupy.errors import BackendError


def has_protocol(filename: str) -> bool:
    """A colon before the first slash."""
    return re.match(r"[^/:]*:", filename) is not None


def filename_options(filename: str) -> dict[str, str]:
    """The options of the protocol node, `driver` among them. A path has no protocol, or `file:` in front."""
    if filename.startswith("json:"):
        raise BackendError("a json: file name stands alone")
    if not has_protocol(filename):
        return {"driver": _path_driver(filename), "filename": filename}
    scheme, _, rest = filename.partition(":")
    if scheme == "file":
        return {"driver": "file", "filename": rest}
    if scheme == "host_device":
        return {"driver": "host_device", "filename": rest}
    if scheme in ("null-co", "null-aio") and rest == "//":
        return {"driver": scheme}
    if scheme in ("nbd", "nbd+tcp", "nbd+unix"):
        from qemupy.backends.block.nbd.address import parse_filename

        return {"driver": "nbd", **parse_filename(filename)}
    raise BackendError(f"Unknown protocol '{scheme}'")


def _path_driver(path: str) -> str:
    try:
        return "host_device" if stat.S_ISBLK(os.stat(path).st_mode) else "file"
    except OSError:
        return "file"
