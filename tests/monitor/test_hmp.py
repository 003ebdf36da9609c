"""HMP output against what QEMU 7.2.22 printed for the same commands and state."""

from __future__ import annotations

from pathlib import Path

import pytest

from qemupy.hw.core import Device, on_read, on_write, u8
from qemupy.memory import MemoryRegion
from qemupy.monitor.command import commands, info_commands
from qemupy.vm import RunState
from tests.monitor.conftest import Bench

ROM = bytes.fromhex("ea5be000f030362f32332f393900fc00")


def put(mon: Bench, address: int, data: bytes) -> None:
    mon.vm.dma.write(address, data)


def test_every_command_of_the_manual_is_there(mon: Bench) -> None:
    wanted = (
        "help info x xp p print i o stop s cont c system_reset system_powerdown sendkey screendump nmi sum log logfile "
        "memsave pmemsave gva2gpa quit q eject change commit"
    )
    assert set(wanted.split()) <= set(commands)
    wanted = "version status cpus registers mem tlb pic lapic irq mtree block chardev qtree pci roms name uuid"
    assert set(wanted.split()) <= set(info_commands)


def test_singlestep(mon: Bench) -> None:
    """Words of QEMU 7.2."""
    before = mon("info status")
    assert mon("singlestep foo") == "unexpected option foo\n"
    assert mon("info status") == before and "single" not in before
    assert mon("singlestep") == ""
    assert mon("info status") == "VM status: paused (single step mode) (prelaunch)\n"
    assert mon("singlestep off") == "" and mon("info status") == before


def test_info_registers(mon: Bench) -> None:
    assert mon("info registers") == (
        "\nCPU#0\n"
        "EAX=00000000 EBX=00000800 ECX=f815f480 EDX=00010246\n"
        "ESI=0078b158 EDI=00000800 EBP=9ccc2f10 ESP=000a1fbc\n"
        "EIP=00012839 EFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1\n"
        "ES =0010 07f3d000 ffffffff 00cf9300 DPL=0 DS   [-WA]\n"
        "CS =0008 07f3d000 ffffffff 00cf9f00 DPL=0 CS32 [CRA]\n"
        "SS =0010 07f3d000 ffffffff 00cf9300 DPL=0 DS   [-WA]\n"
        "DS =0010 07f3d000 ffffffff 00cf9300 DPL=0 DS   [-WA]\n"
        "FS =0010 07f3d000 ffffffff 00cf9300 DPL=0 DS   [-WA]\n"
        "GS =0010 07f3d000 ffffffff 00cf9300 DPL=0 DS   [-WA]\n"
        "LDT=0000 00000000 0000ffff 00008200 DPL=0 LDT\n"
        "TR =0000 00000000 0000ffff 00008b00 DPL=0 TSS32-busy\n"
        "GDT=     0009cd30 00000047\n"
        "IDT=     07f5cfb0 000007ff\n"
        "CR0=00000011 CR2=00000000 CR3=00000000 CR4=00000000\n"
        "DR0=0000000000000000 DR1=0000000000000000 DR2=0000000000000000 DR3=0000000000000000 \n"
        "DR6=00000000ffff0ff0 DR7=0000000000000400\n"
        "EFER=0000000000000000\n"
        "FCW=037f FSW=0000 [ST=0] FTW=00 MXCSR=00001f80\n"
        + "".join(f"FPR{n}={'0' * 16} 0000 FPR{n + 1}={'0' * 16} 0000\n" for n in range(0, 8, 2))
        + "".join(f"XMM{n:02d}={'0' * 16} {'0' * 16} XMM{n + 1:02d}={'0' * 16} {'0' * 16}\n" for n in range(0, 8, 2))
    )


