"""The translator's second tier: programs hot enough to become regions end as they do in the interpreter, and agree with
it all the way in lock-step."""

from __future__ import annotations

import threading
import time

import pytest
from qemupy._core import lib
from rawguest import REGISTERS, RawGuest
from translated import FAULTS, RESUME, SEEN_SIZE, regions, run, start

HOT = 3000  # times round a loop that make it a region
DATA, DATA_SIZE = 0x200000, 0x10000
CF = 1


def outcome(guest: RawGuest) -> tuple[list[int], int, bytes, bytes]:
    state = guest.state()
    return list(map(int, state.gpr)), int(state.rip), guest.get(DATA, DATA_SIZE), guest.get(FAULTS, SEEN_SIZE)


def check(code: str, faults: tuple[int, ...] = (), **expected: int) -> None:
    """`code` goes round HOT times; registers it is known to end with."""
    with run(code, faults, accel="interp") as guest:
        wanted = outcome(guest)
    assert {name: wanted[0][REGISTERS.index(name)] for name in expected} == expected
    for lockstep in ("", "chain"):
        with run(code, faults, lockstep=lockstep) as guest:
            assert outcome(guest) == wanted, lockstep
            assert regions(guest) > 0


def test_nested_loops() -> None:
    check(f"""
        xor eax, eax
        mov r12d, {HOT}
    1:  mov r13d, 5
    2:  mov edx, 3
    3:  add rax, r13
        add [{DATA:#x} + r13*8], rax
        sub edx, 1
        jnz 3b
        sub r13, 1
        jnz 2b
        sub r12, 1
        jnz 1b
    """, rax=HOT * 45)  # fmt: skip


