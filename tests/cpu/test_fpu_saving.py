"""XSAVE and its kin in the midst of x87, SSE and AVX code: what they do not name stays in the registers, what they load
is there at once. Both tiers, the translated one with the state in the host's registers."""

from __future__ import annotations

import pytest
from rawguest import REGISTERS
from translated import run

DATA = 0x200000
SETUP = """
    mov rax, cr4; or eax, 0x40600; mov cr4, rax; xor ecx, ecx; xor edx, edx; mov eax, 7; xsetbv
    fninit; vpxor ymm0, ymm0, ymm0; xor r8d, r8d; mov ebp, 60"""
# ebp counts down; it is mixed into st(0), xmm1 and the upper half of ymm2.
MIX = f"""
    mov [{DATA - 64:#x}], rbp; fild qword ptr [{DATA - 64:#x}]; movq xmm1, rbp; paddq xmm0, xmm1
    vmovq xmm3, rbp; vinserti128 ymm2, ymm2, xmm3, 1; movq xmm15, r8"""
USE = f"""
    fistp qword ptr [{DATA - 56:#x}]; add r8, [{DATA - 56:#x}]; rol r8, 7; movq rax, xmm0; xor r8, rax
    vextracti128 xmm4, ymm2, 1; movq rax, xmm4; add r8, rax; movq rax, xmm15; xor r8, rax; ffree st(0)"""
WAYS = {
    "xsave-xrstor": "mov eax, ebp; and eax, 7; xsave64 [rsi]; vzeroall; fldpi; mov eax, ebp; and eax, 7\n"
                    "xrstor64 [rsi]; fincstp",
    "all-components": "mov eax, 7; xsave64 [rsi]; vzeroall; fldpi; mov eax, 7; xrstor64 [rsi]; fld st(0)",
    "compact": "mov eax, ebp; and eax, 7; xsavec64 [rsi]; vpxor ymm0, ymm0, ymm0; xrstor64 [rsi]; fld1",
    "optimised": "mov eax, 6; xsaveopt [rsi]; paddq xmm0, xmm0; mov eax, 4; xrstor [rsi]; fld1",
    "fxsave-fxrstor": "fxsave64 [rsi]; paddq xmm0, xmm0; vzeroupper; fldpi; fxrstor64 [rsi]; fld1",
    "control-words": "fxsave [rsi]; mov dword ptr [rsi + 24], 0x7f80; mov word ptr [rsi], 0x0f7f; fxrstor [rsi]\n"
                     "divsd xmm15, xmm1; fld1; fadd st, st(1); mov eax, 7; xsave [rsi]; stmxcsr [rsi - 8]",
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_both_tiers_agree(way: str) -> None:
    found = []
    for accel in ("interp", "dbt"):
        code = f"{SETUP}; mov esi, {DATA}; 1: {MIX}; xor edx, edx; {WAYS[way]}; {USE}; dec ebp; jnz 1b"
        with run(code, accel=accel) as guest:
            state = guest.state()
            registers = dict(zip(REGISTERS, map(int, state.gpr), strict=True))
            found.append((registers, bytes(state.fpu)[:8], bytes(state.fpu)[24:], guest.get(DATA - 64, 1024)))
    assert found[0][0] == found[1][0] and found[0][0]["r8"]
    assert found[0][1:] == found[1][1:]
