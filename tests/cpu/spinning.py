"""Guests that never come to rest, in ways that a run loop might not notice: for tests of stop and quit."""

from __future__ import annotations

STACK_TOP = 0x1F00000  # recursion a million deep takes 8 MB in 64-bit code
RAM = 32 << 20

_PROGRAMS = {
    "indirect jumps": "mov eax, offset 2f; mov ebx, offset 1f; 1: inc ecx; jmp {ax}; 2: inc edx; jmp {bx}",
    "indirect jumps to many places": "mov esi, offset 2f; 1: inc ecx; and ecx, 255; lea eax, [{si}+{cx}*8]; jmp {ax}\n"
                                     ".balign 8; 2:\n" + "jmp 1b; .balign 8\n" * 256,
    "returns": "1: push offset 2f; inc ecx; ret; 2: push offset 1b; inc edx; ret",
    "recursion": "1: mov ecx, 1000000; call 2f; jmp 1b; 2: dec ecx; jz 3f; call 2b; 3: ret",
    "interrupts off": "cli; 1: jmp 1b",
    "a long repetition": "cld; 1: mov ecx, -1; mov esi, 0x200000; rep lodsb; jmp 1b",
    "a long comparison": "cld; 1: mov ecx, 0x1000000; mov esi, 0x200000; mov edi, 0x1000000; repe cmpsb; jmp 1b",
    "faults": "1: inc ecx; ud2; jmp 1b",
}  # fmt: skip
NAMES = list(_PROGRAMS)


def program(name: str, bits: int) -> str:
    """Assembly for 32- or 64-bit code. `faults` needs a handler of #UD that skips two bytes."""
    letter = "r" if bits == 64 else "e"
    registers = {key: letter + key for key in ("ax", "bx", "cx", "si", "sp")}
    return (f"mov {registers['sp']}, {STACK_TOP:#x}; " + _PROGRAMS[name]).format(**registers)
