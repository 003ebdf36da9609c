"""HMP: running the machine, its keyboard, screen, drives and log."""

from __future__ import annotations

from qemupy import trace
from qemupy.errors import ConfigError
from qemupy.monitor import commands
from qemupy.monitor.command import Command, UsageError, hmp, info_commands
from qemupy.monitor.command import commands as table
from qemupy.monitor.hmp import Hmp
from qemupy.monitor.keys import parse_keys


def usage(command: Command, prefix: str = "") -> str:
    return f"{prefix}{'|'.join(command.names)} {command.params} -- {command.help}"


@hmp("help|?", "name:S?", "[cmd]", "show the help")
def hmp_help(mon: Hmp, name: str | None) -> None:
    words = (name or "").split()
    if words[:1] == ["info"]:
        shown = [c for c in dict.fromkeys(info_commands.values()) if len(words) == 1 or words[1] in c.names]
        for command in sorted(shown, key=lambda c: c.name):
            mon.print(usage(command, "info "))
        if not shown:
            mon.print(f"unknown command: 'info {words[1]}'")
        return
    if words[:1] == ["log"]:
        show_log_items(mon)
        return
    chosen = [c for c in dict.fromkeys(table.values()) if not words or words[0] in c.names]
    for command in sorted(chosen, key=lambda c: c.name):
        mon.print(usage(command))
    if not chosen:
        mon.print(f"unknown command: '{words[0]}'")


@hmp("info", "item:s?", "[subcommand]", "show various information about the system state")
def hmp_info(mon: Hmp, item: str | None) -> None:
    hmp_help(mon, "info")


@hmp("quit|q", "", "", "quit the emulator")
def hmp_quit(mon: Hmp) -> None:
    mon.ended = True
    commands.quit(mon.vm)


@hmp("stop|s", "", "", "stop emulation")
def hmp_stop(mon: Hmp) -> None:
    commands.stop(mon.vm)


@hmp("cont|c", "", "", "resume emulation")
def hmp_cont(mon: Hmp) -> None:
    commands.cont(mon.vm)


@hmp("system_reset", "", "", "reset the system")
def hmp_system_reset(mon: Hmp) -> None:
    commands.system_reset(mon.vm)


@hmp("system_powerdown", "", "", "send system power down event")
def hmp_system_powerdown(mon: Hmp) -> None:
    commands.system_powerdown(mon.vm)


@hmp("nmi", "", "", "inject an NMI")
def hmp_nmi(mon: Hmp) -> None:
    commands.inject_nmi(mon.vm)


@hmp("sendkey", "keys:s,hold_time:i?", "keys [hold_ms]",
     "send keys to the VM (e.g. 'sendkey ctrl-alt-f1', default hold time=100 ms)")  # fmt: skip
def hmp_sendkey(mon: Hmp, keys: str, hold_time: int | None) -> None:
    commands.send_key(mon.vm, parse_keys(keys), 100 if hold_time is None else hold_time)


@hmp("screendump", "filename:F,format:-f,kind:s?", "filename [-f format]",
     "save screen into file 'filename' in format 'format' (ppm or png, default ppm)")  # fmt: skip
def hmp_screendump(mon: Hmp, filename: str, has_format: bool, kind: str | None) -> None:
    if has_format and kind is None:
        raise UsageError("screendump: a format is expected after -f", "screendump")
    commands.screendump(mon.vm, filename, kind if has_format and kind else "ppm")


def show_log_items(mon: Hmp) -> None:
    mon.print("Log items (comma separated):")
    mon.print("none            remove all logs")
    for name, (_, text) in trace.CATEGORIES.items():
        mon.print(f"{name:<15} {text}")


@hmp("log", "items:s", "item1[,...]", "activate logging of the specified items")
def hmp_log(mon: Hmp, items: str) -> None:
    try:
        mask = trace.parse_categories(items)
    except ConfigError:
        show_log_items(mon)
        return
    mon.vm.set_log_mask(mask)


@hmp("logfile", "filename:F", "filename", "output logs to 'filename'")
def hmp_logfile(mon: Hmp, filename: str) -> None:
    trace.open_log(filename)
    mon.vm.set_log_mask(trace.enabled)
