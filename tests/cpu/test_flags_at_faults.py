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


# Ways round a loop: what wrote the flags can be done again, or its operand is another one by then, or it was memory.
LAST = ["sub rdx, 1", "dec rdx", "lea rdx, [rdx - 1]; test rdx, rdx", "lea rdx, [rdx - 1]; cmp rdx, 0",
        "lea r8, [r8 + 1]; sub rdx, 1", "sub qword ptr [rsi + 40], 1", "add rdx, -1",
        "lea rdx, [rdx - 1]; neg rdx; neg rdx",
        "lea r9, [r9 + 8]; cmp r9, r10; jae 7f; mov r8, [rsi + 8]; 7: sub rdx, 1"]  # fmt: skip
MIDDLE = ["", "mov r8, [rsi + 8]", "lea rdx, [rdx + 0]; mov r8, [rsi + 16]; mov [rdi], r8",
          "mov r9, [rsi]; mov [rdi + 8], r9", "test dl, 3; jz 5f; mov r8, [rsi + 24]; 5: mov [rdi], r8",
          "test dl, 3; jz 5f; lea r8, [r9 + r8]; 5: push [rbp]",
          "test dl, 1; jnz 5f; xor r8d, edx; test dl, 2; jz 5f; add r8, 1; 5: mov r9, [rbp]"]  # fmt: skip


@pytest.mark.parametrize("last", LAST)
@pytest.mark.parametrize("middle", MIDDLE)
def test_at_the_begin_of_a_loop(last: str, middle: str) -> None:
    """The first access faults each time round; some loops have a second that does, or a second way to it."""
    code = f"""
        {START}
        mov r11d, 200
    1:  mov edx, 20
        mov qword ptr [rsi + 40], 20
        mov r10d, 30000
    2:  mov dword ptr [{RESUME:#x}], offset 3f
        mov r12, [rbp]
    3:  mov dword ptr [{RESUME:#x}], offset 4f
        {middle}
    4:  lea r9, [r9 + 1]
        mov rdi, rsi
        add r12, r9
        {last}
        jnz 2b
        sub r11, 1
        jnz 1b
    """
    with run(code, (14,), "interp") as guest:
        wanted = guest.get(FAULTS, SEEN_SIZE)
    assert int.from_bytes(wanted[NUMBER : NUMBER + 8], "little") >= 200 * 20
    for way in ("eager", "chain"):
        with run(code, (14,), lockstep=way) as guest:
            assert guest.get(FAULTS, SEEN_SIZE) == wanted, way
            assert regions(guest)
