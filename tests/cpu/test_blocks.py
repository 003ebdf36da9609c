"""The decoded-block cache and the run loop: changing code, page-crossing code, budgets, shadows, repeated strings."""

from __future__ import annotations

import pytest
from qemupy._core import lib
from rawguest import PAGE_TABLES, RawGuest, assemble

UD, GP, PF = 6, 13, 14


def handler_halts(guest: RawGuest, *vectors: int) -> None:
    """Each vector's handler leaves its number in r15 and halts."""
    for vector in vectors:
        at = 0x9100 + 32 * vector
        guest.put(at, assemble(f"mov r15d, {vector}; hlt", 64, at))
        guest.gate64(vector, at)


def test_store_into_the_next_instruction() -> None:
    """x86 needs no jump after a store into the running block (SDM vol 3A 11.6)."""
    with RawGuest() as guest:
        guest.start64("lea rdi, [rip + patch]; mov byte ptr [rdi + 1], 42; nop; patch: mov al, 1; mov bl, 2; hlt")
        guest.run_to_halt()
        assert guest.reg("rax") & 0xFF == 42
        assert guest.reg("rbx") & 0xFF == 2


def test_page_patched_over_and_over() -> None:
    """Hot pages change to byte checks and back without losing a change."""
    with RawGuest() as guest:
        guest.start64("""
            xor r8, r8; mov ecx, 20000; lea rdi, [rip + patch]
        again: mov byte ptr [rdi + 1], cl
        patch: mov al, 0
            movzx rax, al; add r8, rax; dec ecx; jnz again; hlt""")
        guest.run_to_halt()
        assert guest.reg("r8") == sum(i & 0xFF for i in range(1, 20001))


def test_data_beside_hot_code() -> None:
    """A store beside decoded bytes lands and the loop goes on."""
    with RawGuest() as guest:
        guest.start64("""
            mov ecx, 5000; again: mov [rip + data], ecx; dec ecx; jnz again; hlt; .balign 128; data: .long 0""")
        guest.run_to_halt()
        assert guest.get_int(0x100080, 4) == 1


def test_string_store_over_following_code() -> None:
    with RawGuest() as guest:
        guest.start64("mov al, 0x90; mov ecx, 64; lea rdi, [rip + next]; rep stosb\nnext: .fill 32, 2, 0x0b0f; hlt")
        guest.run_to_halt()


@pytest.mark.parametrize("offset", range(1, 10))
def test_instruction_across_two_pages(offset: int) -> None:
    with RawGuest() as guest:
        guest.start64("mov rax, 0x1122334455667788; hlt", at=0x103000 - offset)
        guest.run_to_halt()
        assert guest.reg("rax") == 0x1122334455667788


def test_changed_second_page_of_a_crossing_instruction() -> None:
    """First its bytes change, then the page is mapped elsewhere."""
    with RawGuest() as guest:
        code = "mov eax, 0x11111111; inc ebx; cmp ebx, 2; je done; ret; done: hlt"
        guest.put(0x202FFD, assemble(code, 64, 0x202FFD))
        guest.start64("mov rsi, 0x203000; call f; mov byte ptr [rsi], 0x22; call f; hlt\nf: mov edx, 0x202ffd; jmp rdx")
        guest.run_to_halt()
        assert guest.reg("rax") == 0x11221111


def test_crossing_instruction_follows_the_page_tables() -> None:
    with RawGuest() as guest:
        table = 0x20000
        for i in range(512):
            guest.put(table + 8 * i, (0x200000 + i * 0x1000 | 3).to_bytes(8, "little"))
        guest.put(0x202FFE, b"\xb8\x11")  # mov eax, ..11
        guest.put(0x203000, bytes.fromhex("111111c3"))
        guest.put(0x300000, bytes.fromhex("333333c3"))
        guest.start64(f"""
            mov edi, 0x202ffe; call rdi; mov ebx, eax
            mov qword ptr [{table + 3 * 8}], 0x300003; mov esi, 0x203000; invlpg [rsi]
            call rdi; hlt""")
        guest.put(PAGE_TABLES + 0x2008, (table | 3).to_bytes(8, "little"))
        guest.run_to_halt()
        assert (guest.reg("rbx"), guest.reg("rax")) == (0x11111111, 0x33333311)


def test_same_code_at_two_addresses_returns_to_its_own() -> None:
    """Blocks carry virtual addresses: one physical page at two of them is two blocks (CORE 1)."""
    with RawGuest() as guest:
        guest.start64("mov eax, 0x200000; call rax; mov rbx, rcx; mov eax, 0x400000; call rax; hlt")
        guest.put(0x200000, assemble("lea rcx, [rip]; ret", 64, 0x200000))
        guest.put(PAGE_TABLES + 0x2010, (0x200083).to_bytes(8, "little"))
        guest.run_to_halt()
        assert (guest.reg("rbx"), guest.reg("rcx")) == (0x200007, 0x400007)


def test_fetch_fault_belongs_to_the_page_without_the_byte() -> None:
    with RawGuest() as guest:
        guest.start64("mov eax, 0x3ffffe; jmp rax")
        handler_halts(guest, PF)
        guest.put(0x3FFFFE, b"\xb8\x11")
        guest.put(PAGE_TABLES + 0x2010, bytes(8))
        guest.run_to_halt()
        assert guest.reg("r15") == PF
        assert guest.reg("cr2") == 0x400000
        assert guest.get_int(guest.reg("rsp") + 8) == 0x3FFFFE


