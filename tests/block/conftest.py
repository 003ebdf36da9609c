"""Drives over real files, with a main loop and workers but no machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qemupy.backends.block.drive import Drive
from qemupy.backends.block.open import open_drive
from qemupy.backends.block.opening import Graph
from qemupy.config import parse_drive
from qemupy.main_loop.loop import MainLoop
from qemupy.main_loop.workers import Workers


class Host:
    def __init__(self) -> None:
        self.loop = MainLoop()
        self.workers = Workers(self.loop)
        self.graph = Graph()
        self.drives: list[Drive] = []

    def drive(self, text: str, *, attach: bool = True, share_rw: bool = False) -> Drive:
        """A drive as `-drive TEXT` makes it, taken by a device."""
        drive = open_drive(parse_drive(text, []), self.loop, self.workers, self.graph)
        self.drives.append(drive)
        if attach:
            drive.attach("device", share_rw=share_rw)
        return drive

    def wait(self, *calls: tuple[Any, ...]) -> list[int]:
        """Run (method, args...) requests to their end; the errors in order of the calls."""
        errors: dict[int, int] = {}
        for n, call in enumerate(calls):
            call[0](*call[1:], lambda e, n=n: errors.__setitem__(n, e))
            assert n not in errors, "completed inside the call"
        assert self.loop.run_until(lambda: len(errors) == len(calls))
        return [errors[n] for n in range(len(calls))]

    def close(self) -> None:
        for drive in self.drives:
            drive.close()
        self.graph.close()
        assert not self.graph.nodes
        self.workers.stop()
        self.loop.close()


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host()
    yield made
    made.close()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(range(256)) * 256)
    return path
