"""vCPUs as threads: kicks, pauses, the big lock, start-up of other processors, locked instructions between them."""

from __future__ import annotations

import threading
import time

from qemupy._core import ffi, lib
from rawguest import RawGuest, assemble

AP = 0x9000
# INIT, then SIPI to page 9, for everybody but the sender
WAKE = "mov dword ptr [0xfee00300], 0xc4500; mov dword ptr [0xfee00300], 0xc4609\n"


def test_kick_is_noticed_fast() -> None:
    with RawGuest() as guest:
        guest.start64("again: inc rax; jmp again")
        times: list[int] = []
        for _ in range(100):
            stamp: list[int] = []

            def run(stamp: list[int] = stamp) -> None:
                assert lib.qpy_vcpu_run(guest.vcpu) == lib.QPY_EXIT_KICK
                stamp.append(time.monotonic_ns())

            thread = threading.Thread(target=run)
            thread.start()
            time.sleep(0.002)
            kicked = time.monotonic_ns()
            lib.qpy_vcpu_kick(guest.vcpu)
            thread.join()
            times.append(stamp[0] - kicked)
            if len(times) >= 10 and min(times) < 100_000:
                break
        assert min(times) < 100_000
        assert guest.reg("rax") > 1000


def test_kick_before_run_is_not_lost() -> None:
    with RawGuest() as guest:
        guest.start64("again: jmp again")
        lib.qpy_vcpu_kick(guest.vcpu)
        assert lib.qpy_vcpu_run(guest.vcpu) == lib.QPY_EXIT_KICK


def test_kick_ends_halt_and_wait_for_sipi() -> None:
    with RawGuest(cpus=2) as guest:
        guest.start64("cli; hlt")
        end = time.monotonic() + 0.05
        guest.run_threads(lambda: time.monotonic() > end)
        assert guest.state(0).halted and guest.state(1).halted


def test_pause_stops_at_instruction_boundaries() -> None:
    """The pauser holds the BQL while the guest does nothing but upcalls, which need it."""
    with RawGuest() as guest:
        calls: list[int] = []
        guest.pio_write = lambda port, size, value: calls.append(value)
        guest.start32("again: inc eax; out 0x80, eax; jmp again")
        thread = threading.Thread(target=lib.qpy_vcpu_run, args=(guest.vcpu,))
        thread.start()
        for _ in range(50):
            lib.qpy_bql_lock()
            assert lib.qpy_machine_pause(guest.machine) == 0
            state = guest.state()
            count, seen = int(state.gpr[0]), len(calls)
            assert calls[-1:] in ([], [seen]) and count - seen in (0, 1)
            assert state.rip != 0x100002 + 2 or count == seen
            lib.qpy_bql_unlock()
            time.sleep(0.0005)
            assert len(calls) == seen
            lib.qpy_machine_resume(guest.machine)
            end = time.monotonic() + 5  # on a busy host the thread may have to wait for its turn
            while len(calls) == seen and time.monotonic() < end:
                time.sleep(0.0001)
        lib.qpy_machine_pause(guest.machine)
        lib.qpy_vcpu_kick(guest.vcpu)  # ends run even while paused
        thread.join()
        lib.qpy_machine_resume(guest.machine)
        assert len(calls) >= 50


def test_pause_inside_an_upcall_is_refused() -> None:
    with RawGuest() as guest:
        results: list[int] = []
        guest.pio_write = lambda port, size, value: results.append(lib.qpy_machine_pause(guest.machine))
        guest.start32("out 0x80, al; hlt")
        guest.run_to_halt()
        assert results == [-35]


def test_other_processors_start_and_lock_works() -> None:
    with RawGuest(cpus=4) as guest:
        loop = "mov ecx, 20000; again: lock inc dword ptr [0x4000]; dec ecx; jnz again; lock inc dword ptr [0x4004]\n"
        guest.put(AP, assemble("xor ax, ax; mov ds, ax; " + loop + "cli; hlt", 16, AP))
        guest.start32("mov dword ptr [0xfee000f0], 0x1ff\n" + WAKE + loop + "cli; hlt")
        guest.run_threads(lambda: guest.get_int(0x4004, 4) == 4)
        assert guest.get_int(0x4000, 4) == 80000
        assert [guest.state(i).apic.id for i in range(4)] == [0, 1, 2, 3]


