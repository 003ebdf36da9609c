"""The local APIC (Intel SDM vol 3A chapter 10), driven by guest code that counts its interrupts in memory."""

from __future__ import annotations

import pytest
from qemupy._core import lib
from rawguest import RawGuest, assemble

COUNT, LOG, DONE = 0x3000, 0x3010, 0x3008
HANDLERS = 0x40000
ENABLE = "mov dword ptr [0xfee000f0], 0x1ff\n"
FINISH = f"\nmov dword ptr [{DONE}], 1\nstop: hlt; jmp stop"


def handler(vector: int, eoi: bool = True) -> str:
    """Appends the vector to a log (next place in COUNT), ends the interrupt."""
    end = "mov dword ptr [0xfee000b0], 0\n" if eoi else ""
    return (f"push eax\nmov eax, [{COUNT}]\nmov byte ptr [eax + {LOG}], {vector}\ninc dword ptr [{COUNT}]\n{end}"
            "pop eax\niret\n")


def start(guest: RawGuest, code: str, vectors: tuple[int, ...] = (), **handlers: str) -> None:
    at = HANDLERS
    texts = {v: handler(v) for v in vectors} | {int(name[1:], 16): text for name, text in handlers.items()}
    for vector, text in texts.items():
        guest.put(at, assemble(text, 32, at))
        guest.gate32(vector, at)
        at += 0x100
    guest.start32(code)


def log(guest: RawGuest) -> list[int]:
    return list(guest.get(LOG, guest.get_int(COUNT, 4)))


def finish(guest: RawGuest) -> None:
    guest.run_threads(lambda: guest.get_int(DONE, 4) == 1)


def test_reset_state_and_registers() -> None:
    with RawGuest() as guest:
        start(guest, "mov eax, [0xfee00030]; mov ebx, [0xfee000f0]; mov ecx, [0xfee000e0]; mov edx, [0xfee00320]\n"
                     "mov dword ptr [0xfee00080], 0x35; mov esi, [0xfee000a0]; mov edi, [0xfee00020]; hlt")
        guest.run_to_halt()
        assert guest.reg("rax") == 0x50014
        assert (guest.reg("rbx"), guest.reg("rcx"), guest.reg("rdx")) == (0xFF, 0xFFFFFFFF, 0x10000)
        assert (guest.reg("rsi"), guest.reg("rdi")) == (0x35, 0)
        assert guest.reg("cr8") == 3
        assert guest.state().apic.base == 0xFEE00900


@pytest.mark.parametrize("wait", ["hlt", "again: cmp dword ptr [0x3000], 0; je again"])
def test_one_shot_timer_fires_on_time(wait: str) -> None:
    """A millisecond, asleep in HLT or busy; the latency is the best of many, since the host may be busy."""
    best = 1 << 62
    for _ in range(50):
        with RawGuest() as guest:
            start(guest, ENABLE + "mov dword ptr [0xfee003e0], 0xb; mov dword ptr [0xfee00320], 0x40\n"
                  f"rdtsc; mov ebp, eax; mov dword ptr [0xfee00380], 1000000; sti; {wait}\n"
                  "rdtsc; sub eax, ebp; mov ebx, [0xfee00390]" + FINISH, (0x40,))
            finish(guest)
            assert log(guest) == [0x40]
            assert guest.reg("rbx") == 0  # the count stays at zero
            taken = guest.reg("rax")
            assert taken >= 1_000_000
            best = min(best, taken)
        if best < 1_200_000:
            break
    assert best < 1_200_000


def test_timer_divides_and_counts_down() -> None:
    with RawGuest() as guest:
        start(guest, ENABLE + "mov dword ptr [0xfee003e0], 0xa; mov dword ptr [0xfee00320], 0x10040\n"
              "mov dword ptr [0xfee00380], 0xffffffff; mov eax, [0xfee00390]; rdtsc; mov ecx, eax\n"
              "mov esi, [0xfee00390]; wait: rdtsc; sub eax, ecx; cmp eax, 1280000; jb wait; sub esi, [0xfee00390]; hlt")
        guest.run_to_halt(1 << 40)
        assert 9_900 < guest.reg("rsi") < 100_000  # 1.28 ms at 1 GHz / 128


def test_periodic_timer_coalesces_missed_ticks() -> None:
    with RawGuest() as guest:
        start(guest, ENABLE + "mov dword ptr [0xfee003e0], 0xb; mov dword ptr [0xfee00320], 0x20040\n"
              "mov dword ptr [0xfee00380], 500000; sti; more: hlt; cmp dword ptr [0x3000], 20; jb more\n"
              "cli; rdtsc; mov ecx, eax; spin: rdtsc; sub eax, ecx; cmp eax, 20000000; jb spin; mov ebx, [0x3000]\n"
              "sti; nop; cli; mov edx, [0x3000]; sub edx, ebx" + FINISH, (0x40,))
        finish(guest)
        assert guest.reg("rdx") == 1


def test_tsc_deadline() -> None:
    with RawGuest(model="max") as guest:
        start(guest, ENABLE + "mov dword ptr [0xfee00320], 0x40040; mfence\n"
              "rdtsc; add eax, 700000; adc edx, 0; mov ecx, 0x6e0; wrmsr; sti; hlt; rdmsr; or eax, edx"
              + FINISH, (0x40,))
        finish(guest)
        assert log(guest) == [0x40]
        assert guest.reg("rax") == 0


