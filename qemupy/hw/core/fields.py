"""Field factories: one declaration gives a register its storage, width, reset value and place in the saved state.

A factory is written as the default of an annotated class attribute (`ier: int = u8(reset=3)`). At run time it returns
a `Field`, which the metaclass in `state.py` takes out of the class and turns into a slot; to the type checker it
returns a value of the attribute's type. `init=False` tells the checker that the attribute is no constructor argument.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from qemupy.errors import StateError

if TYPE_CHECKING:
    from qemupy.hw.core.state import State
    from qemupy.main_loop.clock import Timer

S = TypeVar("S", bound="State")
T = TypeVar("T")


class Field:
    """One piece of saved state. `fresh` makes the reset value, `dump`/`check`/`store` carry it to and from a dict."""

    __slots__ = ("keep", "name", "since")

    def __init__(self, since: int, keep: bool) -> None:
        self.name = ""
        self.since = since
        self.keep = keep

    def fresh(self, owner: Any) -> Any:
        raise NotImplementedError

    def reset(self, owner: Any) -> None:
        setattr(owner, self.name, self.fresh(owner))

    def dump(self, value: Any) -> Any:
        return value

    def check(self, value: Any, where: str) -> Any:
        """The value to store, or StateError. Must not change the device: loading is all or nothing."""
        raise NotImplementedError

    def store(self, owner: Any, value: Any) -> None:
        setattr(owner, self.name, value)


class IntField(Field):
    __slots__ = ("bits", "low", "value")

    def __init__(self, bits: int, value: int, since: int, keep: bool, signed: bool = False) -> None:
        super().__init__(since, keep)
        self.bits, self.value = bits, value
        self.low = -(1 << bits - 1) if signed else 0
        self.check(value, "reset value")

    def fresh(self, owner: Any) -> int:
        return self.value

    def check(self, value: Any, where: str) -> int:
        if type(value) is not int:
            raise StateError(f"{where}: an integer is needed, not {type(value).__name__}")
        if not self.low <= value < self.low + (1 << self.bits):
            raise StateError(f"{where}: {value:#x} does not fit {self.bits} bits")
        return value


class BoolField(Field):
    __slots__ = ("value",)

    def __init__(self, value: bool, since: int, keep: bool) -> None:
        super().__init__(since, keep)
        self.value = value

    def fresh(self, owner: Any) -> bool:
        return self.value

    def check(self, value: Any, where: str) -> bool:
        if type(value) is not bool:
            raise StateError(f"{where}: a boolean is needed, not {type(value).__name__}")
        return value


class BytesField(Field):
    """A bytearray: of exactly `size` bytes (buffer) or of up to `size` bytes (fifo). Its identity never changes,
    so that a device or a view may hold on to it."""

    __slots__ = ("fill", "fixed", "size")

    def __init__(self, size: int, fixed: bool, fill: bytes, since: int, keep: bool) -> None:
        super().__init__(since, keep)
        self.size, self.fixed, self.fill = size, fixed, fill

    def fresh(self, owner: Any) -> bytearray:
        return bytearray(self.fill.ljust(self.size, b"\0") if self.fixed else self.fill)

    def reset(self, owner: Any) -> None:
        self.store(owner, self.fresh(owner))

    def dump(self, value: bytearray) -> bytes:
        return bytes(value)

    def check(self, value: Any, where: str) -> bytes:
        if not isinstance(value, bytes | bytearray):
            raise StateError(f"{where}: bytes are needed, not {type(value).__name__}")
        if len(value) > self.size or (self.fixed and len(value) != self.size):
            rule = "needed" if self.fixed else "the limit"
            raise StateError(f"{where}: {len(value)} bytes where {self.size} are {rule}")
        return bytes(value)

    def store(self, owner: Any, value: bytes | bytearray) -> None:
        current = getattr(owner, self.name, None)
        if current is None:
            setattr(owner, self.name, bytearray(value))
        else:
            current[:] = value


class ListField(Field):
    """A list of `n` integers; identity is kept as for BytesField."""

    __slots__ = ("item", "values")

    def __init__(self, item: IntField, values: list[int], since: int, keep: bool) -> None:
        super().__init__(since, keep)
        self.item, self.values = item, values
        self.check(values, "reset value")

    def fresh(self, owner: Any) -> list[int]:
        return list(self.values)

    def reset(self, owner: Any) -> None:
        self.store(owner, self.values)

    def dump(self, value: list[int]) -> list[int]:
        return list(value)

    def check(self, value: Any, where: str) -> list[int]:
        if not isinstance(value, list) or len(value) != len(self.values):
            raise StateError(f"{where}: a list of {len(self.values)} integers is needed")
        return [self.item.check(v, f"{where}[{i}]") for i, v in enumerate(value)]

    def store(self, owner: Any, value: list[int]) -> None:
        current = getattr(owner, self.name, None)
        if current is None:
            setattr(owner, self.name, list(value))
        else:
            current[:] = value


class NestedField(Field):
    """A State inside a State; the object itself stays, its fields are reset and loaded."""

    __slots__ = ("cls",)

    def __init__(self, cls: type[State], since: int, keep: bool) -> None:
        super().__init__(since, keep)
        self.cls = cls

    def fresh(self, owner: Any) -> State:
        return self.cls()

    def reset(self, owner: Any) -> None:
        current = getattr(owner, self.name, None)
        if current is None:
            setattr(owner, self.name, self.cls())
        else:
            current.reset()

    def dump(self, value: State) -> dict[str, Any]:
        return value.save()

    def check(self, value: Any, where: str) -> list[tuple[Field, Any]]:
        return self.cls.check_fields(value, where)

    def store(self, owner: Any, value: list[tuple[Field, Any]]) -> None:
        getattr(owner, self.name).store_fields(value)


class NestedListField(Field):
    __slots__ = ("cls", "count")

    def __init__(self, cls: type[State], count: int, since: int, keep: bool) -> None:
        super().__init__(since, keep)
        self.cls, self.count = cls, count

    def fresh(self, owner: Any) -> list[State]:
        return [self.cls() for _ in range(self.count)]

    def reset(self, owner: Any) -> None:
        current = getattr(owner, self.name, None)
        if current is None:
            setattr(owner, self.name, self.fresh(owner))
        else:
            for item in current:
                item.reset()

    def dump(self, value: list[State]) -> list[dict[str, Any]]:
        return [item.save() for item in value]

    def check(self, value: Any, where: str) -> list[list[tuple[Field, Any]]]:
        if not isinstance(value, list) or len(value) != self.count:
            raise StateError(f"{where}: a list of {self.count} entries is needed")
        return [self.cls.check_fields(v, f"{where}[{i}]") for i, v in enumerate(value)]

    def store(self, owner: Any, value: list[list[tuple[Field, Any]]]) -> None:
        for item, fields in zip(getattr(owner, self.name), value, strict=True):
            item.store_fields(fields)


class TimerField(Field):
    """A timer on the clock wire `clock` that calls method `handler`; saved as its deadline in ns, None when idle."""

    __slots__ = ("clock", "handler")

    def __init__(self, clock: str, handler: str, since: int, keep: bool) -> None:
        super().__init__(since, keep)
        self.clock, self.handler = clock, handler

    def fresh(self, owner: Any) -> Timer:
        return cast("Timer", getattr(owner, self.clock).timer(getattr(owner, self.handler)))

    def reset(self, owner: Any) -> None:
        current = getattr(owner, self.name, None)
        if current is None:
            setattr(owner, self.name, self.fresh(owner))
        else:
            current.cancel()

    def dump(self, value: Timer) -> int | None:
        return value.deadline

    def check(self, value: Any, where: str) -> int | None:
        if value is not None and (type(value) is not int or not 0 <= value < 1 << 63):
            raise StateError(f"{where}: a deadline in ns or None is needed")
        return value

    def store(self, owner: Any, value: int | None) -> None:
        timer: Timer = getattr(owner, self.name)
        if value is None:
            timer.cancel()
        else:
            timer.mod(value)


class TextField(Field):
    __slots__ = ("limit", "value")

    def __init__(self, limit: int, value: str, since: int, keep: bool) -> None:
        super().__init__(since, keep)
        self.limit, self.value = limit, value

    def fresh(self, owner: Any) -> str:
        return self.value

    def check(self, value: Any, where: str) -> str:
        if type(value) is not str or len(value) > self.limit:
            raise StateError(f"{where}: a text of at most {self.limit} characters is needed")
        return value


class Transient:
    """Derived or scratch data: an attribute that is neither saved nor reset; `post_load` recomputes it."""

    __slots__ = ("default", "factory")

    def __init__(self, default: Any, factory: Callable[[], Any] | None) -> None:
        self.default, self.factory = default, factory


class Prop:
    """A user-settable property of `-device NAME,prop=value`; a constructor argument with a default."""

    __slots__ = ("default", "help")

    def __init__(self, default: Any, help: str) -> None:
        self.default, self.help = default, help


# The factories. `keep=True`: reset leaves the value alone (battery-backed, or owned by another reset line).
# `since=N`: the field was added in version N of its class; older states get the reset value.


def u8(*, reset: int = 0, since: int = 0, keep: bool = False, init: Literal[False] = False) -> int:
    return cast(int, IntField(8, reset, since, keep))


def u16(*, reset: int = 0, since: int = 0, keep: bool = False, init: Literal[False] = False) -> int:
    return cast(int, IntField(16, reset, since, keep))


def u32(*, reset: int = 0, since: int = 0, keep: bool = False, init: Literal[False] = False) -> int:
    return cast(int, IntField(32, reset, since, keep))


def u64(*, reset: int = 0, since: int = 0, keep: bool = False, init: Literal[False] = False) -> int:
    return cast(int, IntField(64, reset, since, keep))


def i64(*, reset: int = 0, since: int = 0, keep: bool = False, init: Literal[False] = False) -> int:
    """Signed: times in ns, offsets."""
    return cast(int, IntField(64, reset, since, keep, signed=True))


def boolean(*, reset: bool = False, since: int = 0, keep: bool = False, init: Literal[False] = False) -> bool:
    return cast(bool, BoolField(reset, since, keep))


def text(limit: int, *, reset: str = "", since: int = 0, keep: bool = False, init: Literal[False] = False) -> str:
    return cast(str, TextField(limit, reset, since, keep))


def fifo(size: int, *, since: int = 0, keep: bool = False, init: Literal[False] = False) -> bytearray:
    """Up to `size` bytes, empty after reset. The handlers keep the limit; a loaded state is checked against it."""
    return cast(bytearray, BytesField(size, False, b"", since, keep))


def buffer(
    size: int, *, reset: bytes = b"", since: int = 0, keep: bool = False, init: Literal[False] = False
) -> bytearray:
    """Exactly `size` bytes, zero or `reset` padded with zeros."""
    return cast(bytearray, BytesField(size, True, reset, since, keep))


def array(
    bits: int,
    count: int,
    *,
    reset: int | Iterable[int] = 0,
    since: int = 0,
    keep: bool = False,
    init: Literal[False] = False,
) -> list[int]:
    """`count` integers of `bits` bits; `reset` is one value for all or one for each."""
    values = [reset] * count if isinstance(reset, int) else list(reset)
    if len(values) != count:
        raise TypeError(f"array of {count} with {len(values)} reset values")
    return cast(list[int], ListField(IntField(bits, 0, 0, False), values, since, keep))


def nested(cls: type[S], *, since: int = 0, keep: bool = False, init: Literal[False] = False) -> S:
    return cast(S, NestedField(cls, since, keep))


def nested_list(
    cls: type[S], count: int, *, since: int = 0, keep: bool = False, init: Literal[False] = False
) -> list[S]:
    return cast("list[S]", NestedListField(cls, count, since, keep))


def timer(
    clock: str, handler: str, *, since: int = 0, keep: bool = False, init: Literal[False] = False
) -> Timer:
    """A timer on the clock wire named `clock`, calling the method named `handler` without arguments when due."""
    return cast("Timer", TimerField(clock, handler, since, keep))


def transient(
    default: T | None = None, *, factory: Callable[[], T] | None = None, init: Literal[False] = False
) -> T:
    return cast(T, Transient(default, factory))


def prop(*, default: T, help: str = "") -> T:
    return cast(T, Prop(default, help))
