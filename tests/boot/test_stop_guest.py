"""`stop` and `quit` against guests that spin in every way, interrupts off."""

import time
from pathlib import Path

import pytest
from machine import REFERENCE, SCALE

from tests.cpu.rawguest import assemble
from tests.cpu.spinning import NAMES, program
from tests.migration.process import Process
from tests.perf.bzimage import LOAD_ADDRESS, bzimage

pytestmark = [pytest.mark.boot, pytest.mark.skipif(bool(REFERENCE), reason="starts our own program")]

STOP_LIMIT = 0.010
QUIT_LIMIT = 1.0


@pytest.mark.parametrize("name", [name for name in NAMES if name != "faults"])  # no table of handlers here
def test_stop_and_quit_at_once(name: str, accelerator: str, tmp_path: Path) -> None:
    kernel = tmp_path / "spin.bzimage"
    kernel.write_bytes(bzimage(assemble(program(name, 32), 32, LOAD_ADDRESS)))
    with Process(tmp_path, "-accel", accelerator, "-m", "64", "-kernel", kernel) as machine:
        stops = []
        for _ in range(30):
            machine.mon.run("cont")
            time.sleep(0.02)
            begin = time.monotonic()
            machine.mon.run("stop")
            stops.append(time.monotonic() - begin)
            if len(stops) >= 5 and min(stops) < STOP_LIMIT:
                break
        assert "paused" in machine.mon.run("info status")
        first = machine.mon.run("info registers")
        assert machine.mon.run("info registers") == first
        assert min(stops) < STOP_LIMIT
        machine.mon.run("cont")
        begin = time.monotonic()
        machine.mon.send("quit")
        assert machine.wait() == 0
        assert time.monotonic() - begin < QUIT_LIMIT * SCALE
