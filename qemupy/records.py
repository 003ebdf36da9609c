"""Records: classes that are named fields and little else, declared as with the standard library's `dataclasses`.

    @record(frozen=True)
    class Address:
        host: str
        port: int = 10809
        tags: list[str] = field(factory=list)

Why not those: importing them, and what they compile for each class, was a quarter of the time until a guest's first
instruction. A record compiles its constructor alone. Type checkers know it as they know a dataclass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, dataclass_transform

T = TypeVar("T")
_MISSING = object()


class _Field:
    __slots__ = ("factory",)

    def __init__(self, factory: Callable[[], Any]) -> None:
        self.factory = factory


def field(*, factory: Callable[[], T]) -> T:
    """A field whose default is made anew for each record."""
    return _Field(factory)  # type: ignore[return-value]


def _values(self: Any) -> tuple[Any, ...]:
    return tuple([getattr(self, name) for name in self.__record__])


def _equal(self: Any, other: object) -> bool:
    return _values(self) == _values(other) if other.__class__ is self.__class__ else NotImplemented


def _hash(self: Any) -> int:
    return hash(_values(self))


def _show(self: Any) -> str:
    shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__record__)
    return f"{type(self).__qualname__}({shown})"


def _refuse(self: Any, name: str, *_value: Any) -> None:
    raise AttributeError(f"cannot change field '{name}' of {type(self).__name__}")


def _constructor(defaults: dict[str, Any], frozen: bool) -> Callable[..., None]:
    """`__init__`, which assigns its arguments to the fields of the same names."""
    names: dict[str, Any] = {"_put": object.__setattr__}
    parameters, body = [], []
    for name, default in defaults.items():
        value = name
        if isinstance(default, _Field):
            names[f"make_{name}"], names["_missing"] = default.factory, _MISSING
            parameters.append(f"{name}=_missing")
            value = f"make_{name}() if {name} is _missing else {name}"
        elif default is _MISSING:
            parameters.append(name)
        else:
            names[f"default_{name}"] = default
            parameters.append(f"{name}=default_{name}")
        body.append(f" _put(self, {name!r}, {value})" if frozen else f" self.{name} = {value}")
    exec(f"def __init__(self, {', '.join(parameters)}):\n" + "\n".join(body), names)
    made: Callable[..., None] = names["__init__"]
    return made


@dataclass_transform(field_specifiers=(field,))
def record(*, frozen: bool = False) -> Callable[[type[T]], type[T]]:
    """Make the class a record; a `frozen` one cannot be changed and can be a key."""

    def decorate(cls: type[T]) -> type[T]:
        defaults: dict[str, Any] = dict(getattr(cls, "__record__", {}))
        for name, annotation in cls.__annotations__.items():
            if not str(annotation).startswith("ClassVar"):
                defaults[name] = cls.__dict__.get(name, defaults.get(name, _MISSING))
        methods: dict[str, Any] = {"__record__": defaults, "__init__": _constructor(defaults, frozen),
                                   "__eq__": _equal, "__repr__": _show,
                                   "__hash__": _hash if frozen else None}  # fmt: skip
        if frozen:
            methods["__setattr__"] = methods["__delattr__"] = _refuse
        for name, method in methods.items():
            if name not in cls.__dict__ or name == "__hash__":
                setattr(cls, name, method)
        for name, default in defaults.items():
            if isinstance(default, _Field) and name in cls.__dict__:
                delattr(cls, name)
        return cls

    return decorate


def replace(old: T, **changes: Any) -> T:
    """A record like `old` but for these fields."""
    return type(old)(**{**{name: getattr(old, name) for name in old.__record__}, **changes})  # type: ignore[attr-defined]
