"""x87, SSE and AVX state: control bits that forbid it, exceptions, saving and restoring in every layout."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from qemupy._core import lib
from rawguest import CR0_ET, CR0_NE, CR0_PE, CR0_PG, RawGuest, assemble

EM, MP, TS = 1 << 2, 1 << 1, 1 << 3
CR0_LONG = CR0_PE | CR0_ET | CR0_NE | CR0_PG
OSFXSR, OSXMMEXCPT, OSXSAVE = 1 << 9, 1 << 10, 1 << 18
CR4_LONG = 0x20 | OSFXSR | OSXMMEXCPT | OSXSAVE
UD, NM, GP, MF, XM = 6, 7, 13, 16, 19
HANDLERS = 0x180000
DATA = 0x200000


@pytest.fixture
def guest() -> Iterator[RawGuest]:
    with RawGuest() as raw:
        yield raw


def start(guest: RawGuest, code: str, **registers: int) -> None:
    """Long mode with AVX enabled; every exception handler stops with rax = its vector."""
    registers = {"cr4": CR4_LONG, "xcr0": 7, **registers}
    guest.start64(code, **registers)
    for vector in range(32):
        at = HANDLERS + 16 * vector
        guest.put(at, bytes([0xB8, vector, 0, 0, 0, 0xF4]))  # mov eax, vector; hlt
        guest.gate64(vector, at)


def vector_of(guest: RawGuest, code: str, **registers: int) -> int:
    """The exception that `code` raises, 255 for none."""
    start(guest, code + "\nmov eax, 255; hlt", **registers)
    guest.run_to_halt()
    return guest.reg("rax") & 0xFF


FORBIDDEN = [
    # instruction, what happens with EM, TS, EM|TS, MP|TS, no OSFXSR, no OSXSAVE, XCR0 = 3
    ("fld1", NM, NM, NM, NM, 255, 255, 255),
    ("fwait", 255, 255, 255, NM, 255, 255, 255),
    ("fnstsw ax", NM, NM, NM, NM, 255, 255, 255),
    ("paddb mm0, mm1", UD, NM, UD, NM, 255, 255, 255),
    ("addps xmm0, xmm1", UD, NM, UD, NM, UD, 255, 255),
    ("cvttss2si eax, [rsi]", UD, NM, UD, NM, UD, 255, 255),
    ("ldmxcsr [rsi]", UD, NM, UD, NM, UD, 255, 255),
    ("movnti [rsi], eax", 255, 255, 255, 255, 255, 255, 255),
    ("fxsave [rsi]", NM, NM, NM, NM, 255, 255, 255),
    ("xsave [rsi]", 255, NM, NM, NM, 255, UD, 255),
    ("vaddps ymm0, ymm1, ymm2", 255, NM, NM, NM, 255, UD, UD),
    ("vpmaskmovd [rsi], xmm1, xmm2", 255, NM, NM, NM, 255, UD, UD),
]


@pytest.mark.parametrize("row", FORBIDDEN, ids=lambda row: row[0])
def test_control_bits(guest: RawGuest, row: tuple[str, int, int, int, int, int, int, int]) -> None:
    """SDM vol 3A table 2-2, 2.5, 13.1; vol 2A 2.4."""
    code, *expected = row
    guest.put(DATA, struct.pack("<I", 0x1F80))
    controls: list[dict[str, int]] = [
        {"cr0": CR0_LONG | EM}, {"cr0": CR0_LONG | TS}, {"cr0": CR0_LONG | EM | TS}, {"cr0": CR0_LONG | MP | TS},
        {"cr4": CR4_LONG & ~OSFXSR}, {"cr4": CR4_LONG & ~OSXSAVE}, {"xcr0": 3},
    ]
    start(guest, "fninit; hlt")
    guest.run_to_halt()
    seen = []
    for control in controls:
        seen.append(vector_of(guest, code, rsi=DATA, **control))
    assert seen == expected


def test_avx_needs_protected_mode(guest: RawGuest) -> None:
    guest.start16("xor ax, ax; .byte 0xc5, 0xf8, 0x58, 0xc1; hlt", cr4=CR4_LONG & ~0x20, xcr0=7)
    guest.put(4 * UD, struct.pack("<HH", 0x9000, 0))
    guest.put(0x9000, bytes([0xB8, UD, 0, 0xF4]))
    guest.run_to_halt()
    assert guest.reg("rax") & 0xFFFF == UD


def test_unmasked_x87_exception_waits(guest: RawGuest) -> None:
    """The division completes; #MF comes at the next waiting instruction, not at FNSTSW; FIP is the division's."""
    code = "fninit; fnstcw [rsi]; and word ptr [rsi], ~4; fldcw [rsi]; fld1; fldz; div: fdivp st(1), st\n"
    start(guest, code + "fnstsw ax; mov ebx, eax; nop; wait: fld1; mov eax, 255; hlt", rsi=DATA)
    guest.run_to_halt()
    assert guest.reg("rax") & 0xFF == MF
    assert guest.reg("rbx") & 0x8084 == 0x8084
    frame_rip = guest.get_int(guest.reg("rsp"))
    assert guest.get(frame_rip, 2) == b"\xd9\xe8"
    assert guest.get(guest.state().fpu_fip, 2) == b"\xde\xf9"


