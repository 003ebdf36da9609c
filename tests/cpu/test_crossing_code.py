"""An instruction across two pages is a translated block of its own: jumped to like any other, as long as both pages
are mapped as they were."""

from __future__ import annotations

import pytest
from accels import ACCELS
from qemupy._core import ffi, lib
from rawguest import PAGE_TABLES
from translated import run

PAGES, TABLE = 0x400000, 0xC000  # 2 MiB of small pages
ENTRY, CROSSING = PAGES + 0xFF0, PAGES + 0xFFD
SECOND = (0x410000, 0x414000)  # what is mapped behind the first page in turn
ROUNDS, CALLS = 300, 20

FLUSHES = {"invlpg": f"invlpg [{PAGES + 0x1000:#x}]", "cr3": "mov rax, cr3; mov cr3, rax"}


def program(flags: int, flush: str) -> str:
    """`mov eax, imm32` across the pages, reached by a jump within the first one. r8 gathers the upper bytes it loads,
    r9 what they should be."""
    halves = "; ".join(f"mov word ptr [{at:#x}], {(n + 1) << 8}; mov byte ptr [{at + 2:#x}], 0xc3"
                       for n, at in enumerate(SECOND))  # fmt: skip
    return f"""
        mov word ptr [{ENTRY:#x}], {0x00EB | (CROSSING - ENTRY - 2) << 8:#x}
        mov word ptr [{CROSSING:#x}], 0xb8; mov byte ptr [{CROSSING + 2:#x}], 0
        {halves}
        mov qword ptr [{TABLE:#x}], {PAGES | flags:#x}; mov qword ptr [{TABLE + 8:#x}], {SECOND[0] | flags:#x}
        mov qword ptr [{PAGE_TABLES + 0x2000 + 8 * (PAGES >> 21):#x}], {TABLE + 3:#x}; mov rax, cr3; mov cr3, rax
        mov rax, cr4; or rax, 0x80; mov cr4, rax
        xor r8d, r8d; xor r9d, r9d; mov ebp, {ROUNDS}; mov ebx, 1; mov esi, {ENTRY:#x}
        1: mov r10d, {CALLS}
        2: call rsi; shr eax, 24
        imul r8, r8, 31; add r8, rax; imul r9, r9, 31; add r9, rbx
        dec r10d; jnz 2b
        xor ebx, 3; xor qword ptr [{TABLE + 8:#x}], {SECOND[0] ^ SECOND[1]:#x}; {flush}
        dec ebp; jnz 1b"""


@pytest.mark.parametrize("accel", ACCELS)
@pytest.mark.parametrize(("flags", "flush"), [(0x03, "invlpg"), (0x103, "invlpg"), (0x03, "cr3")])
def test_second_page_is_the_one_that_is_mapped(flags: int, flush: str, accel: str) -> None:
    with run(program(flags, FLUSHES[flush]), accel=accel) as guest:
        assert guest.reg("r8") == guest.reg("r9") != 0


def test_jumps_to_it_and_from_it_are_linked() -> None:
    with run(program(0x103, "")) as guest:
        stats = ffi.new("QpyVcpuStats *")
        lib.qpy_vcpu_stats(guest.vcpu, stats)
        assert stats.jit_exit_unlinked + stats.jit_helper < ROUNDS * CALLS / 10
