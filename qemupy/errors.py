"""Errors a user can cause. Each carries one line fit for stderr; the command line prints it and exits with 1."""

from __future__ import annotations


class QemupyError(Exception):
    """Base of all errors whose text is meant for the user; the text is a single line."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class ConfigError(QemupyError):
    """The command line asks for something that does not exist or does not fit together."""


class BackendError(QemupyError):
    """A host resource (image, socket, terminal, RAM) cannot be used."""


class StateError(QemupyError):
    """A saved state does not fit the machine it is loaded into. Saved state counts as hostile input."""


class DeviceError(QemupyError):
    """A device is wired or configured in a way that cannot work."""


class MonitorError(QemupyError):
    """A monitor command cannot be carried out as asked."""


class PageInError(QemupyError):
    """Guest memory lies in the file of a snapshot and cannot be read from there now. Nothing has happened to it; the
    machine is about to stop, and when it goes on the access can be tried again."""
