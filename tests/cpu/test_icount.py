"""A clock that counts instructions: deadlines met between the right two instructions, in every accelerator alike."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from accels import ACCELS
from qemupy._core import lib
from rawguest import RawGuest

SHIFT = 3
NS = 1 << SHIFT


@pytest.fixture(params=ACCELS)
def guest(request: pytest.FixtureRequest) -> Iterator[RawGuest]:
    with RawGuest(accel=request.param, shift=SHIFT) as made:
        yield made


def now(guest: RawGuest) -> int:
    return int(lib.qpy_clock_now(guest.clock))


def count(guest: RawGuest) -> int:
    return int(guest.state().icount)


def deadlines(guest: RawGuest, *times: int) -> list[tuple[int, int]]:
    """Ask for `timers` at these times; collects (time, instructions so far) of each call."""
    left, seen = list(times), list[tuple[int, int]]()

    def timers() -> None:
        seen.append((now(guest), now(guest) // NS))
        left.pop(0)
        lib.qpy_clock_set_deadline(guest.clock, left[0] if left else -1)

    guest.timers = timers
    lib.qpy_clock_set_deadline(guest.clock, left[0])
    return seen


def test_the_clock_shows_the_count(guest: RawGuest) -> None:
    reads: list[int] = []
    guest.pio_write = lambda port, size, value: reads.append(now(guest))
    guest.start64("nop; out 0x80, al; mov ecx, 10; 1: dec ecx; jnz 1b; out 0x80, al; nop; out 0x80, al; hlt")
    guest.run_to_halt()
    assert reads == [1 * NS, 23 * NS, 25 * NS]  # complete before the OUT that asks
    assert count(guest) == 27 and now(guest) == 27 * NS


def test_the_tsc_counts_too(guest: RawGuest) -> None:
    """The TSC has 1 GHz here: a tick is a nanosecond."""
    guest.start64("rdtsc; mov ebx, eax; nop; nop; nop; rdtsc; sub eax, ebx; hlt")
    guest.run_to_halt()
    assert guest.reg("rax") == 5 * NS


def test_deadlines_are_met_exactly(guest: RawGuest) -> None:
    """In the middle of long blocks, at any instruction; a deadline between two ticks counts for the later one."""
    seen = deadlines(guest, 100 * NS, 101 * NS, 102 * NS - 3, 1000 * NS, 1003 * NS)
    guest.start64("mov ecx, 100\n1:\n" + "inc rax\n" * 30 + "dec ecx; jnz 1b; hlt")
    guest.run_to_halt()
    assert [n for _, n in seen] == [100, 101, 102, 1000, 1003]
    assert guest.reg("rax") == 3000


def test_repeated_strings_stop_in_between(guest: RawGuest) -> None:
    """An iteration counts as an instruction."""
    places: list[int] = []
    seen = deadlines(guest, 103 * NS, 2000 * NS)
    inner = guest.timers

    def timers() -> None:
        places.append(guest.reg("rcx"))
        inner()

    guest.timers = timers
    guest.start64("mov ecx, 5000; mov edi, 0x200000; cld; rep stosb; hlt")
    guest.run_to_halt()
    assert [n for _, n in seen] == [103, 2000]
    assert places == [4900, 3003] and count(guest) == 5004


def test_a_deadline_set_in_an_upcall_is_met(guest: RawGuest) -> None:
    """An OUT in the middle of a block asks for a timer 3 instructions later."""
    seen: list[int] = []

    def timers() -> None:
        seen.append(now(guest) // NS)
        lib.qpy_clock_set_deadline(guest.clock, -1)

    guest.timers = timers
    guest.pio_write = lambda port, size, value: lib.qpy_clock_set_deadline(guest.clock, now(guest) + 3 * NS)
    guest.mmio_write = lambda gpa, size, value: lib.qpy_clock_set_deadline(guest.clock, now(guest) + 2 * NS)
    guest.set_view([guest.ram_range(), {"gpa": 0x10000000, "size": 0x1000, "kind": lib.QPY_RANGE_MMIO}])
    guest.start64("nop; out 0x80, al\n" + "nop\n" * 20 + "mov [0x10000000], eax\n" + "nop\n" * 20 + "hlt")
    guest.run_to_halt()
    assert seen == [1 + 3, 22 + 2]


def test_halt_jumps_to_the_deadline(guest: RawGuest) -> None:
    """An hour passes at once, and the timer wakes the CPU by the 8259."""
    hour = 3_600_000_000_000
    seen: list[int] = []

    def timers() -> None:
        seen.append(now(guest))
        lib.qpy_clock_set_deadline(guest.clock, -1)
        lib.qpy_vcpu_set_intr(guest.vcpu, 1)

    def intack() -> int:
        lib.qpy_vcpu_set_intr(guest.vcpu, 0)
        return 0x20

    guest.timers, guest.intack = timers, intack
    guest.put(0x2000, b"\x48\xff\xc3\x48\xcf")  # inc rbx; iretq
    guest.gate64(0x20, 0x2000)
    lib.qpy_clock_set_deadline(guest.clock, hour)
    guest.start64("sti; hlt; cli; mov rax, rbx; hlt")
    begin = time.monotonic()
    guest.run_to_halt()
    assert seen == [hour] and guest.reg("rax") == 1 and time.monotonic() - begin < 5
    assert now(guest) == hour + 5 * NS  # inc iretq cli mov hlt


def test_halt_may_sleep_instead() -> None:
    with RawGuest(shift=SHIFT, sleeps=True) as guest:
        seen = deadlines(guest, 50_000_000)
        guest.start64("cli; hlt")
        begin = time.monotonic()
        guest.run_to_halt()
        assert seen[0][0] == 50_000_000 and 0.045 < time.monotonic() - begin < 5


def test_the_apic_timer_fires_at_its_count(guest: RawGuest) -> None:
    """One-shot after 800 ns, that is 100 instructions; the handler finds out where it came."""
    guest.put(0x2000, b"\x5b\xf4")  # pop ebx; hlt
    guest.gate32(0x40, 0x2000)
    guest.start32("mov eax, 0xfee00000; mov dword ptr [eax+0xf0], 0x1ff; mov dword ptr [eax+0x3e0], 0xb\n"
                  "mov dword ptr [eax+0x320], 0x40; sti; mov dword ptr [eax+0x380], 800\n" + "nop\n" * 200)
    guest.run(1000)
    first_nop = guest.get(0x100000, 100).index(b"\x90" * 8) + 0x100000
    assert guest.reg("rbx") == first_nop + 99  # the count begins when the instruction that sets it does


def test_a_timer_of_the_past_lets_the_guest_run(guest: RawGuest) -> None:
    calls: list[int] = []
    def timers() -> None:
        calls.append(1)
        if len(calls) == 30:
            lib.qpy_clock_set_deadline(guest.clock, -1)

    guest.timers = timers
    lib.qpy_clock_set_deadline(guest.clock, 0)
    guest.start64("mov ecx, 10; 1: dec ecx; jnz 1b; hlt")
    guest.run_to_halt()
    assert len(calls) >= 20 and count(guest) == 22


def test_a_deadline_from_another_thread_is_noticed(guest: RawGuest) -> None:
    """As when input arms a device's timer: the spinning CPU must look."""
    fired = threading.Event()

    def timers() -> None:
        lib.qpy_clock_set_deadline(guest.clock, -1)
        fired.set()

    guest.timers = timers
    guest.start64("1: inc rax; jmp 1b")
    thread = threading.Thread(target=lib.qpy_vcpu_run, args=(guest.vcpu,))
    thread.start()
    time.sleep(0.01)
    lib.qpy_bql_lock()
    lib.qpy_clock_set_deadline(guest.clock, now(guest) + 1000)
    lib.qpy_bql_unlock()
    assert fired.wait(10)
    lib.qpy_vcpu_kick(guest.vcpu)
    thread.join()


def test_stopping_and_going_on_keeps_the_time(guest: RawGuest) -> None:
    guest.start64("1: inc rax; jmp 1b")
    guest.run(1001)
    guest.run_clock(False)
    standing = now(guest)
    guest.run_clock(True)
    assert standing == now(guest) == 1001 * NS
    guest.run(10)
    assert now(guest) == 1011 * NS


def test_one_vcpu_only() -> None:
    with pytest.raises(AssertionError, match="at most 1 vCPU with -icount"):
        RawGuest(shift=0, cpus=2)


@pytest.mark.parametrize("accel", ACCELS)
def test_seeded_random_numbers_repeat(accel: str) -> None:
    def draw(seed: int | None) -> tuple[int, int, int]:
        with RawGuest(accel=accel, seed=seed) as guest:
            guest.start64("rdrand rax; rdrand rbx; rdseed rcx; setc dl; hlt")
            guest.run_to_halt()
            assert guest.reg("rdx") & 0xFF == 1
            return guest.reg("rax"), guest.reg("rbx"), guest.reg("rcx")

    assert draw(1) == draw(1) != draw(2)
    assert len({*draw(1), *draw(2)}) == 6
    assert draw(None) != draw(None)
