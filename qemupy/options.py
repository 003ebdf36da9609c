"""QEMU's `key=value,key=value` option syntax, sizes and switches.

A comma inside a value is written twice. The first item may leave out its key (`-device e1000` means driver=e1000).
A key without a value is a switch: `server` means server=on, `nowait` means wait=off.
"""

from __future__ import annotations

from collections.abc import Iterable

from qemupy.errors import ConfigError

_ON = ("on", "yes", "true", "y")
_OFF = ("off", "no", "false", "n")
_SUFFIXES = {"b": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50, "e": 60}


def split_commas(text: str) -> list[str]:
    """Split at single commas; a doubled one stands for itself."""
    items, start, at = [""], 0, 0
    while (at := text.find(",", start)) >= 0:
        items[-1] += text[start:at]
        if text[at + 1 : at + 2] == ",":
            items[-1] += ","
            start = at + 2
        else:
            items.append("")
            start = at + 1
    items[-1] += text[start:]
    return items


def parse(text: str, implied: str = "", switches: Iterable[str] = ()) -> dict[str, str]:
    """The keys in order; of a repeated key the last value counts. `implied` is the key of a first item without `=`."""
    if text.startswith("{"):
        return _parse_json(text)
    result: dict[str, str] = {}
    known = set(switches)
    for n, item in enumerate(split_commas(text)):
        key, equals, value = item.partition("=")
        if not equals:
            if n == 0 and implied:
                key, value = implied, item
            elif item.startswith("no") and item[2:] in known:
                key, value = item[2:], "off"
            else:
                value = "on"
        if not key:
            if n == 0 and not item:
                continue
            raise ConfigError("Expected parameter before '='" if equals else "Expected parameter after ','")
        result[key] = value
    return result


def _parse_json(text: str) -> dict[str, str]:
    import json

    try:
        data = json.loads(text)
    except ValueError as e:
        raise ConfigError(f"JSON parse error, {e}") from None
    flat: dict[str, str] = {}

    def put(prefix: str, value: object) -> None:
        if isinstance(value, dict):
            for k, v in value.items():
                put(f"{prefix}{k}." if isinstance(v, dict) else f"{prefix}{k}", v)
        elif isinstance(value, bool):
            flat[prefix] = "on" if value else "off"
        else:
            flat[prefix] = str(value)

    put("", data)
    return flat


def boolean(key: str, value: str) -> bool:
    if value in _ON:
        return True
    if value in _OFF:
        return False
    raise ConfigError(f"Parameter '{key}' expects 'on' or 'off'")


def number(key: str, value: str, low: int = 0, high: int = (1 << 64) - 1) -> int:
    try:
        result = int(value, 0)
    except ValueError:
        raise ConfigError(f"Parameter '{key}' expects a number, not '{value}'") from None
    if not low <= result <= high:
        raise ConfigError(f"Parameter '{key}' must be between {low} and {high}, not {value}")
    return result


def size(key: str, value: str, unit: str = "b") -> int:
    """Bytes of `512`, `512M`, `1.5G`; a bare number counts in `unit`."""
    text, shift = value.strip(), _SUFFIXES[unit]
    if text and text[-1].lower() in _SUFFIXES and not text.lower().startswith("0x"):
        shift = _SUFFIXES[text[-1].lower()]
        text = text[:-1]
    try:
        result = int(float(text) * (1 << shift)) if "." in text else int(text, 0) << shift
    except (ValueError, OverflowError):
        result = -1
    if not 0 <= result < 1 << 64:
        raise ConfigError(
            f"Parameter '{key}' expects a non-negative number below 2^64 with an optional suffix k, M, G, T, P or E, "
            f"not '{value}'"
        )
    return result


def refuse_unknown(options: dict[str, str], known: Iterable[str]) -> None:
    known = list(known)
    for key in options:
        if key not in known:
            raise ConfigError(f"Invalid parameter '{key}'{did_you_mean(key, known)}")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` or nothing. difflib is loaded only on the way to an error."""
    import difflib

    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""
