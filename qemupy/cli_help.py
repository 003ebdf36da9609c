"""What `-help`, `-machine help` and the like print."""

from __future__ import annotations

import textwrap

from qemupy import trace
from qemupy.accel_options import ACCELERATORS
from qemupy.cli import version_text
from qemupy.command_line import MACHINES, OPTIONS
from qemupy.errors import ConfigError


def option_help() -> str:
    lines = [version_text(), "usage: qemupy [options] [disk_image]"]
    lines += ["", "'disk_image' is a raw image for IDE disk 0", ""]
    for name, option in OPTIONS.items():
        lines.append(f"-{name} {option.argument}".rstrip())
        lines.extend(textwrap.wrap(option.help, 100, initial_indent=" " * 16, subsequent_indent=" " * 16))
    lines += ["", "During emulation with -nographic: Ctrl-a h for help, Ctrl-a x to exit, Ctrl-a c for the monitor."]
    return "\n".join(lines)


def topic_help(topic: str) -> str:
    option, _, argument = topic.partition(" ")
    option = {"M": "machine"}.get(option, option)
    if option == "machine":
        return "Supported machines are:\n" + "\n".join(f"{name:<20} {text}" for name, text in MACHINES.items())
    if option == "accel":
        return "\n".join(["Accelerators supported in QEMU binary:", *ACCELERATORS])
    if option == "cpu":
        return _cpu_help()
    if option == "device":
        return _device_help(argument)
    if option == "d":
        return "Log items (comma separated):\n" + "\n".join(
            f"{name:<15} {text}" for name, (_, text) in trace.CATEGORIES.items()
        )
    if option == "chardev":
        from qemupy.backends.chardev.options import KNOWN_KEYS

        return "Available chardev backend types: \n" + "\n".join(f"  {name}" for name in sorted(KNOWN_KEYS))
    if option in ("display", "vga"):
        from qemupy.command_line import DISPLAYS, VGAS

        names = DISPLAYS if option == "display" else VGAS
        return f"Available {option} types:\n" + "\n".join(names)
    raise ConfigError(f"-{option}: there is no list of values for this option")


def _cpu_help() -> str:
    import textwrap

    from qemupy.vcpu.interp import cpu_features, cpu_models

    models = "\n".join(f"x86 {name:<20}  {brand}".rstrip() for name, brand in cpu_models())
    flags = textwrap.fill(" ".join(sorted(cpu_features())), 76, initial_indent="  ", subsequent_indent="  ",
                          break_on_hyphens=False)  # fmt: skip
    return f"Available CPUs:\n{models}\n\nRecognized CPUID flags:\n{flags}"


def _device_help(argument: str) -> str:
    from qemupy.hw.core import registry
    from qemupy.hw.i386 import devices

    devices.load()
    if argument in ("help", "?"):
        lines = []
        for entry in registry.entries():
            lines.append(f'name "{entry.name}", bus {entry.bus}' + (f', desc "{entry.help}"' if entry.help else ""))
        return "\n".join(lines)
    name = argument.split(",")[0]
    entry = registry.lookup(name)
    if not entry.cls.__props__:
        return f"There are no options for {name}."
    lines = [f"{name} options:"]
    for key, spec in sorted(entry.cls.__props__.items()):
        kind = {bool: "bool", int: "int", str: "str"}.get(type(spec.default), type(spec.default).__name__)
        shown = {True: "true", False: "false"}.get(spec.default, spec.default) if kind == "bool" else spec.default
        text = f"{spec.help} " if spec.help else ""
        lines.append(f"  {key.replace('_', '-') + '=<' + kind + '>':<22} - {text}(default: {shown})")
    return "\n".join(lines)
