"""The whole core on raw guest code: modes, I/O, doorbells, self-modifying code, map changes, dirty logs."""

from __future__ import annotations

import os

import pytest
from qemupy._core import ffi, lib
from rawguest import RawGuest, assemble


def test_real_mode_sum() -> None:
    with RawGuest() as guest:
        guest.start16("mov cx, 100; xor ax, ax; again: add ax, cx; loop again; hlt")
        guest.run_to_halt()
        assert guest.reg("rax") & 0xFFFF == 5050
        assert guest.state().halted == 1


def test_long_mode_memory_and_budget() -> None:
    with RawGuest() as guest:
        guest.start64("mov rcx, 1000; again: mov [rcx * 8 + 0x200000], rcx; dec rcx; jnz again; hlt")
        assert guest.run(301) == lib.QPY_EXIT_KICK
        assert guest.state().icount == 301
        assert guest.reg("rcx") == 900
        guest.run_to_halt()
        assert guest.get_int(0x200000 + 8 * 777) == 777
        assert guest.state().icount == 1 + 3 * 1000 + 1


def test_ports_and_strings() -> None:
    with RawGuest() as guest:
        out: list[tuple[int, int, int]] = []
        guest.pio_read = lambda port, size: {1: 0xAB, 2: 0xABCD, 4: 0x12345678}[size]
        guest.pio_write = lambda port, size, value: out.append((port, size, value))
        guest.put(0x3000, b"hello")
        guest.start32("in al, 0x60; out 0x80, al; mov dx, 0x402; mov esi, 0x3000; mov ecx, 5; rep outsb\n"
                      "mov edi, 0x4000; mov ecx, 3; rep insd; hlt")
        guest.run_to_halt()
        assert out[0] == (0x80, 1, 0xAB)
        assert bytes(value for port, _, value in out[1:] if port == 0x402) == b"hello"
        assert guest.get(0x4000, 12) == (0x12345678).to_bytes(4, "little") * 3


def test_every_segment_prefix_reaches_the_string_source() -> None:
    """Also ES, which is the fixed segment of the destination."""
    with RawGuest() as guest:
        out = bytearray()
        guest.pio_write = lambda port, size, value: out.append(value)
        guest.pio_write_string = lambda port, size, data: out.extend(data)
        for n, letter in enumerate(b"desfg"):
            guest.put(0x30000 + 0x1000 * n, bytes([letter] * 4))
        code = "mov dx, 0x402; mov bx, 0x3000; mov ss, bx; mov di, 0\n"
        for n, segment in enumerate(("ds", "es", "ss", "fs", "gs")):
            code += f"mov bx, {0x3000 + 0x100 * n}; mov {segment}, bx\n"
        for segment in ("ds", "es", "ss", "fs", "gs"):
            code += f"xor si, si; mov cx, 2; rep outsb dx, {segment}:[si]; lodsb al, {segment}:[si]; out dx, al\n"
            code += f"xor bx, bx; mov al, 1; xlatb {segment}:[bx]; out dx, al\n"
        guest.start16(code + "hlt")
        guest.run_to_halt()
        assert bytes(out) == b"ddddeeeessssffffgggg"


def test_device_memory_and_holes() -> None:
    with RawGuest() as guest:
        seen: list[tuple[int, int, int]] = []
        guest.mmio_read = lambda gpa, size: gpa & 0xFFFF
        guest.mmio_write = lambda gpa, size, value: seen.append((gpa, size, value))
        guest.set_view([guest.ram_range(), {"gpa": 0x20000000, "size": 0x1000, "kind": lib.QPY_RANGE_MMIO}])
        guest.start32("mov eax, [0x20000010]; mov word ptr [0x20000ff0], 0x55aa; mov ebx, [0x30000000]; hlt")
        guest.run_to_halt()
        assert guest.reg("rax") == 0x10
        assert seen == [(0x20000FF0, 2, 0x55AA)]
        assert guest.reg("rbx") == 0xFFFFFFFF


def test_rom_drops_writes() -> None:
    with RawGuest() as guest:
        rom = lib.qpy_ram_alloc(guest.machine, 4096)
        assert lib.qpy_ram_store(guest.machine, rom, b"\x11" * 16, 16) == 0
        guest.set_view([guest.ram_range(), {"gpa": 0xFFFFF000, "size": 4096, "ram_off": rom, "kind": lib.QPY_RANGE_ROM,
                                            "write_off": lib.QPY_WRITE_DROPPED}])
        guest.start32("mov dword ptr [0xfffff000], 5; mov eax, [0xfffff000]; hlt")
        guest.run_to_halt()
        assert guest.reg("rax") == 0x11111111


