"""Code that a guest maps elsewhere, with INVLPG for its page alone: translated code is not to reach what was there.

Four pages hold functions at the same offset; their jump-cache entries meet (they are 16 KiB apart) and push each other
out. Every round calls all of them, swaps two mappings and flushes those two pages.
"""

from __future__ import annotations

import pytest
from accels import ACCELS
from translated import run

PAGES, TABLE = 0x400000, 0xC000  # 2 MiB of small pages
ROUNDS = 400
DIRECTORY = 0x8000 + 0x2000

# How a function is reached: through a jump cache, by an exit to another page, by both.
CALLS = {
    "indirect": "call rsi",
    "direct": "push rsi; call {i}f; jmp 9f; {i}: jmp rsi; 9: pop rsi",
}


def program(through: str, flags: int) -> str:
    """r8 gathers what the functions return, in order; r9 what they should."""
    at = [PAGES + 0x4000 * n for n in range(4)]
    fill = "; ".join(f"mov dword ptr [{a:#x}], {(n + 1) << 8 | 0xB8}; mov word ptr [{a + 4:#x}], 0xc300"
                     for n, a in enumerate(at))  # fmt: skip
    entries = "; ".join(f"mov qword ptr [{TABLE + 32 * n:#x}], {a + flags:#x}" for n, a in enumerate(at))
    calls = "; ".join(f"mov esi, {a:#x}; {through.format(i=n + 3)}; imul r8, r8, 31; add r8, rax\n"
                      f"mov rax, [{TABLE + 32 * n:#x}]; sub rax, {PAGES:#x}; shr rax, 14; inc rax\n"
                      "imul r9, r9, 31; add r9, rax" for n, a in enumerate(at))  # fmt: skip
    swap = f"""
        mov eax, ebp; and eax, 3; lea edx, [rax + 1]; and edx, 3; shl eax, 5; shl edx, 5
        mov rbx, [rax + {TABLE:#x}]; mov rcx, [rdx + {TABLE:#x}]
        mov [rax + {TABLE:#x}], rcx; mov [rdx + {TABLE:#x}], rbx
        shl eax, 9; shl edx, 9; invlpg [rax + {PAGES:#x}]; invlpg [rdx + {PAGES:#x}]"""
    return f"""
        {fill}
        {entries}
        mov qword ptr [{DIRECTORY + 8 * (PAGES >> 21):#x}], {TABLE + 3:#x}; mov rax, cr3; mov cr3, rax
        mov rax, cr4; or rax, 0x80; mov cr4, rax
        xor r8d, r8d; xor r9d, r9d; mov ebp, {ROUNDS}
        1: mov r10d, 20
        2: {calls}
        dec r10d; jnz 2b
        {swap}
        dec ebp; jnz 1b"""


@pytest.mark.parametrize("accel", ACCELS)
@pytest.mark.parametrize("flags", [0x03, 0x103], ids=["local", "global"])
@pytest.mark.parametrize("through", CALLS)
def test_what_is_mapped_runs(through: str, flags: int, accel: str) -> None:
    with run(program(CALLS[through], flags), accel=accel) as guest:
        assert guest.reg("r8") == guest.reg("r9") != 0
