"""What runs guest code, as the machine sees it. `interp.py` is our core; tests pass `FakeAccel`."""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Protocol

from qemupy.main_loop.bql import Bql, ThreadBql
from qemupy.main_loop.clocks import CountingCore
from qemupy.main_loop.workers import CallersJobs
from qemupy.memory import CoreMemory, Doorbell, PyCoreMemory, Virtqueue
from qemupy.records import field, record


class Exit(enum.IntEnum):
    """Why a vCPU left guest code (csrc/api.h)."""

    KICK = 1
    SHUTDOWN = 2
    RESET = 3
    DEBUG = 4
    ERROR = 5
    HALT = 6
    PAGE_IN = 7


def _ones(port: int, size: int) -> int:
    return (1 << size * 8) - 1


@record()
class Upcalls:
    """Calls out of guest code, on the vCPU's thread with the BQL held. The board and the Vm fill the table."""

    pio_read: Callable[[int, int], int] = _ones
    pio_write: Callable[[int, int, int], None] = lambda port, size, value: None
    pio_read_string: Callable[[int, int, int], bytes] = lambda port, size, count: b"\xff" * (size * count)
    pio_write_string: Callable[[int, int, bytes], None] = lambda port, size, data: None
    mmio_read: Callable[[int, int], int] = _ones
    mmio_write: Callable[[int, int, int], None] = lambda gpa, size, value: None
    intack: Callable[[], int] = lambda: -1
    apic_eoi: Callable[[int], None] = lambda vector: None
    ferr: Callable[[], None] = lambda: None  # FERR#, for IRQ 13
    timers: Callable[[], None] = lambda: None  # a clock that counts instructions has come to its deadline
    failed: Callable[[BaseException], None] = lambda error: None  # a handler raised
    callers: CallersJobs = field(factory=lambda: CallersJobs(ThreadBql()))  # what handlers of writes leave to be done


class Vcpu(Protocol):
    index: int

    def features(self) -> list[str]:
        """CPUID features the guest is offered, by QEMU's names."""

    def missing_features(self) -> list[str]:
        """What `-cpu` asked for and no guest can have on this host, in CPUID's terms."""

    def run(self) -> int:
        """Guest code until an exit, without BQL and GIL; an `Exit`."""

    def kick(self) -> None: ...

    def reset(self) -> None: ...

    def set_intr(self, level: bool) -> None:
        """The 8259's INTR."""

    def nmi(self) -> None: ...

    def ignne(self) -> None:
        """The chipset asserts IGNNE# (a write to port F0h)."""

    def state(self) -> Any:
        """The registers as an object with api.h's names (QpyCpuState). Only while paused."""

    def set_state(self, state: Any) -> None: ...

    def stats(self) -> Any:
        """Counters with api.h's names (QpyVcpuStats)."""

    def handlers(self) -> dict[str, int]:
        """Calls of instruction handlers from translated code, by instruction, while `-d handler` is on."""

    def translate(self, linear: int) -> int | None: ...

    def read(self, linear: int, size: int) -> bytes: ...


class Accel(Protocol):
    name: str
    bql: Bql
    memory: CoreMemory
    clock: CountingCore | None  # None: time goes by in Python alone
    upcalls: Upcalls

    def create_vcpu(self, model: str) -> Vcpu: ...

    def set_a20(self, enabled: bool) -> None: ...

    def apic_deliver(self, dest: int, logical: bool, mode: int, vector: int, level: bool) -> None: ...

    def msi(self, address: int, data: int) -> None: ...

    def add_doorbell(self, bell: Doorbell) -> bool:
        """With the BQL held, as for `remove_doorbell`. False: there are too many."""

    def remove_doorbell(self, bell: Doorbell) -> None: ...

    def virtqueue(self) -> Virtqueue: ...

    def disassemble(self, rip: int, bits: int, code: bytes) -> tuple[str, int]: ...

    one_insn: bool  # one instruction in each block

    def set_one_insn(self, on: bool) -> None: ...

    def set_log(self, mask: int) -> None:
        """What to log (qemupy.trace's mask), to where trace writes."""

    def close(self) -> None: ...


class FakeVcpu:
    """Runs nothing until it is kicked; `exits` are reasons it leaves with before that."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.exits: list[Exit] = []
        self.resets = 0
        self.nmis = 0
        self.intr = False
        self._kicked = threading.Event()

    def features(self) -> list[str]:
        return ["fpu"]

    def missing_features(self) -> list[str]:
        return []

    def run(self) -> int:
        if self.exits:
            return self.exits.pop(0)
        self._kicked.wait()
        self._kicked.clear()
        return Exit.KICK

    def kick(self) -> None:
        self._kicked.set()

    def reset(self) -> None:
        self.resets += 1

    def set_intr(self, level: bool) -> None:
        self.intr = level

    def nmi(self) -> None:
        self.nmis += 1

    def ignne(self) -> None:
        pass

    def state(self) -> Any:
        raise NotImplementedError

    def set_state(self, state: Any) -> None:
        raise NotImplementedError

    def stats(self) -> Any:
        return SimpleNamespace(icount=0, tlb_fill=0, tlb_flush=0, pio=0, mmio=0, exc=0, irq=0, block=0, decode=0, smc=0,
                               device_ns=0)

    def handlers(self) -> dict[str, int]:
        return {}

    def translate(self, linear: int) -> int | None:
        return linear

    def read(self, linear: int, size: int) -> bytes:
        return bytes(size)


class FakeAccel:
    name = "fake"

    def __init__(self) -> None:
        self.bql: Bql = ThreadBql()
        self.memory: CoreMemory = PyCoreMemory()
        self.clock: CountingCore | None = None
        self.upcalls = Upcalls()
        self.vcpus: list[FakeVcpu] = []
        self.a20 = True
        self.one_insn = False
        self.messages: list[tuple[int, int]] = []
        self.doorbells: set[Doorbell] = set()

    def create_vcpu(self, model: str) -> Vcpu:
        self.vcpus.append(FakeVcpu(len(self.vcpus)))
        return self.vcpus[-1]

    def set_a20(self, enabled: bool) -> None:
        self.a20 = enabled

    def set_one_insn(self, on: bool) -> None:
        self.one_insn = on

    def apic_deliver(self, dest: int, logical: bool, mode: int, vector: int, level: bool) -> None:
        self.messages.append((dest, vector))

    def msi(self, address: int, data: int) -> None:
        self.messages.append((address, data))

    def add_doorbell(self, bell: Doorbell) -> bool:
        self.doorbells.add(bell)
        return True

    def remove_doorbell(self, bell: Doorbell) -> None:
        self.doorbells.remove(bell)

    def virtqueue(self) -> Virtqueue:
        raise NotImplementedError

    def disassemble(self, rip: int, bits: int, code: bytes) -> tuple[str, int]:
        return f".byte {code[0]:#04x}", 1

    def set_log(self, mask: int) -> None:
        pass

    def close(self) -> None:
        pass
