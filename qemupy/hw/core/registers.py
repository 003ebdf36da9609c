"""Register handlers: `@on_read`/`@on_write` name an offset, and a `RegisterBank` dispatches accesses to them.

A device has one bank or several named ones (IDE: command block, control block). A bank knows offsets only; where it is
mapped is the board's matter. Accesses wider than a register are split, narrower ones are cut out of the register, as
QEMU does for port lists; an access that hits no register reads all ones and is logged as a guest error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar

from qemupy import trace

F = TypeVar("F", bound=Callable[..., Any])
ReadFn = Callable[[], int]
WriteFn = Callable[[int], None]

_ONES = {1: 0xFF, 2: 0xFFFF, 4: 0xFFFFFFFF, 8: 0xFFFFFFFFFFFFFFFF}


def _flatten(offsets: Iterable[int | range]) -> list[int]:
    flat: list[int] = []
    for item in offsets:
        flat.extend([item] if isinstance(item, int) else item)
    return flat


def _mark(kind: str, offsets: tuple[int | range, ...], size: int | tuple[int, ...], bank: str) -> Callable[[F], F]:
    sizes = (size,) if isinstance(size, int) else size
    if not offsets or any(s not in _ONES for s in sizes):
        raise TypeError("a register handler needs an offset and a size of 1, 2, 4 or 8")

    def mark(function: F) -> F:
        marks = function.__dict__.setdefault("__registers__", [])
        marks.append((kind, bank, _flatten(offsets), sizes))
        return function

    return mark


def on_read(*offsets: int | range, size: int | tuple[int, ...] = 1, bank: str = "") -> Callable[[F], F]:
    """`def read_x(self) -> int`, or `def read_x(self, offset) -> int` where one handler serves several offsets."""
    return _mark("read", offsets, size, bank)


def on_write(*offsets: int | range, size: int | tuple[int, ...] = 1, bank: str = "") -> Callable[[F], F]:
    """`def write_x(self, value) -> None`, or `def write_x(self, offset, value) -> None`."""
    return _mark("write", offsets, size, bank)


def on_read_burst(*offsets: int | range, size: int | tuple[int, ...] = 2, bank: str = "") -> Callable[[F], F]:
    """`def read_data(self, count) -> bytes`: a whole `rep ins` of `count` elements (data ports). Short answers are
    completed element by element through the `on_read` handler."""
    return _mark("read_burst", offsets, size, bank)


def on_write_burst(*offsets: int | range, size: int | tuple[int, ...] = 2, bank: str = "") -> Callable[[F], F]:
    """`def write_data(self, data) -> int`: a whole `rep outs`; answers how many bytes were taken."""
    return _mark("write_burst", offsets, size, bank)


class RegisterSpec:
    """The handlers of one bank of one device class, keyed by `offset * 16 + size`."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[int, Callable[..., Any]]] = {
            "read": {}, "write": {}, "read_burst": {}, "write_burst": {},
        }  # fmt: skip
        self.span = 0

    def add(self, kind: str, function: Callable[..., Any], offset: int, size: int, owner: str) -> None:
        table = self.tables[kind]
        for start in range(offset - size + 1, offset + size):
            other = table.get(start << 4 | size)
            if other is not None and other is not function:
                raise TypeError(
                    f"{owner}: {kind} handlers {function.__name__} [{offset:#04x}-{offset + size - 1:#04x}] and "
                    f"{other.__name__} [{start:#04x}-{start + size - 1:#04x}] collide"
                )
        table[offset << 4 | size] = function
        self.span = max(self.span, offset + size)


def collect(cls: type) -> dict[str, RegisterSpec]:
    """All banks of a class; a method that overrides a handler of a base class replaces it."""
    banks: dict[str, RegisterSpec] = {}
    for name, marks in _marks(cls).items():
        function = getattr(cls, name)
        if not callable(function):
            continue
        for kind, bank, offsets, sizes in marks:
            spec = banks.setdefault(bank, RegisterSpec())
            for offset in offsets:
                for size in sizes:
                    spec.add(kind, function, offset, size, cls.__name__)
    return banks


def _marks(cls: type) -> dict[str, list[Any]]:
    """What decorators say of each name. An override without one keeps the offsets of the handler it overrides."""
    marks: dict[str, list[Any]] = {}
    for klass in reversed(cls.__mro__[:-1]):
        for name, function in vars(klass).items():
            mine = getattr(function, "__registers__", None)
            if mine is not None:
                marks[name] = mine
    return marks


def _bind(kind: str, function: Callable[..., Any], owner: object, offset: int) -> Callable[..., Any]:
    """A bound handler; one that wants the offset gets it as first argument."""
    bound = getattr(owner, function.__name__)
    plain = 1 if kind == "read" else 2
    code = getattr(function, "__code__", None)
    if code is not None and code.co_argcount == plain + 1:
        return partial(bound, offset)
    return bound  # type: ignore[no-any-return]


class RegisterBank:
    """The bank of one device object. `read`/`write` are what memory maps and port tables call."""

    __slots__ = ("name", "read_bursts", "reads", "span", "write_bursts", "writes")

    def __init__(self, owner: object, spec: RegisterSpec, name: str) -> None:
        self.name = name
        self.span = spec.span
        bound = {
            kind: {key: _bind(kind, function, owner, key >> 4) for key, function in table.items()}
            for kind, table in spec.tables.items()
        }
        self.reads: dict[int, ReadFn] = bound["read"]
        self.writes: dict[int, WriteFn] = bound["write"]
        self.read_bursts: dict[int, Callable[[int], bytes]] = bound["read_burst"]
        self.write_bursts: dict[int, Callable[[bytes], int]] = bound["write_burst"]

    def read(self, offset: int, size: int) -> int:
        handler = self.reads.get(offset << 4 | size)
        if handler is not None:
            return handler()
        return self._read_other(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        handler = self.writes.get(offset << 4 | size)
        if handler is not None:
            handler(value)
        else:
            self._write_other(offset, size, value)

    def _read_other(self, offset: int, size: int) -> int:
        for wide in (2, 4, 8):
            if wide > size:
                base = offset & -wide
                handler = self.reads.get(base << 4 | wide)
                if handler is not None and offset + size <= base + wide:
                    return handler() >> (offset - base) * 8 & _ONES[size]
        if size == 1:
            trace.log_guest_error("%s: read of unassigned register %#x", self.name, offset)
            return 0xFF
        half = size // 2
        return self.read(offset, half) | self.read(offset + half, half) << half * 8

    def _write_other(self, offset: int, size: int, value: int) -> None:
        if size == 1:
            trace.log_guest_error("%s: write of %#x to unassigned register %#x", self.name, value, offset)
            return
        half = size // 2
        self.write(offset, half, value & _ONES[half])
        self.write(offset + half, half, value >> half * 8)

    def read_string(self, offset: int, size: int, count: int) -> bytes:
        """`rep ins`: `count` elements of `size` bytes from one register."""
        burst = self.read_bursts.get(offset << 4 | size)
        data = bytearray(burst(count)[: count * size]) if burst else bytearray()
        while len(data) < count * size:
            data += self.read(offset, size).to_bytes(size, "little")
        return bytes(data)

    def write_string(self, offset: int, size: int, data: bytes) -> None:
        """`rep outs`."""
        burst = self.write_bursts.get(offset << 4 | size)
        done = burst(data) if burst else 0
        for at in range(done, len(data), size):
            self.write(offset, size, int.from_bytes(data[at : at + size], "little"))
