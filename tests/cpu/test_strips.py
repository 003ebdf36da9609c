"""Loops that run many iterations between two checks of their addresses: what they leave behind is the interpreter's,
wherever pages end, faults come and code lies; and how often they are checked."""

from __future__ import annotations

import threading
import time

import pytest
from qemupy._core import ffi, lib
from rawguest import REGISTERS, RawGuest
from translated import FAULTS, RESUME, SEEN_SIZE, regions, run, start

ROUNDS = 40  # of a loop of at least 100 iterations: enough to make it a region
DATA, DATA_SIZE = 0x200000, 0x20000
PAGE = 4096


def strips(guest: RawGuest) -> int:
    stats = ffi.new("QpyVcpuStats *")
    lib.qpy_vcpu_stats(guest.vcpu, stats)
    return int(stats.jit_strips)


def outcome(guest: RawGuest) -> tuple[list[int], int, bytes, bytes]:
    state = guest.state()
    return list(map(int, state.gpr)), int(state.rip), guest.get(DATA, DATA_SIZE), guest.get(FAULTS, SEEN_SIZE)


def check(code: str, faults: tuple[int, ...] = (), stripped: bool = True, **expected: int) -> int:
    """Strips of the loops in `code`, which ends as in the interpreter, with these registers."""
    with run(code, faults, accel="interp") as guest:
        wanted = outcome(guest)
    assert {name: wanted[0][REGISTERS.index(name)] for name in expected} == expected
    count = 0
    for lockstep in ("chain", ""):
        with run(code, faults, lockstep=lockstep) as guest:
            assert outcome(guest) == wanted, lockstep
            assert regions(guest) > 0 or not stripped
            count = strips(guest)
            assert (count > 0) == stripped, lockstep
    return count


def rounds(before: str, body: str, times: int = ROUNDS) -> str:
    return f"mov ebx, {times}\n1: {before}\n2: {body}\njnz 2b\nsub ebx, 1\njnz 1b"


def test_a_sum_is_checked_once_a_page() -> None:
    """16 pages and a strip or two for each, once their region is made."""
    strips_made = check(rounds(f"mov esi, {DATA}; mov ecx, 8192", "add rax, [rsi]; add rsi, 8; sub ecx, 1"))
    assert 15 * (ROUNDS - 1) <= strips_made <= 18 * ROUNDS


