"""Character backends. Devices know the Protocol `CharBackend`; `make` builds one from QEMU's option syntax."""

from qemupy.backends.chardev.base import BREAK, CLOSED, OPENED, CharBackend, FakeChardev, NullChardev

__all__ = ["BREAK", "CLOSED", "OPENED", "CharBackend", "FakeChardev", "NullChardev"]