def test_undefined_opcode_needs_no_byte_of_the_next_page() -> None:
    with RawGuest() as guest:
        guest.start64("mov eax, 0x3ffffe; jmp rax")
        handler_halts(guest, UD, PF)
        guest.put(0x3FFFFE, b"\x0f\x0b")
        guest.put(PAGE_TABLES + 0x2010, bytes(8))
        guest.run_to_halt()
        assert guest.reg("r15") == UD


def test_sixteen_bytes_are_too_long() -> None:
    with RawGuest() as guest:
        guest.start64(".fill 14, 1, 0x66; nop; .fill 15, 1, 0x66; nop; hlt")
        handler_halts(guest, GP, UD)
        guest.run_to_halt()
        assert guest.reg("r15") == GP
        assert guest.get_int(guest.reg("rsp") + 8) == 0x10000F


@pytest.mark.parametrize("code", ["add eax, 1", "mov [rsp], eax", "cmp [rsp], eax", "bt [rsp], eax"])
def test_lock_where_it_is_not_allowed(code: str) -> None:
    with RawGuest() as guest:
        guest.start64(f".byte 0xf0; {code}; hlt")
        handler_halts(guest, UD)
        guest.run_to_halt()
        assert guest.reg("r15") == UD


def test_budget_stops_at_the_exact_instruction() -> None:
    with RawGuest() as guest:
        guest.start64("xor eax, eax; again: inc eax; inc eax; inc eax; cmp eax, 30000; jb again; hlt")
        for total in range(1, 40):
            assert guest.run(1) == lib.QPY_EXIT_KICK
            assert guest.state().icount == total
        assert guest.run(1000) == lib.QPY_EXIT_KICK
        assert guest.state().icount == 1039


def test_count_is_exact_after_a_fault_inside_a_block() -> None:
    with RawGuest() as guest:
        guest.start64("nop; nop; nop; mov rax, [0x40000000]; nop; hlt")
        handler_halts(guest, PF)
        guest.run_to_halt()
        assert guest.state().icount == 3 + 2  # three NOPs, then MOV and HLT of the handler


def test_repeated_string_obeys_the_budget() -> None:
    """An iteration counts as an instruction (CORE 15); registers tell how far it came."""
    with RawGuest() as guest:
        guest.start64("rep movsb\nhlt", rsi=0x200000, rdi=0x300000, rcx=100000)
        guest.put(0x200000, bytes(i & 0xFF for i in range(100000)))
        assert guest.run(70001) == lib.QPY_EXIT_KICK
        state = guest.state()
        assert state.icount == 70001
        assert (guest.reg("rcx"), guest.reg("rip")) == (100000 - 70001, 0x100000)
        guest.run_to_halt()
        assert guest.get(0x300000, 100000) == guest.get(0x200000, 100000)
        assert guest.reg("rcx") == 0


def test_fault_inside_a_repeated_string_keeps_progress() -> None:
    with RawGuest(ram=8 << 20) as guest:
        guest.start64("rep stosb\nhlt", rdi=0x3FFF00, rcx=0x1000, rax=0x5A)
        handler_halts(guest, PF)
        guest.put(PAGE_TABLES + 0x2010, bytes(8))
        guest.run_to_halt()
        assert (guest.reg("rdi"), guest.reg("rcx"), guest.reg("cr2")) == (0x400000, 0xF00, 0x400000)
        assert guest.get(0x3FFF00, 0x100) == b"\x5a" * 0x100


def test_single_step_traps_every_iteration() -> None:
    with RawGuest() as guest:
        guest.put(0x9500, assemble("inc r14; iretq", 64, 0x9500))
        guest.gate64(1, 0x9500)
        guest.start64("mov ecx, 5; mov esi, 0x200000; mov edi, 0x210000; pushfq; or dword ptr [rsp], 0x100; popfq\n"
                      "rep movsb\nnop; pushfq; and dword ptr [rsp], ~0x100; popfq; hlt")
        guest.run_to_halt()
        # 5 iterations, then NOP, PUSHFQ, AND and POPFQ (the trap after POPFQ still sees the old TF)
        assert guest.reg("r14") == 5 + 4
        assert guest.reg("rcx") == 0


def test_sti_hlt_is_atomic() -> None:
    """An interrupt pending before STI is taken after HLT has been reached: the handler returns behind it."""
    with RawGuest() as guest:
        guest.put(0x9600, assemble("mov rbx, [rsp]; cli; hlt", 64, 0x9600))
        guest.gate64(0x20, 0x9600)
        guest.intack = lambda: 0x20
        guest.start64("sti; hlt\nnop")
        lib.qpy_vcpu_set_intr(guest.vcpu, 1)
        guest.run(100)
        assert guest.reg("rbx") == 0x100002


def test_code_segment_limit_and_ip_wrap() -> None:
    """Running off the end of a 64 KiB real-mode segment is #GP, a jump wraps."""
    with RawGuest() as guest:
        guest.put(13 * 4, (0x9700).to_bytes(4, "little"))
        guest.put(0x9700, assemble("pop bx; hlt", 16, 0x9700))
        guest.start16("jmp 0xfffe", at=0x7C00)
        guest.put(0xFFFE, b"\x90\x90")
        guest.run_to_halt()
        assert guest.reg("rbx") & 0xFFFF == 0  # IP of the fetch that failed

    with RawGuest() as guest:
        guest.start16(".byte 0xe9; .word 0x10000 + 0x500 - 0xfff3", at=0xFFF0)
        guest.put(0x500, assemble("mov ax, 0x1234; hlt", 16, 0x500))
        guest.run_to_halt()
        assert guest.reg("rax") & 0xFFFF == 0x1234
