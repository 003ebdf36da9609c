"""HMP: dumps of memory, expressions, port I/O."""

from __future__ import annotations

from collections.abc import Callable

from qemupy.errors import MonitorError
from qemupy.monitor import commands
from qemupy.monitor.command import Format, hmp
from qemupy.monitor.cpu_registers import code_bits
from qemupy.monitor.hmp import Hmp

_MASK = (1 << 64) - 1
_ESCAPES = {0x27: "\\'", 0x5C: "\\\\", 0x0A: "\\n", 0x0D: "\\r"}
_WIDTHS = {  # digits of one item, by format and size
    "o": {1: 3, 2: 6, 4: 11, 8: 22},
    "x": {1: 2, 2: 4, 4: 8, 8: 16},
    "u": {1: 3, 2: 5, 4: 10, 8: 20},
    "d": {1: 3, 2: 5, 4: 10, 8: 20},
}


def show_char(value: int) -> str:
    if value in _ESCAPES:
        return f"'{_ESCAPES[value]}'"
    return f"'{chr(value)}'" if 32 <= value <= 126 else f"'\\x{value:02x}'"


def show_item(value: int, letter: str, size: int) -> str:
    width = _WIDTHS.get(letter, {}).get(size, 0)
    if letter == "x":
        return f"0x{value:0{width}x}"
    if letter == "o":
        return f"{'0' + format(value, 'o') if value else '0':>{width}}"
    if letter == "c":
        return show_char(value & 0xFF)
    if letter == "d" and value >> size * 8 - 1:
        value -= 1 << size * 8
    return f"{value:>{width}}"


def dump(mon: Hmp, fmt: Format, address: int, read: Callable[[int, int], bytes]) -> None:
    """Rows of 16 bytes, of 8 for single bytes. Characters count in the size of the dump before, as QEMU does it."""
    left, at = fmt.count * fmt.size, address & _MASK
    row = 8 if fmt.size == 1 else 16
    size = 1 if fmt.letter == "c" else fmt.size
    while left > 0:
        length = min(left, row)
        data = read(at, length)
        if len(data) < length:
            mon.print(f"{at:016x}: Cannot access memory")
            return
        items = [int.from_bytes(data[i : i + size], "little") for i in range(0, length, size)]
        mon.print(f"{at:016x}: " + " ".join(show_item(v, fmt.letter, size) for v in items))
        at = at + length & _MASK
        left -= length


def disassemble(mon: Hmp, count: int, address: int, read: Callable[[int, int], bytes]) -> None:
    vcpu = mon.vm.vcpus[mon.cpu]
    bits = code_bits(vcpu.state())
    at = address & _MASK
    for _ in range(count):
        code = read(at, 15)
        if not code:
            mon.print(f"0x{at:08x}: unable to read memory")
            return
        text, length = mon.vm.accel.disassemble(at, bits, code)
        if not length:
            text, length = f".byte    0x{code[0]:02x}", 1
        shown = " ".join(f"{b:02x}" for b in code[:length])
        mon.print(f"0x{at:0{16 if bits == 64 else 8}x}:  {shown:<24} {text}")
        at += length


@hmp("x", "fmt:/,addr:l", "/fmt addr", "virtual memory dump starting at 'addr'")
def hmp_x(mon: Hmp, fmt: Format, addr: int) -> None:
    with mon.vm.paused():
        read = mon.vm.vcpus[mon.cpu].read
        if fmt.letter == "i":
            disassemble(mon, fmt.count, addr, read)
        else:
            dump(mon, fmt, addr, read)


@hmp("xp", "fmt:/,addr:l", "/fmt addr", "physical memory dump starting at 'addr'")
def hmp_xp(mon: Hmp, fmt: Format, addr: int) -> None:
    with mon.vm.paused():
        read = mon.vm.dma.read
        if fmt.letter == "i":
            disassemble(mon, fmt.count, addr, read)
        else:
            dump(mon, fmt, addr, read)


