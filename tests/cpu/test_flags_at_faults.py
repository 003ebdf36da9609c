"""What a fault's handler finds in RFLAGS where nothing but that handler can see them: the flags of the instruction that
wrote them last, whatever translated code has done to the host's meanwhile (Intel SDM vol 3A, 6.12.1)."""

from __future__ import annotations

import pytest
from translated import FAULTS, RESUME, SEEN_SIZE, regions, run

HOT = 60  # times round a loop that make it a region if regions are made early
DATA, NOWHERE = 0x200000, 0x7FFFFFF0
NUMBER = 112  # of faults, in FAULTS
START = f"""
    mov ebx, 77
    mov esi, {DATA}
    mov ebp, {NOWHERE}
    xor ecx, ecx
    mov r8d, 0x80000001
    mov r9d, 5
    mov r12, -7
"""

# All that can be done again from registers in each width and form, and much that cannot.
WRITERS = [
    *(f"{name} {to}, {source}" for name in ("add", "sub", "cmp", "test", "and", "xor")
      for to, source in (("r8", "rbx"), ("r8d", "-3"), ("bl", "7"), ("r12w", "r8w"), ("r9b", "r12b"), ("r12", "rbx"))),
    "or bh, bl", "cmp bh, 3", "add r8d, r8d", "sub r9, r9", "neg r12", "neg r9b", "cmp rsp, rbx", "add rbx, 0",
    "inc r8", "dec r9b", "shl r8, 3", "sar r12d, 1", "shl r8d, cl", "imul r9, r8", "adc r8, r12", "sbb r9d, ebx",
    "bt r8, 3", "ror r9d, 5", "popcnt r9, r8", "bsf r9, r8", "cmp [rsi], rbx", "add [rsi], rbx", "add r8, [rsi]",
    "mul r8", "stc", "cmc", "shld r8, r12, 7", "xadd r8, r12", "cmpxchg [rsi], r8", "ucomisd xmm0, [rsi]",
]  # fmt: skip
# Instructions behind which all flags are written again; some change what the writer read.
BETWEEN = ["", "mov r8, [rsi]", "mov [rsi + 8], r9; mov r9, [rsi + 4088]; mov r12, r9", "lea r8, [r8 + r12*2]",
           "ror r9d, 3; mov [rsi], r9", "push r8; pop r12; rdtscp; mov eax, 9; mov edx, 3; mov ecx, 0"]  # fmt: skip
FAULTY = ["mov r10, [rbp]", "mov [rbp], r9", "div cl", "paddb xmm0, [rsi + 1]", "push [rbp]", "fxsave [rbp]",
          "mov ecx, 0x7fff; rdmsr", "mov rsi, rbp; lodsb"]  # fmt: skip


def loop(writer: str, between: str, faulty: str, number: int) -> str:
    """Runs into the fault each time round; what was read changes, all flags are written behind it."""
    again, after = 10 + 2 * number, 11 + 2 * number
    return f"""
        mov dword ptr [{DATA + 64}], {-HOT}
    {again}:
        mov dword ptr [{RESUME:#x}], offset {after}f
        mov eax, ebx
        mov edx, 3
        mov rdi, rsi
        sub ecx, 0
        {writer}
        {between}
        {faulty}
    {after}:
        mov rsi, rdi
        xor ecx, ecx
        imul r8, r8, 0x2f
        add r9, r8
        sub r12, 5
        inc dword ptr [{DATA + 64}]
        mov ebx, [{DATA + 64}]
        test ebx, ebx
        jnz {again}b
    """


@pytest.mark.parametrize("writer", WRITERS)
def test_whoever_wrote_them(writer: str) -> None:
    """Every writer before every kind of fault, with other things in between; in blocks first, then in regions."""
    first = WRITERS.index(writer)
    code = START + "".join(loop(writer, BETWEEN[(first + n) % len(BETWEEN)], faulty, n)
                           for n, faulty in enumerate(FAULTY))  # fmt: skip
    with run(code, (0, 13, 14), "interp") as guest:
        wanted = guest.get(FAULTS, SEEN_SIZE)
    assert int.from_bytes(wanted[NUMBER : NUMBER + 8], "little") == HOT * len(FAULTY)
    with run(code, (0, 13, 14), lockstep="eager") as guest:
        assert guest.get(FAULTS, SEEN_SIZE) == wanted
        assert regions(guest) >= len(FAULTY)
