"""Where a machine goes to and comes from: `migrate URI` and `-incoming URI`. So far a file is the only kind."""

from __future__ import annotations

import os

from qemupy.errors import BackendError, ConfigError
from qemupy.migration import machine
from qemupy.vm import RunState, Vm


def _path(uri: str) -> str:
    kind, colon, path = uri.partition(":")
    if kind != "file" or not colon or not path:
        raise ConfigError(f"unknown migration protocol: {uri} (use file:PATH)")
    return path


def migrate(vm: Vm, uri: str) -> None:
    """Stop the machine and write it out; it stays stopped. The file appears whole or not at all. In the main loop."""
    path = _path(uri)
    running = vm.running
    vm.stop(RunState.POSTMIGRATE)
    half = f"{path}.{os.getpid()}"
    try:
        with open(half, "wb") as file:
            machine.save(vm, file, running)
        os.replace(half, path)
    except OSError as e:
        if os.path.exists(half):
            os.unlink(half)
        raise BackendError(f"cannot write {path}: {e.strerror}") from None


def incoming(vm: Vm, uri: str) -> bool:
    """Make the freshly reset machine the one at `uri`; whether that one was running."""
    path = _path(uri)
    try:
        with open(path, "rb") as file:
            return machine.load(vm, file, path)
    except OSError as e:
        raise BackendError(f"cannot read {path}: {e.strerror}") from None
