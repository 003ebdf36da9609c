"""Options to Config: QEMU's syntax, defaults, and one line for every mistake."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qemupy.accel_options import DEFAULT_ACCEL, AccelConfig, Icount
from qemupy.command_line import Help, parse
from qemupy.config import Config
from qemupy.errors import ConfigError


def config(*argv: str) -> Config:
    return parse(list(argv))[0]


def test_singlestep_is_one_instruction_in_a_block() -> None:
    assert config("-singlestep").accel.one_insn_per_tb
    assert config("-accel", "tcg,tb-size=8", "-singlestep").accel == AccelConfig(DEFAULT_ACCEL, "", 8, True)
    assert not config().accel.one_insn_per_tb


def test_a_usual_command_line(tmp_path: Path) -> None:
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(b"x")
    c = config(
        "-M", "pc,accel=tcg,usb=off", "-m", "512", "-cpu", "qemu64,+x2apic", "-smp", "1", "-hda", "a,b.img",
        "--nographic", "-no-reboot", "-S", "-kernel", str(kernel), "-append", "console=ttyS0", "-d", "int,cpu_reset",
        "-drive", "file=c.img,format=raw", "-device", "isa-debug-exit,iobase=0xf4",
        "-boot", "order=dc,menu=on", "-rtc", "base=2020-01-02T03:04:05", "-name", "guest=vm1,debug-threads=on",
        "-uuid", "01234567-89AB-cdef-0123-456789abcdef",
    )  # fmt: skip
    assert (c.machine, c.ram, c.cpu) == ("pc", 512 << 20, "qemu64,+x2apic")
    assert (c.reboot, c.paused, c.name) == (False, True, "vm1")
    assert [(d.id, d.file) for d in c.drives] == [
        ("ide0-hd0", "a,b.img"), ("ide0-hd1", "c.img"), ("ide1-cd0", None), ("floppy0", None),
    ]  # fmt: skip
    assert c.serials == ("mon:stdio",) and c.devices == ({"driver": "isa-debug-exit", "iobase": "0xf4"},)
    assert c.boot == {"order": "dc", "menu": "on"} and c.log_mask and c.uuid == "01234567-89ab-cdef-0123-456789abcdef"


def test_consoles() -> None:
    assert config("-nographic", "-serial", "null").monitors == (("stdio", "readline"),)
    assert config("-nographic", "-serial", "mon:stdio").monitors == ()
    assert config("-nographic", "-monitor", "null").serials == ("stdio",)
    assert config("-nographic", "-monitor", "stdio").serials == ("null",)
    assert config("-nographic", "-nodefaults").serials == ()
    assert config("-display", "none").serials == ()
    c, warnings = parse(["x.img"])
    assert c.serials == ("mon:stdio",) and "no graphical display" in warnings[0]
    assert config("-nodefaults", "-display", "none").drives == ()


def test_fallback_from_kvm() -> None:
    for argv in (["-enable-kvm"], ["-accel", "kvm"], ["-machine", "pc,accel=kvm:tcg"]):
        c, warnings = parse([*argv, "-display", "none"])
        assert c.accel.name == DEFAULT_ACCEL and warnings[0] == "KVM is not supported"
        assert warnings[1] == f"falling back to {'tcg' if ':tcg' in argv[-1] else DEFAULT_ACCEL}"


def test_accelerators() -> None:
    assert config().accel == config("-accel", "tcg").accel == AccelConfig(DEFAULT_ACCEL)
    assert config("-accel", "interp").accel.name == config("-M", "pc,accel=interp").accel.name == "interp"
    assert config("-accel", "kvm", "-accel", "interp").accel.name == "interp"
    c, warnings = parse(["-machine", "accel=hvf:interp", "-display", "none"])
    assert c.accel.name == "interp" and warnings == ["invalid accelerator hvf", "falling back to interp"]
    c = config("-accel", "tcg,thread=multi,tb-size=64,one-insn-per-tb=on,split-wx=off")
    assert c.accel == AccelConfig(DEFAULT_ACCEL, "multi", 64, one_insn_per_tb=True, split_wx=False)


def test_icount_and_seed() -> None:
    assert config().icount is None and config("-icount", "sleep=off").icount is None
    assert config("-icount", "shift=1").icount == config("-icount", "1").icount == Icount(shift=1)
    assert config("-icount", "shift=0,align=on").icount == Icount(shift=0, align=True)
    assert config("-icount", "auto,sleep=off").icount == Icount(adaptive=True, sleep=False)
    assert config("-seed", "0x10").seed == 16 and config().seed is None
    assert config("-perfmap").perfmap


def test_log_filter() -> None:
    ranges = config("-dfilter", "0x100..0x1ff,0x400+0x10,0x80-8").log_ranges
    assert ranges == ((0x100, 0x1FF), (0x400, 0x40F), (0x79, 0x80))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("-foo", "-foo: invalid option"),
        ("-nographc", r"-nographc: invalid option; did you mean '-nographic'\?"),
        ("-serial", "-serial: requires an argument"),
        ("-M xx", "-M xx: unsupported machine type 'xx'"),
        ("-M pc,zz=1", r"Property 'pc-i440fx-7.2-machine.zz' not found"),
        ("-m 3x", "-m 3x: Parameter 'size' expects a non-negative number"),
        ("-m 0", "needs some memory"),
        ("-m 99999999", "cannot set up guest memory"),
        ("-smp 2", "Invalid SMP CPUs 2"),
        ("-smp 0", "must be between 1"),
        ("-smp 1,cores=3", "Invalid CPU topology"),
        ("-accel zz", "invalid accelerator zz"),
        ("-M accel=zz:yy", "invalid accelerator yy"),
        ("-accel tcg -M accel=tcg", 'The -accel and "-machine accel=" options are incompatible'),
        ("-accel tcg,zz=1", r"Property 'tcg-accel.zz' not found"),
        ("-accel tcg,thread=two", "Invalid 'thread' setting two"),
        ("-accel tcg,tb-size=x", "Parameter 'tb-size' expects a number of MiB, not 'x'"),
        ("-accel tcg,thread=multi -icount 1", "No MTTCG when icount is enabled"),
        ("-icount shift=11", "icount: Invalid shift value '11'"),
        ("-icount shift=x", "icount: Invalid shift value 'x'"),
        ("-icount shift=1,align=on,sleep=off", "align=on and sleep=off are incompatible"),
        ("-icount align=on", "Please specify shift option when using align"),
        ("-icount shift=1,sleep=maybe", "Parameter 'sleep' expects 'on' or 'off'"),
        ("-icount shift=1,foo=1", "Invalid parameter 'foo'"),
        ("-seed -1", "Invalid seed number: -1"),
        ("-dfilter foo", "Bad range specifier 'foo'"),
        ("-dfilter 1+", "Invalid number to the right of +"),
        ("-dfilter 8..2", "Invalid range '8..2'"),
        ("-drive file=a,index=0 -hda b", r"-hda b: drive with bus=0, unit=0 \(index=0\) exists"),
        ("-kernel /nonexistent/k", "could not open kernel file '/nonexistent/k': No such file"),
        ("-kernel /tmp", "could not open kernel file '/tmp': Is a directory"),
        ("-append x", "-append only allowed with -kernel option"),
        ("-initrd x", "-initrd only allowed with -kernel option"),
        ("-d zz", "Invalid parameter 'zz' for -d"),
        ("-rtc base=xx", "invalid datetime format"),
        ("-rtc clok=vm", r"Invalid parameter 'clok'; did you mean 'clock'\?"),
        ("-uuid 3", "failed to parse UUID string"),
        ("-boot x", "Invalid boot device 'x'"),
        ("-boot aa", "Boot device 'a' was given twice"),
        ("-display gtk", "-display gtk: Parameter 'type' does not accept 'gtk'"),
        ("-vga zz", "unknown vga type: zz"),
        ("-name a,b=c", "Invalid parameter 'b'"),
        ("-qmp stdio", "not supported yet"),
        ("-mon chardev=x,mode=control", "monitor mode 'control' is not supported"),
        ("-netdev user,id=n", "not supported yet"),
        ("-nic user", "only none"),
    ],
)
def test_mistakes(argv: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as e:
        config(*argv.split())
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("argv", ["-machine help", "-M ?", "-device help", "-device isa-serial,help", "-cpu help"])
def test_lists_are_asked_for(argv: str) -> None:
    with pytest.raises(Help):
        config(*argv.split())


def test_program_version_help_and_errors() -> None:
    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "qemupy", *argv], capture_output=True, text=True, timeout=20, check=False
        )

    result = run("-version")
    first = result.stdout.splitlines()[0]
    assert first == "QEMU emulator version 7.2.22 (qemupy 0.1.0)" and result.returncode == 0
    assert "-drive file=FILE" in run("-help").stdout
    assert "pc-i440fx-7.2        Standard PC (i440FX + PIIX, 1996) (default)" in run("-machine", "help").stdout
    bad = run("-m", "3x")
    assert bad.returncode == 1 and bad.stderr.count("\n") == 1