def test_info_lapic(mon: Bench) -> None:
    pad = " " * 21
    assert mon("info lapic").splitlines() == [
        "dumping local APIC state for CPU 0 ",
        "",
        f"LVT0\t 0x00008700 active-hi level       {pad} ExtINT (vec 0)",
        f"LVT1\t 0x00008400 active-hi level       {pad} NMI   ",
        f"LVTPC\t 0x00010000 active-hi edge  masked{pad} Fixed  (vec 0)",
        f"LVTERR\t 0x00010000 active-hi edge  masked{pad} Fixed  (vec 0)",
        f"LVTTHMR\t 0x00010000 active-hi edge  masked{pad} Fixed  (vec 0)",
        "LVTT\t 0x00010000 active-hi edge  masked         one-shot     Fixed  (vec 0)",
        "Timer\t DCR=0x0 (divide by 2) initial_count = 0 current_count = 0",
        "SPIV\t 0x000001ff APIC enabled, focus=off, spurious vec 255",
        "ICR\t 0x000c4610 physical edge assert all",
        "ICR2\t 0x00000000",
        "ESR\t 0x00000000",
        "ISR\t (none)",
        "IRR\t (none)",
        "",
        "APR 0x00 TPR 0x00 DFR 0x0f LDR 0x00 PPR 0x00",
        "",
    ]


@pytest.mark.parametrize(
    ("line", "want"),
    [
        ("x/4xw 0xffff0", "00000000000ffff0: 0x00e05bea 0x2f3630f0 0x392f3332 0x00fc0039\n"),
        ("x/3oh 0xffff0", "00000000000ffff0: 055752   0340 030360\n"),
        ("x/3dh 0xffff0", "00000000000ffff0: 23530   224 12528\n"),
        ("xp/1gx 0xffff0", "00000000000ffff0: 0x2f3630f000e05bea\n"),
        ("x/2ow 0x400", "0000000000000400:       01770           0\n"),
        ("x/2dw 0x400", "0000000000000400:       1016          0\n"),
        ("x/2uh 0x400", "0000000000000400:  1016     0\n"),
        ("x/9xb 0x400", "0000000000000400: 0xf8 0x03 0x00 0x00 0x00 0x00 0x00 0x00\n0000000000000408: 0x00\n"),
        ("x/4c 0xffff0", "00000000000ffff0: '\\xea' '[' '\\xe0' '\\x00' '\\xf0' '0' '6' '/' '2' '3' '/' '9' '9' "
         "'\\x00' '\\xfc' '\\x00'\n"),
        ("x/8xb 0xffffc", "00000000000ffffc: Cannot access memory\n"),
        ("x/s 0xf0000", "invalid char in format: 's'\nTry \"help x\" for more information\n"),
        ("x", "unexpected end of expression\nTry \"help x\" for more information\n"),
        ("sum 0xffff0 16", "54987\n"),
        ("gva2gpa 0x1000", "gpa: 0x1000\n"),
        ("gva2gpa 0x1000000", "Unmapped\n"),
        ("p/d 1+2*3", "7\n"),
        ("p/d $eip", "75833\n"),
        ("p/x 255", "0xff\n"),
        ("p/c 65", "'A'\n"),
        ("p/d -1", "-1\n"),
        ("p/u -1", "18446744073709551615\n"),
        ("p/x -1", "0xffffffffffffffff\n"),
        ("p/o 8", "010\n"),
        ("p 'a'", "0x61\n"),
        ("p/x $cs.base", "0x7f3d000\n"),
        ("p 0x10 << 2", "print|p: extraneous characters at the end of line\nTry \"help p\" for more information\n"),
        ("p 08", "print|p: extraneous characters at the end of line\nTry \"help p\" for more information\n"),
        ("p $foo", "unknown register\nTry \"help p\" for more information\n"),
        ("p (1", "')' expected\nTry \"help p\" for more information\n"),
        ("p 1/0", "division by zero\nTry \"help p\" for more information\n"),
        ("p foo", "invalid char 'f' in expression\nTry \"help p\" for more information\n"),
        ("p/d 7-2-1", "4\n"),
        ("p/d 1|6&3", "3\n"),
        ("p/d -7/2", "-3\n"),
        ("p/d -7%2", "-1\n"),
        ("quit x", "quit|q: extraneous characters at the end of line\nTry \"help quit\" for more information\n"),
        ("foo", "unknown command: 'foo'\n"),
        ("info foo", "unknown command: 'info foo'\n"),
        ("sendkey foo", "invalid parameter: foo\n"),
        ("info name", "foo\n"),
        ("info uuid", "01234567-89ab-cdef-0123-456789abcdef\n"),
        ("info version", "7.2.22 (qemupy 0.1.0)\n"),
        ("info mem", "PG disabled\n"),
        ("help stop", "stop|s  -- stop emulation\n"),
        ("help x", "x /fmt addr -- virtual memory dump starting at 'addr'\n"),
        ("help foo", "unknown command: 'foo'\n"),
        ("log", "log: string expected\nTry \"help log\" for more information\n"),
        ("memsave 0 16 \"/nonexistent/x\"", "Error: failed to open file '/nonexistent/x': No such file or directory\n"),
        ("eject foo", "Error: Device 'foo' not found\n"),
        ("", ""),
    ],
)  # fmt: skip
def test_as_qemu_prints_it(mon: Bench, line: str, want: str) -> None:
    put(mon, 0xFFFF0, ROM)
    put(mon, 0x400, b"\xf8\x03")
    assert mon(line) == want


