"""Raw guest code on the bare core: a machine with flat RAM, one or more vCPUs and no devices.

Code is assembled with the GNU assembler. `start16`, `start32`, `start64` put the first vCPU into that mode, with flat
segments and, in long mode, the first GiB mapped to itself. HLT with nothing pending ends `run`.
"""

from __future__ import annotations

import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qemupy._core import ffi, lib

PAGE_TABLES = 0x8000  # PML4, PDPT, page directory
GDT = 0x7000
IDT = 0x6000
REGISTERS = "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split()
CR0_PE, CR0_ET, CR0_NE, CR0_PG = 1, 1 << 4, 1 << 5, 1 << 31
ACCELS = {"interp": lib.QPY_ACCEL_INTERP, "dbt": lib.QPY_ACCEL_DBT}
TRANSLATOR = {"block": lib.QPY_DBT_LOCKSTEP, "chain": lib.QPY_DBT_LOCKSTEP_CHAIN, "eager": lib.QPY_DBT_EAGER}
CODE64, CODE32, CODE16, DATA = 0xA09B, 0xC09B, 0x009B, 0xC093


def assemble(text: str, bits: int = 64, at: int = 0) -> bytes:
    """Machine code of `text` (Intel syntax) for address `at`."""
    with tempfile.TemporaryDirectory() as name:
        tmp = Path(name)
        (tmp / "a.s").write_text(f".intel_syntax noprefix\n.code{bits}\n.globl _start\n_start:\n{text}\n")
        subprocess.run(["as", "-o", tmp / "a.o", tmp / "a.s"], check=True)
        subprocess.run(["ld", "-Ttext", hex(at), "--oformat", "binary", "-o", tmp / "a.bin", tmp / "a.o"],
                       check=True, stderr=subprocess.DEVNULL)
        return (tmp / "a.bin").read_bytes()


