"""QEMU's command line to a `Config`. One table row per option; every mistake is one line that names the option."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

from qemupy import accel_options, options, trace
from qemupy.config import Config, DriveConfig, parse_drive
from qemupy.errors import ConfigError, QemupyError
from qemupy.records import field, record, replace

MAX_CPUS = 1
MACHINES = {
    "pc": "Standard PC (i440FX + PIIX, 1996) (alias of pc-i440fx-7.2)",
    "pc-i440fx-7.2": "Standard PC (i440FX + PIIX, 1996) (default)",
}
MACHINE_PROPERTIES = (
    "accel", "acpi", "dump-guest-core", "graphics", "hpet", "i8042", "kernel_irqchip", "kernel-irqchip", "mem-merge",
    "pcspk-audiodev", "smm", "type", "usb", "vmport",
)  # fmt: skip
DISPLAYS = ("none",)
VGAS = ("std", "none")

# QEMU options that stand for things we do not have; they get their own message instead of "invalid option"
UNSUPPORTED = (
    "qmp", "qmp-pretty", "netdev", "vnc", "spice", "daemonize", "object", "gdb", "s",
    "fsdev", "virtfs", "audiodev", "tpmdev", "sandbox", "add-fd", "run-with", "readconfig", "writeconfig",
    "numa", "mem-path", "mem-prealloc", "pflash", "sd", "mtdblock", "usb", "usbdevice", "watchdog", "overcommit",
    "cpu-pm", "chroot", "runas", "option-rom", "acpitable", "dtb", "plugin", "msg", "trace", "full-screen", "set",
)  # fmt: skip


@record()
class Draft:
    """What has been said so far."""

    values: dict[str, Any] = field(factory=dict)
    drives: list[tuple[str, str]] = field(factory=list)  # (option, -drive text)
    devices: list[dict[str, str]] = field(factory=list)
    lists: dict[str, list[Any]] = field(factory=dict)
    machine_options: dict[str, str] = field(factory=dict)
    accels: list[accel_options.Candidate] = field(factory=list)
    warnings: list[str] = field(factory=list)
    snapshot: bool = False
    singlestep: bool = False

    def append(self, key: str, value: Any) -> None:
        self.lists.setdefault(key, []).append(value)


Handler = Callable[[Draft, str], None]


@record(frozen=True)
class Option:
    argument: str  # its name in the help, "" for none
    help: str
    handle: Handler


def _machine(draft: Draft, text: str) -> None:
    given = options.parse(text, "type")
    name = given.pop("type", "pc")
    if name not in MACHINES:
        raise ConfigError(
            f"unsupported machine type '{name}'{options.did_you_mean(name, MACHINES)} (-machine help lists them)"
        )
    for key in given:
        if key not in MACHINE_PROPERTIES:
            hint = options.did_you_mean(key, MACHINE_PROPERTIES)
            raise ConfigError(f"Property 'pc-i440fx-7.2-machine.{key}' not found{hint}")
    if "accel" in given:
        draft.accels += accel_options.parse_list(given.pop("accel"))
    draft.values["machine"] = name
    draft.machine_options.update(given)


def _accel(draft: Draft, text: str) -> None:
    draft.accels.append(accel_options.parse_accel(text))


def _singlestep(draft: Draft, text: str) -> None:
    draft.singlestep = True


def _icount(draft: Draft, text: str) -> None:
    draft.values["icount"] = accel_options.parse_icount(text)


def _seed(draft: Draft, text: str) -> None:
    draft.values["seed"] = accel_options.parse_seed(text)


def _dfilter(draft: Draft, text: str) -> None:
    draft.values["log_ranges"] = trace.parse_ranges(text)


def _memory(draft: Draft, text: str) -> None:
    given = options.parse(text, "size")
    options.refuse_unknown(given, ("size", "slots", "maxmem"))
    size = options.size("size", given.get("size", "128M"), "m")
    size = -(-size // 8192) * 8192
    if size == 0:
        raise ConfigError("the machine needs some memory")
    if size > host_memory():
        raise ConfigError(f"cannot set up guest memory: {size >> 20} MiB is more than this host has")
    draft.values["ram"] = size


def host_memory() -> int:
    """RAM and swap of the host in bytes."""
    total = 0
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith(("MemTotal:", "SwapTotal:")):
                total += int(line.split()[1]) * 1024
    return total


def _smp(draft: Draft, text: str) -> None:
    given = options.parse(text, "cpus")
    options.refuse_unknown(given, ("cpus", "cores", "threads", "sockets", "dies", "clusters", "maxcpus"))
    counts = {key: options.number(key, value, 1, 1 << 16) for key, value in given.items()}
    topology = 1
    for key in ("sockets", "dies", "clusters", "cores", "threads"):
        topology *= counts.get(key, 1)
    cpus = counts.get("cpus", topology)
    if topology > 1 and topology != counts.get("maxcpus", cpus):
        raise ConfigError(f"Invalid CPU topology: product of the hierarchy must match maxcpus: {topology} != {cpus}")
    if cpus > MAX_CPUS:
        raise ConfigError(f"Invalid SMP CPUs {cpus}. The max CPUs supported by machine 'pc-i440fx-7.2' is {MAX_CPUS}")
    draft.values["smp"] = cpus


def _hd(index: int) -> Handler:
    return lambda draft, text: draft.drives.append(("", f"file={_escape(text)},index={index},media=disk"))


def _cdrom(draft: Draft, text: str) -> None:
    draft.drives.append(("", f"file={_escape(text)},index=2,media=cdrom"))


def _fd(index: int) -> Handler:
    return lambda draft, text: draft.drives.append(("", f"file={_escape(text)},index={index},if=floppy"))


def _escape(text: str) -> str:
    return text.replace(",", ",,")


def _drive(draft: Draft, text: str) -> None:
    draft.drives.append(("", text))


def _blockdev(draft: Draft, text: str) -> None:
    draft.append("blockdevs", options.parse(text, "driver"))


def _device(draft: Draft, text: str) -> None:
    given = options.parse(text, "driver")
    if not given.get("driver"):
        raise ConfigError("Parameter 'driver' is missing")
    draft.devices.append(given)


def _boot(draft: Draft, text: str) -> None:
    given = options.parse(text, "order")
    options.refuse_unknown(given, ("order", "once", "menu", "splash", "splash-time", "reboot-timeout", "strict"))
    for key in ("order", "once"):
        seen = ""
        for letter in given.get(key, ""):
            if not "a" <= letter <= "p":
                raise ConfigError(f"Invalid boot device '{letter}'")
            if letter in seen:
                raise ConfigError(f"Boot device '{letter}' was given twice")
            seen += letter
    for key in ("menu", "strict"):
        if key in given:
            options.boolean(key, given[key])
    draft.values["boot"] = {**draft.values.get("boot", {}), **given}


def _mon(draft: Draft, text: str) -> None:
    given = options.parse(text, "chardev")
    options.refuse_unknown(given, ("chardev", "mode", "pretty"))
    if given.get("mode", "readline") != "readline":
        raise ConfigError(f"monitor mode '{given['mode']}' is not supported (only readline)")
    if "chardev" not in given:
        raise ConfigError("Parameter 'chardev' is missing")
    draft.append("monitors", (f"chardev:{given['chardev']}", "readline"))


def _name(draft: Draft, text: str) -> None:
    given = options.parse(text, "guest")
    options.refuse_unknown(given, ("guest", "process", "debug-threads"))
    draft.values["name"] = given.get("guest", "")


def _uuid(draft: Draft, text: str) -> None:
    if not re.fullmatch(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", text):
        raise ConfigError("failed to parse UUID string: wrong format")
    draft.values["uuid"] = text.lower()


def _rtc(draft: Draft, text: str) -> None:
    given = options.parse(text, "")
    options.refuse_unknown(given, ("base", "clock", "driftfix"))
    base = given.get("base", "utc")
    if base not in ("utc", "localtime"):
        from datetime import datetime

        try:
            datetime.fromisoformat(base)
        except ValueError:
            raise ConfigError("invalid datetime format, valid are '2006-06-17T16:01:21' and '2006-06-17'") from None
    for key, known in (("clock", ("host", "rt", "vm")), ("driftfix", ("slew", "none"))):
        if given.get(key, known[0]) not in known:
            raise ConfigError(f"invalid option value '{given[key]}' for {key}")
    draft.values["rtc"] = given


def _log(draft: Draft, text: str) -> None:
    draft.values["log_mask"] = draft.values.get("log_mask", 0) | trace.parse_categories(text)


def _existing(key: str, what: str) -> Handler:
    def handle(draft: Draft, text: str) -> None:
        if not os.path.isfile(text) and not text.startswith(("/dev/", "/proc/")):
            reason = "Is a directory" if os.path.isdir(text) else "No such file or directory"
            raise ConfigError(f"could not open {what} file '{text}': {reason}")
        draft.values[key] = text

    return handle


def _choice(key: str, known: tuple[str, ...], message: str) -> Handler:
    def handle(draft: Draft, text: str) -> None:
        name = text.split(",")[0]
        if name not in known:
            raise ConfigError(f"{message.format(name)}{options.did_you_mean(name, known)}")
        draft.values[key] = name

    return handle


def _store(key: str, value: Any = None) -> Handler:
    def handle(draft: Draft, text: str) -> None:
        draft.values[key] = text if value is None else value

    return handle


def _append(key: str) -> Handler:
    return lambda draft, text: draft.append(key, text)


def _monitor(draft: Draft, text: str) -> None:
    draft.append("monitors", (text, "readline"))


def _machine_option(key: str, value: str) -> Handler:
    return lambda draft, text: draft.machine_options.__setitem__(key, value)


def _snapshot(draft: Draft, text: str) -> None:
    draft.snapshot = True


def _enable_kvm(draft: Draft, text: str) -> None:
    draft.accels += accel_options.parse_list("kvm")


def _only(*allowed: str) -> Handler:
    def handle(draft: Draft, text: str) -> None:
        if text.split(",")[0] not in allowed:
            raise ConfigError(f"'{text}' is not supported (only {' or '.join(allowed)})")

    return handle


OPTIONS: dict[str, Option] = {
    "machine": Option("[type=]NAME[,prop=value...]", "the machine; accel=NAME chooses the accelerator", _machine),
    "accel": Option("NAME[,thread=single|multi][,tb-size=MIB][,one-insn-per-tb=on|off][,split-wx=on|off]",
                    "the accelerator ('-accel help'); of several the first that there is", _accel),
    "singlestep": Option("", "one guest instruction in each translated block, as one-insn-per-tb=on", _singlestep),
    "icount": Option("[shift=]N|auto[,align=on|off][,sleep=on|off]",
                     "guest time by instructions: each takes 2^N ns; runs repeat exactly", _icount),
    "seed": Option("NUMBER", "random numbers that repeat from run to run", _seed),
    "perfmap": Option("", "tell Linux perf which guest code translated code stands for (/tmp/perf-PID.map)",
                      _store("perfmap", True)),
    "cpu": Option("MODEL[,+feature,-feature]", "the CPU model", _store("cpu")),
    "smp": Option("[cpus=]N", "number of vCPUs", _smp),
    "m": Option("[size=]MEGS", "guest RAM, in MiB or with a suffix; default 128", _memory),
    "drive": Option("file=FILE[,format=raw][,if=ide|floppy|none][,index=N][,media=disk|cdrom]...", "a drive", _drive),
    "blockdev": Option("[driver=]DRIVER,node-name=NAME[,option=value...]", "a node of a block graph", _blockdev),
    "hda": Option("FILE", "IDE disk 0", _hd(0)),
    "hdb": Option("FILE", "IDE disk 1", _hd(1)),
    "hdc": Option("FILE", "IDE disk 2", _hd(2)),
    "hdd": Option("FILE", "IDE disk 3", _hd(3)),
    "cdrom": Option("FILE", "CD-ROM image (IDE index 2)", _cdrom),
    "fda": Option("FILE", "floppy 0", _fd(0)),
    "fdb": Option("FILE", "floppy 1", _fd(1)),
    "snapshot": Option("", "write to temporary files instead of the images", _snapshot),
    "boot": Option("[order=DRIVES][,once=DRIVES][,menu=on|off]", "boot order: a floppy, c disk, d CD-ROM", _boot),
    "device": Option("DRIVER[,prop=value...]", "add a device ('-device help', '-device DRIVER,help')", _device),
    "global": Option("DRIVER.PROP=VALUE", "default of a device property", _append("globals")),
    "kernel": Option("FILE", "boot this kernel (bzImage, PVH or Multiboot ELF)", _existing("kernel", "kernel")),
    "append": Option("TEXT", "its command line", _store("append")),
    "initrd": Option("FILE", "its initial RAM disk (or Multiboot modules)", _store("initrd")),
    "bios": Option("FILE", "the firmware", _store("bios")),
    "L": Option("DIR", "where to look for firmware", _append("data_dirs")),
    "fw_cfg": Option("[name=]NAME,file=FILE|string=TEXT", "add a fw_cfg file", _append("fw_cfg")),
    "smbios": Option("type=N,field=value...", "fill SMBIOS fields", _append("smbios")),
    "serial": Option("DEV", "a serial port's chardev, e.g. stdio, mon:stdio, unix:PATH,server=on", _append("serials")),
    "parallel": Option("none", "accepted", _only("none", "null")),
    "chardev": Option("BACKEND,id=ID[,...]", "a chardev: stdio file pipe null socket pty ringbuf", _append("chardevs")),
    "monitor": Option("DEV", "a monitor's chardev", _monitor),
    "mon": Option("[chardev=]ID[,mode=readline]", "a monitor on a chardev made with -chardev", _mon),
    "nographic": Option("", "no display; serial port and monitor on this terminal", _store("nographic", True)),
    "display": Option("none", "the display", _choice("display", DISPLAYS, "Parameter 'type' does not accept '{}'")),
    "vga": Option("std|none", "the display adapter", _choice("vga", VGAS, "unknown vga type: {}")),
    "nodefaults": Option("", "no default devices", _store("nodefaults", True)),
    "no-user-config": Option("", "accepted (there are no user configuration files)", lambda d, t: None),
    "name": Option("NAME", "the guest's name", _name),
    "uuid": Option("UUID", "the machine's UUID", _uuid),
    "rtc": Option("[base=utc|localtime|DATE][,clock=host|rt|vm]", "the real-time clock", _rtc),
    "net": Option("none", "accepted", _only("none")),
    "nic": Option("none", "accepted", _only("none")),
    "no-reboot": Option("", "end instead of rebooting", _store("reboot", False)),
    "no-shutdown": Option("", "stop instead of ending when the guest powers off", _store("shutdown", False)),
    "no-acpi": Option("", "no ACPI tables", _machine_option("acpi", "off")),
    "no-hpet": Option("", "no HPET", _machine_option("hpet", "off")),
    "enable-kvm": Option("", "accepted with a warning", _enable_kvm),
    "S": Option("", "do not start the CPU ('cont' in the monitor does)", _store("paused", True)),
    "incoming": Option("URI|defer", "go on with the machine that `migrate` sends: file: exec: unix: tcp: fd:",
                       _store("incoming")),
    "loadvm": Option("TAG", "start from this snapshot", _store("loadvm")),
    "pidfile": Option("FILE", "write the process id there", _store("pidfile")),
    "d": Option("ITEM[,...]", "log items ('-d help')", _log),
    "dfilter": Option("RANGE[,...]", "log guest code in these ranges only: A..B, START+LENGTH, END-LENGTH", _dfilter),
    "D": Option("FILE", "log to FILE instead of stderr", _store("log_file")),
    "version": Option("", "print the version", lambda d, t: None),
    "help": Option("", "print this help", lambda d, t: None),
}  # fmt: skip
ALIASES = {"M": "machine", "h": "help", "no-fd-bootchk": "no-user-config", "?": "help"}


class Help(Exception):
    """Not a mistake: a list was asked for. The text is what to print."""


def parse(argv: list[str]) -> tuple[Config, list[str]]:
    """The config and the warnings to print. Raises ConfigError, or Help with a topic."""
    draft = Draft()
    at = 0
    while at < len(argv):
        word = argv[at]
        at += 1
        if not word.startswith("-") or word == "-":
            _guard(word, lambda text=word: _hd(0)(draft, text))  # type: ignore[misc]
            continue
        option = _find(word)
        argument = ""
        if option.argument:
            if at >= len(argv):
                raise ConfigError(f"{word}: requires an argument")
            argument = argv[at]
            at += 1
            if _asks_for_help(argument):
                raise Help(f"{word.lstrip('-')} {argument}")
        before = len(draft.drives)
        _guard(f"{word} {argument}".rstrip(), lambda o=option, a=argument: o.handle(draft, a))  # type: ignore[misc]
        for n in range(before, len(draft.drives)):
            draft.drives[n] = (f"{word} {argument}", draft.drives[n][1])
    return _finish(draft), draft.warnings


def _asks_for_help(argument: str) -> bool:
    return argument in ("help", "?") or argument.endswith((",help", ",?"))


def _find(word: str) -> Option:
    name = word[2:] if word.startswith("--") else word[1:]
    name = ALIASES.get(name, name)
    option = OPTIONS.get(name)
    if option is None:
        if name in UNSUPPORTED:
            raise ConfigError(f"{word}: this option of QEMU is not supported yet")
        hint = options.did_you_mean(name, [*OPTIONS, *ALIASES])
        raise ConfigError(f"{word}: invalid option{hint.replace(chr(39), chr(39) + '-', 1)}")
    return option


def _guard(where: str, call: Callable[[], None]) -> None:
    """Mistakes found in `call` are reported with the option they are in."""
    try:
        call()
    except QemupyError as e:
        raise type(e)(f"{where}: {e}") from None


def _finish(draft: Draft) -> Config:
    values = draft.values
    if "append" in values and "kernel" not in values:
        raise ConfigError("-append only allowed with -kernel option")
    if "initrd" in values and "kernel" not in values:
        raise ConfigError("-initrd only allowed with -kernel option")
    drives: list[DriveConfig] = []
    for option, text in draft.drives:

        def take(text: str = text, option: str = option) -> None:
            drive = parse_drive(text, drives)
            drives.append(replace(drive, option=option, snapshot=drive.snapshot or draft.snapshot))

        _guard(option, take)
    if not values.get("nodefaults"):
        _add_default_drives(drives)
    values.update((key, tuple(items)) for key, items in draft.lists.items())
    accel = accel_options.choose(draft.accels, draft.warnings)
    if draft.singlestep:
        accel = replace(accel, one_insn_per_tb=True)
    values["accel"] = accel
    if accel.thread == "multi" and values.get("icount") is not None:
        raise ConfigError("No MTTCG when icount is enabled")
    values.update(drives=tuple(drives), devices=tuple(draft.devices), machine_options=draft.machine_options)
    config = Config(**values)
    return _with_consoles(draft, config)


def _add_default_drives(drives: list[DriveConfig]) -> None:
    """An empty CD-ROM drive and an empty floppy drive, unless their places are taken."""
    for text, interface, index in (("index=2,media=cdrom", "ide", 2), ("if=floppy,index=0", "floppy", 0)):
        if not any(d.interface == interface and d.index == index for d in drives):
            drives.append(parse_drive(text, drives))


def _with_consoles(draft: Draft, config: Config) -> Config:
    """Where serial port and monitor go when nothing was said. There is no window to show them in, so without
    -display they come to this terminal, as with -nographic."""
    silent = not config.serials and not config.monitors
    if silent and not config.nographic and "display" not in draft.values and not config.nodefaults:
        draft.warnings.append("no graphical display; serial port and monitor are on this terminal (Ctrl-a h for help)")
        config = replace(config, serials=("mon:stdio",))
    if config.nographic and not config.nodefaults:
        if silent:
            config = replace(config, serials=("mon:stdio",))
        elif not config.serials:
            config = replace(config, serials=("stdio",) if not _uses_stdio(config) else ("null",))
        elif not config.monitors and not _uses_stdio(config):
            config = replace(config, monitors=(("stdio", "readline"),))
    return config


def _uses_stdio(config: Config) -> bool:
    texts = [*config.serials, *(m for m, _ in config.monitors), *config.chardevs]
    return any(t.split(",")[0] in ("stdio", "mon:stdio") for t in texts)
