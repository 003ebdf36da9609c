"""A vCPU's registers as plain values, for saved machines: every field of QpyCpuState (csrc/api.h) by its name.

The C structure is the one list of what a vCPU holds; it is read through cffi's type information, so that a register
added there is saved without a line here. Arrays of bytes become bytes, other arrays lists, structures tables.
"""

from __future__ import annotations

from typing import Any

from qemupy._core import ffi, lib
from qemupy.errors import StateError


def dump(state: Any) -> dict[str, Any]:
    """The fields of a `QpyCpuState *`."""
    return _dump_struct(ffi.typeof(state).item, state[0])


def build(table: Any, where: str) -> Any:
    """A new `QpyCpuState *` from what `dump` gave; StateError names the field that is missing, unknown or too big."""
    state = ffi.new("QpyCpuState *")
    _fill_struct(ffi.typeof(state).item, state[0], table, where)
    if lib.qpy_cpu_state_check(state):
        raise StateError(f"{where}: no vCPU can be in this state")
    return state


def _dump_struct(ctype: Any, value: Any) -> dict[str, Any]:
    return {name: _dump(field.type, getattr(value, name)) for name, field in ctype.fields}


def _dump(ctype: Any, value: Any) -> Any:
    if ctype.kind == "struct":
        return _dump_struct(ctype, value)
    if ctype.kind != "array":
        return int(value)
    if ctype.item.kind == "primitive" and ffi.sizeof(ctype.item) == 1:
        return bytes(ffi.buffer(value))
    return [_dump(ctype.item, value[i]) for i in range(ctype.length)]


def _fill_struct(ctype: Any, target: Any, table: Any, where: str) -> None:
    fields = dict(ctype.fields)
    if not isinstance(table, dict) or table.keys() != fields.keys():
        odd = sorted(fields.keys() ^ table.keys()) if isinstance(table, dict) else []
        raise StateError(f"{where}: missing or unknown fields {', '.join(map(str, odd))[:80]}")
    for name, field in fields.items():
        _fill(field.type, target, name, table[name], f"{where}.{name}")


def _fill(ctype: Any, owner: Any, key: Any, value: Any, where: str) -> None:
    if ctype.kind == "struct":
        _fill_struct(ctype, _at(owner, key), value, where)
    elif ctype.kind == "array":
        _fill_array(ctype, _at(owner, key), value, where)
    elif type(value) is not int:
        raise StateError(f"{where}: an integer is needed, not {type(value).__name__}")
    else:
        _store(owner, key, value, where)


def _fill_array(ctype: Any, target: Any, value: Any, where: str) -> None:
    raw = ctype.item.kind == "primitive" and ffi.sizeof(ctype.item) == 1
    if not isinstance(value, bytes if raw else list) or len(value) != ctype.length:
        raise StateError(f"{where}: {ctype.length} {'bytes' if raw else 'entries'} are needed")
    if raw:
        ffi.buffer(target)[:] = value
        return
    for i, item in enumerate(value):
        _fill(ctype.item, target, i, item, f"{where}[{i}]")


def _at(owner: Any, key: Any) -> Any:
    return owner[key] if isinstance(key, int) else getattr(owner, key)


def _store(owner: Any, key: Any, value: int, where: str) -> None:
    try:
        if isinstance(key, int):
            owner[key] = value
        else:
            setattr(owner, key, value)
    except OverflowError:
        raise StateError(f"{where}: {value:#x} does not fit") from None