class RawGuest:
    """Port and device handlers may be replaced: `pio_read(port, size)`, `pio_write(port, size, value)` and so on.
    `accel`: what runs the vCPUs; `translator`: lock-step by block or chain, or eager to make regions; `shift`: the
    clock counts instructions, of 1 << shift ns each; `seed`: of RDRAND."""

    def __init__(self, ram: int = 16 << 20, cpus: int = 1, model: str = "max", *, accel: str = "interp",
                 translator: str = "", shift: int | None = None, sleeps: bool = False,
                 seed: int | None = None) -> None:  # fmt: skip
        self.clock = lib.qpy_clock_new()
        if shift is not None:
            lib.qpy_clock_count_instructions(self.clock, shift, lib.QPY_ICOUNT_SLEEPS * sleeps)
        self.machine = lib.qpy_machine_new(self.clock, max(64 << 20, ram * 2))
        assert self.machine != ffi.NULL
        if seed is not None:
            lib.qpy_machine_set_seed(self.machine, seed)
        if translator:
            lib.qpy_machine_set_translator(self.machine, 0, TRANSLATOR[translator])
        self.pio_read: Callable[[int, int], int] = lambda port, size: (1 << 8 * size) - 1
        self.pio_write: Callable[[int, int, int], None] = lambda port, size, value: None
        self.mmio_read: Callable[[int, int], int] = lambda gpa, size: (1 << 8 * size) - 1
        self.mmio_write: Callable[[int, int, int], None] = lambda gpa, size, value: None
        self.intack: Callable[[], int] = lambda: -1
        self.ferr: Callable[[], None] = lambda: None
        self.timers: Callable[[], None] = lambda: None
        self.eois: list[int] = []
        self._upcalls()
        self.ram_size = ram
        self.ram_off = lib.qpy_ram_alloc(self.machine, ram)
        self.memory = ffi.buffer(lib.qpy_ram_host(self.machine, self.ram_off), ram)
        self.set_view([self.ram_range()])
        self.vcpus: list[Any] = []
        error = ffi.new("char[200]")
        for _ in range(cpus):
            vcpu = lib.qpy_vcpu_new(self.machine, model.encode(), error, 200)
            assert vcpu != ffi.NULL, ffi.string(error).decode()
            assert lib.qpy_vcpu_set_accel(vcpu, ACCELS[accel]) == 0
            self.vcpus.append(vcpu)
        self.vcpu = self.vcpus[0]
        self.run_clock()

    def close(self) -> None:
        for vcpu in reversed(self.vcpus):
            lib.qpy_vcpu_free(vcpu)
        lib.qpy_machine_free(self.machine)
        lib.qpy_clock_free(self.clock)

    def __enter__(self) -> RawGuest:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _upcalls(self) -> None:
        def string_read(vcpu: int, port: int, size: int, count: int, buf: Any) -> None:
            data = b"".join(self.pio_read(port, size).to_bytes(size, "little") for _ in range(count))
            ffi.buffer(buf, size * count)[:] = data

        def string_write(vcpu: int, port: int, size: int, count: int, buf: Any) -> None:
            data = bytes(ffi.buffer(buf, size * count))
            for i in range(0, len(data), size):
                self.pio_write(port, size, int.from_bytes(data[i : i + size], "little"))

        handlers: dict[str, tuple[str, Callable[..., Any]]] = {
            "pio_read": ("uint32_t(uint32_t, uint32_t, uint32_t)", lambda v, p, n: self.pio_read(p, n)),
            "pio_write": ("void(uint32_t, uint32_t, uint32_t, uint32_t)", lambda v, p, n, x: self.pio_write(p, n, x)),
            "pio_read_string": ("void(uint32_t, uint32_t, uint32_t, uint32_t, void *)", string_read),
            "pio_write_string": ("void(uint32_t, uint32_t, uint32_t, uint32_t, const void *)", string_write),
            "mmio_read": ("uint64_t(uint32_t, uint64_t, uint32_t)", lambda v, a, n: self.mmio_read(a, n)),
            "mmio_write": ("void(uint32_t, uint64_t, uint32_t, uint64_t)", lambda v, a, n, x: self.mmio_write(a, n, x)),
            "intack": ("int32_t(uint32_t)", lambda v: self.intack()),
            "ferr": ("void(uint32_t)", lambda v: self.ferr()),
            "timers": ("void(uint32_t)", lambda v: self.timers()),
            "apic_eoi": ("void(uint32_t, uint32_t)", lambda v, vector: self.eois.append(vector)),
        }
        table = ffi.new("QpyUpcalls *")
        self._keep = [table]
        for name, (signature, function) in handlers.items():
            callback = ffi.callback(signature, function)
            self._keep.append(callback)
            setattr(table, name, callback)
        lib.qpy_machine_set_upcalls(self.machine, table)

    # Memory

    def ram_range(self, gpa: int = 0, size: int | None = None, offset: int = 0) -> dict[str, int]:
        at = self.ram_off + offset
        size = self.ram_size if size is None else size
        return {"gpa": gpa, "size": size, "ram_off": at, "write_off": at, "kind": lib.QPY_RANGE_RAM}

    def set_view(self, ranges: list[dict[str, int]]) -> None:
        assert lib.qpy_machine_set_view(self.machine, ffi.new("QpyMemRange[]", ranges), len(ranges)) == 0

    def put(self, gpa: int, data: bytes) -> None:
        assert lib.qpy_dma_write(self.machine, gpa, data, len(data)) == 0

    def get(self, gpa: int, size: int) -> bytes:
        buf = ffi.new("char[]", size)
        lib.qpy_dma_read(self.machine, gpa, buf, size)
        return bytes(ffi.buffer(buf, size))

    def get_int(self, gpa: int, size: int = 8) -> int:
        return int.from_bytes(self.get(gpa, size), "little")

    # State

    def state(self, cpu: int = 0) -> Any:
        state = ffi.new("QpyCpuState *")
        lib.qpy_vcpu_get_state(self.vcpus[cpu], state)
        return state

    def set_state(self, state: Any, cpu: int = 0) -> None:
        assert lib.qpy_vcpu_set_state(self.vcpus[cpu], state) == 0

    def reg(self, name: str, cpu: int = 0) -> int:
        state = self.state(cpu)
        return int(state.gpr[REGISTERS.index(name)]) if name in REGISTERS else int(getattr(state, name))

    def _segments(self, state: Any, code: int, data: int, limit: int) -> None:
        for i in range(6):
            state.seg[i] = {"base": 0, "limit": limit, "sel": 0x10, "rights": data}
        state.seg[lib.QPY_SEG_CS] = {"base": 0, "limit": limit, "sel": 8, "rights": code}
        descriptors = [0, *(0xFFFF | (r & 0xFF) << 40 | 0xF << 48 | (r >> 12 & 0xF) << 52 for r in (code, data))]
        self.put(GDT, b"".join(d.to_bytes(8, "little") for d in descriptors))
        state.gdt_base, state.gdt_limit = GDT, 23
        state.idt_base, state.idt_limit = IDT, 0xFFF

    def start16(self, code: str, at: int = 0x7C00, **registers: int) -> None:
        """Real mode, all segments 0."""
        state = self.state()
        for i in range(6):
            state.seg[i] = {"base": 0, "limit": 0xFFFF, "sel": 0, "rights": 0x93}
        state.idt_base, state.idt_limit = 0, 0x3FF
        state.cr0 = CR0_ET
        self._go(state, assemble(code, 16, at), at, registers)

    def start32(self, code: str, at: int = 0x100000, **registers: int) -> None:
        """Flat protected mode without paging."""
        state = self.state()
        self._segments(state, CODE32, DATA, 0xFFFFFFFF)
        state.cr0 = CR0_PE | CR0_ET | CR0_NE
        self._go(state, assemble(code, 32, at), at, registers)

    def start64(self, code: str, at: int = 0x100000, **registers: int) -> None:
        """Long mode, the first GiB identity-mapped with large pages; OSFXSR set."""
        state = self.state()
        self._segments(state, CODE64, DATA, 0xFFFFFFFF)
        self.put(PAGE_TABLES, (PAGE_TABLES + 0x1003).to_bytes(8, "little"))
        self.put(PAGE_TABLES + 0x1000, (PAGE_TABLES + 0x2003).to_bytes(8, "little"))
        self.put(PAGE_TABLES + 0x2000, b"".join((i << 21 | 0x83).to_bytes(8, "little") for i in range(512)))
        state.cr0, state.cr3, state.cr4 = CR0_PE | CR0_ET | CR0_NE | CR0_PG, PAGE_TABLES, 0x620
        state.efer = 0x500
        self._go(state, assemble(code, 64, at), at, registers)

    def _go(self, state: Any, code: bytes, at: int, registers: dict[str, int]) -> None:
        self.put(at, code)
        state.rip, state.rflags, state.halted = at, 2, 0
        state.gpr[4] = 0x5000
        for name, value in registers.items():
            if name in REGISTERS:
                state.gpr[REGISTERS.index(name)] = value
            else:
                setattr(state, name, value)
        self.set_state(state)

    def gate64(self, vector: int, handler: int) -> None:
        """An interrupt gate of the long-mode IDT."""
        gate = handler & 0xFFFF | 8 << 16 | 0x8E00 << 32 | (handler >> 16 & 0xFFFF) << 48
        self.put(IDT + 16 * vector, gate.to_bytes(8, "little") + (handler >> 32).to_bytes(8, "little"))

    def gate32(self, vector: int, handler: int) -> None:
        """An interrupt gate of the 32-bit IDT."""
        gate = handler & 0xFFFF | 8 << 16 | 0x8E00 << 32 | (handler >> 16) << 48
        self.put(IDT + 8 * vector, gate.to_bytes(8, "little"))

    # Running

    def run_clock(self, running: bool = True) -> None:
        now = lib.qpy_clock_now(self.clock)
        lib.qpy_clock_sync(self.clock, running, now - time.monotonic_ns() if running else now)

    def run(self, limit: int = 10_000_000) -> int:
        """Until HLT or at most `limit` instructions; the exit reason."""
        return int(lib.qpy_vcpu_run_n(self.vcpu, limit))

    def run_threads(self, done: Callable[[], bool], seconds: float = 20) -> None:
        """All vCPUs on threads of their own, HLT and all, until `done`; then they are kicked."""
        reasons: list[int] = []
        threads = [threading.Thread(target=lambda v=v: reasons.append(lib.qpy_vcpu_run(v))) for v in self.vcpus]
        for thread in threads:
            thread.start()
        end = time.monotonic() + seconds
        while not done() and time.monotonic() < end and len(reasons) < len(threads):
            time.sleep(0.001)
        for vcpu in self.vcpus:
            lib.qpy_vcpu_kick(vcpu)
        for thread in threads:
            thread.join()
        assert done(), f"not done; exits {reasons}, rip {self.reg('rip'):#x}"
        assert reasons == [lib.QPY_EXIT_KICK] * len(threads)

    def run_to_halt(self, limit: int = 10_000_000) -> None:
        reason = self.run(limit)
        assert reason == lib.QPY_EXIT_HALT, f"exit {reason}, rip {self.reg('rip'):#x}"