def test_doorbell_needs_no_upcall() -> None:
    with RawGuest() as guest:
        fd = os.eventfd(0)
        guest.pio_write = lambda port, size, value: pytest.fail("upcall")
        assert lib.qpy_doorbell_add(guest.machine, 0, 0x500, 2, 1, 7, fd) == 0
        guest.start32("mov dx, 0x500; mov ax, 7; out dx, ax; out dx, ax; hlt")
        guest.run_to_halt()
        assert os.eventfd_read(fd) == 2
        assert lib.qpy_doorbell_remove(guest.machine, 0, 0x500, 2, 1, 7) == 0
        os.close(fd)


def test_map_change_inside_an_upcall() -> None:
    """A port write replaces the page the next instructions read."""
    with RawGuest() as guest:
        page = lib.qpy_ram_alloc(guest.machine, 4096)
        lib.qpy_ram_store(guest.machine, page, b"\x22" * 4096, 4096)
        window = {"gpa": 0x2000, "size": 4096, "ram_off": page, "write_off": page, "kind": lib.QPY_RANGE_RAM}
        ranges = [guest.ram_range(0, 0x2000), window, guest.ram_range(0x3000, guest.ram_size - 0x3000, 0x3000)]
        guest.pio_write = lambda port, size, value: guest.set_view(ranges)
        guest.start32("mov eax, [0x2000]; out 0x80, al; mov ebx, [0x2000]; hlt")
        guest.run_to_halt()
        assert (guest.reg("rax"), guest.reg("rbx")) == (0, 0x22222222)


def test_a20_gate() -> None:
    with RawGuest() as guest:
        guest.put(0x1234, b"\x01\x02\x03\x04")
        guest.pio_write = lambda port, size, value: lib.qpy_machine_set_a20(guest.machine, value & 1)
        guest.start32("mov al, 0; out 0x92, al; mov ebx, [0x101234]; mov al, 1; out 0x92, al; mov ecx, [0x101234]; hlt",
                      at=0x10000)
        guest.run_to_halt()
        assert (guest.reg("rbx"), guest.reg("rcx")) == (0x04030201, 0)


def test_self_modifying_and_dma_changed_code() -> None:
    with RawGuest() as guest:
        guest.start32("mov ecx, 2; again: mov eax, 1; mov byte ptr [again + 1], 9; dec ecx; jnz again\n"
                      "in al, 0x10; out 0x10, al; nop; nop; nop; nop; nop; mov ebx, 3; hlt")
        where = guest.get(0x100000, 200).index(b"\xbb\x03\x00\x00\x00")
        guest.pio_write = lambda port, size, value: guest.put(0x100000 + where + 1, b"\x44")
        guest.run_to_halt()
        assert guest.reg("rbx") == 0x44
        assert guest.get(0x100000, 20)[6] == 9


def test_self_modification_takes_effect_at_once() -> None:
    with RawGuest() as guest:
        guest.start32("mov byte ptr [there + 1], 7; there: mov eax, 1; hlt")
        guest.run_to_halt()
        assert guest.reg("rax") == 7


def test_dirty_log() -> None:
    with RawGuest() as guest:
        guest.start32("mov ecx, 2; again: inc dword ptr [0x200000]; mov byte ptr [0x203fff], 1; out 0x80, al\n"
                      "loop again; hlt")
        base, size = guest.ram_off + 0x200000, 0x5000
        found: list[bytes] = []
        out = ffi.new("uint8_t[5]")

        def fetch(port: int, width: int, value: int) -> None:
            lib.qpy_dirty_fetch(guest.machine, lib.QPY_DIRTY_VGA, base, size, out)
            found.append(bytes(out))

        guest.pio_write = fetch
        lib.qpy_dirty_log(guest.machine, lib.QPY_DIRTY_VGA, base, size, 1)
        guest.put(0x202000, b"x")
        guest.run_to_halt()
        assert found == [b"\x01\x00\x01\x01\x00", b"\x01\x00\x00\x01\x00"]
        assert guest.get_int(0x200000, 4) == 2


def test_triple_fault_is_a_shutdown() -> None:
    with RawGuest() as guest:
        guest.start32("ud2", idt_limit=0)
        assert guest.run() == lib.QPY_EXIT_SHUTDOWN


