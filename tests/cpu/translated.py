"""Guest programs that run without a budget, whose code would count instructions: until they write to DONE_PORT."""

from __future__ import annotations

from qemupy._core import ffi, lib
from rawguest import PAGE_TABLES, RawGuest, assemble

DONE_PORT = 0xE9
RESUME, ENVIRONMENT, HANDLERS = 0x4000, 0x4100, 0x3000
FAULTS = 0x4800  # what the handlers saw: the last registers and CR2, a sum of addresses, their number, a sum of flags
SEEN, SEEN_SIZE = "rbx rcx rdx rbp rsi rdi r8 r12 r13 r14 r15".split(), 128
WITH_ERROR = (13, 14)


def handler(vector: int) -> str:
    """Notes registers, CR2, the address and flags; returns to where RESUME says, which is below 4 GiB."""
    stores = "".join(f"mov [{FAULTS + 8 * n:#x}], {name}; " for n, name in enumerate(["rax", *SEEN]))
    pop_error = "lea rsp, [rsp + 8]; " if vector in WITH_ERROR else ""
    at = FAULTS + 8 * (1 + len(SEEN))
    return (f"{stores}{pop_error}mov rax, cr2; mov [{at:#x}], rax; mov rax, [rsp]; add [{at + 8:#x}], rax; "
            f"mov rax, [rsp + 16]; rol qword ptr [{at + 24:#x}], 9; add [{at + 24:#x}], rax; "
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


USER_DATA, USER_CODE, USER_BASE, STACK = 0x23, 0x2B, 0x18, 0x5000


def user_mode(guest: RawGuest) -> None:
    """All memory may be used at CPL 3, with these two selectors; from there exceptions come to CPL 0 on STACK. SYSRET
    wants USER_BASE in STAR."""
    tss = 0x5800
    guest.put(PAGE_TABLES, (PAGE_TABLES + 0x1007).to_bytes(8, "little"))
    guest.put(PAGE_TABLES + 0x1000, (PAGE_TABLES + 0x2007).to_bytes(8, "little"))
    guest.put(PAGE_TABLES + 0x2000, b"".join((i << 21 | 0x87).to_bytes(8, "little") for i in range(16)))
    state = guest.state()
    descriptors = (0xCFF3000000FFFF, 0xAFFB000000FFFF, 0x67 | tss << 16 | 0x89 << 40, 0)
    guest.put(state.gdt_base + 0x20, b"".join(d.to_bytes(8, "little") for d in descriptors))
    guest.put(tss + 4, STACK.to_bytes(8, "little"))
    state.gdt_limit = 0x3F
    state.seg[lib.QPY_SEG_TR] = {"base": tss, "limit": 0x67, "sel": 0x30, "rights": 0x8B}
    guest.set_state(state)


def regions(guest: RawGuest) -> int:
    """How many regions the guest's code was translated as."""
    stats = ffi.new("QpyVcpuStats *")
    lib.qpy_vcpu_stats(guest.vcpu, stats)
    return int(stats.jit_regions)
