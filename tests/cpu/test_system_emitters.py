"""System instructions in translated code: the same results as in the interpreter, interrupt shadows, SMAP."""

from __future__ import annotations

import pytest
from accels import ACCELS
from qemupy._core import lib
from rawguest import REGISTERS, RawGuest

LOOP = 40
DATA = 0x200000
# Each runs LOOP times at CPL 0; r10 counts, r11 gathers what is to be compared.
SNIPPETS = {
    "cli-sti-pushf": "cli; pushfq; pop rax; xor r11, rax; sti; nop; pushfq; pop rax; rol r11, 3; xor r11, rax; cli",
    "pushf-flags-live": "cmp r10, 7; pushfq; setb cl; adc r11, rcx; pop rax; rol r11, 5; xor r11, rax",
    "pushf-flags-dead": "sub rax, 5; pushfq; add rax, r10; pop rcx; xor r11, rcx; rol r11, 1",
    "pushf-without-rf": "push 0x10246; popfq; pushfq; pop rax; xor r11, rax; rol r11, 1",
    "pushf-overflow": "mov eax, 0x7fffffff; add eax, 1; pushfq; seto cl; pop rbx; xor r11, rbx; adc r11, rcx",
    "cld-std": "std; pushfq; cld; pop rax; pushfq; pop rcx; xor r11, rax; rol r11, 9; xor r11, rcx",
    "cld-flags-live": "cmp r10, 9; cld; cmovb rcx, r10; std; adc r11, rcx; cld; rol r11, 1",
    "cli-flags-live": "cmp r10, 11; cli; adc r11, r10; rol r11, 3",
    "sti-flags-live": "cmp r10, 11; sti; adc r11, r10; cli; rol r11, 3",
    "swapgs": "swapgs; add r11, gs:[8]; rol r11, 1",
    "from-control": "mov rax, cr0; mov rcx, cr2; mov r12, cr3; mov rbx, cr4; add r11, rax; add r11, rcx; xor r11, r12;"
                    "rol r11, 1; xor r11, rbx",
    "from-segment": "mov eax, ds; mov r12, ss; mov r13d, cs; mov bx, es; add r11, rax; add r11, r12; add r11, r13",
    "bit-strings": "mov rcx, r10; neg rcx; shl rcx, 3; bts [rdi + 256], rcx; adc r11, 1; bt [rdi + 300], r10d;"
                   "adc r11, r11; lea r13, [r10 * 4]; btr [rdi + 256], r13; adc r11, 3; lock btc [rdi + 260], r13d;"
                   "adc r11, r11",
    "bit-strings-flags-live": "cmp r10, 20; bts [rdi], r10; setz al; add r11b, al; rol r11, 1; lock bts [rdi + 8], r10;"
                              "adc r11, 0",
    "bmi-unmapped": "andn r12, r13, r10; bextr r14, r12, r13; adc r11, 1; shlx rax, r13, r12; rorx r15, rax, 5;"
                    "pdep rbx, r15, [rdi]; blsr r13, r13; adc r11, r15; mov rdx, r11; mulx r12, rcx, r15;"
                    "mulx rax, r14, [rdi + 8]; add r11, r14; add r13, r12; add r13, rcx; adcx r13, rax; adox r12, r13",
    "movbe-crc32": "movbe r12, [rdi]; movbe [rdi + 8], r12d; movbe ax, [rdi + 2]; crc32 r11d, r12b; crc32 r11, rax;"
                   "crc32 r12, qword ptr [rdi]; crc32 eax, word ptr [rdi + 8]; add r11, rax; xor r11, r12",
    "prefetch": "prefetcht0 [rdi]; prefetchw [rdi + 64]; prefetchnta [0]; serialize; inc r11",
}


def outcome(accel: str, code: str) -> tuple[list[int], bytes]:
    with RawGuest(accel=accel) as guest:
        done: list[int] = []
        guest.pio_write = lambda port, size, value: done.append(port)
        guest.put(DATA, bytes(range(1, 200)) * 4)
        text = f"mov r10d, {LOOP}\n 2: {code.replace(';', chr(10))}\n dec r10d\n jnz 2b\n out 0x80, al\n hlt"
        guest.start64(text, rdi=DATA, rsi=0, r11=1, r13=0x1234567, rsp=0x5000, rcx=0, rax=0, rbx=0, cr2=0xABCDE000)
        guest.run_threads(lambda: bool(done))
        state = guest.state()
        return [*(int(v) for v in state.gpr), int(state.rflags)], guest.get(DATA - 512, 2048) + guest.get(0x4F00, 256)