def test_state_round_trip_and_hostile_state() -> None:
    with RawGuest() as guest:
        guest.start64("mov rax, 0x1122334455667788; movq xmm3, rax; fld1; pushf; mov r15, rsp; hlt; inc rax; hlt")
        guest.run_to_halt()
        state = guest.state()
        with RawGuest() as other:
            other.memory[:] = guest.memory[:]
            state.halted = 0
            other.set_state(state)
            again = other.state()
            assert bytes(ffi.buffer(again)) == bytes(ffi.buffer(state))
            other.run_to_halt()
            assert other.reg("rax") == 0x1122334455667789
        state.cr0 = 0x80000010  # paging without protection
        assert lib.qpy_vcpu_set_state(guest.vcpu, state) < 0


def test_debug_reads_and_disassembly() -> None:
    with RawGuest() as guest:
        guest.start64("mov rax, [rip + 5]; hlt")
        buf = ffi.new("char[]", 16)
        assert lib.qpy_vcpu_read(guest.vcpu, 0x100000, buf, 7) == 7
        assert lib.qpy_vcpu_read(guest.vcpu, 0x40000000, buf, 1) == 0
        gpa = ffi.new("uint64_t *")
        assert lib.qpy_vcpu_translate(guest.vcpu, 0x123456, gpa) == 0 and gpa[0] == 0x123456
        text = ffi.new("char[100]")
        assert lib.qpy_disassemble(0x100000, 64, buf, 16, text, 100) == 7
        assert ffi.string(text).decode() == "mov 0x5(%rip), %rax"


def test_view_must_be_sane() -> None:
    with RawGuest() as guest:
        for bad in ({"gpa": 1}, {"size": 0}, {"size": 1 << 40}, {"kind": 9}, {"ram_off": 1 << 50}):
            view = ffi.new("QpyMemRange[]", [guest.ram_range() | bad])
            assert lib.qpy_machine_set_view(guest.machine, view, 1) < 0
        two = ffi.new("QpyMemRange[]", [guest.ram_range(0, 0x3000), guest.ram_range(0x2000, 0x1000)])
        assert lib.qpy_machine_set_view(guest.machine, two, 2) < 0


def test_dma_bounds() -> None:
    with RawGuest() as guest:
        buf = ffi.new("char[16]", b"a" * 16)
        assert lib.qpy_dma_write(guest.machine, guest.ram_size - 8, buf, 16) < 0
        assert guest.get(guest.ram_size - 8, 16) == b"a" * 8 + b"\xff" * 8
        assert lib.qpy_dma_read(guest.machine, (1 << 64) - 8, buf, 16) < 0
        n = ffi.new("uint64_t *", 1 << 40)
        assert lib.qpy_dma_map(guest.machine, 0x1000, n, 1) != ffi.NULL and n[0] == guest.ram_size - 0x1000


def test_assembler_is_not_lying() -> None:
    assert assemble("mov eax, 1", 32) == b"\xb8\x01\x00\x00\x00"


@pytest.mark.parametrize("accel", ["interp", "dbt"])
def test_an_access_that_could_not_be_served_starts_again(accel: str) -> None:
    """Port and device-memory accesses of every kind; each is refused once, and what came before is not done twice."""
    with RawGuest(accel=accel) as guest:
        asked: list[str] = []

        def serve(what: str, value: int = 0) -> int:
            asked.append(what)
            if asked.count(what) == 1:
                lib.qpy_upcall_again()
                return 0xFF
            return value

        def store(what: str) -> None:
            serve(what)

        guest.pio_read = lambda port, size: serve("in", 0x21)
        guest.pio_write = lambda port, size, value: store(f"out {value:#x}")
        guest.mmio_read = lambda gpa, size: serve("load", 0x43)
        guest.mmio_write = lambda gpa, size, value: store(f"store {value:#x}")
        guest.set_view([guest.ram_range(), {"gpa": 0x20000000, "size": 0x1000, "kind": lib.QPY_RANGE_MMIO}])
        guest.start32("mov ebx, 1; in al, 0x60; inc ebx; out 0x80, al; inc ebx; add bl, [0x20000000]\n"
                      "mov [0x20000008], ebx; mov ecx, 2; mov edi, 0x20000010; mov esi, 0x5000\n"
                      "mov dword ptr [esi], 7; rep movsd; hlt")
        exits = []
        while not exits or exits[-1] != lib.QPY_EXIT_HALT:
            exits.append(guest.run(100_000))
        assert exits == [lib.QPY_EXIT_PAGEIN] * 6 + [lib.QPY_EXIT_HALT]
        assert guest.reg("rbx") == 3 + 0x43 and guest.reg("rcx") == 0 and guest.reg("rdi") == 0x20000018
        assert [asked.count(what) for what in ("in", "out 0x21", "load", "store 0x46", "store 0x7")] == [2, 2, 2, 2, 2]
