"""A kick stops guest code at once, whatever it does."""

from __future__ import annotations

import threading
import time

import pytest
from accels import ACCELS
from qemupy._core import lib
from rawguest import RawGuest, assemble
from spinning import NAMES, RAM, program

LIMIT = 0.010
HANDLER = 0x2000


def kick_seconds(guest: RawGuest) -> float:
    """Let the guest run for a moment, kick it: how long it took to leave."""
    left: list[float] = []

    def run() -> None:
        assert lib.qpy_vcpu_run(guest.vcpu) == lib.QPY_EXIT_KICK
        left.append(time.monotonic())

    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(0.02)
    assert thread.is_alive()
    kicked = time.monotonic()
    lib.qpy_vcpu_kick(guest.vcpu)
    thread.join(10)
    assert left, f"still running 10 s after the kick, rip {guest.reg('rip'):#x}"
    return left[0] - kicked


@pytest.mark.parametrize("accel", ACCELS)
@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("name", NAMES)
def test_a_spinning_guest_leaves_at_once(name: str, bits: int, accel: str) -> None:
    with RawGuest(ram=RAM, accel=accel) as guest:
        pointer, back = ("rsp", "iretq") if bits == 64 else ("esp", "iretd")
        width = "qword" if bits == 64 else "dword"
        guest.put(HANDLER, assemble(f"add {width} ptr [{pointer}], 2; {back}", bits, HANDLER))
        (guest.gate64 if bits == 64 else guest.gate32)(6, HANDLER)
        (guest.start64 if bits == 64 else guest.start32)(program(name, bits))
        times = []
        for _ in range(20):
            before = guest.state().icount
            times.append(kick_seconds(guest))
            assert guest.state().icount > before
            if len(times) >= 3 and min(times) < LIMIT:
                break
        assert min(times) < LIMIT
