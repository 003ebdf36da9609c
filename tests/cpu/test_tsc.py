"""The guest's TSC in translated code: near the host's clock, never back, the same as the handler's and the timers'.

The clock is made of pieces (csrc/base/clock.h) once it has run for 50 ms, so guests here spin first.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from accels import ACCELS
from qemupy._core import ffi, lib
from rawguest import RawGuest
from translated import DONE_PORT, run, start, user_mode

from qemupy.main_loop.clock import TimerHeap
from qemupy.main_loop.clocks import VirtualClock
from qemupy.vcpu.interp import InterpClock

CLOCKSOURCE = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
LOG = 0x200000
TOLERANCE = 10_000  # ns; 0.1 us is usual
READ = "rdtsc; shl rdx, 32; or rax, rdx"
READ_IN_ORDER = "rdtscp; shl rdx, 32; or rax, rdx"
# 100 ms: then the clock is made of pieces
WARM_UP = f"{READ}; lea rsi, [rax + 100000000]; 9: {READ}; cmp rax, rsi; jb 9b\n"


def host_tsc() -> bool:
    return CLOCKSOURCE.is_file() and CLOCKSOURCE.read_text().strip() in ("tsc", "kvm-clock")


by_host = pytest.mark.skipif(not host_tsc(), reason="the host does not tell the time by its TSC")


def helper_calls(guest: RawGuest) -> int:
    stats = ffi.new("QpyVcpuStats *")
    lib.qpy_vcpu_stats(guest.vcpu, stats)
    return int(stats.jit_helper)


def marks(guest: RawGuest) -> list[tuple[int, int, int]]:
    """Appended to when the guest runs MARK: the TSC before, the host's time, the TSC behind."""
    found: list[tuple[int, int, int]] = []
    times: list[int] = []

    def read(port: int, size: int) -> int:
        times.append(time.monotonic_ns())
        return 0

    def write(port: int, size: int, value: int) -> None:
        if port == DONE_PORT:
            lib.qpy_vcpu_kick(guest.vcpu)
        else:
            found.append((guest.get_int(LOG), times[-1], guest.get_int(LOG + 8)))

    guest.pio_read, guest.pio_write = read, write
    return found


MARK = f"{READ_IN_ORDER}; mov [{LOG:#x}], rax; in al, 0x70; {READ_IN_ORDER}; mov [{LOG + 8:#x}], rax; out 0x71, al"


def drift_ppm(found: list[tuple[int, int, int]]) -> float:
    """Of the TSC against the host's clock, from the tightest mark of each half; what the marks leave open counts."""
    half = len(found) // 2
    first, last = (min(part, key=lambda mark: mark[2] - mark[0]) for part in (found[:half], found[half:]))
    slow, fast = last[0] - first[2], last[2] - first[0]
    host = last[1] - first[1]
    return max(abs(slow - host), abs(fast - host)) / host * 1e6


@pytest.mark.parametrize("accel", ACCELS)
@pytest.mark.parametrize("seconds", [2, pytest.param(30, marks=pytest.mark.long)])
def test_it_runs_at_the_speed_of_the_hosts_clock(accel: str, seconds: int) -> None:
    body = (f"mov r10d, 2\n 4: mov ecx, 40\n 5: mov ebx, ecx; {MARK}; mov ecx, ebx; dec ecx; jnz 5b\n"
            f"dec r10d; jz 7f; {READ}; mov r8, {seconds * 10**9}; lea rsi, [rax + r8]; 6: {READ}; cmp rax, rsi; jb 6b\n"
            "jmp 4b; 7:")  # fmt: skip
    with start(WARM_UP + body, accel=accel) as guest:
        found = marks(guest)
        assert lib.qpy_vcpu_run(guest.vcpu) == lib.QPY_EXIT_KICK
        assert len(found) == 80
        assert drift_ppm(found) < 100


@by_host
def test_it_is_read_without_a_handler() -> None:
    n = 2_000_000
    with start(f"mov ebx, {n}; 1: rdtsc; dec ebx; jnz 1b; mov ebx, {n}; 1: rdtscp; dec ebx; jnz 1b") as guest:
        time.sleep(0.1)
        assert lib.qpy_vcpu_run(guest.vcpu) == lib.QPY_EXIT_KICK
        assert helper_calls(guest) < n / 100


