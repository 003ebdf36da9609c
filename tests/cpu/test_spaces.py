"""Address spaces told apart by PCID: user code of one keeps its ways while others run, and no way of one is taken in
another, nor after its page was mapped to something else (Intel SDM vol 3A, 4.10.4)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from accels import ACCELS
from qemupy._core import ffi, lib
from rawguest import RawGuest, assemble

USER, CALLED, TABLES = 0x40000000, 0x40001000, 0x20000
SPACES = {"a": (TABLES, 1), "b": (TABLES + 0x8000, 2)}  # tables, PCID
CODE, ANSWERS, STACK = 0x400000, 0x401000, 0x40F000  # physical: user code; a page each that answers 1, 2, 3; stack
LOG, OTHER = 0x500000, 0x4F0000
USER_PAGE, GLOBAL = 7, 0x100
NO_FLUSH = 1 << 63
CALLS = 20

KERNEL = f"""
    mov ecx, 0xC0000080; rdmsr; or eax, 1; wrmsr
    mov ecx, 0xC0000081; xor eax, eax; mov edx, 0x00100008; wrmsr
    mov ecx, 0xC0000082; lea rax, [rip + entered]; xor edx, edx; wrmsr
    mov rax, cr4; or eax, 0x20080; mov cr4, rax
    mov r12, {SPACES['a'][0] + SPACES['a'][1]}; mov r13, {SPACES['b'][0] + SPACES['b'][1]}; mov r15, {LOG}
    mov cr3, r12
go: mov rcx, {USER}; mov r11d, 2; mov rsp, {USER + 0x3000}; sysretq
entered:
    mov [r15], rbx; add r15, 8
    dec r14d; jz done
    cmp r14d, r10d; je change
next:
    xchg r12, r13; mov rax, r12; bts rax, 63; mov cr3, rax
    jmp go
done: hlt
"""
USER_CODE = f"""
    xor ebx, ebx; mov edx, {CALLS // 2}
1:  mov eax, {CALLED}; call rax; add rbx, rax; call {CALLED}; add rbx, rax; dec edx; jnz 1b
    syscall
"""


def table_entry(space: str, page: int) -> int:
    """Where the entry for this page of USER is."""
    return SPACES[space][0] + 0x4000 + 8 * page


@pytest.fixture(params=ACCELS)
def guest(request: pytest.FixtureRequest) -> Iterator[RawGuest]:
    with RawGuest(accel=request.param) as made:
        yield made


def start(guest: RawGuest, rounds: int, change: str = "", at: int = 0, answers: str = "12", flag: int = 0) -> None:
    """Spaces a and b in turn; before `at` more rounds the kernel, in a, does `change`."""
    guest.start64(f"{KERNEL}\nchange: {change}\n jmp next", r14=rounds, r10=at)
    guest.put(CODE, assemble(USER_CODE, 64, USER))
    for n in range(3):
        guest.put(ANSWERS + n * 0x1000, assemble(f"mov eax, {n + 1}; ret", 64, CALLED))
    for (name, (tables, _)), answer in zip(SPACES.items(), answers, strict=True):
        guest.put(tables, (tables + 0x1007).to_bytes(8, "little"))
        guest.put(tables + 0x1000, b"".join((tables + n | 7).to_bytes(8, "little") for n in (0x2000, 0x3000)))
        guest.put(tables + 0x2000, b"".join((i << 21 | 0x183).to_bytes(8, "little") for i in range(256)))
        guest.put(tables + 0x3000, (tables + 0x4000 | 7).to_bytes(8, "little"))
        pages = [CODE | USER_PAGE, ANSWERS + (int(answer) - 1) * 0x1000 | USER_PAGE | flag, STACK & ~0xFFF | USER_PAGE]
        guest.put(table_entry(name, 0), b"".join(page.to_bytes(8, "little") for page in pages))


def log(guest: RawGuest, rounds: int) -> list[float]:
    """What was answered in each round."""
    return [guest.get_int(LOG + 8 * n) / CALLS for n in range(rounds)]


def test_the_same_address_is_different_code(guest: RawGuest) -> None:
    start(guest, 100)
    guest.run_to_halt()
    assert log(guest, 100) == [1, 2] * 50


MAP_3 = f"mov qword ptr [{table_entry('b', 1)}], {ANSWERS + 0x2000 | USER_PAGE}; "
DESCRIPTOR = f"mov qword ptr [{OTHER}], 2; mov qword ptr [{OTHER + 8}], {CALLED}; "


@pytest.mark.parametrize("flush", ["page", "space", "all", "all but global", "by CR3"])
def test_another_space_is_changed(flush: str, guest: RawGuest) -> None:
    """While a runs, b's page is mapped to other code."""
    kinds = {"page": 0, "space": 1, "all": 2, "all but global": 3}
    if flush == "by CR3":
        how = "xchg r12, r13; mov cr3, r12; jmp go"
    else:
        how = f"{DESCRIPTOR} mov eax, {kinds[flush]}; invpcid rax, [{OTHER}]"
    start(guest, 100, MAP_3 + how, at=41)
    guest.run_to_halt()
    seen = log(guest, 100)
    assert seen[:59] == ([1, 2] * 30)[:59] and seen[59:] == ([3, 1] * 30)[:41]


def test_a_global_page_is_changed(guest: RawGuest) -> None:
    """INVLPG drops it in every space."""
    page = ANSWERS + 0x2000 | USER_PAGE | GLOBAL
    change = "".join(f"mov qword ptr [{table_entry(name, 1)}], {page}; " for name in SPACES) + f"invlpg [{CALLED}]"
    start(guest, 100, change, at=41, answers="11", flag=GLOBAL)
    guest.run_to_halt()
    assert log(guest, 100) == [1] * 59 + [3] * 41


def test_ways_are_kept_while_others_run() -> None:
    """Once all is known, nothing more is looked up however often the spaces change."""

    def looked_up(rounds: int) -> int:
        with RawGuest(accel="dbt") as guest:
            start(guest, rounds)
            guest.run_to_halt(1 << 30)
            stats = ffi.new("QpyVcpuStats *")
            lib.qpy_vcpu_stats(guest.vcpu, stats)
            return int(stats.jit_cached)

    assert looked_up(1000) - looked_up(500) < 20