def test_ipis_between_processors() -> None:
    """Two processors throw an interrupt back and forth 2000 times, sleeping in HLT in between."""
    with RawGuest(cpus=2) as guest:
        back = "inc dword ptr [0x4000]; mov dword ptr [0xfee000b0], 0; mov dword ptr [0xfee00310], {dest}\n" \
               "cmp dword ptr [0x4000], 2000; jae out{dest}; mov dword ptr [0xfee00300], 0x4050\nout{dest}: iret"
        ap32 = 0xA000
        guest.put(AP, assemble(f".intel_syntax noprefix\nmov ax, 0; mov ds, ax; lgdt [{AP + 0x80}]; mov eax, 0x11\n"
                               f"mov cr0, eax; ljmp 8, {ap32}", 16, AP).ljust(0x80, b"\0")
                  + (23).to_bytes(2, "little") + (0x7000).to_bytes(4, "little"))
        guest.put(ap32, assemble("mov ax, 16; mov ds, ax; mov ss, ax; mov esp, 0x4f00; lidt [0x4100]\n"
                                 "mov dword ptr [0xfee000f0], 0x1ff; mov dword ptr [0x4008], 1; sti; z: hlt; jmp z",
                                 32, ap32))
        # The AP's own interrupt table: a handler that answers to processor 0.
        other = 0xB000
        guest.put(0x4100, (0x7FF).to_bytes(2, "little") + other.to_bytes(4, "little"))
        for table, at, dest in ((0x6000, 0x41000, 1 << 24), (other, 0x42000, 0)):
            guest.put(at, assemble(back.format(dest=dest), 32, at))
            gate = at & 0xFFFF | 8 << 16 | 0x8E00 << 32 | (at >> 16) << 48
            guest.put(table + 8 * 0x50, gate.to_bytes(8, "little"))
        guest.start32("mov dword ptr [0xfee000f0], 0x1ff\n" + WAKE + "w: cmp dword ptr [0x4008], 1; jne w\n"
                      "mov dword ptr [0xfee00310], 0x1000000; mov dword ptr [0xfee00300], 0x4050; sti; z: hlt; jmp z")
        guest.run_threads(lambda: guest.get_int(0x4000, 4) == 2000)


def test_code_written_by_another_processor() -> None:
    """Processor 0 changes an immediate that processor 1 executes over and over; it must come to see each value."""
    with RawGuest(cpus=2) as guest:
        code = assemble("xor ax, ax; mov ds, ax; again: mov bx, 0; mov [0x4000], bx; jmp again", 16, AP)
        guest.put(AP, code)
        place = AP + code.index(b"\xbb\x00\x00") + 1
        guest.start32("mov dword ptr [0xfee000f0], 0x1ff\n" + WAKE + "mov ecx, 1; next: mov [" + str(place) + "], cx\n"
                      "w: cmp [0x4000], cx; jne w; inc ecx; cmp ecx, 500; jb next; mov dword ptr [0x4008], 1; cli; hlt")
        guest.run_threads(lambda: guest.get_int(0x4008, 4) == 1)


def test_map_changes_under_running_processors() -> None:
    """A page flips between two RAM blocks while two processors read it; each read sees one of the two."""
    with RawGuest(cpus=2) as guest:
        blocks = [lib.qpy_ram_alloc(guest.machine, 4096) for _ in range(2)]
        for n, block in enumerate(blocks):
            lib.qpy_ram_store(guest.machine, block, bytes([n + 1]) * 4096, 4096)

        def view(n: int) -> None:
            rest = guest.ram_range(0x3000, guest.ram_size - 0x3000, 0x3000)
            guest.set_view([guest.ram_range(0, 0x2000), {**rest, "gpa": 0x2000, "size": 4096, "ram_off": blocks[n],
                                                         "write_off": blocks[n]}, rest])

        check = "again: mov eax, [0x2000]; inc dword ptr [{n}]; cmp eax, 0x01010101; je again\n" \
                "cmp eax, 0x02020202; je again; mov dword ptr [0x4008], 1; cli; hlt"
        view(0)
        guest.put(AP, assemble("xor ax, ax; mov ds, ax\n" + check.format(n=0x4100), 16, AP))
        guest.start32("mov dword ptr [0xfee000f0], 0x1ff\n" + WAKE + check.format(n=0x4200))
        flips = 0

        def flip() -> bool:
            nonlocal flips
            flips += 1
            lib.qpy_bql_lock()
            view(flips & 1)
            lib.qpy_bql_unlock()
            return flips >= 300

        guest.run_threads(flip)
        assert guest.get_int(0x4008, 4) == 0
        assert guest.get_int(0x4100, 4) > 1000 and guest.get_int(0x4200, 4) > 1000


def test_bql_is_fair_and_excludes() -> None:
    counts = [0, 0, 0]
    total = 0
    stop = time.monotonic() + 0.3

    def work(n: int) -> None:
        nonlocal total
        while time.monotonic() < stop:
            lib.qpy_bql_lock()
            before = total
            counts[n] += 1
            total = before + 1
            lib.qpy_bql_unlock()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert total == sum(counts)
    assert min(counts) * 50 > max(counts)  # nobody starves; the GIL, which they need too, is less fair
    stats = ffi.new("QpyBqlStats *")
    lib.qpy_bql_stats(stats, 1)
    assert stats.acquired >= total and stats.contended > 0
    assert not lib.qpy_bql_held()
