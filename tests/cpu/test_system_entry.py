"""System calls, returns from them, IRET and control-register writes in translated code, which goes on behind them in
the new mode without asking the dispatcher: interrupts that wait are taken, mappings that changed are followed.
"""

from __future__ import annotations

import pytest
from accels import ACCELS
from qemupy._core import ffi, lib
from rawguest import RawGuest
from translated import STACK, USER_BASE, USER_CODE, USER_DATA, run, start, user_mode

ROUNDS = 300
USER_STACK = 0x4800
ENTRY = 0x140000  # LSTAR
SYSTEM_CALLS = (f"mov ecx, 0xc0000081; xor eax, eax; mov edx, {USER_BASE << 16 | 8}; wrmsr; mov ecx, 0xc0000082\n"
                f"mov eax, {ENTRY}; xor edx, edx; wrmsr; mov ecx, 0xc0000084; mov eax, 0x201; wrmsr\n"
                "mov ecx, 0xc0000080; rdmsr; or eax, 1; wrmsr\n")  # fmt: skip


def to_user(flags: int = 2) -> str:
    return (f"push {USER_DATA}; push {USER_STACK}; push {flags}; push {USER_CODE}\n"
            "lea rax, [rip + user]; push rax; iretq; user:")  # fmt: skip


def leavings(guest: RawGuest) -> int:
    """How often translated code was left because of a handler."""
    stats = ffi.new("QpyVcpuStats *")
    lib.qpy_vcpu_stats(guest.vcpu, stats)
    return int(stats.jit_exit_handler)


@pytest.mark.parametrize("accel", ACCELS)
@pytest.mark.parametrize("back", ["sysretq", "iretq"])
def test_system_calls(back: str, accel: str) -> None:
    """The kernel sees flags masked and registers as they were, the program finds its own again."""
    leave = "sysretq" if back == "sysretq" else (
        f"push {USER_DATA}; push {USER_STACK}; push r11; push {USER_CODE}; push rcx; iretq")
    code = f"""
        {SYSTEM_CALLS} {to_user()}
        xor r8d, r8d; mov ebp, {ROUNDS}
        again: mov edi, ebp; stc; syscall; adc r8, rax; pushfq; pop rax; and eax, 1; add r9, rax
        lea rsi, [rip + work]; call rsi; dec ebp; jnz again
        mov edi, -1; syscall
        work: inc r10; ret
        .org {ENTRY - 0x100000:#x}
        mov rbx, rsp; mov rsp, {STACK}; setc r14b; movzx r14d, r14b; add r13, r14; mov r15d, cs; add r12, r15
        cmp edi, -1; je over
        lea rax, [rdi * 2]; call inside; mov rsp, rbx
        {"mov rsp, " + str(STACK) + "; " if back == "iretq" else ""}{leave}
        inside: inc r15; ret
        over:"""
    with start(code, accel=accel) as guest:
        user_mode(guest)
        assert lib.qpy_vcpu_run(guest.vcpu) == lib.QPY_EXIT_KICK
        want = sum(2 * n + 1 for n in range(1, ROUNDS + 1))
        assert guest.reg("r8") == want
        assert guest.reg("r9") == 0  # ADC's own carry, not the kernel's
        assert guest.reg("r13") == 0 and guest.reg("r12") == (ROUNDS + 1) * 8
        assert guest.reg("r10") == ROUNDS
        if accel == "dbt":
            assert leavings(guest) < ROUNDS / 2