def test_usage_error_names_the_word_typed(mon: Bench) -> None:
    assert 'Try "help p"' in mon("p")
    assert 'Try "help print"' in mon("print")


def test_port_io_and_the_default_size(mon: Bench) -> None:
    class Ports(Device):
        seen: int = u8()

        @on_read(0)
        def read(self) -> int:
            return 0x1C

        @on_write(0)
        def write(self, value: int) -> None:
            self.seen = value

    dev = Ports()
    mon.vm.ports.map(0x64, dev.bank())
    assert mon("i/b 0x64") == "portb[0x0064] = 0x1c\n"
    assert mon("i 0x64") == "portb[0x0064] = 0x1c\n"
    assert mon("i/w 0x64") == "portl[0x0064] = 0xffffff1c\n"
    assert mon("i/h 0x64") == "portw[0x0064] = 0xff1c\n"
    assert mon("o/b 0x64 0x155") == "" and dev.seen == 0x55


def test_run_state_commands(mon: Bench) -> None:
    assert mon("info status") == "VM status: paused (prelaunch)\n"
    assert mon("cont") == "" and mon("info status") == "VM status: running\n"
    assert mon("stop") == "" and mon("info status") == "VM status: paused\n"
    mon.vm.run_state = RunState.SHUTDOWN
    assert mon("info status") == "VM status: paused (shutdown)\n"


def test_info_block_eject_change(mon: Bench, tmp_path: Path) -> None:
    vm = mon.vm
    vm.add_drive(vm.config.drives[0])
    empty = "ide1-cd0: [not inserted]\n    Removable device: not locked, tray closed\n"
    assert mon("info block") == empty
    image = tmp_path / "cd.iso"
    image.write_bytes(bytes(4096))
    assert mon(f"change ide1-cd0 {image}") == ""
    assert mon("info block ide1-cd0") == (
        f"\nide1-cd0 (#block101): {image} (raw, read-only)\n    Removable device: not locked, tray closed\n"
        "    Cache mode:       writeback\n"
    )
    assert mon("eject ide1-cd0") == "" and mon("info block") == empty
    assert mon("change ide1-cd0 /nonexistent").startswith("Error: Could not open '/nonexistent'")


def test_sendkey_presses_in_order_and_releases_in_reverse(mon: Bench) -> None:
    keys: list[tuple[str, bool]] = []

    class Keyboard:
        def key(self, qcode: str, down: bool) -> bool:
            keys.append((qcode, down))
            return True

    mon.vm.keyboard = Keyboard()
    mon.vm.loop.virtual.start()
    assert mon("sendkey ctrl-alt-delete 1") == ""
    assert mon.vm.loop.run_until(lambda: len(keys) == 6)
    down = [("ctrl", True), ("alt", True), ("delete", True)]
    assert keys == down + [(k, False) for k, _ in reversed(down)]