@pytest.mark.parametrize("accel", ACCELS)
@pytest.mark.parametrize("read", [READ, READ_IN_ORDER], ids=["rdtsc", "rdtscp"])
def test_it_never_goes_back(accel: str, read: str) -> None:
    """Over some ends of pieces; flags and other registers stay."""
    n = 12_000_000 if accel == "dbt" else 1_000_000
    code = (f"{WARM_UP} mov ebp, {n}; xor r8d, r8d; xor r9d, r9d; xor r10d, r10d; mov ecx, 77\n"
            f"2: stc; {read.split(';')[0]}; adc r10, 0; shl rdx, 32; or rax, rdx; cmp rax, r8; adc r9, 0; mov r8, rax\n"
            "dec ebp; jnz 2b")  # fmt: skip
    with run(code, accel=accel) as guest:
        assert guest.reg("r9") == 0 and guest.reg("r10") == n
        assert guest.reg("rcx") == (77 if read == READ else 0)


def test_no_vcpu_sees_it_go_back() -> None:
    """What one of two vCPUs has read and told, the other does not undercut."""
    reads = 3_000_000
    code = (f"mov r8d, {LOG}; xor r9d, r9d; mov ebx, {reads}\n"
            f"1: mov rbp, [r8]; {READ_IN_ORDER}; cmp rax, rbp; adc r9, 0; mov [r8], rax; dec ebx; jnz 1b\n"
            f"mov [r8 + 128 + r15 * 8], r9; lock inc dword ptr [r8 + 256]; 0: hlt; jmp 0b")  # fmt: skip
    with RawGuest(accel="dbt", cpus=2) as guest:
        guest.start64(WARM_UP + code, r15=0)
        state = guest.state()
        state.gpr[15], state.gpr[4] = 1, 0x4800
        guest.set_state(state, 1)
        guest.run_threads(lambda: guest.get_int(LOG + 256, 4) == 2)
        assert guest.get(LOG + 128, 16) == bytes(16)


@pytest.mark.parametrize("accel", ACCELS)
def test_it_stands_while_the_machine_is_stopped(accel: str) -> None:
    """As by stop and cont, some times; and it goes on from where a saved state was taken."""
    with start(f"{WARM_UP} 1: {READ}; mov r8, rax; out {DONE_PORT:#x}, al; jmp 1b", accel=accel) as guest:

        def read_once() -> int:
            assert lib.qpy_vcpu_run(guest.vcpu) == lib.QPY_EXIT_KICK
            return guest.reg("r8")

        last = read_once()
        for _ in range(20):
            guest.run_clock(False)
            stood, before = lib.qpy_clock_now(guest.clock), read_once()
            assert before == stood >= last
            time.sleep(0.01)
            assert read_once() == stood
            guest.run_clock()
            last = read_once()
            assert stood <= last < stood + 5_000_000_000
        guest.run_clock(False)
        saved, at = guest.state(), lib.qpy_clock_now(guest.clock)
        guest.run_clock()
        for _ in range(3):
            assert read_once() > last
            last = guest.reg("r8")
        guest.run_clock(False)
        lib.qpy_clock_sync(guest.clock, 0, at)
        guest.set_state(saved)
        assert read_once() == at


@pytest.mark.parametrize("accel", ACCELS)
def test_writes_move_it_at_once(accel: str) -> None:
    """WRMSR to the TSC and to TSC_ADJUST, with reads before and behind."""
    code = (f"{WARM_UP} mov ecx, 0x10; mov eax, 5; mov edx, 0x1000; wrmsr; {READ}; mov r8, rax\n"
            f"mov ecx, 0x3b; rdmsr; shl rdx, 32; or rax, rdx; mov r9, rax; {READ}; mov r11, rax\n"
            "movabs rax, 0x100000000; neg rax; add rax, r9\n"
            f"mov rdx, rax; shr rdx, 32; wrmsr; {READ}; mov r10, rax")  # fmt: skip
    with run(code, accel=accel) as guest:
        written, before, behind = guest.reg("r8"), guest.reg("r11"), guest.reg("r10")
        assert 5 <= written - (0x1000 << 32) < 2_000_000_000
        assert written <= before
        assert 0 <= behind - before + 0x100000000 < 2_000_000_000


