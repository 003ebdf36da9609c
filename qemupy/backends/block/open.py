"""Drives and media from their configuration."""

from __future__ import annotations

from qemupy.backends.block.drive import Drive
from qemupy.backends.block.media import Medium, NullMedium, Overlay, RawFile
from qemupy.config import DriveConfig
from qemupy.errors import BackendError
from qemupy.main_loop.loop import MainLoop
from qemupy.main_loop.workers import Workers

FORMATS = ("raw", "file", "host_device", "null-co", "null-aio")


def open_medium(config: DriveConfig) -> Medium | None:
    """The medium of a drive, None for a drive without."""
    if config.format is not None and config.format not in FORMATS:
        raise BackendError(f"Unknown driver '{config.format}' (supported: raw, null-co)")
    if config.format in ("null-co", "null-aio") or config.file in ("null-co://", "null-aio://"):
        return NullMedium(config.size, config.readonly)
    if config.file is None:
        return None
    path = config.file.removeprefix("file:")
    medium = RawFile(path, config.readonly or config.snapshot, config.locking, config.discard)
    if config.snapshot and not config.readonly:
        return Overlay(medium)
    return medium


def open_drive(config: DriveConfig, loop: MainLoop, workers: Workers) -> Drive:
    return Drive(
        config.id,
        loop,
        workers,
        open_medium(config),
        removable=config.removable,
        writethrough=config.cache in ("writethrough", "directsync"),
        no_flush=config.cache == "unsafe",
    )
