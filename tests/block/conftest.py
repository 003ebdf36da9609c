"""Drives over real files: on a main loop and workers alone, and in a machine with a monitor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qemupy.backends.block.drive import Drive
from qemupy.backends.block.open import open_drive
from qemupy.backends.block.opening import Graph
from qemupy.config import Config, parse_drive
from qemupy.main_loop.loop import MainLoop
from qemupy.main_loop.workers import Workers
from qemupy.monitor.hmp import Hmp
from qemupy.vcpu.accel import FakeAccel
from qemupy.vm import RunState, Vm


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
            with self.loop.bql:  # a worker that is done needs it too
                call[0](*call[1:], lambda e, n=n: errors.__setitem__(n, e))
                assert n not in errors, "completed inside the call"
        assert self.loop.run_until(lambda: len(errors) == len(calls))
        return [errors[n] for n in range(len(calls))]

    def close_drives(self) -> None:
        for drive in self.drives:
            drive.close()
        self.drives.clear()

    def close(self) -> None:
        self.close_drives()
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


class Machine:
    """A running Vm without vCPUs, and a monitor."""

    def __init__(self) -> None:
        self.vm = Vm(Config(ram=1 << 20), FakeAccel())
        self.hmp = Hmp(self.vm)
        self.errors: list[tuple[str, int]] = []
        with self.vm.bql:
            self.vm.cont()

    def drive(self, text: str) -> Drive:
        drive = self.vm.add_drive(parse_drive(text, []))
        drive.attach("disk")
        return drive

    def write(self, drive: Drive, name: str, offset: int, data: bytes) -> None:
        with self.vm.bql:
            drive.write(offset, data, lambda error: self.errors.append((name, error)))

    def wait(self, *names: str) -> list[int]:
        assert self.vm.loop.run_until(lambda: len(self.errors) >= len(names))
        found = dict(self.errors)
        self.errors.clear()
        return [found[name] for name in names]

    def wait_for(self, state: RunState) -> None:
        assert self.vm.loop.run_until(lambda: self.vm.run_state == state)

    def __call__(self, line: str) -> str:
        with self.vm.bql:
            return self.hmp.execute(line)


@pytest.fixture
def machine() -> Iterator[Machine]:
    made = Machine()
    yield made
    made.vm.close()