@hmp("print|p", "fmt:/,val:l", "/fmt expr", "print expression value (use $reg for CPU register access)")
def hmp_print(mon: Hmp, fmt: Format, val: int) -> None:
    unsigned = val & _MASK
    if fmt.letter == "o":
        text = f"{'0' if unsigned else ''}{unsigned:o}"
    elif fmt.letter == "x":
        text = f"{unsigned:#x}"
    elif fmt.letter == "u":
        text = str(unsigned)
    elif fmt.letter == "c":
        text = show_char(unsigned & 0xFF)
    else:
        text = str(val)
    mon.print(text)


@hmp("i", "fmt:/,addr:i", "/fmt addr", "I/O port read")
def hmp_i(mon: Hmp, fmt: Format, addr: int) -> None:
    size, suffix = {1: (1, "b"), 2: (2, "w")}.get(fmt.size, (4, "l"))
    port = addr & 0xFFFF
    mon.print(f"port{suffix}[0x{port:04x}] = 0x{mon.vm.ports.read(port, size):0{size * 2}x}")


@hmp("o", "fmt:/,addr:i,val:i", "/fmt addr value", "I/O port write")
def hmp_o(mon: Hmp, fmt: Format, addr: int, val: int) -> None:
    size = {2: 2, 4: 4}.get(fmt.size, 1)
    mon.vm.ports.write(addr & 0xFFFF, size, val & (1 << size * 8) - 1)


@hmp("sum", "start:i,size:i", "addr size", "compute the checksum of a memory region")
def hmp_sum(mon: Hmp, start: int, size: int) -> None:
    """A BSD-like rotating 16-bit sum over guest-physical bytes."""
    total = 0
    for byte in mon.vm.dma.read(start & 0xFFFFFFFF, size & 0xFFFFFFFF):
        total = (total >> 1 | total << 15) & 0xFFFF
        total = total + byte & 0xFFFF
    mon.print(f"{total:05d}")


@hmp("memsave", "val:l,size:i,filename:s", "addr size file",
     "save to disk virtual memory dump starting at 'addr' of size 'size'")  # fmt: skip
def hmp_memsave(mon: Hmp, val: int, size: int, filename: str) -> None:
    commands.memsave(mon.vm, val, size, filename, mon.cpu)


@hmp("pmemsave", "val:l,size:i,filename:s", "addr size file",
     "save to disk physical memory dump starting at 'addr' of size 'size'")  # fmt: skip
def hmp_pmemsave(mon: Hmp, val: int, size: int, filename: str) -> None:
    commands.pmemsave(mon.vm, val, size, filename)


@hmp("gva2gpa", "addr:l", "addr", "print the guest physical address corresponding to a guest virtual address")
def hmp_gva2gpa(mon: Hmp, addr: int) -> None:
    with mon.vm.paused():
        gpa = mon.vm.vcpus[mon.cpu].translate(addr & _MASK)
    mon.print("Unmapped" if gpa is None else f"gpa: {gpa:#x}")


@hmp("ringbuf_write", "device:s,data:s", "device data", "Write to a ring buffer character device")
def hmp_ringbuf_write(mon: Hmp, device: str, data: str) -> None:
    backend = mon.vm.chardevs.backends.get(device)
    if backend is None or not hasattr(backend, "take"):
        raise MonitorError(f"{device} is not a ringbuf device")
    backend.write(data.encode())


@hmp("ringbuf_read", "device:s,size:i", "device size", "Read from a ring buffer character device")
def hmp_ringbuf_read(mon: Hmp, device: str, size: int) -> None:
    backend = mon.vm.chardevs.backends.get(device)
    if backend is None or not hasattr(backend, "take"):
        raise MonitorError(f"{device} is not a ringbuf device")
    for char in backend.take(size).decode("latin1"):
        code = ord(char)
        mon.write("\\\\" if char == "\\" else char if char in "\n\t" or 32 <= code < 127 else f"\\u{code:04X}")
    mon.print()
