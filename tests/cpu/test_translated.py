"""What translated code must get right beyond single instructions: guest programs that run without a budget, whose code
would count instructions."""

from __future__ import annotations

import ctypes
import mmap

from translated import ENVIRONMENT, RESUME, run


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


def test_flags_survive_a_double_shift_by_nothing() -> None:
    """SHLD by CL leaves the flags alone when the count is zero: the access before it must keep them."""
    code = """
        mov edi, 100
        xor ebx, ebx
    1:  mov ecx, 32
        stc
        mov rdx, [rsp + 0x40]
        shld esi, edx, cl
        adc ebx, 0
        stc
        mov rdx, [rsp + 0x40]
        shrd esi, edx, cl
        adc ebx, 0
        dec edi
        jnz 1b
    """
    with run(code) as guest:
        assert guest.reg("rbx") == 200


def test_a_fault_of_the_host_finds_the_x87_pointers_there() -> None:
    """They are stored late, yet before what may raise #DE or, misaligned, #GP."""
    code = f"""
        fninit
        mov ebp, 100
    1:  mov dword ptr [{RESUME:#x}], offset 2f
        xor ecx, ecx
        fld1
    a:  fstp st(0)
        div cl
    2:  fnstenv [{ENVIRONMENT:#x}]
        mov dword ptr [{RESUME:#x}], offset 3f
        fld1
    b:  fstp st(0)
        paddb xmm0, [{ENVIRONMENT + 1:#x}]
    3:  fnstenv [{ENVIRONMENT + 32:#x}]
        mov dword ptr [{RESUME:#x}], offset 4f
        fld1
    c:  fstp st(0)
        lock cmpxchg16b [{ENVIRONMENT + 1:#x}]
    4:  fnstenv [{ENVIRONMENT + 64:#x}]
        lea rsi, [rip + a]
        lea rdi, [rip + b]
        lea r8, [rip + c]
        dec ebp
        jnz 1b
    """
    with run(code, faults=(0, 13)) as guest:
        pointers = [guest.get_int(at, 4) for at in range(ENVIRONMENT + 12, ENVIRONMENT + 96, 32)]
        assert pointers == [guest.reg("rsi"), guest.reg("rdi"), guest.reg("r8")]


def test_a_host_exception_after_another_machine_was_freed() -> None:
    """A Jit where a freed one was has its signal stack elsewhere: its old place is taken."""
    code = f"mov dword ptr [{RESUME:#x}], offset 2f; mov ebp, 100; xor ecx, ecx; 1: div cl; 2: dec ebp; jnz 1b"
    taken = []
    for _ in range(4):
        run("nop").close()
        taken += [mmap.mmap(-1, 0x24000, prot=mmap.PROT_READ) for _ in range(64)]
        with run(code, faults=(0,)) as guest:
            assert guest.reg("rbp") == 0


class SignalStack(ctypes.Structure):
    """stack_t of sigaltstack(2)."""

    _fields_ = [("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


def signal_stack() -> tuple[object, object]:
    now = SignalStack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(now)) == 0
    return now.sp, now.flags


def test_a_freed_machine_gives_the_thread_its_signal_stack_back() -> None:
    """Python's own handlers use it, in the thread that ran the vCPU."""
    before = signal_stack()
    with run("nop"):
        assert signal_stack() != before
    assert signal_stack() == before
