"""What monitors can do, as typed functions on a Vm. QMP's names; HMP handlers print what these answer.

All run in the main loop with the BQL held. Mistakes are MonitorError.
"""

from __future__ import annotations

import collections
import functools
import os
from collections.abc import Callable
from typing import Any, TypeVar, cast

from qemupy.errors import MonitorError
from qemupy.records import record
from qemupy.vm import RunState, Vm

QEMU_VERSION = (7, 2, 22)
_CHUNK = 1 << 20


@record(frozen=True)
class StatusInfo:
    running: bool
    singlestep: bool
    status: RunState


@record(frozen=True)
class VersionInfo:
    qemu: tuple[int, int, int]
    package: str


@record(frozen=True)
class CpuInfo:
    cpu_index: int
    thread_id: int


@record(frozen=True)
class JitInfo:
    """Sums over all vCPUs. Blocks are decoded ones, or translated ones where a translator runs."""

    accel: str
    instructions: int
    blocks: int
    decoded: int  # instructions
    invalidated: int  # blocks whose code was written to
    tlb_fills: int
    tlb_flushes: int
    exceptions: int
    interrupts: int
    port_accesses: int
    mmio_accesses: int
    translator: dict[str, int]  # counters of the translator, empty where there is none
    handlers: dict[str, int]  # instructions left to handlers while `-d handler` was on, most frequent first
    times: dict[str, int]  # ns of the vCPUs' threads
    drift: tuple[int, int, int] | None  # -icount: ns behind the host at most, ahead at most, ahead now


F = TypeVar("F", bound=Callable[..., Any])


def exclusive(command: F) -> F:
    """A command that changes run state, disks or devices: refused while a job works on them."""

    @functools.wraps(command)
    def checked(vm: Vm, *args: Any, **kwargs: Any) -> Any:
        vm.jobs.check_idle(command.__name__)
        return command(vm, *args, **kwargs)

    return cast(F, checked)


def query_status(vm: Vm) -> StatusInfo:
    return StatusInfo(vm.running, vm.accel.one_insn, vm.run_state)


def query_version(vm: Vm) -> VersionInfo:
    from qemupy import __version__

    return VersionInfo(QEMU_VERSION, f"qemupy {__version__}")


def query_name(vm: Vm) -> str:
    return vm.config.name


def query_uuid(vm: Vm) -> str:
    return vm.config.uuid or "00000000-0000-0000-0000-000000000000"


def query_cpus_fast(vm: Vm) -> list[CpuInfo]:
    return [CpuInfo(t.vcpu.index, t.thread.native_id or 0) for t in vm.manager.threads]


@exclusive
def stop(vm: Vm) -> None:
    if vm.run_state != RunState.INMIGRATE:
        vm.stop()


@exclusive
def cont(vm: Vm) -> None:
    if vm.run_state == RunState.INTERNAL_ERROR:
        raise MonitorError("Resetting the Virtual Machine is required")
    if vm.run_state != RunState.INMIGRATE:  # there it goes on by itself
        vm.cont()


@exclusive
def system_reset(vm: Vm) -> None:
    vm.request_reset("host-qmp-system-reset")


def system_powerdown(vm: Vm) -> None:
    vm.powerdown()


def quit(vm: Vm) -> None:
    vm.request_shutdown("host-qmp-quit")


def inject_nmi(vm: Vm) -> None:
    vm.nmi()


def send_key(vm: Vm, keys: list[str], hold_time: int = 100) -> None:
    """All keys down in order, and up again in the reverse order after `hold_time` ms of guest time."""
    keyboard = vm.keyboard
    if keyboard is None:
        raise MonitorError("this machine has no keyboard")
    for key in keys:
        keyboard.key(key, True)

    def release() -> None:
        for key in reversed(keys):
            keyboard.key(key, False)

    clock = vm.loop.virtual
    clock.timer(release).mod(clock.now() + max(hold_time, 1) * 1_000_000)


