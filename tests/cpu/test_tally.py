"""-d handler: which instructions translated code leaves to their handlers."""

from __future__ import annotations

from qemupy._core import ffi, lib
from rawguest import RawGuest

MOST = 1024


def handlers(counted: bool) -> dict[str, int]:
    with RawGuest(accel="dbt") as guest:
        lib.qpy_log_set(lib.QPY_LOG_HANDLER if counted else 0, -1)
        try:
            done: list[int] = []
            guest.pio_write = lambda port, size, value: done.append(port)
            guest.start64("mov esi, 1000\n again: cpuid\n mov ecx, 2\n lea rdi, [0x200000]\n repne scasb\n add rbx, 1\n"
                          "dec esi\n jnz again\n out 0x80, al\n hlt")
            guest.run_threads(lambda: bool(done))
        finally:
            lib.qpy_log_set(0, -1)
        out = ffi.new(f"QpyHandlerCount[{MOST}]")
        n = lib.qpy_vcpu_handlers(guest.vcpu, out, MOST)
        assert lib.qpy_vcpu_handlers(guest.vcpu, out, 0) == n
        return {ffi.string(out[i].name).decode(): int(out[i].calls) for i in range(n)}


def test_calls_are_counted_by_instruction() -> None:
    counts = handlers(True)
    assert 980 <= counts["cpuid (0f a2)"] <= 1000 and counts["rep scasb (ae)"] >= 980
    assert not any(name.startswith(("add", "mov", "dec")) for name in counts)


def test_nothing_is_counted_unless_asked() -> None:
    assert handlers(False) == {}