def test_screendump(mon: Bench, tmp_path: Path) -> None:
    assert mon(f"screendump {tmp_path}/x") == "Error: no graphical console\n"

    class Screen:
        def screenshot(self) -> tuple[int, int, bytes]:
            return 2, 1, b"\xff\0\0\0\0\xff"

    mon.vm.screen = Screen()
    assert mon(f"screendump {tmp_path}/a.ppm") == ""
    assert (tmp_path / "a.ppm").read_bytes() == b"P6\n2 1\n255\n\xff\0\0\0\0\xff"
    assert mon(f"screendump {tmp_path}/a.png -f png") == ""
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_saves(mon: Bench, tmp_path: Path) -> None:
    put(mon, 0x7FE, b"abcd")
    assert mon(f'pmemsave 0x7fe 4 "{tmp_path}/p"') == "" and (tmp_path / "p").read_bytes() == b"abcd"
    assert mon(f'memsave 0x7ff 2 "{tmp_path}/v"') == "" and (tmp_path / "v").read_bytes() == b"bc"
    assert mon(f'memsave 0xffffe 4 "{tmp_path}/v"') == "Error: Invalid addr 0x00000000000ffffe/size 4 specified\n"


def test_info_mtree(mon: Bench) -> None:
    class Ops:
        def read(self, offset: int, size: int) -> int:
            return 0

        def write(self, offset: int, size: int, value: int) -> None: ...

    mon.vm.memory_root.add(MemoryRegion.mmio("ioapic", 0x1000, Ops()), 0xFEC00000)
    mon.vm.ports.map(0x20, Ops(), 2, name="pic")
    assert mon("info mtree") == (
        "address-space: memory\n"
        "  0000000000000000-ffffffffffffffff (prio 0, i/o): system\n"
        "    0000000000000000-00000000000fffff (prio 0, ram): alias ram-below-4g @pc.ram "
        "0000000000000000-00000000000fffff\n"
        "    00000000fec00000-00000000fec00fff (prio 0, i/o): ioapic\n"
        "\n"
        "address-space: I/O\n"
        "  0000000000000000-000000000000ffff (prio 0, i/o): io\n"
        "    0000000000000020-0000000000000021 (prio 0, i/o): pic\n"
        "\n"
        "memory-region: pc.ram\n"
        "  0000000000000000-00000000000fffff (prio 0, ram): pc.ram\n"
        "\n"
    )
    assert "  0000000000000000-00000000000fffff (prio 0, ram): pc.ram\n" in mon("info mtree -f")


def test_paging_views(mon: Bench) -> None:
    """A hand-made 32-bit page directory: 4 KiB pages 0 (user, rw), 1 (user, ro), and a 4 MiB page at 4 MiB."""
    put(mon, 0x1000, (0x2007).to_bytes(4, "little") + (0x00400083).to_bytes(4, "little"))
    put(mon, 0x2000, (0x0067).to_bytes(4, "little") + (0x5005).to_bytes(4, "little"))
    state = mon.vcpu.state()
    state.cr0, state.cr3, state.cr4 = 0x80000011, 0x1000, 0x10
    assert mon("info mem") == (
        "00000000-00001000 00001000 urw\n00001000-00002000 00001000 ur-\n00400000-00800000 00400000 -rw\n"
    )
    assert mon("info tlb") == (
        "0000000000000000: 0000000000000000 ---DA--UW\n"
        "0000000000001000: 0000000000005000 -------U-\n"
        "0000000000400000: 0000000000400000 --P-----W\n"
    )


def test_completion(mon: Bench) -> None:
    assert mon.hmp.complete("system_") == ["system_powerdown", "system_reset"]
    assert mon.hmp.complete("info me") == ["info mem", "info memory_size_summary"]
    assert mon.hmp.complete("sendkey ctrl-alt-del") == ["sendkey ctrl-alt-delete"]
