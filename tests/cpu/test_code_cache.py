"""A code cache that is too small for the guest, and blocks of one instruction."""

from __future__ import annotations

import itertools
import random
import re
from typing import Any

import pytest
from qemupy._core import ffi, lib
from rawguest import RawGuest

BLOCKS, ROUNDS = 12000, 40


def scattered(seed: int) -> str:
    """Code of many blocks in random order, each of which jumps to the next, called in between."""
    rng = random.Random(seed)
    order = list(range(BLOCKS))
    rng.shuffle(order)
    following = dict(itertools.pairwise(order))
    lines = [f"mov ecx, {ROUNDS}", "again: call work", f"jmp b{order[0]}"]
    for at in range(BLOCKS):
        step = rng.choice((
            f"add rax, {rng.randrange(1 << 30)}", "rol rax, 7", f"xor rax, [rdi + {rng.randrange(4096)}]",
            "mov [rdi + rcx * 8], rax", f"imul rax, rax, {rng.randrange(1 << 20) * 2 + 1}",
        ))
        call = "call work" if rng.random() < 0.1 else "nop"
        lines.append(f"b{at}: {step}\n {call}\n jmp {f'b{following[at]}' if at in following else 'next'}")
    return "\n".join([*lines, "next: dec ecx", "jnz again", "out 0x80, al", "hlt",
                      "work: inc rbx", "add rax, rbx", "ret"])


def run(accel: str, code: str, code_cache: int = 0, flags: int = 0) -> tuple[list[int], bytes, Any]:
    with RawGuest(accel=accel) as guest:
        lib.qpy_machine_set_translator(guest.machine, code_cache, flags)
        done: list[int] = []
        guest.pio_write = lambda port, size, value: done.append(port)
        guest.start64(code, rdi=0x600000, rax=1, rbx=0)
        guest.run_threads(lambda: bool(done), 60)
        stats = ffi.new("QpyVcpuStats *")
        lib.qpy_vcpu_stats(guest.vcpu, stats)
        return [int(v) for v in guest.state().gpr], guest.get(0x600000, 8192), stats


def test_eviction_goes_unnoticed() -> None:
    code = scattered(1)
    want, memory, _ = run("interp", code)
    got, got_memory, stats = run("dbt", code, 1 << 20)
    assert (want, memory) == (got, got_memory)
    assert stats.jit_flushes >= 3
    assert stats.jit_used <= 1 << 20
    big, big_memory, stats = run("dbt", code, 64 << 20)
    assert (want, memory) == (big, big_memory)
    assert stats.jit_flushes == 0 and stats.jit_used > 1 << 20


@pytest.mark.parametrize("size", [1, 4096, 1 << 40])
def test_any_size_works(size: int) -> None:
    code = "mov ecx, 1000; again: add rax, rcx; dec ecx; jnz again; out 0x80, al; hlt"
    got, _, stats = run("dbt", code, size)
    assert got[0] == 1 + 1000 * 1001 // 2 and stats.jit_blocks > 0


@pytest.mark.parametrize("accel", ["interp", "dbt"])
def test_one_instruction_in_a_block(accel: str) -> None:
    code = "mov ecx, 5000; again: add rax, rcx; lea rbx, [rax + 1]; nop; dec ecx; jnz again; out 0x80, al; hlt"
    want, _, usual = run(accel, code)
    got, _, stats = run(accel, code, 0, lib.QPY_DBT_ONE_INSN)
    assert want == got
    assert stats.block == stats.decode > usual.block
    if accel == "dbt":
        assert stats.jit_blocks == 5 and stats.jit_regions == 0


def test_one_instruction_from_now_on() -> None:
    """Switched on and off while the guest runs: what was translated before is dropped."""
    with RawGuest(accel="dbt") as guest:
        blocks: list[tuple[int, int]] = []

        def write(port: int, size: int, value: int) -> None:
            stats = ffi.new("QpyVcpuStats *")
            lib.qpy_vcpu_stats(guest.vcpu, stats)
            blocks.append((stats.block, stats.decode))
            if len(blocks) in (2, 4):
                lib.qpy_machine_set_one_insn(guest.machine, len(blocks) == 2)

        guest.pio_write = write
        guest.start64("again: out 0x80, al; mov ecx, 1000; inner: add rax, rcx; add rbx, rax; dec ecx; jnz inner\n"
                      "jmp again")
        guest.run_threads(lambda: len(blocks) >= 6)
        made = [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(blocks)]
        assert made[1][0] == made[1][1] > 0  # one by one
        assert 0 < made[3][0] < made[3][1]


def test_pages_are_data_again_when_their_blocks_are_gone() -> None:
    """The cache was emptied, which leaves only marks: the first store takes them back, the others are fast."""
    first = scattered(1).replace("out 0x80, al\nhlt", "jmp second")
    second = re.sub(r"\b(b\d+|again|next|work)\b", r"\1_2", scattered(2)).replace("out 0x80, al", "jmp wipe", 1)
    wipe = """
        wipe: lea rsi, [rip + again]
        mov ecx, 100000
    1:  mov byte ptr [rsi], 0
        inc rsi
        dec ecx
        jnz 1b
        out 0x80, al
        hlt
    """
    _, _, stats = run("dbt", f"{first}\nsecond: {second}\n{wipe}", 1 << 20)
    assert stats.jit_flushes >= 3
    assert stats.tlb_fill < 5000
