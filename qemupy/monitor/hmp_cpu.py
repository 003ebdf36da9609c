"""HMP: vCPUs, their registers, page tables and local APICs; the interrupt controllers."""

from __future__ import annotations

import itertools
from typing import Any

from qemupy.errors import MonitorError
from qemupy.monitor import commands
from qemupy.monitor.command import hmp
from qemupy.monitor.cpu_registers import register_lines
from qemupy.monitor.hmp import Hmp
from qemupy.monitor.paging import CR0_PG, pages, ranges, rights_text, tlb_line

_HANDLERS_SHOWN = 40
_DELIVERY = ("Fixed", "LowPrio", "SMI", "...", "NMI", "INIT", "SIPI", "ExtINT")
_TIMER_MODES = ("one-shot", "periodic", "tsc-deadline", "...")
_LVT_MASKED, _LVT_LEVEL, _LVT_LOW, _LVT_REMOTE_IRR = 1 << 16, 1 << 15, 1 << 13, 1 << 14


def cpu_state(mon: Hmp, index: int | None = None) -> Any:
    vcpus = mon.vm.vcpus
    at = mon.cpu if index is None else index
    if not 0 <= at < len(vcpus):
        raise MonitorError(f"CPU #{at} not available")
    return vcpus[at].state()


@hmp("cpu", "index:i", "index", "set the default CPU")
def hmp_cpu(mon: Hmp, index: int) -> None:
    if not 0 <= index < len(mon.vm.vcpus):
        raise MonitorError("invalid CPU index")
    mon.cpu = index


@hmp("info jit", "", "", "show dynamic compiler info")
def hmp_info_jit(mon: Hmp) -> None:
    """QEMU's lines where there is the same thing to count, then our own."""
    info = commands.query_jit(mon.vm)
    rows = (
        ("accelerator", info.accel), ("TB count", info.blocks), ("TB decoded instructions", info.decoded),
        ("TB invalidate count", info.invalidated), ("TLB full flushes", info.tlb_flushes),
        ("TLB fills", info.tlb_fills), ("instructions", info.instructions), ("exceptions", info.exceptions),
        ("interrupts", info.interrupts), ("port accesses", info.port_accesses), ("MMIO accesses", info.mmio_accesses),
    )  # fmt: skip
    mon.print("Translation buffer state:")
    for name, value in rows[:4]:
        mon.print(f"{name:<23} {value}")
    mon.print("\nStatistics:")
    for name, value in rows[4:]:
        mon.print(f"{name:<23} {value}")
    if info.translator:
        mon.print("\nTranslator:")
    for name, value in info.translator.items():
        mon.print(f"{name:<23} {value}")
    mon.print("\nTime:")
    for name, value in info.times.items():
        mon.print(f"{name:<23} {value / 1e6:.3f} ms")
    if info.handlers:
        mon.print("\nHandler calls:")
    for name, value in itertools.islice(info.handlers.items(), _HANDLERS_SHOWN):
        mon.print(f"{name:<23} {value}")
    if info.drift is not None:
        _print_drift(mon, *info.drift)


@hmp("singlestep", "option:s?", "[on|off]", "run emulation in singlestep mode or switch to normal mode")
def hmp_singlestep(mon: Hmp, option: str | None) -> None:
    if option not in (None, "on", "off"):
        mon.print(f"unexpected option {option}")
        return
    mon.vm.accel.set_one_insn(option != "off")


def _print_drift(mon: Hmp, delay: int, advance: int, ahead: int) -> None:
    """As QEMU: the extremes only where align=on keeps them."""
    icount = mon.vm.config.icount
    aligned = icount is not None and icount.align
    mon.print(f"Host - Guest clock  {-ahead // 1_000_000} ms")
    mon.print(f"Max guest delay     {f'{delay // 1_000_000} ms' if aligned else 'NA'}")
    mon.print(f"Max guest advance   {f'{advance // 1_000_000} ms' if aligned else 'NA'}")


@hmp("info cpus", "", "", "show infos for each CPU")
def hmp_info_cpus(mon: Hmp) -> None:
    for cpu in commands.query_cpus_fast(mon.vm):
        mark = "*" if cpu.cpu_index == mon.cpu else " "
        mon.print(f"{mark} CPU #{cpu.cpu_index}: thread_id={cpu.thread_id}")


@hmp("info registers", "all:-a,vcpu:i?", "[-a|vcpu]",
     "show the cpu registers (-a: show register info for all cpus; vcpu: specific vCPU to query)")  # fmt: skip
def hmp_info_registers(mon: Hmp, all_cpus: bool, vcpu: int | None) -> None:
    with mon.vm.paused():
        indexes = range(len(mon.vm.vcpus)) if all_cpus else [mon.cpu if vcpu is None else vcpu]
        for index in indexes:
            state = cpu_state(mon, index)
            mon.print(f"\nCPU#{index}")
            for line in register_lines(state, mon.vm.a20):
                mon.print(line)


@hmp("info mem", "", "", "show the active virtual memory mappings")
def hmp_info_mem(mon: Hmp) -> None:
    with mon.vm.paused():
        state = cpu_state(mon)
        if not state.cr0 & CR0_PG:
            mon.print("PG disabled")
            return
        width = 16 if state.efer & 1 << 10 else 8
        for start, end, rights in ranges(pages(state, mon.vm.dma.read)):
            sizes = f"{start:0{width}x}-{end:0{width}x} {end - start:0{width}x}"
            mon.print(f"{sizes} {rights_text(rights)}")


