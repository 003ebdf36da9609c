"""QEMU's option syntax."""

from __future__ import annotations

import pytest

from qemupy import options
from qemupy.errors import ConfigError


def test_keyval() -> None:
    assert options.parse("a=1,b=x,,y,c=p=q", "driver") == {"a": "1", "b": "x,y", "c": "p=q"}
    assert options.parse("e1000,id=n0", "driver") == {"driver": "e1000", "id": "n0"}
    assert options.parse("server,nowait,x", "", ["server", "wait"]) == {"server": "on", "wait": "off", "x": "on"}
    assert options.parse("path=/a,,", "") == {"path": "/a,"}
    assert options.parse('{"driver":"ide-hd","n":3,"on":true,"file":{"a":"b"}}') == {
        "driver": "ide-hd", "n": "3", "on": "on", "file.a": "b",
    }  # fmt: skip
    for bad in ("=x", "a=1,,,=", '{"a":'):
        with pytest.raises(ConfigError):
            options.parse(bad, "driver")


@pytest.mark.parametrize(
    ("text", "unit", "want"),
    [("512", "m", 512 << 20), ("512", "b", 512), ("1.5G", "m", 3 << 29), ("64k", "m", 65536), ("0x10", "m", 16 << 20)],
)
def test_size(text: str, unit: str, want: int) -> None:
    assert options.size("size", text, unit) == want


@pytest.mark.parametrize("text", ["3x", "-1", "", "M", "99999999999E", "1e5", "nan"])
def test_bad_size(text: str) -> None:
    with pytest.raises(ConfigError, match="non-negative number"):
        options.size("size", text)


def test_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"Invalid parameter 'med'; did you mean 'media'\?"):
        options.refuse_unknown({"med": "x"}, ["media", "file"])
