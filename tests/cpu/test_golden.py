"""Golden listings: what the translator makes of a few dozen blocks. A change in what is emitted shows here.

After a change that is meant: QEMUPY_GOLDEN=write pytest tests/cpu/test_golden.py, and read the difference.
"""

import os
import re
from pathlib import Path

import pytest
from qemupy._core import lib
from rawguest import RawGuest

FOLDER = Path(__file__).parent / "golden"
BLOCKS = {
    "mov-reg": "mov rax, rbx; mov ecx, edx; mov r12, rsi; mov edi, r13d",
    "mov-imm": "mov eax, 7; mov rbx, -1; movabs rcx, 0x123456789abcdef0; mov r14d, 5",
    "same-unmapped-register": "mov r13d, r13d; mov rax, r13",
    "load": "xor eax, eax; mov rbx, [rdi]",
    "store": "xor eax, eax; mov [rdi + 8], rbx",
    "load-flags-live": "cmp eax, ebx; mov rcx, [rdi]; cmovz edx, ecx",
    "load-indexed": "xor eax, eax; mov ebx, [rdi + rsi * 4 + 16]",
    "load-unmapped-base": "xor eax, eax; mov ebx, [r13 + r14 * 8]",
    "load-rip-relative": "xor eax, eax; mov rbx, [rip + 64]; add ecx, 1",
    "load-gs": "xor eax, eax; mov rbx, gs:[8]",
    "load-32-bit-address": "xor eax, eax; mov ebx, [edi + 4]",
    "group-of-one-register": "xor eax, eax; mov rbx, [rdi]; mov rcx, [rdi + 8]; mov [rdi + 16], rdx; add rbx, rcx",
    "group-indexed":
        "xor eax, eax; movsd xmm0, [rdi + rsi * 8]; addsd xmm0, xmm1; movsd [rdi + rsi * 8], xmm0; add rsi, 0",
    "group-ends-with-its-register":
        "xor eax, eax; mov rbx, [rdi]; mov rdx, [rdi + 8]; mov rdi, rsi; mov rcx, [rdi]; mov rdi, r13; add rcx, 1",
    "prologue":
        "xor eax, eax; push rbp; push rbx; push r12; sub rsp, 8; mov [rsp], rax; add rsp, 8; pop r12; pop rbx; pop rbp",
    "read-modify-write": "xor eax, eax; add [rdi], rbx; adc qword ptr [rdi + 8], 0",
    "locked": "xor eax, eax; lock xadd [rdi], ebx; lock cmpxchg [rdi], ecx",
    "compare-and-exchange-16": "xor eax, eax; xor edx, edx; lock cmpxchg16b [rdi]",
    "high-bytes": "mov ah, bl; add ch, dh; movzx eax, bh",
    "high-byte-to-memory": "xor eax, eax; mov [rdi], ah",
    "partial-registers": "mov r12b, al; mov r13w, bx; setc r14b",
    "shifts": "shl rax, 3; sar ecx, cl; rol r15d, 7; shld rbx, rdx, 4",
    "multiply-divide": "imul rax, rbx; imul r12, r13, 10; mul rcx; xor edx, edx; mov ecx, 3; div rcx",
    "bits": "bt rax, 3; bts ecx, 4; bsf rdx, rbx; popcnt r12, rax; tzcnt ecx, ecx",
    "lea": "lea rax, [rbx + rcx * 2 + 5]; lea r12, [r13 + r14]; lea edx, [rax - 1]",
    "exchange": "xchg rax, rbx; xchg rax, r12; bswap r13; xadd rcx, rdx",
    "conditions": "cmp rax, rbx; setz cl; cmovb rdx, r12; sbb eax, eax",
    "sign-extension": "cdqe; cqo; cwde; movsx rcx, bl; movsxd r12, ecx",
    "flags-instructions": "stc; lahf; cmc; sahf",
    "forward-branch": "test eax, eax; jz 3f; nop; 3: nop",
    "vector-registers": "paddd xmm0, xmm1; mulsd xmm8, xmm15; movapd xmm2, xmm3",
    "vector-memory": "xor eax, eax; movups xmm0, [rdi]; paddb xmm1, [rdi + 16]; movdqa [rdi + 32], xmm1; inc ebx",
    "vector-to-general": "movd eax, xmm0; movq r12, xmm1; movq xmm2, r13; cvtsi2sd xmm3, r14; pmovmskb ecx, xmm0",
    "vector-flags": "ucomisd xmm0, xmm1; seta al",
    "x87": "fld1; fldpi; faddp; fstp st(0)",
    "x87-memory": "xor eax, eax; fld qword ptr [rdi]; fstp tbyte ptr [rdi + 16]; inc ebx",
    "handler": "xor eax, eax; cpuid; mov ecx, eax",
    "string": "xor eax, eax; mov ecx, 2; lea rdi, [rdi + 64]; movsb; sub rdi, 65; dec rsi",
    "string-repeated": "cmp eax, ebx; mov ecx, 2; lea rdi, [rdi + 64]; rep movsd",
    "indirect-jump": "lea rax, [rip + 3f]; jmp rax; 3: nop",
    "interrupts-off": "pushfq; pop rax; cli; test eax, 0x200; mov rbx, cr3; mov ecx, ds",
    "interrupts-off-flags-live": "cmp eax, ebx; pushfq; cli; pop rcx; setb cl",
    "interrupts-on": "xor eax, eax; cli; sti",
    "swapgs": "swapgs",
    "bit-string": "xor eax, eax; bt [rdi], rcx; lock bts [rdi], ebx; btr [rdi], r14",
    "bmi": "andn rax, r12, [rdi]; shlx r13d, r14d, ecx; blsr rbx, r12; rorx r12, rax, 5; pext rax, rbx, rcx",
    "byte-order-and-crc": "movbe rax, [rdi]; crc32 eax, r12b; adcx rax, rbx; adox rcx, r13",
    "indirect-call": "lea rax, [rip + 3f]; call rax; 3: pop rax",
}
AT = 0x100000
LOOP = AT + 10  # behind fninit, mov and jmp
DATA = 0x200000
ADDRESS = re.compile(r"^0x[0-9a-f]{8}:  ")


