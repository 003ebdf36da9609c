"""String instructions in translated code: the same as in the interpreter, without a handler where all is at hand."""

from __future__ import annotations

import pytest
from qemupy._core import ffi, lib
from rawguest import REGISTERS, RawGuest
from translated import RESUME, run

DATA, SIZE = 0x200000, 0x4000
ROUNDS = 40
SUFFIX = {1: "b", 2: "w", 4: "d", 8: "q"}


def outcome(body: str, accel: str, faults: tuple[int, ...] = (), setup: str = "") -> tuple[list[int], bytes]:
    """Registers, flags and data after ROUNDS runs of `body`; ebp counts them down, r8 gathers."""
    fill = (f"mov edi, {DATA}; mov ecx, {SIZE // 4}; mov eax, 0x01234567\n"
            "8: mov [rdi], eax; add rdi, 4; imul eax, eax, 69069; inc eax; loop 8b")  # fmt: skip
    code = f"{fill}; xor r8d, r8d; {setup} mov ebp, {ROUNDS}; 1: {body}; dec ebp; jnz 1b"
    with run(code, faults, accel=accel) as guest:
        return [*map(int, guest.state().gpr), guest.reg("rflags")], guest.get(DATA, SIZE)


def check(body: str, faults: tuple[int, ...] = (), setup: str = "") -> None:
    want, got = (outcome(body, accel, faults, setup) for accel in ("interp", "dbt"))
    names = [*REGISTERS, "rflags"]
    assert dict(zip(names, want[0], strict=True)) == dict(zip(names, got[0], strict=True))
    assert want[1] == got[1]


@pytest.mark.parametrize("size", SUFFIX)
@pytest.mark.parametrize("direction", ["cld", "std"])
@pytest.mark.parametrize("flags", ["dead", "live"])
def test_single_ones(size: int, direction: str, flags: str) -> None:
    """Over a page's end too; DF is looked at each time."""
    s = SUFFIX[size]
    use = "adc r8, rsi; add r8, rdi; rol r8, 1; add r8, rax"
    body = (f"mov eax, ebp; imul eax, eax, 57; lea esi, [eax + {DATA + 0x0F00}]; lea edi, [eax + {DATA + 0x2E01}]\n"
            f"{direction}; cmp ebp, 20; movs{s}; {use if flags == 'live' else 'xor ecx, ecx;' + use}; lods{s}; {use}\n"
            f"stos{s}; {use}; cld; movs{s}; {use}")  # fmt: skip
    check(body)


@pytest.mark.parametrize("size", SUFFIX)
@pytest.mark.parametrize("op", ["movs", "stos"])
def test_repeated_ones(size: int, op: str) -> None:
    """Of all lengths, none included, within pages and over their ends, from and to the same bytes, downwards."""
    body = (f"lea r9d, [ebp - 1]; imul r10d, ebp, 331; and r10d, 0xfff; imul ecx, r9d, {max(1, 40 // size)}\n"
            f"lea esi, [r10d + {DATA}]; lea edi, [r10d + {DATA + 0x1F00}]; mov rax, r8; stc; rep {op}{SUFFIX[size]}\n"
            f"adc r8, rsi; add r8, rdi; add r8, rcx; rol r8, 1; mov ecx, 5; lea edi, [r10d + {DATA}]\n"
            f"lea esi, [edi + {size}]; rep {op}{SUFFIX[size]}; mov ecx, 5; xchg rsi, rdi; rep {op}{SUFFIX[size]}\n"
            f"mov ecx, 9; std; rep {op}{SUFFIX[size]}; cld; add r8, rdi; xor r8, rsi")  # fmt: skip
    check(body)


@pytest.mark.parametrize("op", ["rep movsb", "rep stosq", "movsd", "stosw", "lodsd"])
def test_faults_leave_registers_at_the_element(op: str) -> None:
    """The last page is not there: what comes before it is done."""
    last = DATA + SIZE
    table = (f"mov rbx, 0xc000; mov ecx, 512; mov rax, {DATA + 3}\n"
             "7: mov [rbx], rax; add rax, 4096; add rbx, 8; loop 7b\n"
             f"mov qword ptr [{0xC000 + 8 * (SIZE >> 12)}], 0; mov qword ptr [{0xA000 + 8 * (DATA >> 21)}], 0xc003\n"
             "mov rax, cr3; mov cr3, rax")  # fmt: skip
    body = (f"lea rax, [rip + 5f]; mov [{RESUME:#x}], eax; lea esi, [ebp + {last - 24}]; lea edi, [ebp + {last - 24}]\n"
            f"mov ecx, 30; {op}; 5: add r8, rcx; add r8, rsi; rol r8, 1; add r8, rdi")  # fmt: skip
    check(body, (14,), table + ";")


def handlers(code: str) -> int:
    with run(f"mov ebp, 3000; 1: mov esi, {DATA}; mov edi, {DATA + 4096}; {code}; dec ebp; jnz 1b") as guest:
        stats = ffi.new("QpyVcpuStats *")
        lib.qpy_vcpu_stats(guest.vcpu, stats)
        return int(stats.jit_helper)


@pytest.mark.parametrize("code", ["movsb; stosd; lodsq", "mov ecx, 512; rep movsq", "mov ecx, 7; rep stosb"])
def test_no_handler_is_called(code: str) -> None:
    assert handlers(code) < 100


def test_32_bit_code_wraps_at_4_gib() -> None:
    """EDI comes to 0 behind the last byte, as ESI does."""
    found = []
    for accel in ("interp", "dbt"):
        done: list[int] = []
        with RawGuest(accel=accel) as guest:
            guest.pio_write = lambda port, size, value, done=done: done.append(value)
            guest.set_view([guest.ram_range(), guest.ram_range(0xFFFFF000, 0x1000)])
            guest.start32(f"mov ebx, {ROUNDS}; 1: mov edi, 0xfffffff0; mov ecx, 4; mov eax, ebx; rep stosd\n"
                          "add ebp, edi; mov esi, 0xfffffffe; mov edi, 0x300000; movsw; add ebp, esi\n"
                          "mov esi, 0xfffffff8; mov ecx, 2; rep movsd; add ebp, esi; dec ebx; jnz 1b; mov eax, ebp\n"
                          "out 0x80, eax; hlt")  # fmt: skip
            guest.run_threads(lambda done=done: bool(done))
            found.append((done, guest.get(0x300000, 64), guest.get(0xFF0, 16), guest.reg("rdi"), guest.reg("rsi")))
    assert found[0] == found[1]
    assert found[0][0] == [0]