@pytest.mark.parametrize("accel", ACCELS)
def test_the_apic_timer_and_it_agree(accel: str) -> None:
    """Both tick in ns. The timer's count lies between two reads of the TSC, at once and after 300 ms."""
    read = f"{READ_IN_ORDER}; mov r8, rax; mov ebx, [r11 + 0x390]; {READ_IN_ORDER}; mov r9, rax"
    store = " mov [rdi], r8; mov [rdi + 8], rbx; mov [rdi + 16], r9; add rdi, 24;"
    code = (f"mov edi, {LOG}; mov r11d, 0xfee00000; {WARM_UP} mov dword ptr [r11 + 0xf0], 0x1ff\n"
            f"mov dword ptr [r11 + 0x3e0], 11; mov dword ptr [r11 + 0x320], 0x10040\n"
            f"mov dword ptr [r11 + 0x380], 0xffffffff; {read}; {store}\n lea rsi, [rax + 300000000]\n"
            f"3: {read}; cmp rax, rsi; jb 3b; {store}")  # fmt: skip
    with start(code, accel=accel) as guest:
        map_apic(guest)
        assert lib.qpy_vcpu_run(guest.vcpu) == lib.QPY_EXIT_KICK
        first, last = ([guest.get_int(LOG + 24 * row + 8 * i) for i in range(3)] for row in (0, 1))
        counted = first[1] - last[1]
        assert last[0] - first[2] <= counted <= last[2] - first[0]


def map_apic(guest: RawGuest) -> None:
    """The page of the local APIC, at the top of the fourth GiB."""
    guest.put(0x9000 + 3 * 8, (0xC003).to_bytes(8, "little"))
    guest.put(0xC000 + (0xFEE00000 >> 21 & 511) * 8, (0xFEE00083).to_bytes(8, "little"))


def test_the_core_tells_the_time_of_the_devices() -> None:
    """PIT, HPET and PM timer ask Python's clock, TSC and APIC timer the core's; over ends of pieces, stop and cont."""
    core, virtual = InterpClock(), VirtualClock(TimerHeap())
    virtual.core = core
    for _ in range(4):
        virtual.start()
        for _ in range(20):
            for _ in range(100):
                before, now, behind = virtual.now(), core.now(), virtual.now()
                assert before - TOLERANCE < now < behind + TOLERANCE
            time.sleep(0.015)
        virtual.stop()
        assert 0 <= core.now() - virtual.now() < TOLERANCE


@pytest.mark.parametrize("accel", ACCELS)
@pytest.mark.parametrize("read", ["rdtsc", "rdtscp"])
def test_tsd_takes_it_from_programs(accel: str, read: str) -> None:
    """CR4.TSD, set after it was read without: #GP at CPL 3 with all registers as they were. CPL 0 may."""
    with start(tsd_program(read), accel=accel) as guest:
        guest.gate64(13, 0x140000)
        guest.gate64(6, 0x141000)
        user_mode(guest)
        assert lib.qpy_vcpu_run(guest.vcpu) == lib.QPY_EXIT_KICK
        assert guest.reg("r8") == 300  # faults
        assert guest.get_int(LOG) == 0  # registers that had changed


def tsd_program(read: str) -> str:
    """300 times at CPL 3 with TSD clear, 300 times with it set; every #GP skips the instruction and is counted."""
    length = {"rdtsc": 2, "rdtscp": 3}[read]
    return f"""
        {WARM_UP}
        xor r8d, r8d; mov ebp, 600; mov qword ptr [{LOG:#x}], 0
        again: cmp ebp, 300; jne 1f; mov rax, cr4; or eax, 4; mov cr4, rax
        1: {read}; push 0x23; push 0x4f00; push 2; push 0x2b; lea rax, [rip + user]; push rax; iretq
        user: mov eax, 0x11; mov ecx, 0x22; mov edx, 0x33; {read}; lea rsi, [rip + back]; jmp leave_user
        back: dec ebp; jnz again; jmp finish
        leave_user: ud2
        .org 0x40000
        cmp eax, 0x11; jne 2f; cmp ecx, 0x22; jne 2f; cmp edx, 0x33; je 3f
        2: inc qword ptr [{LOG:#x}]
        3: inc r8; add qword ptr [rsp + 8], {length}; add rsp, 8; iretq
        .org 0x41000
        mov rsp, 0x5000; jmp rsi
        finish:"""


@pytest.mark.parametrize("accel", ACCELS)
def test_rdpid(accel: str) -> None:
    code = ("mov ecx, 0xc0000103; mov eax, 0x12345; xor edx, edx; wrmsr; mov ebx, 60\n"
            "1: rdpid r12; rdpid rax; dec ebx; jnz 1b")
    with run(code, accel=accel) as guest:
        assert guest.reg("r12") == guest.reg("rax") == 0x12345


