"""HMP commands: the table, and the parser of their arguments.

A handler is `hmp_NAME(mon, ...)`, entered with `@hmp(names, arguments, params, help)`. `arguments` says how each is
read, `name:kind` separated by commas, with QEMU's kinds:
    s  word or "quoted text"     F  file name      B  drive      S  the rest of the line
    l  64-bit expression         i  32-bit expression
    /  dump format, `/4xw`       -x  flag `-x`
and a `?` behind the kind where the argument may be missing (None is passed).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from qemupy.errors import MonitorError
from qemupy.monitor.expression import Expression
from qemupy.records import record, replace

if TYPE_CHECKING:
    from qemupy.monitor.hmp import Hmp

F = TypeVar("F", bound=Callable[..., None])


@record(frozen=True)
class Format:
    """`/count format size`; size 0 means the format's own."""

    count: int = 1
    letter: str = "x"
    size: int = 0


@record(frozen=True)
class Command:
    names: tuple[str, ...]
    arguments: tuple[tuple[str, str], ...]
    params: str
    help: str
    handler: Callable[..., None]

    @property
    def name(self) -> str:
        return self.names[0]


commands: dict[str, Command] = {}
info_commands: dict[str, Command] = {}


def hmp(names: str, arguments: str = "", params: str = "", help: str = "") -> Callable[[F], F]:
    """Enter a handler; `info NAME` goes into the table of `info`."""

    def enter(handler: F) -> F:
        table, words = (info_commands, names[5:]) if names.startswith("info ") else (commands, names)
        pairs = [tuple(item.split(":")) for item in arguments.split(",") if item]
        command = Command(tuple(words.split("|")), tuple((p[0], p[1]) for p in pairs), params, help, handler)
        for name in command.names:
            if name in table:
                raise TypeError(f"monitor command {name} is entered twice")
            table[name] = command
        return handler

    return enter


class Arguments:
    """Reads the arguments of one command line; its name, as `typed`, ended at `at`."""

    def __init__(self, mon: Hmp, command: Command, typed: str, line: str, at: int) -> None:
        self._mon, self._command, self._typed, self._line, self._at = mon, command, typed, line, at
        self._default = mon.default_format

    def read(self) -> list[Any]:
        values = [self._read(name, kind) for name, kind in self._command.arguments]
        self._skip()
        if self._at < len(self._line):
            raise self._error("extraneous characters at the end of line", prefix=True)
        return values

    def _error(self, message: str, prefix: bool = False) -> MonitorError:
        shown = f"{'|'.join(self._command.names)}: " if prefix else ""
        return UsageError(f"{shown}{message}", self._typed)

    def _skip(self) -> None:
        while self._at < len(self._line) and self._line[self._at] in " \t":
            self._at += 1

    def _read(self, name: str, kind: str) -> Any:
        self._skip()
        if kind[0] == "-":
            return self._flag(kind[1])
        if kind[0] == "/":
            return self._format()
        if kind.endswith("?") and (self._at >= len(self._line)):
            return None
        if kind[0] in "li":
            return self._expression(kind[0])
        if kind[0] == "S":
            text, self._at = self._line[self._at :], len(self._line)
        else:
            text = self._word()
        if not text:
            what = {"F": "filename", "B": "block device name"}.get(kind[0], "string")
            raise self._error(f"{what} expected", prefix=True)
        return text

    def _flag(self, letter: str) -> bool:
        end = self._at + 2
        if self._line[self._at : end] == f"-{letter}" and self._line[end : end + 1] in ("", " ", "\t"):
            self._at = end
            return True
        return False

    def _expression(self, kind: str) -> int:
        expression = Expression(self._line, self._at, self._mon.register)
        try:
            value = expression.parse()
        except UsageError:
            raise
        except MonitorError as e:
            raise self._error(str(e)) from None
        self._at = expression.at
        if kind == "i" and not -(1 << 31) <= value < 1 << 32:
            raise self._error(f"'{self._typed}' has failed: integer is for 32-bit values")
        return value

    def _word(self) -> str:
        """One word, or a text in double quotes with C escapes."""
        if self._line[self._at : self._at + 1] != '"':
            end = self._at
            while end < len(self._line) and self._line[end] not in " \t":
                end += 1
            word, self._at = self._line[self._at : end], end
            return word
        out, at = "", self._at + 1
        while at < len(self._line) and self._line[at] != '"':
            if self._line[at] == "\\" and at + 1 < len(self._line):
                at += 1
                out += {"n": "\n", "r": "\r"}.get(self._line[at], self._line[at])
            else:
                out += self._line[at]
            at += 1
        if at >= len(self._line):
            raise self._error("unterminated string")
        self._at = at + 1
        return out

    def _format(self) -> Format:
        """`/[count][format][size]`; what is left out is as in the dump before."""
        if self._line[self._at : self._at + 1] != "/":
            return replace(self._default, count=1)
        at = self._at + 1
        digits = at
        while at < len(self._line) and self._line[at].isdigit():
            at += 1
        count = int(self._line[digits:at] or "1")
        letter, size = "", 0
        while at < len(self._line) and self._line[at] not in " \t":
            char = self._line[at]
            if char in "oduxic":
                letter = char
            elif char in "bhwgL":
                size = {"b": 1, "h": 2, "w": 4, "g": 8, "L": 8}[char]
            else:
                raise self._error(f"invalid char in format: '{char}'")
            at += 1
        self._at = at
        letter = letter or self._default.letter
        if letter != "i":
            size = size or self._default.size
        self._mon.default_format = Format(1, letter, size or self._default.size)
        return Format(count, letter, size)


class UsageError(MonitorError):
    """A mistake in the form of a command; the monitor points to its help."""

    def __init__(self, message: str, command: str) -> None:
        super().__init__(message)
        self.command = command