@pytest.mark.parametrize("stride", [1, 3, 8, 24, 100, 200, -1, -8, -40, -128])
@pytest.mark.parametrize("offset", [0, 5, PAGE - 4])
def test_strides_over_pages(stride: int, offset: int) -> None:
    """Reads, changes and writes 8 bytes at a time, where they straddle pages as well."""
    times = 0x8000 // abs(stride)
    start_at = DATA + 0x1000 + offset + (0x8000 if stride < 0 else 0)
    check(rounds(f"mov esi, {start_at}; mov ecx, {times}",
                 f"mov rdx, [rsi]; lea rdx, [rdx + rcx]; mov [rsi], rdx; xor [rsi + 16], rcx; add rsi, {stride}; "
                 "sub ecx, 1", max(4, 2500 // times + 3)))  # fmt: skip


@pytest.mark.parametrize("body", [
    "mov al, [rsi + rcx]; mov [rdi + rcx], al; inc rcx; cmp rcx, 9000",
    "mov rax, [rsi + rcx*8]; add [rdi + rcx*8 + 8], rax; add rcx, 1; cmp rcx, 2000",
    "mov rax, [r12 + r13*8]; add r14, rax; mov [rdi + r13*4], r14d; add rcx, 1; add r13, 1; cmp rcx, 2000",
    "movups xmm0, [r12 + rcx*8]; paddq xmm0, xmm1; movups [rdi + rcx*8], xmm0; add rcx, 2; cmp rcx, 4000",
    "movdqa xmm1, [rsi + r13]; paddq xmm1, [r12 + r13 + 32]; movntdq [r8 + r13 + 8], xmm1; add r13, 32; "
    "cmp r13, 0x6000",
    "movsd xmm0, [r8 + rcx*8]; addsd xmm0, xmm1; movsd [r9 + rcx*8], xmm0; add rcx, 1; cmp rcx, 2000",
    "lea rdx, [rcx + 1]; mov rax, [rsi + rcx*8]; mov [rdi + rdx*8], rax; mov rcx, rdx; cmp rcx, 2000",
    "mov rax, [rsi + rcx*8]; add [rbp], rax; mov [rdi + rcx*8], rax; add rax, [r8 + rcx*8]; add [r9 + rcx*8], rax; "
    "xor rax, [r12 + rcx*8 + 4]; mov [r12 + rcx*8 + 0x3000], rax; add rcx, 1; cmp rcx, 1000",
    "movzx eax, byte ptr [rsi + rcx]; mov rax, [rsi + rax*8]; add [rdi + rcx*8], rax; add rcx, 1; cmp rcx, 2000",
    "mov rax, fs:[rcx*8 + 16]; add [rdi + rcx*8], rax; add rcx, 1; cmp rcx, 2000",
    f"mov rax, [{DATA + 0x123}]; add [rdi + rcx*8], rax; add rcx, 1; cmp rcx, 2000",
    "lock xadd [rdi + rcx*8], rax; cmpxchg [rsi + rcx*8], rdx; setc [r8 + rcx]; add rcx, 1; cmp rcx, 2000",
])  # fmt: skip
def test_kinds_of_operands(body: str) -> None:
    """Moving bases and indexes, in host registers or not, few streams and many, copies, operands not to be served."""
    bases = f"""
        mov esi, {DATA}
        mov edi, {DATA + 0x8018}
        mov r8d, {DATA + 0x10008}
        mov r9d, {DATA + 0x14010}
        mov r12d, {DATA + 0x18000}
        mov ebp, {DATA + 64}
        xor r13d, r13d
        xor r14d, r14d
        xor ecx, ecx
    """
    check(rounds(bases, body))


@pytest.mark.parametrize("end", ["sub ecx, 1", "lea rcx, [rcx - 1]; test rcx, rcx"])
def test_short_loops_are_not_probed(end: str) -> None:
    with run(rounds(f"mov esi, {DATA}; mov ecx, 7", f"add rax, [rsi]; add rsi, 8; {end}", 3000)) as guest:
        assert regions(guest) > 0 and strips(guest) == 0


@pytest.mark.parametrize("body", [
    "add rax, [rsi]; mov r9, rbx; cpuid; mov rbx, r9; add rsi, 8; sub rbp, 1", # a handler
    "adc rax, [rsi]; lea rsi, [rsi + 8]; dec ebp",            # flags live all the way round
    "add rax, [rsi]; add esi, 8; sub ebp, 1",                 # moves in 32 bits
    "add rax, [rsi]; mov rsi, [rsi]; lea rsi, [rdi]; sub ebp, 1",
    "add rax, [rsi]; add rsi, 4096; sub rsi, 2048; cmp rsi, r8",
    # what the branch back has compared changes before the last access: flags could not be recovered there
    "lea rbp, [rbp - 1]; mov rax, [rsi + rbp*8]; mov [rdi + rbp*8], rax; add rsi, 8; sub rsi, 8; cmp rbp, 0",
])  # fmt: skip
def test_loops_that_do_not_qualify(body: str) -> None:
    check(rounds(f"mov esi, {DATA}; mov edi, {DATA}; mov r8d, {DATA + 0x10000}; mov ebp, 100", body, 90),
          stripped=False)  # fmt: skip


# Pages of 4 KiB for DATA: one is missing, the next but one read-only.
MISSING, READ_ONLY = 0x13, 0x15
PAGES = f"""
    mov edi, 0xb000
    mov eax, {DATA + 3}
5:  mov [rdi], rax
    add rax, 4096
    add rdi, 8
    cmp edi, 0xc000
    jne 5b
    mov dword ptr [{0xB000 + 8 * MISSING:#x}], 0
    mov dword ptr [{0xB000 + 8 * READ_ONLY:#x}], {DATA + READ_ONLY * PAGE + 1:#x}
    mov dword ptr [{0xA000 + 8 * (DATA >> 21):#x}], 0xb003
    mov rax, cr0
    or eax, 0x10000
    mov cr0, rax
    mov rax, cr3
    mov cr3, rax
"""


@pytest.mark.parametrize(("access", "page"), [
    ("add rax, [rsi]", MISSING), ("mov [rsi], rax", MISSING), ("add [rsi], ecx", READ_ONLY),
    ("movups [rsi - 8], xmm0", READ_ONLY), ("mov al, [rsi]; mov [rsi], rcx", READ_ONLY),
])  # fmt: skip
def test_a_fault_at_a_page(access: str, page: int) -> None:
    """The handler sees the registers of the instruction, and the loop has come just so far."""
    check(f"""
        {PAGES}
        mov ebx, {ROUNDS}
        mov dword ptr [{RESUME:#x}], offset 3f
    1:  mov esi, {DATA + page * PAGE - 8 * 300}
        mov ecx, 600
    2:  {access}
        add rsi, 8
        add r12, rsi
        sub ecx, 1
        jnz 2b
    3:  add r13, rcx
        sub ebx, 1
        jnz 1b
    """, (14,), r13=ROUNDS * 300)  # fmt: skip


@pytest.mark.parametrize(("access", "vector"), [("mov rax, r9; xor edx, edx; div qword ptr [rsi]", 0),
                                                ("paddq xmm0, [rdi + rcx*8]", 13)])
def test_a_host_fault_in_a_strip(access: str, vector: int) -> None:
    """A divisor that is zero in the middle of a page; an operand that is aligned every other time."""
    check(f"""
        mov ebx, {ROUNDS}
        mov r9d, 1000
        mov dword ptr [{RESUME:#x}], offset 3f
        mov esi, {DATA}
    4:  mov qword ptr [rsi], 3
        add rsi, 8
        cmp esi, {DATA + 0x4000}
        jne 4b
        mov qword ptr [{DATA + 0x1500}], 0
    1:  mov esi, {DATA}
        mov edi, {DATA}
        mov ecx, 600
    2:  {access}
        add rsi, 8
        add rdi, 8
        add r12, rax
        sub rcx, 1
        cmp rcx, 100
        jne 2b
    3:  add r13, rcx
        mov edi, {DATA + 8}
        sub ebx, 1
        jnz 1b
    """, (vector,))  # fmt: skip


def test_code_in_another_page_is_written() -> None:
    """Copied over, each time with another constant: no strip may store there."""
    check(f"""
        mov ebx, {ROUNDS}
        mov ecx, 600
    6:  mov al, [f - 300 + rcx]
        mov [{DATA} + rcx], al
        sub rcx, 1
        jnz 6b
    1:  mov byte ptr [{DATA + 302}], bl
        mov esi, {DATA}
        mov edi, offset f - 300
        mov ecx, 1
    2:  mov al, [rsi + rcx]
        mov [rdi + rcx], al
        add rcx, 1
        cmp rcx, 600
        jne 2b
        mov ecx, 600
    3:  mov rax, [rsi + rcx*8]
        add r12, rax
        mov [rsi + rcx*8 + 4096], rcx
        sub rcx, 1
        jnz 3b
        call f
        sub ebx, 1
        jnz 1b
        jmp 4f
        .balign 4096
        .space 2048, 0xcc
    f:  .byte 0x83, 0xc5, 1 # add ebp, 1
        ret
        .space 2000, 0xcc
    4:
    """, rbp=ROUNDS * (ROUNDS + 1) // 2)  # fmt: skip


def test_what_is_written_is_read_again() -> None:
    """One stream runs behind another in the same bytes."""
    check(rounds(f"mov esi, {DATA}; mov edi, {DATA + 8}; mov qword ptr [rsi], 1; mov ecx, 3000",
                 "mov rax, [rsi]; lea rax, [rax + rax*2]; mov [rdi], rax; add rsi, 8; add rdi, 8; sub ecx, 1"))


def test_flags_behind_a_strip() -> None:
    """Left in the middle, through either branch, with the carry that the branch saw."""
    check(rounds(f"mov esi, {DATA}; mov r8d, {DATA + 0x3000}; mov qword ptr [rsi + rbx*8 + 0x1000], -1; mov ecx, 1000",
                 "cmp rcx, [rsi]; jc 3f; add rsi, 8; cmp rsi, r8; jc 2b; adc r12, 0; jmp 5f; "
                 "3: sbb r13, 1; lea rsi, [rsi + 64]; 5: lea rcx, [rcx + 3]; cmp rcx, 1300"))  # fmt: skip


@pytest.mark.parametrize("lockstep", ["", "chain"])
def test_a_kick_ends_endless_strips(lockstep: str) -> None:
    code = f"""
    1:  mov esi, {DATA}
        mov ecx, 8192
    2:  add [rsi], rcx
        add rsi, 8
        sub rcx, 1
        jnz 2b
        jmp 1b
    """
    with start(code, lockstep=lockstep) as guest:
        thread = threading.Thread(target=lib.qpy_vcpu_run, args=(guest.vcpu,))
        thread.start()
        end = time.monotonic() + 20
        while guest.get_int(DATA) < 100 * 8192 and time.monotonic() < end:
            time.sleep(0.001)
        lib.qpy_vcpu_kick(guest.vcpu)
        thread.join(20)
        assert not thread.is_alive()
        assert strips(guest) > 0
        gpr = guest.state().gpr
        left, at = (int(gpr[REGISTERS.index(name)]) for name in ("rcx", "rsi"))
        assert left == 0 or at == DATA + 8 * (8192 - left)