def test_ferr_and_ignne(guest: RawGuest) -> None:
    """CR0.NE clear: the error comes as IRQ 13; after port F0h waiting instructions ignore it until FNCLEX."""
    log: list[str] = []

    def raise_irq() -> None:
        log.append("ferr")
        lib.qpy_vcpu_set_intr(guest.vcpu, 1)

    def acknowledge() -> int:
        lib.qpy_vcpu_set_intr(guest.vcpu, 0)
        return 0x75

    def port(number: int, size: int, value: int) -> None:
        log.append(f"port {number:x}")
        lib.qpy_vcpu_ignne(guest.vcpu)

    guest.ferr, guest.intack, guest.pio_write = raise_irq, acknowledge, port
    divide = "fld1; fldz; fdivp st(1), st; fld1"
    code = f"fninit; fnstcw [0x2000]; and word ptr [0x2000], 0xfffb; fldcw [0x2000]; sti; {divide}; {divide}; hlt"
    guest.put(0x9000, assemble("push ax; out 0xf0, al; fld1; fnclex; pop ax; iret", 16))
    guest.start16(code)
    guest.put(4 * 0x75, struct.pack("<HH", 0x9000, 0))
    guest.run_to_halt(10_000)
    assert log == ["ferr", "port f0"] * 2
    assert guest.state().fpu[4] == 0xFF, "eight values were pushed: a division that traps pops nothing"


def test_unmasked_sse_exception(guest: RawGuest) -> None:
    code = """mov dword ptr [rsi], 0x1d80; ldmxcsr [rsi]; mov eax, 1; cvtsi2sd xmm0, eax; xorps xmm1, xmm1
    divsd xmm0, xmm1"""
    assert vector_of(guest, code, rsi=DATA) == XM
    assert bytes(guest.state().fpu)[160:168] == struct.pack("<d", 1.0), "the destination must be as before"
    assert vector_of(guest, code, rsi=DATA, cr4=CR4_LONG & ~OSXMMEXCPT) == UD


def test_reserved_bits_and_alignment(guest: RawGuest) -> None:
    guest.put(DATA, struct.pack("<I", 0x10000))
    assert vector_of(guest, "ldmxcsr [rsi]", rsi=DATA) == GP
    assert vector_of(guest, "addps xmm0, [rsi]", rsi=DATA + 8) == GP
    assert vector_of(guest, "movaps [rsi], xmm0", rsi=DATA + 8) == GP
    assert vector_of(guest, "movups [rsi], xmm0; vaddps xmm0, xmm1, [rsi]", rsi=DATA + 8) == 255
    assert vector_of(guest, "fxsave [rsi]", rsi=DATA + 8) == GP
    assert vector_of(guest, "mov eax, -1; mov edx, -1; xsave [rsi]", rsi=DATA + 32) == GP


FILL = """fninit; fldpi; fld1; mov rax, 0x1122334455667788; movq xmm3, rax; movq xmm12, rax
vinsertf128 ymm5, ymm5, xmm3, 1; vpcmpeqd xmm6, xmm6, xmm6
"""


