"""The device registry: QEMU's device names to classes, for `-device`, `-device help` and `info qtree`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from qemupy.errors import ConfigError
from qemupy.hw.core.device import Device
from qemupy.options import did_you_mean
from qemupy.records import record

D = TypeVar("D", bound=type[Device])


@record(frozen=True)
class Entry:
    name: str
    cls: type[Device]
    bus: str
    help: str
    aliases: tuple[str, ...]


_by_name: dict[str, Entry] = {}


def register(name: str, *, bus: str = "System", help: str = "", aliases: tuple[str, ...] = ()) -> Callable[[D], D]:
    """Class decorator: make the device known under its QEMU name. `bus` is ISA, PCI, ... as `-device help` prints."""

    def enter(cls: D) -> D:
        entry = Entry(name, cls, bus, help, aliases)
        for key in (name, *aliases):
            if key in _by_name and _by_name[key].cls.__qualname__ != cls.__qualname__:
                raise TypeError(f"device name {key} is taken by {_by_name[key].cls.__name__}")
            _by_name[key] = entry
        cls.qdev_name = name
        return cls

    return enter


def lookup(name: str) -> Entry:
    entry = _by_name.get(name)
    if entry is None:
        raise ConfigError(f"-device {name}: '{name}' is not a valid device model name{did_you_mean(name, _by_name)}")
    return entry


def entries() -> list[Entry]:
    return [e for n, e in sorted(_by_name.items()) if n == e.name]


def parse_props(cls: type[Device], given: dict[str, str]) -> dict[str, object]:
    """Texts of `prop=value` to the types of the declared defaults."""
    values: dict[str, object] = {}
    for key, text in given.items():
        spec = cls.__props__.get(key.replace("-", "_"))
        if spec is None:
            raise ConfigError(f"Property '{cls.qdev_name}.{key}' not found{did_you_mean(key, cls.__props__)}")
        values[key.replace("-", "_")] = _convert(cls.qdev_name, key, text, spec.default)
    return values


def _convert(device: str, key: str, text: str, default: object) -> object:
    if isinstance(default, bool):
        if text in ("on", "yes", "true", "y"):
            return True
        if text in ("off", "no", "false", "n"):
            return False
        raise ConfigError(f"Parameter '{key}' of {device} expects 'on' or 'off'")
    if isinstance(default, int):
        try:
            return int(text, 0)
        except ValueError:
            raise ConfigError(f"Parameter '{key}' of {device} expects a number, not '{text}'") from None
    return text