@pytest.mark.parametrize("name", SNIPPETS)
def test_both_tiers_agree(name: str) -> None:
    want, got = (outcome(accel, SNIPPETS[name]) for accel in ("interp", "dbt"))
    names = [*REGISTERS, "rflags"]
    assert dict(zip(names, want[0], strict=True)) == dict(zip(names, got[0], strict=True))
    assert want[1] == got[1]


@pytest.mark.parametrize("accel", ACCELS)
@pytest.mark.parametrize("pend", ["out 0x80, al", "nop"], ids=["pending-before", "any-time"])
def test_one_instruction_runs_behind_sti(accel: str, pend: str) -> None:
    """An interrupt that waits comes behind the instruction that follows STI; IF that was set is no shadow."""
    with RawGuest(accel=accel) as guest:
        done: list[int] = []

        def write(port: int, size: int, value: int) -> None:
            if port == 0x81:
                done.append(value)
            lib.qpy_vcpu_set_intr(guest.vcpu, 1)

        def acknowledge() -> int:
            lib.qpy_vcpu_set_intr(guest.vcpu, 0)
            return 0x40

        guest.pio_write, guest.intack = write, acknowledge
        guest.gate64(0x40, 0x110000)
        guest.start64(f"mov ecx, 300\n again: cli\n out 0x80, al\n {pend}\n sti\n inc rbx\n landing: nop\n dec ecx\n"
                      "jnz again\n cli\n out 0x81, al\n hlt\n .org 0x10000\n lea rax, [rip + landing]\n"
                      "cmp [rsp], rax\n je 1f\n inc r9\n 1: inc r8\n iretq")
        guest.run_threads(lambda: bool(done))
        assert guest.reg("r9") == 0
        assert guest.reg("r8") == 300 and guest.reg("rbx") == 300


@pytest.mark.parametrize("accel", ACCELS)
def test_smap_is_suspended_and_resumed(accel: str) -> None:
    """Between STAC and CLAC a user page may be read, outside not; functions that return in the other mode too."""
    with RawGuest(accel=accel) as guest:
        done: list[int] = []
        guest.pio_write = lambda port, size, value: done.append(port)
        user = 0x400000
        guest.gate64(14, 0x110000)
        guest.start64("mov ecx, 200\n again: stac\n mov rax, [rsi]\n clac\n mov rdx, [rsi]\n resume: add rbx, rax\n"
                      "call suspend\n add rbx, [rsi + 8]\n call work\n call resume_smap\n mov rdx, [rsi]\n"
                      "call suspend\n call resume_smap\n stac\n stac\n call work\n clac\n clac\n"
                      "dec ecx\n jnz again\n out 0x80, al\n hlt\n"
                      "suspend: stac\n ret\n resume_smap: clac\n ret\n work: add rbx, [rsi + 16]\n ret\n"
                      ".org 0x10000\n inc r8\n mov rax, [rsp]\n mov r9, [rsp + 8]\n add r9, 3\n mov [rsp + 8], r9\n"
                      "mov eax, 5\n add rsp, 8\n iretq", rsi=user)  # fmt: skip
        state = guest.state()
        state.cr4 |= 1 << 21
        guest.set_state(state)
        guest.put(0x8000, (0x9007).to_bytes(8, "little"))
        guest.put(0x9000, (0xA007).to_bytes(8, "little"))
        guest.put(0xA000 + 8 * (user >> 21), (user | 0x87).to_bytes(8, "little"))
        guest.put(user, (5).to_bytes(8, "little") + (7).to_bytes(8, "little") + (11).to_bytes(8, "little"))
        guest.run_threads(lambda: bool(done))
        assert guest.reg("r8") == 400  # the two reads outside, each time
        assert guest.reg("rbx") == 200 * (5 + 7 + 11 + 11)
