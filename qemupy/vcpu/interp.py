"""The C core (csrc/api.h) behind the `Accel` Protocol, whichever of its accelerators runs the vCPUs.

Upcalls are process-wide C entry points that carry a vCPU id; a table by id leads to the machine's `Upcalls`. A handler
that raises is caught here, in the trampoline: the error goes to `Upcalls.failed`, the guest sees ones.
"""

from __future__ import annotations

import errno
import os
from array import array
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from qemupy import trace
from qemupy._core import ffi, lib
from qemupy.accel_options import AccelConfig, Icount
from qemupy.errors import BackendError, ConfigError, PageInError
from qemupy.main_loop.bql import Bql, CoreBql
from qemupy.main_loop.clocks import CountingCore
from qemupy.memory.core import PAGE, CoreMemory, CoreRange, DirtyClient, Doorbell, RamBlock, RamExtent
from qemupy.memory.virtqueue import Virtqueue
from qemupy.scatter import PIECE, Scatter, words
from qemupy.vcpu.accel import Upcalls
from qemupy.vcpu.virtqueue import CoreVirtqueue

_by_vcpu: list[Upcalls] = []


def _failed(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """cffi does not say which call failed; with one machine in the process it is that machine's. An access that met
    memory that cannot be read has done nothing yet: the vCPU leaves, and its instruction starts again."""
    if isinstance(error, PageInError):
        lib.qpy_upcall_again()
        return
    for upcalls in {id(u): u for u in _by_vcpu}.values():
        upcalls.failed(error.with_traceback(traceback))


@ffi.def_extern(error=0xFFFFFFFF, onerror=_failed)  # type: ignore[untyped-decorator]
def qpy_up_pio_read(vcpu: int, port: int, size: int) -> int:
    return _by_vcpu[vcpu].pio_read(port, size)


@ffi.def_extern(onerror=_failed)  # type: ignore[untyped-decorator]
def qpy_up_pio_write(vcpu: int, port: int, size: int, value: int) -> None:
    up = _by_vcpu[vcpu]
    up.callers.entered = True
    try:
        up.pio_write(port, size, value)
    finally:
        up.callers.leave()


@ffi.def_extern(onerror=_failed)  # type: ignore[untyped-decorator]
def qpy_up_pio_read_string(vcpu: int, port: int, size: int, count: int, buf: Any) -> None:
    ffi.buffer(buf, size * count)[:] = _by_vcpu[vcpu].pio_read_string(port, size, count)


@ffi.def_extern(onerror=_failed)  # type: ignore[untyped-decorator]
def qpy_up_pio_write_string(vcpu: int, port: int, size: int, count: int, buf: Any) -> None:
    up = _by_vcpu[vcpu]
    up.callers.entered = True
    try:
        up.pio_write_string(port, size, bytes(ffi.buffer(buf, size * count)))
    finally:
        up.callers.leave()


@ffi.def_extern(error=0xFFFFFFFFFFFFFFFF, onerror=_failed)  # type: ignore[untyped-decorator]
def qpy_up_mmio_read(vcpu: int, gpa: int, size: int) -> int:
    return _by_vcpu[vcpu].mmio_read(gpa, size)


@ffi.def_extern(onerror=_failed)  # type: ignore[untyped-decorator]
def qpy_up_mmio_write(vcpu: int, gpa: int, size: int, value: int) -> None:
    up = _by_vcpu[vcpu]
    up.callers.entered = True
    try:
        up.mmio_write(gpa, size, value)
    finally:
        up.callers.leave()


@ffi.def_extern(error=-1, onerror=_failed)  # type: ignore[untyped-decorator]
def qpy_up_intack(vcpu: int) -> int:
    return _by_vcpu[vcpu].intack()


@ffi.def_extern(onerror=_failed)  # type: ignore[untyped-decorator]
def qpy_up_apic_eoi(vcpu: int, vector: int) -> None:
    _by_vcpu[vcpu].apic_eoi(vector)


@ffi.def_extern(onerror=_failed)  # type: ignore[untyped-decorator]
def qpy_up_ferr(vcpu: int) -> None:
    _by_vcpu[vcpu].ferr()


@ffi.def_extern(onerror=_failed)  # type: ignore[untyped-decorator]
def qpy_up_timers(vcpu: int) -> None:
    _by_vcpu[vcpu].timers()


_UPCALL_NAMES = (
    "pio_read", "pio_write", "pio_read_string", "pio_write_string", "mmio_read", "mmio_write", "intack", "apic_eoi",
    "ferr", "timers",
)  # fmt: skip


_LOG_BITS = (
    (trace.IN_ASM, lib.QPY_LOG_IN_ASM), (trace.INT, lib.QPY_LOG_INT), (trace.EXEC, lib.QPY_LOG_EXEC),
    (trace.CPU, lib.QPY_LOG_CPU), (trace.CPU_RESET, lib.QPY_LOG_CPU_RESET), (trace.UNIMP, lib.QPY_LOG_UNIMP),
    (trace.GUEST_ERRORS, lib.QPY_LOG_GUEST_ERRORS), (trace.MMU, lib.QPY_LOG_MMU), (trace.FPU, lib.QPY_LOG_FPU),
    (trace.OUT_ASM, lib.QPY_LOG_OUT_ASM), (trace.OP, lib.QPY_LOG_OP), (trace.NOCHAIN, lib.QPY_LOG_NOCHAIN),
    (trace.PCALL, lib.QPY_LOG_PCALL), (trace.HANDLER, lib.QPY_LOG_HANDLER),
)  # fmt: skip


class InterpClock:
    def __init__(self) -> None:
        self.handle = ffi.gc(lib.qpy_clock_new(), lib.qpy_clock_free)

    def sync(self, running: bool, value: int) -> None:
        lib.qpy_clock_sync(self.handle, running, value)

    def count_instructions(self, icount: Icount) -> None:
        flags = (lib.QPY_ICOUNT_SLEEPS * icount.sleep | lib.QPY_ICOUNT_ALIGNED * icount.align
                 | lib.QPY_ICOUNT_ADAPTIVE * icount.adaptive)  # fmt: skip
        lib.qpy_clock_count_instructions(self.handle, icount.shift, flags)

    def now(self) -> int:
        return int(lib.qpy_clock_now(self.handle))

    def set_deadline(self, deadline: int | None) -> None:
        lib.qpy_clock_set_deadline(self.handle, -1 if deadline is None else deadline)

    def drift(self) -> tuple[int, int, int]:
        delay, advance, now = (ffi.new("int64_t *") for _ in range(3))
        lib.qpy_clock_drift(self.handle, delay, advance, now)
        return int(delay[0]), int(advance[0]), int(now[0])


class InterpMemory:
    """RAM space: one host mapping, seen through one memoryview over all blocks taken so far."""

    def __init__(self, machine: Any) -> None:
        self._machine = machine
        self._view = memoryview(b"")
        self.blocks: list[RamBlock] = []
        self._extents: tuple[Sequence[RamExtent], Any] = ((), ffi.NULL)
        self.mapped = False  # parts of it may lie in a file

    def alloc(self, name: str, size: int) -> RamBlock:
        offset = int(lib.qpy_ram_alloc(self._machine, size))
        if offset < 0:
            raise BackendError(f"cannot set up guest memory '{name}': Cannot allocate memory")
        end = max(offset + -(-size // PAGE) * PAGE, len(self._view))
        self._view = memoryview(ffi.buffer(lib.qpy_ram_host(self._machine, 0), end))
        self.blocks.append(RamBlock(name, offset, size))
        return self.blocks[-1]

    def view(self, offset: int, size: int) -> memoryview:
        if self.mapped:
            _check_paged(lib.qpy_ram_claim(self._machine, offset, size, False))
        return self._view[offset : offset + size]

    def claim(self, offset: int, size: int) -> None:
        if self.mapped:
            _check_paged(lib.qpy_ram_claim(self._machine, offset, size, True))

    def scatter(self, pieces: bytes, to_memory: bool) -> Scatter | None:
        out = bytearray(8 + len(pieces))
        count = lib.qpy_dma_scatter(self._machine, words(pieces), len(pieces) // PIECE, to_memory, words(out))
        if count == -errno.EFAULT:
            return None
        _check_paged(count)
        return Scatter(bytes(memoryview(out)[8 : 8 + PIECE * count]), int.from_bytes(out[:8], "little"))

    def landed(self, scatter: Scatter) -> None:
        lib.qpy_iov_landed(self._machine, words(scatter.table), len(scatter))

    def set_ranges(self, ranges: Sequence[CoreRange]) -> None:
        table = ffi.new("QpyMemRange[]", max(len(ranges), 1))
        for entry, r in zip(table, ranges, strict=False):
            entry.gpa, entry.size, entry.kind = r.gpa, r.size, r.kind
            entry.ram_off, entry.write_off, entry.write_upcall = r.ram_off, r.write_off, r.write_upcall
        if lib.qpy_machine_set_view(self._machine, table, len(ranges)):
            raise BackendError("the core refuses the memory map")

    def store(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        _check_paged(lib.qpy_ram_store(self._machine, offset, ffi.from_buffer(data), len(data)))

    def changed(self, ranges: array[int]) -> None:
        lib.qpy_ram_changed(self._machine, ffi.from_buffer("uint64_t[]", ranges), len(ranges) // 2)

    @property
    def size(self) -> int:
        return len(self._view)

    def dirty_log(self, client: DirtyClient, on: bool) -> None:
        lib.qpy_dirty_log(self._machine, client, 0, self.size, on)

    def dirty_fetch(self, client: DirtyClient) -> bytes:
        dirty = ffi.new("uint8_t[]", self.size // PAGE)
        lib.qpy_dirty_fetch(self._machine, client, 0, self.size, dirty)
        return bytes(ffi.buffer(dirty))

    def nonzero(self, offset: int, size: int, granule: int = PAGE) -> bytes:
        out = ffi.new("uint8_t[]", -(-size // granule))
        _check_paged(lib.qpy_ram_nonzero(self._machine, offset, size, granule, out))
        return bytes(ffi.buffer(out))

    def _table(self, extents: Sequence[RamExtent]) -> Any:
        """The last table is kept: a snapshot is restored again and again."""
        if self._extents[0] is not extents:
            table = ffi.new("QpyRamExtent[]", [(e.ram_off, e.size, e.file_off, e.fd) for e in extents])
            self._extents = (extents, table)
        return self._extents[1]

    def load(self, extents: Sequence[RamExtent], map: bool) -> None:
        _check(lib.qpy_ram_load(self._machine, self._table(extents), len(extents), map))
        self.mapped = map and bool(extents)

    def restore(self, client: DirtyClient, extents: Sequence[RamExtent], limit: int) -> int | None:
        count = int(lib.qpy_ram_restore(self._machine, client, self._table(extents), len(extents), limit))
        return None if count == -errno.E2BIG else _check(count)

    def detach(self, extents: Sequence[RamExtent]) -> None:
        for e in extents:
            _check(lib.qpy_ram_detach(self._machine, e.ram_off, e.size))

    def watch_page_in(self, fd: int) -> None:
        lib.qpy_pagein_watch(self._machine, fd)

    def page_in_failures(self) -> tuple[int, int]:
        lost = ffi.new("uint32_t *")
        failed = int(lib.qpy_pagein_failures(self._machine, lost))
        return failed, int(lost[0])


def _check(result: int) -> int:
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


def _check_paged(result: int) -> None:
    """What is asked for lies within RAM, so that this is the only thing that can fail."""
    if result == -errno.EIO:
        raise PageInError("guest memory cannot be read from the image: Input/output error")


class InterpVcpu:
    def __init__(self, accel: InterpAccel, machine: Any, model: str) -> None:
        message = ffi.new("char[]", 512)
        handle = lib.qpy_vcpu_new(machine, model.encode(), message, 512)
        if not handle:
            raise ConfigError(ffi.string(message).decode(errors="replace"))
        self.handle = handle
        if lib.qpy_vcpu_set_accel(handle, _ACCELS[accel.name]):
            lib.qpy_vcpu_free(handle)
            raise ConfigError(f"accelerator {accel.name} cannot run on this host (it needs BMI2); use -accel interp")
        self.index = int(lib.qpy_vcpu_index(handle))
        number = int(lib.qpy_vcpu_id(handle))
        while len(_by_vcpu) <= number:
            _by_vcpu.append(accel.upcalls)
        _by_vcpu[number] = accel.upcalls

    def features(self) -> list[str]:
        return [name for number, name in enumerate(cpu_features()) if lib.qpy_vcpu_has_feature(self.handle, number)]

    def missing_features(self) -> list[str]:
        out = ffi.new("char[]", 128)
        missing: list[str] = []
        while lib.qpy_vcpu_missing_feature(self.handle, len(missing), out, 128):
            missing.append(ffi.string(out).decode())
        return missing

    def run(self) -> int:
        return int(lib.qpy_vcpu_run(self.handle))

    def kick(self) -> None:
        lib.qpy_vcpu_kick(self.handle)

    def reset(self) -> None:
        lib.qpy_vcpu_reset(self.handle)

    def set_intr(self, level: bool) -> None:
        lib.qpy_vcpu_set_intr(self.handle, level)

    def ignne(self) -> None:
        lib.qpy_vcpu_ignne(self.handle)

    def nmi(self) -> None:
        lib.qpy_vcpu_nmi(self.handle)

    def state(self) -> Any:
        out = ffi.new("QpyCpuState *")
        lib.qpy_vcpu_get_state(self.handle, out)
        return out

    def set_state(self, state: Any) -> None:
        if lib.qpy_vcpu_set_state(self.handle, state):
            raise ValueError("not a CPU state")

    def stats(self) -> Any:
        out = ffi.new("QpyVcpuStats *")
        lib.qpy_vcpu_stats(self.handle, out)
        return out

    def handlers(self) -> dict[str, int]:
        """Calls of instruction handlers from translated code, by instruction, while `-d handler` was on."""
        out = ffi.new("QpyHandlerCount[1024]")
        n = lib.qpy_vcpu_handlers(self.handle, out, len(out))
        return {ffi.string(out[i].name).decode(): out[i].calls for i in range(n)}

    def translate(self, linear: int) -> int | None:
        gpa = ffi.new("uint64_t *")
        return None if lib.qpy_vcpu_translate(self.handle, linear, gpa) else int(gpa[0])

    def read(self, linear: int, size: int) -> bytes:
        """From the start as many bytes as are mapped."""
        data = bytearray(size)
        count = int(lib.qpy_vcpu_read(self.handle, linear, ffi.from_buffer(data), size))
        return bytes(data[: max(count, 0)])


_ACCELS = {"interp": lib.QPY_ACCEL_INTERP, "dbt": lib.QPY_ACCEL_DBT}


class InterpAccel:
    """One machine in the core. `config` says what runs its vCPUs, `icount` that instructions drive its clock; `seed`
    makes the guest's random numbers repeat themselves."""

    def __init__(self, max_ram: int, config: AccelConfig | None = None, *, icount: Icount | None = None,
                 seed: int | None = None, perfmap: bool = False) -> None:  # fmt: skip
        config = config if config is not None else AccelConfig()
        self.name = config.name
        self.one_insn = config.one_insn_per_tb
        self.bql: Bql = CoreBql(lib.qpy_bql_lock, lib.qpy_bql_unlock)
        clock = InterpClock()
        if icount is not None:
            clock.count_instructions(icount)
        self.clock: CountingCore | None = clock
        machine = lib.qpy_machine_new(clock.handle, max_ram)
        if not machine:
            raise BackendError("cannot reserve address space for guest memory: Cannot allocate memory")
        self._machine = machine
        flags = lib.QPY_DBT_ONE_INSN * config.one_insn_per_tb | lib.QPY_DBT_PERFMAP * perfmap
        flags |= {"": 0, "block": lib.QPY_DBT_LOCKSTEP, "chain": lib.QPY_DBT_LOCKSTEP_CHAIN}[config.lockstep]
        lib.qpy_machine_set_translator(machine, config.tb_size << 20, flags)
        if seed is not None:
            lib.qpy_machine_set_seed(machine, seed)
        self.memory: CoreMemory = InterpMemory(machine)
        self.upcalls = Upcalls()
        self.vcpus: list[InterpVcpu] = []
        table = ffi.new("QpyUpcalls *")
        for name in _UPCALL_NAMES:
            setattr(table, name, getattr(lib, f"qpy_up_{name}"))
        lib.qpy_machine_set_upcalls(machine, table)

    def set_one_insn(self, on: bool) -> None:
        self.one_insn = on
        lib.qpy_machine_set_one_insn(self._machine, on)

    def create_vcpu(self, model: str) -> InterpVcpu:
        self.vcpus.append(InterpVcpu(self, self._machine, model))
        return self.vcpus[-1]

    def set_a20(self, enabled: bool) -> None:
        lib.qpy_machine_set_a20(self._machine, enabled)

    def apic_deliver(self, dest: int, logical: bool, mode: int, vector: int, level: bool) -> None:
        lib.qpy_apic_deliver(self._machine, dest, logical, mode, vector, level)

    def msi(self, address: int, data: int) -> None:
        lib.qpy_apic_msi(self._machine, address, data)

    def add_doorbell(self, bell: Doorbell) -> bool:
        match, value = bell.value is not None, bell.value or 0
        result = lib.qpy_doorbell_add(self._machine, bell.mmio, bell.address, bell.size, match, value, bell.fd)
        return bool(result != -errno.ENOSPC)

    def remove_doorbell(self, bell: Doorbell) -> None:
        match, value = bell.value is not None, bell.value or 0
        _check(lib.qpy_doorbell_remove(self._machine, bell.mmio, bell.address, bell.size, match, value))

    def virtqueue(self) -> Virtqueue:
        return CoreVirtqueue(self._machine)

    def disassemble(self, rip: int, bits: int, code: bytes) -> tuple[str, int]:
        out = ffi.new("char[]", 256)
        length = int(lib.qpy_disassemble(rip, bits, code, len(code), out, 256))
        return ffi.string(out).decode(), length

    def set_log(self, mask: int) -> None:
        bits = sum(core for ours, core in _LOG_BITS if mask & ours)
        lib.qpy_log_set(bits, trace.fileno())

    def set_log_ranges(self, ranges: Sequence[tuple[int, int]]) -> None:
        """First and last address of each stretch of code to log; none: all."""
        ends = ffi.new("uint64_t[]", [end for pair in ranges for end in pair])
        if lib.qpy_log_set_ranges(ends, len(ranges)):
            raise ConfigError(f"-dfilter: {len(ranges)} ranges are too many")

    def close(self) -> None:
        """With no vCPU running."""
        for vcpu in self.vcpus:
            lib.qpy_vcpu_free(vcpu.handle)
        self.vcpus.clear()
        if self._machine:
            lib.qpy_machine_free(self._machine)
            self._machine = None


def cpu_models() -> list[tuple[str, str]]:
    """Name and brand of every CPU model."""
    models: list[tuple[str, str]] = []
    while name := lib.qpy_cpu_model_name(len(models)):
        brand = lib.qpy_cpu_model_brand(len(models))
        models.append((ffi.string(name).decode(), ffi.string(brand).decode()))
    return models


def cpu_features() -> list[str]:
    """The feature names that `-cpu MODEL,+feature` takes."""
    names: list[str] = []
    while name := lib.qpy_cpu_feature_name(len(names)):
        names.append(ffi.string(name).decode())
    return names