@hmp("info tlb", "", "", "show virtual to physical memory mappings")
def hmp_info_tlb(mon: Hmp) -> None:
    with mon.vm.paused():
        state = cpu_state(mon)
        if not state.cr0 & CR0_PG:
            mon.print("PG disabled")
            return
        for page in pages(state, mon.vm.dma.read):
            mon.print(tlb_line(page))


def _lvt(name: str, lvt: int, timer: bool = False) -> str:
    mode = lvt >> 8 & 7
    kind = _DELIVERY[mode]
    vector = "" if kind == "NMI" else f" (vec {lvt & 0xFF})"
    return (
        f"{name}\t 0x{lvt:08x} {'active-lo' if lvt & _LVT_LOW else 'active-hi'} "
        f"{'level' if lvt & _LVT_LEVEL else 'edge':<5} {'masked' if lvt & _LVT_MASKED else '':<6} "
        f"{'pending' if lvt & 1 << 12 else '':<7} {_TIMER_MODES[lvt >> 17 & 3] if timer else '':<12} {kind:<6}{vector}"
    ).rstrip(" ") + ("" if vector else "   ")


def _vectors(registers: Any, tmr: Any) -> str:
    found = []
    for vector in range(256):
        if registers[vector >> 5] >> (vector & 31) & 1:
            level = tmr is not None and tmr[vector >> 5] >> (vector & 31) & 1
            found.append(f"{vector}{'(level)' if level else ''}")
    return " ".join(found) + " " if found else "(none)"


def _priority(apic: Any) -> tuple[int, int]:
    """Processor priority and arbitration priority (SDM vol 3A 11.8.3.1)."""
    highest = max((v for v in range(256) if apic.isr[v >> 5] >> (v & 31) & 1), default=0)
    ppr = apic.tpr if apic.tpr >> 4 >= highest >> 4 else highest & 0xF0
    return ppr, ppr


def _icr_text(apic: Any) -> str:
    low = apic.icr_low
    short = ("", "self", "all-self", "all")[low >> 18 & 3]
    words = [
        "logical" if low & 1 << 11 else "physical",
        "level" if low & 1 << 15 else "edge",
        "assert" if low & 1 << 14 else "de-assert",
    ]
    return f"ICR\t 0x{low:08x} {' '.join(words)} {short}".rstrip()


@hmp("info lapic", "id:i?", "[apic-id]",
     "show local apic state (apic-id: local apic to read, default is which of current CPU)")  # fmt: skip
def hmp_info_lapic(mon: Hmp, apic_id: int | None) -> None:
    with mon.vm.paused():
        index = mon.cpu if apic_id is None else apic_id
        apic = cpu_state(mon, index).apic
        divide = 1 << ((apic.timer_divide & 3 | apic.timer_divide >> 1 & 4) + 1 & 7)
        ppr, apr = _priority(apic)
        software = "enabled" if apic.svr & 0x100 else "disabled"
        focus = "off" if apic.svr & 0x200 == 0 else "on"
        lines = [
            f"dumping local APIC state for CPU {index} ",
            "",
            _lvt("LVT0", apic.lvt_lint0),
            _lvt("LVT1", apic.lvt_lint1),
            _lvt("LVTPC", apic.lvt_perf),
            _lvt("LVTERR", apic.lvt_error),
            _lvt("LVTTHMR", apic.lvt_thermal),
            _lvt("LVTT", apic.lvt_timer, timer=True),
            f"Timer\t DCR=0x{apic.timer_divide:x} (divide by {divide}) initial_count = {apic.timer_initial} "
            f"current_count = {_current_count(mon, apic, divide)}",
            f"SPIV\t 0x{apic.svr:08x} APIC {software}, focus={focus}, spurious vec {apic.svr & 0xFF}",
            _icr_text(apic),
            f"ICR2\t 0x{apic.icr_high:08x}",
            f"ESR\t 0x{apic.esr:08x}",
            f"ISR\t {_vectors(apic.isr, None)}",
            f"IRR\t {_vectors(apic.irr, apic.tmr)}",
            "",
            f"APR 0x{apr:02x} TPR 0x{apic.tpr:02x} DFR 0x{apic.dfr >> 28:02x} LDR 0x{apic.ldr >> 24:02x} "
            f"PPR 0x{ppr:02x}",
            "",
        ]
    for line in lines:
        mon.print(line)


def _current_count(mon: Hmp, apic: Any, divide: int) -> int:
    """The local APIC timer counts at 1 GHz of guest time before the divider."""
    if apic.timer_start < 0 or not apic.timer_initial:
        return 0
    gone = (mon.vm.loop.virtual.now() - apic.timer_start) // divide
    if apic.lvt_timer >> 17 & 3 == 1:
        return int(apic.timer_initial - gone % (apic.timer_initial + 1))
    return int(max(apic.timer_initial - gone, 0))


@hmp("info pic", "", "", "show PIC state")
def hmp_info_pic(mon: Hmp) -> None:
    """Interrupt controllers answer `pic_info() -> list[str]`; the newest first, as QEMU walks them."""
    for device in reversed(list(mon.vm.devices.values())):
        info = getattr(device, "pic_info", None)
        if info is not None:
            for line in info():
                mon.print(line)


@hmp("info irq", "", "", "show the interrupts statistics (if available)")
def hmp_info_irq(mon: Hmp) -> None:
    """Interrupt controllers keep `counts`, how often each input rose."""
    for device in reversed(list(mon.vm.devices.values())):
        counts = getattr(device, "counts", None)
        if counts is not None and hasattr(device, "pic_info"):
            mon.print(f"IRQ statistics for {getattr(device, 'qdev_name', type(device).__name__)}:")
            for n, count in enumerate(counts):
                if count:
                    mon.print(f"{n:2d}: {count}")
