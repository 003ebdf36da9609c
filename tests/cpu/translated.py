"""Guest programs that run without a budget, whose code would count instructions: until they write to DONE_PORT."""

from __future__ import annotations

from qemupy._core import ffi, lib
from rawguest import RawGuest, assemble

DONE_PORT = 0xE9
RESUME, ENVIRONMENT, HANDLERS = 0x4000, 0x4100, 0x3000
FAULTS = 0x4800  # what the handlers saw: the last registers and CR2, a sum of addresses, their number
SEEN, SEEN_SIZE = "rbx rcx rdx rbp rsi rdi r8 r12 r13 r14 r15".split(), 128
WITH_ERROR = (13, 14)


def handler(vector: int) -> str:
    """Notes registers, CR2 and the address; returns to where RESUME says, which is below 4 GiB."""
    stores = "".join(f"mov [{FAULTS + 8 * n:#x}], {name}; " for n, name in enumerate(["rax", *SEEN]))
    pop_error = "lea rsp, [rsp + 8]; " if vector in WITH_ERROR else ""
    at = FAULTS + 8 * (1 + len(SEEN))
    return (f"{stores}{pop_error}mov rax, cr2; mov [{at:#x}], rax; mov rax, [rsp]; add [{at + 8:#x}], rax; "
            f"inc qword ptr [{at + 16:#x}]; mov eax, [{RESUME:#x}]; mov [rsp], rax; mov rax, [{FAULTS:#x}]; iretq")


def start(code: str, faults: tuple[int, ...] = (), accel: str = "dbt", lockstep: str = "") -> RawGuest:
    """A guest before 64-bit code that ends with DONE_PORT; these faults lead to where RESUME says."""
    guest = RawGuest(accel=accel, translator=lockstep)
    for n, vector in enumerate(faults):
        at = HANDLERS + 256 * n
        guest.put(at, assemble(handler(vector), 64, at))
        guest.gate64(vector, at)

    def pio_write(port: int, size: int, value: int) -> None:
        if port == DONE_PORT:
            lib.qpy_vcpu_kick(guest.vcpu)

    guest.pio_write = pio_write
    guest.start64(f"{code}\nout {DONE_PORT:#x}, al\n0: jmp 0b")
    return guest


def run(code: str, faults: tuple[int, ...] = (), accel: str = "dbt", lockstep: str = "") -> RawGuest:
    """The same, having run. The caller closes the guest."""
    guest = start(code, faults, accel, lockstep)
    assert lib.qpy_vcpu_run(guest.vcpu) == lib.QPY_EXIT_KICK
    return guest


def regions(guest: RawGuest) -> int:
    """How many regions the guest's code was translated as."""
    stats = ffi.new("QpyVcpuStats *")
    lib.qpy_vcpu_stats(guest.vcpu, stats)
    return int(stats.jit_regions)
