"""Breakpoints of the debug registers (Intel SDM vol 3B, 17.2): met exactly, in every accelerator, while code elsewhere
goes on as fast as ever."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from accels import ACCELS
from qemupy._core import ffi, lib
from rawguest import RawGuest, assemble

HANDLER, COUNT, ADDRESSES, CAUSES = 0x3000, 0x4800, 0x4808, 0x4810
CALLED, WATCHED, OTHER = 0x200000, 0x300000, 0x310000
LOOPS, EVERY = 200_000, 1024
EXECUTE, WRITE, ACCESS = 0, 1, 3
LENGTH_8 = 2
# Notes how often, where and why; RF in the frame, so that an instruction breakpoint is passed.
DEBUG_HANDLER = f"""
    push rax
    inc qword ptr [{COUNT}]
    mov rax, [rsp + 8]; add [{ADDRESSES}], rax
    mov rax, dr6; and eax, 15; or [{CAUSES}], rax; xor eax, eax; mov dr6, rax
    bts qword ptr [rsp + 24], 16
    pop rax
    iretq
"""


@dataclass(frozen=True)
class Seen:
    hits: int
    addresses: int  # their sum
    causes: int
    registers: tuple[int, ...]


@pytest.fixture(params=ACCELS)
def guest(request: pytest.FixtureRequest) -> Iterator[RawGuest]:
    with RawGuest(accel=request.param) as made:
        yield made


def arm(n: int, address: str | int, kind: int, length: int = 0) -> str:
    return (f"lea rax, [{address}]; mov dr{n}, rax; mov rax, dr7; "
            f"or eax, {1 << 2 * n | kind << 16 + 4 * n | length << 18 + 4 * n:#x}; mov dr7, rax; ")


def run(guest: RawGuest, code: str) -> Seen:
    guest.put(HANDLER, assemble(DEBUG_HANDLER, 64, HANDLER))
    guest.gate64(1, HANDLER)
    guest.start64(code, rsp=0x5000)
    guest.run_to_halt(1 << 30)
    numbers = [guest.get_int(at) for at in (COUNT, ADDRESSES, CAUSES)]
    return Seen(*numbers, tuple(map(int, guest.state().gpr)))


def looked_at(guest: RawGuest) -> int:
    """Instructions decoded and blocks interpreted: whatever is executed singly is decoded each time."""
    stats = ffi.new("QpyVcpuStats *")
    lib.qpy_vcpu_stats(guest.vcpu, stats)
    return int(stats.decode + stats.jit_interpreted)


def loop(now_and_then: str) -> str:
    return (f"xor ebx, ebx; mov ecx, {LOOPS}\n1: add rbx, rcx; mov [{OTHER}], rbx; test ecx, {EVERY - 1}; jz 2f\n"
            f"3: dec ecx; jnz 1b; hlt\n2: {now_and_then}; jmp 3b")


def test_an_instruction(guest: RawGuest) -> None:
    """A function is called now and then, by code in another page that has been translated before it is armed."""
    guest.put(CALLED, assemble("inc rdx; ret", 64, CALLED))
    code = f"xor edx, edx; {loop(f'mov rax, {CALLED}; call rax').replace('hlt', 'jmp armed', 1)}\n"
    again = loop(f"mov rax, {CALLED}; call rax").replace("1:", "4:").replace("1b", "4b")
    again = again.replace("2f", "5f").replace("2:", "5:").replace("3:", "6:").replace("3b", "6b")
    seen = run(guest, f"{code}armed: {arm(0, CALLED, EXECUTE)} {again}")
    hits = LOOPS // EVERY
    assert (seen.hits, seen.addresses, seen.causes) == (hits, hits * CALLED, 1)
    assert seen.registers[2] == 2 * hits  # rdx: what was stopped at was done once


@pytest.mark.parametrize("access", [f"mov [{WATCHED + 8}], rcx", f"add [{WATCHED + 12}], ecx",
                                    f"movups [{WATCHED}], xmm0", f"lock inc byte ptr [{WATCHED + 15}]"])  # fmt: skip
def test_data(access: str, guest: RawGuest) -> None:
    near = f"mov [{WATCHED + 16}], rcx; mov [{WATCHED}], rcx; mov rdx, [{WATCHED + 8}]"
    seen = run(guest, f"{arm(1, WATCHED + 8, WRITE, LENGTH_8)} {loop(f'{near}; {access}; at: mov esi, offset at')}")
    hits = LOOPS // EVERY
    assert (seen.hits, seen.causes) == (hits, 2)
    assert seen.addresses == hits * seen.registers[6]  # reported behind the instruction


def test_data_is_read(guest: RawGuest) -> None:
    seen = run(guest, f"{arm(2, WATCHED, ACCESS)} {loop(f'mov al, [{WATCHED}]; mov al, [{WATCHED + 1}]')}")
    assert (seen.hits, seen.causes) == (LOOPS // EVERY, 4)


def test_a_stack(guest: RawGuest) -> None:
    """PUSH and CALL each write, POP reads."""
    guest.put(CALLED, assemble("ret", 64, CALLED))
    stack = f"mov rsi, rsp; mov esp, {WATCHED + 16}; push rcx; pop rdx; mov eax, {CALLED}; call rax; mov rsp, rsi"
    seen = run(guest, f"{arm(3, WATCHED + 8, WRITE, LENGTH_8)} {loop(stack)}")
    assert (seen.hits, seen.causes) == (2 * (LOOPS // EVERY), 8)


@pytest.mark.parametrize("direction", ["cld", "std"])
def test_a_repeated_string(direction: str, guest: RawGuest) -> None:
    """One element of many; those before it and behind it are moved once."""
    begin = 0 if direction == "cld" else 0xFFF
    copy = f"mov esi, {OTHER + begin}; mov edi, {WATCHED + begin}; mov ecx, 4096; {direction}; rep movsb; cld"
    guest.put(OTHER, bytes(i * 7 & 255 for i in range(4096)))
    seen = run(guest, f"{arm(0, WATCHED + 100, WRITE)} {copy}; hlt")
    assert (seen.hits, seen.causes) == (1, 1)
    assert guest.get(WATCHED, 4096) == bytes(i * 7 & 255 for i in range(4096)) and seen.registers[1] == 0


def test_other_code_is_translated() -> None:
    """With all four armed a loop elsewhere runs as without."""
    armed = arm(0, CALLED, EXECUTE) + arm(1, WATCHED, WRITE) + arm(2, WATCHED + 0x1000, ACCESS) + arm(3, 0x80, 2)
    with RawGuest(accel="dbt") as guest:
        assert run(guest, armed + loop("nop")).hits == 0
        assert looked_at(guest) < 500


def test_disarmed_again(guest: RawGuest) -> None:
    """What was kept out of caches comes back to them."""
    disarm = f"mov [{WATCHED}], rax; mov eax, 0x400; mov dr7, rax; "
    assert run(guest, arm(0, WATCHED, WRITE) + disarm + loop(f"inc byte ptr [{WATCHED}]")).hits == 1