def test_fxsave_layout(guest: RawGuest) -> None:
    start(guest, FILL + "fxsave64 [rsi]; hlt", rsi=DATA)
    guest.put(DATA, b"\xee" * 512)
    guest.run_to_halt()
    area = guest.get(DATA, 512)
    fcw, fsw, ftw, fop, fip = struct.unpack_from("<HHHHQ", area)
    assert (fcw, fsw >> 11 & 7, ftw) == (0x37F, 6, 0xC0)
    assert guest.get(fip, 2) == b"\xd9\xe8" and fop == 0x1E8
    assert struct.unpack_from("<II", area, 24) == (0x1F80, 0xFFFF)
    assert area[32:42] == bytes(7) + b"\x80\xff\x3f"
    assert area[160 + 48 : 160 + 56] == area[160 + 192 : 160 + 200] == bytes.fromhex("8877665544332211")
    assert area[464:] == b"\xee" * 48, "bytes for software stay"


@pytest.mark.parametrize("save", ["xsave64", "xsaveopt64", "xsavec64"])
def test_xsave_round_trip(guest: RawGuest, save: str) -> None:
    clear = "fninit; vzeroall; mov dword ptr [rsp - 8], 0x1fc0; ldmxcsr [rsp - 8]"
    code = f"{FILL} mov eax, -1; mov edx, -1; {save} [rsi]; {clear}; mov eax, -1; xrstor64 [rsi]"
    start(guest, code + "; fstp qword ptr [rdi]; hlt", rsi=DATA, rdi=DATA + 4096)
    guest.run_to_halt()
    bv, compact = struct.unpack("<QQ", guest.get(DATA + 512, 16))
    assert bv == 7
    assert compact == ((1 << 63 | 7) if save == "xsavec64" else 0)
    assert struct.unpack("<d", guest.get(DATA + 4096, 8)) == (1.0,)
    fpu = bytes(guest.state().fpu)
    assert fpu[160 + 48 : 160 + 56] == bytes.fromhex("8877665544332211")
    assert fpu[576 + 80 : 576 + 88] == bytes.fromhex("8877665544332211")
    assert struct.unpack_from("<I", fpu, 24) == (0x1F80,)


def test_xrstor_header_checks(guest: RawGuest) -> None:
    restore = "mov eax, -1; mov edx, -1; xrstor [rsi]"
    guest.put(DATA, bytes(1024))
    assert vector_of(guest, restore, rsi=DATA) == 255
    state = bytes(guest.state().fpu)
    assert state[160:416] == bytes(256) and state[:2] == b"\x7f\x03", "components absent from XSTATE_BV are initialised"
    for offset, value in ((512, 1 << 9), (520, 1), (528, 1), (520, 1 << 63 | 8)):
        guest.put(DATA, bytes(1024))
        guest.put(DATA + offset, struct.pack("<Q", value))
        assert vector_of(guest, restore, rsi=DATA) == GP, (offset, hex(value))


def test_partial_xrstor(guest: RawGuest) -> None:
    """Only requested components change."""
    code = FILL + "mov eax, -1; xor edx, edx; xsave [rsi]; fldz; vzeroall; mov eax, 2; xrstor [rsi]; hlt"
    start(guest, code, rsi=DATA)
    guest.run_to_halt()
    fpu = bytes(guest.state().fpu)
    assert fpu[160 + 48 : 160 + 56] == bytes.fromhex("8877665544332211")
    assert fpu[576:832] == bytes(256)
    assert struct.unpack_from("<H", fpu, 2)[0] >> 11 & 7 == 5


