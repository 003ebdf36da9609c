"""`State`: a class whose annotated fields are its registers, its reset values and its snapshot.

The metaclass takes the field factories out of the class body and gives the class `__slots__` in their place. Slots are
as fast as plain attributes and make an assignment to an undeclared name fail at no cost.

What an annotation means:
    ier: int = u8()              saved field
    cache: dict = transient(factory=dict)   not saved
    irq: IrqLine                 wire: a required keyword argument of the constructor
    dma: Dma | None = None       optional wire
    irq_number: int = prop(default=4)       property, settable with -device
    MAX: ClassVar[int] = 5       plain class variable
"""

from __future__ import annotations

from typing import Any, ClassVar, Self, dataclass_transform

from qemupy.errors import StateError
from qemupy.hw.core import fields as f

_REQUIRED = object()


def _is_class_var(annotation: Any) -> bool:
    return str(annotation).startswith(("ClassVar", "typing.ClassVar", "t.ClassVar"))


@dataclass_transform(
    kw_only_default=True,
    field_specifiers=(
        f.u8, f.u16, f.u32, f.u64, f.i64, f.boolean, f.text, f.fifo, f.buffer, f.array, f.nested, f.nested_list,
        f.timer, f.transient, f.prop,
    ),
)  # fmt: skip
class StateMeta(type):
    def __new__(mcls, name: str, bases: tuple[type, ...], ns: dict[str, Any]) -> StateMeta:
        own_fields: dict[str, f.Field] = {}
        own_transients: dict[str, f.Transient] = {}
        own_wires: dict[str, Any] = {}
        own_props: dict[str, f.Prop] = {}
        taken = set().union(*(getattr(b, "__slot_names__", ()) for b in bases))
        for key, annotation in ns.get("__annotations__", {}).items():
            if _is_class_var(annotation):
                continue
            if key in taken:
                raise TypeError(f"{name}.{key} is declared again; {key} belongs to a base class")
            value = ns.pop(key, _REQUIRED)
            if isinstance(value, f.Field):
                value.name = key
                own_fields[key] = value
            elif isinstance(value, f.Transient):
                own_transients[key] = value
            elif isinstance(value, f.Prop):
                own_props[key] = value
            else:
                own_wires[key] = value
        for key, value in ns.items():
            if isinstance(value, f.Field | f.Transient | f.Prop):
                raise TypeError(f"{name}.{key} needs an annotation")
        own = [*own_fields, *own_transients, *own_wires, *own_props]
        ns["__slots__"] = (*ns.get("__slots__", ()), *own)
        cls = super().__new__(mcls, name, bases, ns)
        for attr, mine in (
            ("__fields__", own_fields),
            ("__transients__", own_transients),
            ("__wires__", own_wires),
            ("__props__", own_props),
        ):
            merged: dict[str, Any] = {}
            for base in reversed(bases):
                merged.update(getattr(base, attr, {}))
            merged.update(mine)
            setattr(cls, attr, merged)
        type.__setattr__(cls, "__slot_names__", taken.union(own))
        return cls


class State(metaclass=StateMeta):
    """A group of fields with generic reset, save and load."""

    version: ClassVar[int] = 1
    __fields__: ClassVar[dict[str, f.Field]]
    __transients__: ClassVar[dict[str, f.Transient]]
    __wires__: ClassVar[dict[str, Any]]
    __props__: ClassVar[dict[str, f.Prop]]
    __slot_names__: ClassVar[set[str]]

    def __new__(cls, **kwargs: Any) -> Self:
        """Fill wires and properties from the keywords, then fields with their reset values."""
        self = super().__new__(cls)
        for name, default in cls.__wires__.items():
            value = kwargs.pop(name, default)
            if value is _REQUIRED:
                raise TypeError(f"{cls.__name__} needs the wire '{name}'")
            setattr(self, name, value)
        for name, spec in cls.__props__.items():
            setattr(self, name, kwargs.pop(name, spec.default))
        if kwargs:
            raise TypeError(f"{cls.__name__} has no wire or property '{next(iter(kwargs))}'")
        for name, t in cls.__transients__.items():
            setattr(self, name, t.factory() if t.factory else t.default)
        for field in cls.__fields__.values():
            field.reset(self)
        return self

    def __init__(self, **kwargs: Any) -> None:
        self.realize()

    def realize(self) -> None:
        """Called once, when all wires and fields are there. For checks of properties and for callbacks on wires."""

    def reset(self) -> None:
        """Power-on values for all fields but those declared `keep`. A subclass that overrides this calls it first."""
        for field in self.__fields__.values():
            if not field.keep:
                field.reset(self)

    def save(self) -> dict[str, Any]:
        """The fields as plain ints, bools, texts, bytes, lists and dicts."""
        state: dict[str, Any] = {"version": self.version}
        for name, field in self.__fields__.items():
            state[name] = field.dump(getattr(self, name))
        return state

    def load(self, state: dict[str, Any]) -> None:
        """Take over a saved state. It is checked whole before anything changes."""
        self.store_fields(self.check_fields(state, type(self).__name__))

    def store_fields(self, values: list[tuple[f.Field, Any]]) -> None:
        self.fill_fields(values)
        self.post_load()

    def fill_fields(self, values: list[tuple[f.Field, Any]]) -> None:
        """Without `post_load`, which the caller has to call."""
        for field, value in values:
            field.store(self, value)

    def place(self) -> None:
        """Show registers and memory where the fields say. Loading a machine begins with this, in one memory
        transaction for all devices; `post_load` sees to it for a device that is loaded alone."""

    def post_load(self) -> None:
        """Recompute what is derived from the fields (interrupt outputs, timers, caches). Where a whole machine is
        loaded, all fields of all devices and the vCPUs are there already: a wire that is driven now arrives."""

    def machine_loaded(self) -> None:
        """All devices are what they were: what comes from outside may be let in."""

    @classmethod
    def check_fields(cls, state: Any, where: str) -> list[tuple[f.Field, Any]]:
        if not isinstance(state, dict):
            raise StateError(f"{where}: no field table")
        version = state.get("version")
        if type(version) is not int or version < 0:
            raise StateError(f"{where}: no version")
        if version > cls.version:
            raise StateError(f"{where}: saved by a later version ({version}, here {cls.version})")
        for name in state:
            if name != "version" and name not in cls.__fields__:
                raise StateError(f"{where}: unknown field {str(name)[:40]!r}")
        values = []
        for name, field in cls.__fields__.items():
            if name in state:
                values.append((field, field.check(state[name], f"{where}.{name}")))
            elif field.since <= version:
                raise StateError(f"{where}: field {name!r} is missing")
            else:
                values.append((field, field.check(_initial(field), f"{where}.{name}")))
        return values


def _initial(field: f.Field) -> Any:
    """What a state from before `field` existed implies for it: the reset value."""
    if isinstance(field, f.TimerField):
        return None
    return field.dump(field.fresh(None))