def screendump(vm: Vm, filename: str, format: str = "ppm") -> None:
    """The screen as a PPM (P6) or PNG file."""
    if vm.screen is None:
        raise MonitorError("no graphical console")
    if format not in ("ppm", "png"):
        raise MonitorError(f"Parameter 'format' does not accept value '{format}'")
    width, height, rgb = vm.screen.screenshot()
    data = _png(width, height, rgb) if format == "png" else f"P6\n{width} {height}\n255\n".encode() + rgb
    _write_file(filename, data)


_TRANSLATOR_COUNTERS = (
    ("translated blocks", "jit_blocks"), ("of these regions", "jit_regions"), ("host code bytes", "jit_bytes"),
    ("code cache in use", "jit_used"), ("code cache flushes", "jit_flushes"), ("entered", "jit_entered"),
    ("exits linked", "jit_linked"),
    ("exits unlinked", "jit_unlinked"), ("jump cache fills", "jit_cached"), ("left by poll", "jit_poll"),
    ("left by handler", "jit_exit_handler"), ("left by unlinked exit", "jit_exit_unlinked"),
    ("left by missed target", "jit_exit_missed"), ("left by group check", "jit_group_failed"),
    ("strips of loops", "jit_strips"), ("handler calls", "jit_helper"), ("host exceptions", "jit_faults"),
    ("blocks interpreted", "jit_interpreted"), ("blocks compared", "jit_compared"),
)  # fmt: skip


def query_jit(vm: Vm) -> JitInfo:
    """What the vCPUs have done since the machine was made."""
    stats = [vcpu.stats() for vcpu in vm.vcpus]

    def total(name: str) -> int:
        return sum(getattr(s, name) for s in stats)

    translator = {} if vm.accel.name == "interp" else {
        label: total(name) for label, name in _TRANSLATOR_COUNTERS
    }  # fmt: skip
    times = {} if vm.accel.name == "interp" else {
        "translation": total("jit_translate_ns"), "interpretation": total("jit_interpret_ns"),
    }  # fmt: skip
    times["devices"] = total("device_ns")
    handlers: collections.Counter[str] = collections.Counter()
    for vcpu in vm.vcpus:
        handlers.update(vcpu.handlers())
    counted = vm.config.icount is not None and vm.accel.clock is not None
    return JitInfo(
        accel=vm.accel.name, instructions=total("icount"), blocks=total("block"), decoded=total("decode"),
        invalidated=total("smc"), tlb_fills=total("tlb_fill"), tlb_flushes=total("tlb_flush"),
        exceptions=total("exc"), interrupts=total("irq"), port_accesses=total("pio"), mmio_accesses=total("mmio"),
        translator=translator, times=times, handlers=dict(handlers.most_common()),
        drift=vm.accel.clock.drift() if counted and vm.accel.clock is not None else None,
    )  # fmt: skip


def _png(width: int, height: int, rgb: bytes) -> bytes:
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + rgb[y * width * 3 : (y + 1) * width * 3] for y in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")
    )


def _write_file(filename: str, data: bytes) -> None:
    try:
        with open(filename, "wb") as file:
            file.write(data)
    except OSError as e:
        raise MonitorError(f"failed to open file '{filename}': {os.strerror(e.errno or 0)}") from None


def memsave(vm: Vm, val: int, size: int, filename: str, cpu_index: int = 0) -> None:
    """Guest-virtual memory to a file."""
    with vm.paused():
        data = vm.vcpus[cpu_index].read(val & (1 << 64) - 1, _sane(size))
    if len(data) < size:
        raise MonitorError(f"Invalid addr 0x{val:016x}/size {size} specified")
    _write_file(filename, data)


def pmemsave(vm: Vm, val: int, size: int, filename: str) -> None:
    """Guest-physical memory to a file."""
    _write_file(filename, vm.dma.read(val & (1 << 64) - 1, _sane(size)))


def _sane(size: int) -> int:
    if not 0 <= size <= 1 << 40:
        raise MonitorError(f"size {size} is out of range")
    return size