def test_environment_in_long_mode(guest: RawGuest) -> None:
    """32-bit protected layout; FNSTENV masks everything; FLDENV brings TOP and tags back."""
    code = "fninit; fld1; fldz; fld qword ptr [rsi + 256]; fnstenv [rsi]; fninit; fldenv [rsi]; fstp qword ptr [rdi]"
    start(guest, code + "; hlt", rsi=DATA, rdi=DATA + 512)
    guest.put(DATA + 256, struct.pack("<d", 2.5))
    guest.run_to_halt()
    words = struct.unpack("<7I", guest.get(DATA, 28))
    assert words[0] == 0xFFFF037F and words[1] >> 11 & 7 == 5 and words[2] == 0xFFFF13FF
    assert guest.get(words[3], 2) == b"\xdd\x86" and words[4] == 0x5860008
    assert words[5] == DATA + 256 and words[6] == 0xFFFF0010
    assert struct.unpack("<d", guest.get(DATA + 512, 8)) == (2.5,)


def test_environment_in_real_mode(guest: RawGuest) -> None:
    """SDM vol 1, figure 8-12: 16-bit real layout, linear pointers with the opcode between."""
    code = "fninit; fld1; fld dword ptr [0x3000]; fnsave [0x2000]; frstor [0x2000]; fstp dword ptr [0x3004]; hlt"
    guest.start16(code)
    guest.put(0x3000, struct.pack("<f", 1.5))
    guest.run_to_halt()
    fcw, fsw, ftw, ip, ip_high, dp, dp_high = struct.unpack("<7H", guest.get(0x2000, 14))
    assert (fcw, fsw >> 11 & 7, ftw) == (0x37F, 6, 0x0FFF)
    assert guest.get(ip, 2) == b"\xd9\x06" and ip_high == 0x106 and (dp, dp_high) == (0x3000, 0)
    assert struct.unpack("<f", guest.get(0x3004, 4)) == (1.5,)
    assert guest.get(0x2000 + 14 + 10, 10) == bytes(7) + b"\x80\xff\x3f"


def test_environment_in_protected_mode_16(guest: RawGuest) -> None:
    guest.start32("fninit; fld1; data16 fnstenv [0x200000]; hlt")
    guest.run_to_halt()
    fcw, _, ftw, ip, cs, _, _ = struct.unpack("<7H", guest.get(DATA, 14))
    assert (fcw, ftw, ip, cs) == (0x37F, 0x3FFF, 2, 8)


def test_gather_fault_keeps_progress(guest: RawGuest) -> None:
    """Elements before the fault are loaded and their masks cleared; the instruction can be restarted."""
    code = "vpcmpeqd xmm1, xmm1, xmm1; vmovdqu xmm2, [rdi]; vpgatherdd xmm0, [rsi + xmm2], xmm1"
    start(guest, code + "; hlt", rsi=(1 << 30) - 8, rdi=DATA)
    guest.put(DATA, struct.pack("<4i", -0x3FE00000 + 8, -0x3FE00000 + 12, 64, 0))
    guest.put(DATA + 0, guest.get(DATA, 16))
    guest.run_to_halt()
    assert guest.reg("rax") & 0xFF == 14
    fpu = bytes(guest.state().fpu)
    assert fpu[176:192] == bytes(8) + b"\xff" * 8
    assert fpu[160:164] == guest.get(DATA, 4)
    assert guest.state().cr2 == (1 << 30) + 56


def test_state_survives_upcalls(guest: RawGuest) -> None:
    """Python runs in between and uses the host's vector registers."""
    guest.pio_read = lambda port, size: sum(float(i) ** 0.5 > 3 for i in range(50)) & 0xFF
    start(guest, FILL + "mov ecx, 1000; again: in al, 0x80; faddp st(1), st; fld1; dec ecx; jnz again; hlt")
    guest.run_to_halt(100_000)
    fpu = bytes(guest.state().fpu)
    assert fpu[160 + 48 : 160 + 56] == bytes.fromhex("8877665544332211")
    assert fpu[576 + 80 : 576 + 88] == bytes.fromhex("8877665544332211")
    assert guest.reg("rcx") == 0 and struct.unpack_from("<H", fpu, 2)[0] >> 11 & 7 == 6


def test_reset_values(guest: RawGuest) -> None:
    """SDM vol 3A table 10-1."""
    lib.qpy_vcpu_reset(guest.vcpu)
    fpu = bytes(guest.state().fpu)
    assert struct.unpack_from("<HHH", fpu) == (0x40, 0, 0xFF)
    assert struct.unpack_from("<I", fpu, 24) == (0x1F80,)
