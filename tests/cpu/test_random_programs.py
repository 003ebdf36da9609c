"""Random programs give the same registers, memory and instruction count however often, under whatever and in however
small pieces they run; and no block of them, nor any chain of blocks, differs between interpreter and translator."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from accels import ACCELS
from qemupy._core import lib
from random_program import CODE, FAULTS, Program, prepare
from rawguest import RawGuest

BUDGET = 60_000_000
FAST_SEEDS = 4
LONG_SEEDS = int(os.environ.get("QEMUPY_RANDOM_PROGRAMS", "500"))


def outcome(program: Program, seed: int, accel: str) -> tuple[int, int, list[int]]:
    """Checksum, instructions, faults and general registers."""
    written: list[int] = []
    with RawGuest(ram=16 << 20, accel=accel, shift=0) as guest:
        guest.pio_write = lambda port, size, value: written.append(value)
        prepare(guest, program, seed)
        reason = guest.run(BUDGET)
        state = guest.state()
        assert reason == lib.QPY_EXIT_HALT, f"seed {seed}: exit {reason}, rip {state.rip:#x}, count {state.icount}"
        faults = guest.get_int(FAULTS, 4)
        assert len(written) == 1 and faults > 0, f"seed {seed}: {written}, {faults} faults"
        return written[0], int(state.icount), [faults, *map(int, state.gpr)]


def check(seed: int, bits: int) -> None:
    program = Program(seed, bits)
    expected = outcome(program, seed, "interp")
    assert expected[1] > 10_000
    for accel in ACCELS:
        assert outcome(program, seed, accel) == expected, f"seed {seed}, {bits} bits, {accel}"


@pytest.mark.parametrize("bits", [64, 32])
@pytest.mark.parametrize("seed", range(FAST_SEEDS))
def test_programs_repeat(seed: int, bits: int) -> None:
    check(seed, bits)


def stops(program: Program, seed: int, accel: str) -> list[tuple[int, ...]]:
    """RIP, instructions and general registers wherever one of many budgets ends; not registers in the handlers of
    faults, which look at flags that may be dead."""
    sizes, seen = random.Random(seed), list[tuple[int, ...]]()
    with RawGuest(ram=16 << 20, accel=accel, translator="eager" if accel == "dbt" else "", shift=0) as guest:
        prepare(guest, program, seed)
        reason = lib.QPY_EXIT_KICK
        while reason == lib.QPY_EXIT_KICK:
            reason = guest.run(sizes.choice((1, 7, 100, 1000)) * sizes.randint(1, 20))
            state = guest.state()
            registers = map(int, state.gpr) if state.rip >= CODE else ()
            seen.append((int(state.rip), int(state.icount), *registers))
        assert reason == lib.QPY_EXIT_HALT
    return seen


@pytest.mark.parametrize("bits", [64, 32])
@pytest.mark.parametrize("seed", range(2))
def test_budgets_end_alike(seed: int, bits: int) -> None:
    """Between the same two instructions, of interpreted code, of blocks and of regions."""
    program = Program(seed, bits)
    expected = stops(program, seed, "interp")
    assert len(expected) > 10 and stops(program, seed, "dbt") == expected


@pytest.mark.long
@pytest.mark.parametrize("bits", [64, 32])
def test_many_programs(bits: int) -> None:
    """A failure names its seed: `Program(seed, bits)` makes the program again."""
    for seed in range(FAST_SEEDS, FAST_SEEDS + LONG_SEEDS):
        check(seed, bits)


def lockstep(seed: int, blocks: int, seconds: float) -> None:
    """In a process of its own: a difference ends it. What it printed last names the seed."""
    script = Path(__file__).with_name("random_lockstep.py")
    done = subprocess.run([sys.executable, script, str(seed), str(blocks)], capture_output=True, text=True,
                          timeout=seconds, check=False)
    assert done.returncode == 0, f"{done.stdout[-400:]}\n{done.stderr[:20000]}"
    print(done.stdout.splitlines()[-1])


def test_lockstep() -> None:
    lockstep(1, 20_000, 300)


@pytest.mark.long
def test_lockstep_of_a_million_blocks() -> None:
    lockstep(100, 1_000_000, 7200)
