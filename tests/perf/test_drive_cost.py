"""What a disk request costs above the host's own work: process time for each, with several under way."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qemupy.backends.block.drive import Drive
from qemupy.backends.block.open import open_drive
from qemupy.backends.block.opening import Graph
from qemupy.config import parse_drive
from qemupy.main_loop.loop import MainLoop
from qemupy.main_loop.workers import Workers

MIB = 1 << 20
LIMIT = 50e-6  # seconds of processor time a request
DEPTH = 8


class Bench:
    def __init__(self, text: str) -> None:
        self.loop = MainLoop()
        self.workers = Workers(self.loop)
        self.drive: Drive = open_drive(parse_drive(text, []), self.loop, self.workers, Graph())

    def run(self, write: bool, size: int, count: int) -> tuple[float, float]:
        """Seconds and processor seconds for `count` requests of `size` bytes, one after the other on the disk."""
        buffers = [[memoryview(bytearray(size))] for _ in range(DEPTH)]
        started = ended = 0
        submit = self.drive.writev if write else self.drive.readv

        def start(n: int) -> None:
            nonlocal started
            offset = started * size % self.drive.length
            started += 1

            def done(error: int) -> None:
                nonlocal ended
                assert not error
                ended += 1
                if started < count:
                    start(n)

            submit(offset, buffers[n], done)

        wall, spent = time.perf_counter(), time.process_time()
        with self.loop.bql:
            for n in range(DEPTH):
                start(n)
            while ended < count:
                self.loop.iterate(50_000_000)
        return time.perf_counter() - wall, time.process_time() - spent

    def close(self) -> None:
        self.drive.close()
        self.workers.stop()
        self.loop.close()


@pytest.fixture(autouse=True)
def switch_interval() -> Iterator[None]:
    """As the program sets it."""
    old = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(old)


@pytest.mark.parametrize("write", [False, True], ids=["read", "write"])
def test_overhead_of_a_request(write: bool) -> None:
    bench = Bench("driver=null-co,size=64M")
    spent = min(bench.run(write, 4096, 2000)[1] / 2000 for _ in range(3))
    bench.close()
    print(f"{spent * 1e6:.1f} us of processor time for each request")
    assert spent < LIMIT


@pytest.mark.parametrize("write", [False, True], ids=["read", "write"])
def test_sequential_transfers(tmp_path: Path, write: bool) -> None:
    """From and to the host's page cache, in requests of a guest's usual size."""
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(MIB) * 64)
    bench = Bench(f"file={path},format=raw")
    seconds = min(bench.run(write, 128 << 10, 1024)[0] for _ in range(3))
    bench.close()
    print(f"{128 / seconds:.0f} MiB/s in requests of 128 KiB")
    assert 128 / seconds > 100
