"""What translated code must get right beyond single instructions: guest programs that run without a budget, which would
have them interpreted."""

from __future__ import annotations

from qemupy._core import lib
from rawguest import RawGuest

DONE_PORT = 0xE9


def run(code: str) -> RawGuest:
    """Runs 64-bit code until it writes to DONE_PORT. The caller closes the guest."""
    guest = RawGuest(accel="dbt")

    def pio_write(port: int, size: int, value: int) -> None:
        if port == DONE_PORT:
            lib.qpy_vcpu_kick(guest.vcpu)

    guest.pio_write = pio_write
    guest.start64(f"{code}\nout {DONE_PORT:#x}, al\n0: jmp 0b")
    assert lib.qpy_vcpu_run(guest.vcpu) == lib.QPY_EXIT_KICK
    return guest


def test_flags_survive_an_indirect_jump_that_meets_another_target() -> None:
    """Both targets share an entry of the jump cache; the first overwrites the flags that the second reads."""
    code = """
        xor ebx, ebx
        xor edx, edx
        mov ecx, 1000
    1:  lea rax, [rip + x]
        jmp rax
    2:  lea rax, [rip + y]
        stc
        jmp rax
    3:  dec ecx
        jnz 1b
        jmp 4f
        .balign 0x20000
    x:  add edx, 1
        jmp 2b
        .balign 0x20000
    y:  adc ebx, 0
        jmp 3b
    4:
    """
    with run(code) as guest:
        assert (guest.reg("rbx"), guest.reg("rdx")) == (1000, 1000)
