"""Records: constructors, defaults, frozen ones, changes."""

from __future__ import annotations

from typing import ClassVar

import pytest

from qemupy.records import field, record, replace


@record(frozen=True)
class Point:
    x: int
    y: int = 2
    kind: ClassVar[str] = "point"


@record()
class Draft:
    name: str
    parts: list[int] = field(factory=list)


@record(frozen=True)
class Named(Point):
    name: str = "?"

    def __repr__(self) -> str:
        return self.name


def test_constructor_takes_fields_by_place_and_by_name() -> None:
    assert (Point(1).x, Point(1).y, Point(y=5, x=4).y) == (1, 2, 5)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
        Point()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unexpected keyword argument 'z'"):
        Point(1, z=3)  # type: ignore[call-arg]


def test_a_default_made_anew_is_not_shared() -> None:
    first, second = Draft("a"), Draft("b")
    first.parts.append(1)
    assert second.parts == [] and Draft("c", [2]).parts == [2] and not hasattr(Draft, "parts")


def test_comparing() -> None:
    assert Point(1) == Point(1, 2) and Point(1) != Point(2) and Point(1) != (1, 2)  # type: ignore[comparison-overlap]
    assert {Point(1): "one"}[Point(1, 2)] == "one"
    assert Draft("a") == Draft("a")
    with pytest.raises(TypeError, match="unhashable"):
        hash(Draft("a"))


def test_frozen() -> None:
    point = Point(1)
    with pytest.raises(AttributeError, match="cannot change field 'x' of Point"):
        point.x = 3  # type: ignore[misc]
    with pytest.raises(AttributeError):
        del point.x
    assert replace(point, x=3) == Point(3) and point.x == 1
    draft = Draft("a")
    draft.name = "b"
    assert replace(draft).parts is draft.parts and replace(draft) == Draft("b")


def test_names_and_inheritance() -> None:
    assert repr(Point(1)) == "Point(x=1, y=2)"
    assert repr(Named(1, name="n")) == "n" and Named(1, 2, "n") != Point(1) and Named(1).kind == "point"
