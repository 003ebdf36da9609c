"""Field tables survive encoding; damaged ones are refused without harm."""

import random

import pytest

from qemupy.errors import StateError
from qemupy.migration import values

SAMPLE = {
    "version": 3,
    "lcr": 0x83,
    "deadline": None,
    "armed": True,
    "offset": -5_000_000_000,
    "big": (1 << 64) - 1,
    "fifo": b"\x00\xff",
    "name": "čip",
    "levels": [0, 1, -1, [2]],
    "nested": {"a": {"b": False}},
}


def test_round_trip() -> None:
    assert values.decode(values.encode(SAMPLE), "x") == SAMPLE


@pytest.mark.parametrize("n", [0, 63, 64, -64, -65, 127, 128, (1 << 64) - 1, -(1 << 63), 1 << 127])
def test_integers_at_their_edges(n: int) -> None:
    assert values.decode(values.encode(n), "x") == n


def test_every_truncation_is_refused() -> None:
    whole = values.encode(SAMPLE)
    for cut in range(len(whole)):
        with pytest.raises(StateError):
            values.decode(whole[:cut], "x")
    with pytest.raises(StateError, match="too many"):
        values.decode(whole + b"\0", "x")


def test_damage_never_escapes_as_another_error() -> None:
    rng = random.Random(7)
    whole = values.encode(SAMPLE)
    for _ in range(3000):
        bad = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            bad[rng.randrange(len(bad))] = rng.randrange(256)
        try:
            values.decode(bad, "x")
        except StateError:
            pass


def test_announced_size_is_not_believed() -> None:
    with pytest.raises(StateError, match="announced"):
        values.decode(b"\x05\xff\xff\xff\xff\xff\x7f", "x")
    with pytest.raises(StateError, match="nested"):
        values.decode(b"\x06\x01" * 40 + b"\x00", "x")


def test_foreign_types_are_a_programming_error() -> None:
    with pytest.raises(TypeError):
        values.encode({"x": 1.5})