def test_priorities_nest_and_tpr_holds_back() -> None:
    """0x60 interrupts the handler of 0x50, 0x52 waits for it; TPR 0x70 holds all back."""
    nesting = (f"push eax; mov eax, [{COUNT}]; mov byte ptr [eax + {LOG}], 1; inc dword ptr [{COUNT}]\n"
               "mov dword ptr [0xfee00300], 0x40060; mov dword ptr [0xfee00300], 0x40052; sti; nop; cli\n"
               f"mov eax, [{COUNT}]; mov byte ptr [eax + {LOG}], 2; inc dword ptr [{COUNT}]\n"
               "mov dword ptr [0xfee000b0], 0; pop eax; iret")
    with RawGuest() as guest:
        start(guest, ENABLE + "mov dword ptr [0xfee00080], 0x70; mov dword ptr [0xfee00300], 0x40050; sti; nop; nop\n"
              "mov ebx, [0x3000]; mov ecx, [0xfee00220]; mov edx, [0xfee00220 + 0x20]\n"
              "mov dword ptr [0xfee00080], 0\nz: hlt; jmp z", (0x60, 0x52), x50=nesting)
        guest.run_to_halt()
        assert guest.reg("rbx") == 0
        assert log(guest) == [1, 0x60, 2, 0x52]


def test_level_interrupts_broadcast_their_eoi() -> None:
    with RawGuest() as guest:
        start(guest, ENABLE + "sti; hlt; hlt", (0x55, 0x56))
        guest.run_to_halt()
        lib.qpy_apic_deliver(guest.machine, 0, 0, 0, 0x55, 1)
        lib.qpy_apic_msi(guest.machine, 0xFEE00000, 0x56)
        guest.run_to_halt()
        assert log(guest) == [0x56, 0x55]
        assert guest.eois == [0x55]


def test_virtual_wire_and_nmi() -> None:
    with RawGuest() as guest:
        def acknowledge() -> int:
            lib.qpy_vcpu_set_intr(guest.vcpu, 0)
            return 0x21

        guest.intack = acknowledge
        start(guest, ENABLE + "mov dword ptr [0xfee00360], 0x400; sti; hlt; cli; hlt", (0x21, 2))
        guest.run_to_halt()
        lib.qpy_vcpu_set_intr(guest.vcpu, 1)
        guest.run_to_halt()
        lib.qpy_vcpu_set_intr(guest.vcpu, 1)  # held back by IF
        lib.qpy_vcpu_nmi(guest.vcpu)
        guest.run(100)
        assert log(guest) == [0x21, 2]


def test_software_disable_and_masked_lint0() -> None:
    with RawGuest() as guest:
        guest.intack = lambda: pytest.fail("acknowledged")
        start(guest, "mov dword ptr [0xfee000f0], 0xff; mov dword ptr [0xfee00350], 0x700; mov eax, [0xfee00350]\n"
              "mov dword ptr [0xfee00300], 0x40050; sti; nop; hlt", (0x50,))
        lib.qpy_vcpu_set_intr(guest.vcpu, 1)
        guest.run_to_halt()
        assert guest.reg("rax") == 0x10700  # masked for as long as the APIC is off
        assert log(guest) == []


def test_illegal_vectors_are_errors() -> None:
    with RawGuest() as guest:
        start(guest, ENABLE + "mov dword ptr [0xfee00370], 0x33; mov dword ptr [0xfee00300], 0x40005; sti; nop\n"
              "mov dword ptr [0xfee00280], 0; mov eax, [0xfee00280]; hlt", (0x33,))
        guest.run_to_halt()
        assert guest.reg("rax") == 0x20
        assert log(guest) == [0x33]


def test_x2apic() -> None:
    gp = f"inc dword ptr [{COUNT}]; add esp, 4; add dword ptr [esp], 2; iret"
    with RawGuest(cpus=2) as guest:
        start(guest, "mov ecx, 0x1b; rdmsr; or eax, 0x400; wrmsr\n"
              "mov ecx, 0x802; rdmsr; mov esi, eax; mov ecx, 0x80d; rdmsr; mov edi, eax\n"
              "mov ecx, 0x80f; mov eax, 0x1ff; xor edx, edx; wrmsr\n"
              "mov ecx, 0x80e; rdmsr; mov ecx, 0x808; mov eax, 0x100; wrmsr\n"
              "mov ecx, 0x1b; mov eax, 0xfee00900; wrmsr\n"
              "mov ebx, [0x3000]; mov dword ptr [0x3000], 0; mov ecx, 0x83f; mov eax, 0x50; wrmsr; sti; nop; nop; hlt",
              x0d=gp, x50=f"mov dword ptr [{LOG}], 0x50; mov ecx, 0x80b; xor eax, eax; xor edx, edx; wrmsr; iret")
        guest.run_to_halt()
        assert (guest.reg("rsi"), guest.reg("rdi")) == (0, 1)
        assert guest.reg("rbx") == 3
        assert guest.get_int(LOG, 4) == 0x50


def test_base_can_move_and_disabling_hands_intr_to_the_pic() -> None:
    with RawGuest() as guest:
        guest.intack = lambda: (lib.qpy_vcpu_set_intr(guest.vcpu, 0), 0x21)[1]
        start(guest, "mov ecx, 0x1b; rdmsr; and eax, 0xfff; or eax, 0x20000000; wrmsr; mov esi, [0x20000030]\n"
              "mov edi, [0xfee00030]; and eax, 0xfffff7ff; wrmsr; mov ebx, [0x20000030]; sti; hlt; hlt", (0x21,))
        guest.run_to_halt()
        assert (guest.reg("rsi"), guest.reg("rdi"), guest.reg("rbx")) == (0x50014, 0xFFFFFFFF, 0xFFFFFFFF)
        lib.qpy_vcpu_set_intr(guest.vcpu, 1)
        guest.run_to_halt()
        assert log(guest) == [0x21]