def test_forward_branches_over_calls() -> None:
    check(f"""
        xor eax, eax
        mov ebx, {HOT}
    1:  test ebx, 1
        jz 2f
        call f
        test ebx, 2
        jz 2f
        call g
        jmp 3f
    2:  lea rax, [rax + 1]
    3:  sub ebx, 1
        jnz 1b
        jmp 4f
    f:  lea rax, [rax + 100]
        ret
    g:  call f
        ret
    4:
    """, rax=(HOT // 2) * 100 + (HOT // 4) * 100 + HOT * 3 // 4)  # fmt: skip


@pytest.mark.parametrize("again", ["lea rcx, [rcx - 1]; inc rcx; dec rcx; jnz 2b", "loop 2b"])
def test_carries_go_round_a_loop(again: str) -> None:
    """The carry is live at the loop's begin, where it is polled, and across memory accesses."""
    check(f"""
        mov ebp, {HOT}
        mov ebx, {DATA}
        mov qword ptr [rbx + 64], -1
        mov qword ptr [rbx + 8], -1
        mov qword ptr [rbx + 16], 3
    1:  mov ecx, 9
        clc
    2:  mov rax, [rbx + rcx*8 + 56]
        adc rax, [rbx + rcx*8]
        mov [rbx + rcx*8], rax
        {again}
        adc r12, 0
        sub ebp, 1
        jnz 1b
    """)


def test_a_callee_changes_its_return_address() -> None:
    check(f"""
        xor eax, eax
        mov ebx, {HOT}
    1:  call f
        add eax, 7
        sub ebx, 1
        jnz 1b
        jmp 2f
    f:  test ebx, 3
        jnz 3f
        add qword ptr [rsp], 3
    3:  ret
    2:
    """, rax=HOT * 3 // 4 * 7)  # fmt: skip


def test_push_and_ret_as_a_jump() -> None:
    check(f"""
        xor eax, eax
        mov ebx, {HOT}
    1:  lea rcx, [rip + 3f]
        test ebx, 1
        jz 2f
        lea rcx, [rip + 4f]
    2:  push rcx
        stc
        ret
    3:  adc eax, 10
        jmp 5f
    4:  adc eax, 20
    5:  sub ebx, 1
        jnz 1b
    """, rax=HOT * 16)  # fmt: skip


def test_coroutines_hand_flags_to_each_other() -> None:
    """Each returns to where the other one called from, so no return is where its pair says."""
    check(f"""
        mov esi, {DATA + 0x1000}
        lea rax, [rip + other]
        mov [rsi], rax
        mov ebx, {HOT}
        xor r12d, r12d
        xor r13d, r13d
    1:  xor eax, eax
        stc
        call switch
        adc r12, 0
        sub ebx, 1
        jnz 1b
        jmp 3f
    switch:
        xchg rsp, rsi
        ret
    other:
        adc r13, 0
        cmp ebx, {HOT // 2}
        call switch
        jmp other
    3:  mov esi, 0
    """, r13=HOT)  # fmt: skip


@pytest.mark.parametrize("value", ["r8b", "1"])
def test_a_region_changes_what_comes_later_in_it(value: str) -> None:
    check(f"""
        xor eax, eax
        xor r8d, r8d
        mov ebx, {HOT * 2}
    1:  cmp ebx, {HOT}
        jne 2f
        inc r8b
        mov byte ptr [rip + 4f + 2], {value}
    2:  test ebx, 1
        jz 4f
        add eax, 2
    4:  add eax, 0x33
        sub ebx, 1
        jnz 1b
    """, rax=HOT * 2 + HOT * 0x33 + HOT + 0 * 0x33)  # fmt: skip


def test_a_loop_stores_into_its_region() -> None:
    """Byte by byte over data, then over its own code: the constant it adds changes on the way."""
    check(f"""
        xor eax, eax
        mov ebx, {HOT}
    1:  mov edi, {DATA}
        cmp ebx, 100
        jne 2f
        lea rdi, [rip + 3f]
    2:  mov ecx, 16
    4:  mov dl, [rdi + rcx - 1]
        cmp dl, 0x55
        jne 5f
        mov dl, 0x11
    5:  mov [rdi + rcx - 1], dl
        sub ecx, 1
        jnz 4b
    3:  add eax, 0x55
        sub ebx, 1
        jnz 1b
    """, rax=(HOT - 100) * 0x55 + 100 * 0x11)  # fmt: skip


def test_x87_over_labels() -> None:
    """The pointers are those of the last instruction, whichever way led on."""
    check(f"""
        fninit
        fldz
        mov ebx, {HOT}
        mov esi, {DATA}
    1:  fld1
        test ebx, 3
        jnz 2f
        fadd qword ptr [rsi + 0x100]
    2:  faddp
        fnstenv [rsi]
        test ebx, 8
        jz 3f
        fst qword ptr [rsi + 0x200]
    3:  fnstenv [rsi + 0x20]
        mov eax, [rsi + 12]
        add r12, rax
        mov eax, [rsi + 0x20 + 12]
        add r13, rax
        sub ebx, 1
        jnz 1b
        fistp qword ptr [rsi + 0x40]
        mov rdx, [rsi + 0x40]
    """, rdx=HOT)  # fmt: skip


@pytest.mark.parametrize("fault", ["mov [rbp], r15", "adc r14, [rbp + r12*8]", "div cl", "div byte ptr [rsi + 1]",
                                   "paddb xmm0, [rsi + 1]", "push [rbp]", "setc byte ptr [rbp]"])
def test_faults_in_the_middle_of_a_region(fault: str) -> None:
    """The handler sees the registers and the address of the instruction, and hands the carry back."""
    check(f"""
        mov ebx, {HOT}
        mov esi, {DATA}
        mov ebp, 0x7ffffff0
        xor r12d, r12d
        xor ecx, ecx
        mov dword ptr [{RESUME:#x}], offset 3f
    1:  inc r12
        mov [rsi + 0x10], r12
        test ebx, 7
        jnz 2f
        lea r14, [r14 + r12*2]
        mov rax, [rsi + 0x10]
        stc
        {fault}
    3:  adc r13, 0
        mov r15, [rsi + 0x10]
    2:  add [rsi + 0x18], r15
        sub ebx, 1
        jnz 1b
    """, (0, 13, 14), r13=HOT // 8)  # fmt: skip


def test_operands_step_over_pages() -> None:
    check(f"""
        mov ebx, {HOT // 100}
    1:  mov esi, {DATA + 5}
        mov ecx, 1500
        clc
    2:  adc rax, [rsi]
        lea rdi, [rsi + 16]
        mov [rdi], rax
        mov [rdi + 8], rsi
        mov rdx, [rdi + 12]
        lea rsi, [rsi + 8]
        dec ecx
        jnz 2b
        sub esi, 12000
    3:  mov rax, [rsi]
        add [rsi + 8], rax
        mov [rsi + 16], rcx
        add esi, 24
        cmp esi, {DATA + 0x3000}
        jb 3b
        sub ebx, 1
        jnz 1b
    """)


@pytest.mark.parametrize("at", [DATA + 0x20, DATA + 0xFFC, DATA + 0xF00])
def test_places_that_do_not_change_in_loops(at: int) -> None:
    """Checked before the loop: in one page, across two, and some behind a branch that are nowhere."""
    check(f"""
        mov r12d, {HOT}
        mov esi, {at}
        mov ebp, 0x7ffffff0
    1:  mov ecx, 7
        mov [rsi + 0x200], r12
    2:  add rax, [rsi]
        add [rsi + 8], rcx
        test ecx, ecx
        js 3f
        mov rdx, [rsi + 0x10]
        lea rdx, [rdx + rax]
        mov [rsi + 0x10], rdx
        mov r8d, 3
    4:  add [rsi + r12*4 + 0x400], r8d
        dec r8d
        jnz 4b
        jmp 5f
    3:  mov [rbp], rax
    5:  sub ecx, 1
        jnz 2b
        add [rsi], r12
        sub r12, 1
        jnz 1b
    """)


def test_a_place_that_faults_before_its_loop() -> None:
    """The fault belongs to the instruction in the loop, every time round."""
    check(f"""
        mov ebx, {HOT}
        mov ebp, 0x7ffffff0
        mov esi, {DATA}
        mov dword ptr [{RESUME:#x}], offset 3f
    1:  mov ecx, 4
    2:  inc r12
        mov rax, [rsi]
        mov [rbp + 8], r12
    3:  add [rsi], r12
        mov rdx, [rsi + 8]
        sub ecx, 1
        jnz 2b
        sub ebx, 1
        jnz 1b
    """, (14,), r12=4 * HOT)


@pytest.mark.parametrize("lockstep", ["", "chain"])
def test_a_kick_ends_an_endless_loop_in_a_region(lockstep: str) -> None:
    """There the carry, which is live all the way, tells how often it went round."""
    code = f"""
        mov ebp, {HOT}
    1:  sub ebp, 1
        jnz 1b
        clc
    2:  cmc
        mov rcx, [{DATA:#x}]
        lea rcx, [rcx + 1]
        mov [{DATA:#x}], rcx
        lea rdx, [rip + 2b]
        jmp 2b
    """
    with start(code, lockstep=lockstep) as guest:
        thread = threading.Thread(target=lib.qpy_vcpu_run, args=(guest.vcpu,))
        thread.start()
        end = time.monotonic() + 20
        while guest.get_int(DATA) < 10 * HOT and time.monotonic() < end:
            time.sleep(0.001)
        lib.qpy_vcpu_kick(guest.vcpu)
        thread.join(20)
        assert not thread.is_alive()
        assert regions(guest) > 0
        state = guest.state()
        assert state.rip == state.gpr[REGISTERS.index("rdx")]
        assert state.rflags & CF == guest.get_int(DATA) & 1