def listing(text: str) -> str:
    """The host code of the block under test, with addresses of this process taken out."""
    blocks = text.split("OUT: ")[1:]
    mine = next(b for b in blocks if re.findall("guest addr 0x([0-9a-f]+)", b)[0] == f"{LOOP:016x}")
    lines = mine.strip().splitlines()[1:]
    places = {line.split(":")[0]: i for i, line in enumerate(lines) if ADDRESS.match(line)}

    def relative(match: re.Match[str]) -> str:
        name = match.group()
        if name in places:
            return f"L{places[name]}"
        value = int(name, 16)
        return name if value < 0x40000000 or value >= 0xFFFFFFFF00000000 or value == 0x123456789ABCDEF0 else "@"

    out = []
    for i, line in enumerate(lines):
        if ADDRESS.match(line):
            body = re.sub(r"(?<![-\w])0x[0-9a-f]+", relative, line.split(":  ", 1)[1])
            out.append(f"{f'L{i}:':<6}{body}")
        else:
            out.append(line.strip())
    return "\n".join(out) + "\n"


def translate(code: str, log: Path) -> str:
    """Run a block until it is hot, and what -d out_asm said."""
    done: list[int] = []
    with RawGuest(accel="dbt") as guest, log.open("w") as file:
        lib.qpy_log_set(lib.QPY_LOG_OUT_ASM, file.fileno())
        try:
            guest.pio_write = lambda port, size, value: done.append(port)
            text = (f"fninit\n mov r11d, 40\n jmp 2f\n 2: {code.replace(';', chr(10))}\n jmp 1f\n"
                    "1: dec r11d\n jnz 2b\n out 0x80, al\n hlt")
            guest.start64(text, AT, rdi=DATA, rsi=0, rsp=0x5000, r13=DATA, r14=0, rbx=0, rcx=1)
            guest.run_threads(lambda: bool(done))
        finally:
            lib.qpy_log_set(0, -1)
    assert done
    return listing(log.read_text())


@pytest.mark.parametrize("name", BLOCKS)
def test_block(name: str, tmp_path: Path) -> None:
    got, golden = translate(BLOCKS[name], tmp_path / "log"), FOLDER / f"{name}.txt"
    if os.environ.get("QEMUPY_GOLDEN") == "write":
        golden.write_text(got)
    assert got == golden.read_text()


def test_every_listing_belongs_to_a_block() -> None:
    assert {path.stem for path in FOLDER.glob("*.txt")} == set(BLOCKS)