@pytest.mark.parametrize("accel", ACCELS)
@pytest.mark.parametrize("way", ["iretq", "popfq", "sysretq"])
def test_an_interrupt_that_waits_comes_at_once(way: str, accel: str) -> None:
    """Before the first instruction with IF set, whoever sets it."""
    enter = {
        "iretq": to_user(0x202).replace("user", "landing").replace("landing:", ""),
        "popfq": "push 0x202; popfq",
        "sysretq": "lea rcx, [rip + landing]; mov r11d, 0x202; sysretq",
    }[way]
    back = "cli" if way == "popfq" else "syscall"
    code = f"""
        {SYSTEM_CALLS} mov ebp, {ROUNDS}
        again: mov rsp, {STACK}; out 0x80, al
        {enter}
        landing: inc rbx; {back}
        .org {ENTRY - 0x100000:#x}
        dec ebp; jnz again; jmp over
        .org 0x50000
        lea rax, [rip + landing]; cmp [rsp], rax; jne 1f; inc r8; 1: inc r9; iretq
        over:"""
    if way == "popfq":
        code = code.replace("inc rbx; cli", f"inc rbx; cli; jmp {ENTRY:#x}")
    with start(code, accel=accel) as guest:
        user_mode(guest)
        guest.gate64(0x40, 0x150000)
        done = guest.pio_write

        def write(port: int, size: int, value: int) -> None:
            if port == 0x80:
                lib.qpy_vcpu_set_intr(guest.vcpu, 1)
            done(port, size, value)

        def acknowledge() -> int:
            lib.qpy_vcpu_set_intr(guest.vcpu, 0)
            return 0x40

        guest.pio_write, guest.intack = write, acknowledge
        assert lib.qpy_vcpu_run(guest.vcpu) == lib.QPY_EXIT_KICK
        assert (guest.reg("r8"), guest.reg("r9"), guest.reg("rbx")) == (ROUNDS, ROUNDS, ROUNDS)


@pytest.mark.parametrize("accel", ACCELS)
def test_what_follows_a_cr3_write_is_fetched_anew(accel: str) -> None:
    """Two address spaces with other code at the same place, each in the midst of which the other is switched to."""
    page, tables = 0x400000, 0x300000
    body = "2: mov cr3, {to}; {count}; dec ebp; jnz 2b; jmp rdi"
    code = f"""
        lea rdi, [rip + over]; mov ebp, {ROUNDS}; mov eax, {page:#x}; jmp rax
        .org 0x10000
        {body.format(to="r13", count="inc r8")}
        .org 0x11000
        {body.format(to="r12", count="inc r9")}
        .org 0x12000
        over:"""
    with start(code, accel=accel) as guest:
        for n, frame in enumerate((0x110000, 0x111000)):
            top = tables + 0x4000 * n
            guest.put(top, (top + 0x1003).to_bytes(8, "little"))
            guest.put(top + 0x1000, (top + 0x2003).to_bytes(8, "little"))
            guest.put(top + 0x2000, b"".join((i << 21 | 0x83).to_bytes(8, "little") for i in range(16)))
            guest.put(top + 0x2000 + 8 * (page >> 21), (top + 0x3003).to_bytes(8, "little"))
            guest.put(top + 0x3000, (frame | 3).to_bytes(8, "little"))
        state = guest.state()
        state.gpr[12], state.gpr[13] = tables, tables + 0x4000
        state.cr3 = tables
        guest.set_state(state)
        assert lib.qpy_vcpu_run(guest.vcpu) == lib.QPY_EXIT_KICK
        # The first half of one page's code, then the second half of the other's.
        assert (guest.reg("r8"), guest.reg("r9")) == (ROUNDS // 2, ROUNDS // 2)


@pytest.mark.parametrize("accel", ACCELS)
def test_writes_of_msrs_and_flags_go_on_behind_them(accel: str) -> None:
    code = f"""
        mov ebp, {ROUNDS}; mov ecx, 0xc0000102; xor edx, edx
        1: mov eax, ebp; stc; wrmsr; adc r8, 0; swapgs; rdgsbase rbx; add r9, rbx
        push 0x8d7; popfq; setc bl; seto bh; movzx esi, bx; add r12, rsi; push 2; popfq; adc r10, 0
        dec ebp; jnz 1b"""
    with run("mov rax, cr4; or eax, 0x10000; mov cr4, rax;" + code, accel=accel) as guest:
        assert guest.reg("r8") == ROUNDS and guest.reg("r10") == 0 and guest.reg("r12") == ROUNDS * 0x101
        assert guest.reg("r9") == sum(range(1, ROUNDS + 1))


