"""Random programs in lock-step: python tests/cpu/random_lockstep.py SEED BLOCKS

Runs programs of 64- and 32-bit code, beginning with this seed, in the interpreter, translated, translated with regions
made early, and in lock-step by block and by chain, until so many blocks were compared. What they leave behind must be
the same. A difference ends the process with the blocks and states printed; the line before says which program it was.
"""

from __future__ import annotations

import argparse
import sys

from qemupy._core import ffi, lib
from random_program import FAULTS, Program, prepare
from rawguest import RawGuest

BUDGET = 60_000_000
WAYS = ("", "eager", "block", "chain")


def outcome(program: Program, seed: int, accel: str, translator: str = "") -> tuple[list[int], int, int]:
    """Checksum, faults and general registers; blocks compared; strips of loops."""
    written: list[int] = []
    with RawGuest(ram=16 << 20, accel=accel, translator=translator) as guest:

        def pio_write(port: int, size: int, value: int) -> None:
            written.append(value)
            lib.qpy_vcpu_kick(guest.vcpu)

        guest.pio_write = pio_write
        prepare(guest, program, seed)
        reason = guest.run(BUDGET) if accel == "interp" else lib.qpy_vcpu_run(guest.vcpu)
        state = guest.state()
        assert len(written) == 1, f"exit {reason}, rip {state.rip:#x}, written {written}"
        stats = ffi.new("QpyVcpuStats *")
        lib.qpy_vcpu_stats(guest.vcpu, stats)
        assert stats.jit_regions or translator not in ("eager", "chain") or program.modifies, "no block became a region"
        result = [written[0], guest.get_int(FAULTS, 4), *map(int, state.gpr)]
        return result, int(stats.jit_compared), int(stats.jit_strips)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("seed", type=int)
    parser.add_argument("blocks", type=int)
    options = parser.parse_args()
    seed, blocks, strips = options.seed, 0, 0
    while blocks < options.blocks:
        for bits in (64, 32):
            print(f"seed {seed}, {bits} bits, {blocks} blocks, {strips} strips so far", flush=True)
            program = Program(seed, bits)
            expected, *_ = outcome(program, seed, "interp")
            assert expected[1] > 0, "no fault at all"
            for way in WAYS:
                got, compared, stripped = outcome(program, seed, "dbt", way)
                assert got == expected, f"dbt {way}: {got} instead of {expected}"
                blocks += compared
                strips += stripped
        seed += 1
    assert strips > 0, "no loop ran in strips"
    print(f"seeds {options.seed} to {seed - 1}: {blocks} blocks, {strips} strips without a difference")
    return 0


if __name__ == "__main__":
    sys.exit(main())
