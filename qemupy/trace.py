"""What `-d` logs, in QEMU's categories.

The call sites sit in device handlers, so a switched-off category must cost next to nothing: `enabled` is a plain int,
and `log_guest_error`/`log_unimp` test one bit and return. Lines go to stderr or the `-D` file, unbuffered by line.
"""

from __future__ import annotations

import sys
from typing import TextIO

from qemupy.errors import ConfigError

OUT_ASM = 1 << 0
IN_ASM = 1 << 1
OP = 1 << 2
INT = 1 << 4
EXEC = 1 << 5
PCALL = 1 << 6
CPU = 1 << 8
CPU_RESET = 1 << 9
UNIMP = 1 << 10
GUEST_ERRORS = 1 << 11
MMU = 1 << 12
NOCHAIN = 1 << 15
HANDLER = 1 << 16
FPU = 1 << 17

# QEMU's items, less those of user-mode emulation and plugins.
CATEGORIES: dict[str, tuple[int, str]] = {
    "out_asm": (OUT_ASM, "show generated host assembly code for each compiled TB"),
    "in_asm": (IN_ASM, "show target assembly code for each compiled TB"),
    "op": (OP, "show micro ops for each compiled TB"),
    "op_opt": (OP, "the same: there is no stage between"),
    "op_ind": (OP, "the same: there is no stage between"),
    "int": (INT, "show interrupts/exceptions in short format"),
    "exec": (EXEC, "show trace before each executed TB (lots of logs)"),
    "cpu": (CPU, "show CPU registers before entering a TB (lots of logs)"),
    "fpu": (FPU, "include FPU registers in the 'cpu' logging"),
    "mmu": (MMU, "log MMU-related activities"),
    "pcall": (PCALL, "x86 only: show protected mode far calls/returns/exceptions"),
    "cpu_reset": (CPU_RESET, "show CPU state before CPU resets"),
    "unimp": (UNIMP, "log unimplemented functionality"),
    "guest_errors": (GUEST_ERRORS, "log when the guest OS does something invalid (eg a non-existent register)"),
    "nochain": (NOCHAIN, 'do not chain compiled TBs so that "exec" and "cpu" show complete traces'),
    "handler": (HANDLER, "count the instructions that translated code leaves to handlers: info jit shows them"),
}

enabled: int = 0
_out: TextIO = sys.stderr


def parse_categories(text: str) -> int:
    """The mask for QEMU's `-d item1,item2` syntax; `all` and `none` as in QEMU's monitor."""
    mask = 0
    for item in text.split(","):
        if item == "all":
            mask |= sum(bit for bit, _ in CATEGORIES.values())
        elif item in CATEGORIES:
            mask |= CATEGORIES[item][0]
        elif item != "none":
            raise ConfigError(f"Invalid parameter '{item}' for -d (known: {', '.join(CATEGORIES)}, all, none)")
    return mask


def parse_ranges(text: str) -> tuple[tuple[int, int], ...]:
    """First and last addresses of `-dfilter`: start..end, start+length, end-length."""
    import re

    ranges = []
    for item in text.split(","):
        found = re.fullmatch(r"(?s)(.*?)(\.\.|[+-])(.*)", item)
        if found is None:
            raise ConfigError(f"Bad range specifier '{item}'")
        left, operator, right = found.groups()
        numbers = []
        for side, part in (("left", left), ("right", right)):
            try:
                numbers.append(int(part, 0))
            except ValueError:
                raise ConfigError(f"Invalid number to the {side} of {operator} in '{item}'") from None
        a, b = numbers
        first, last = {"..": (a, b), "+": (a, a + b - 1), "-": (a - b + 1, a)}[operator]
        if not 0 <= first <= last < 1 << 64:
            raise ConfigError(f"Invalid range '{item}'")
        ranges.append((first, last))
    return tuple(ranges)


def set_mask(mask: int) -> None:
    global enabled
    enabled = mask


def open_log(path: str | None) -> None:
    """Send the log to `path`, or back to stderr with None."""
    global _out
    if path is None:
        new: TextIO = sys.stderr
    else:
        try:
            new = open(path, "w", buffering=1, encoding="utf-8", errors="replace")  # noqa: SIM115
        except OSError as e:
            raise ConfigError(f"Could not open log file {path}: {e.strerror}") from None
    old, _out = _out, new
    if old is not sys.stderr:
        old.close()


def fileno() -> int:
    """Where the log goes, for the core's part of it."""
    return _out.fileno()


def log(category: int, message: str) -> None:
    if enabled & category:
        _out.write(message if message.endswith("\n") else message + "\n")


def log_guest_error(message: str, *args: object) -> None:
    """The guest did something a real machine would ignore. `args` are formatted with `%` only when it is logged."""
    if enabled & GUEST_ERRORS:
        _out.write((message % args if args else message) + "\n")


def log_unimp(message: str, *args: object) -> None:
    """The guest used a function of a device that we do not model."""
    if enabled & UNIMP:
        _out.write((message % args if args else message) + "\n")
