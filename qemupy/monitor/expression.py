"""Integer expressions of the HMP: C operators, numbers, characters, and the current vCPU's registers as `$name`."""

from __future__ import annotations

import re
from collections.abc import Callable

from qemupy.errors import MonitorError

_MASK = (1 << 64) - 1
_NUMBER = re.compile(r"0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*")


class Expression:
    """A recursive-descent parser over one text; `at` is where the next argument starts when it has run."""

    def __init__(self, text: str, at: int, register: Callable[[str], int | None]) -> None:
        self.text, self.at, self._register = text, at, register

    def parse(self) -> int:
        """Values are 64-bit two's complement, as in QEMU."""
        value = self._sum() & _MASK
        return value - (1 << 64) if value >> 63 else value

    def _peek(self) -> str:
        while self.at < len(self.text) and self.text[self.at] in " \t":
            self.at += 1
        return self.text[self.at : self.at + 1]

    def _next_operator(self, operators: str) -> str:
        """The operator here, taken; or nothing."""
        char = self._peek()
        if char and char in operators:
            self.at += 1
            return char
        return ""

    def _sum(self) -> int:
        value = self._logic()
        while operator := self._next_operator("+-"):
            right = self._logic()
            value = value + right if operator == "+" else value - right
        return value

    def _logic(self) -> int:
        value = self._product()
        while operator := self._next_operator("&|^"):
            right = self._product()
            value = value & right if operator == "&" else value | right if operator == "|" else value ^ right
        return value

    def _product(self) -> int:
        value = self._unary()
        while operator := self._next_operator("*/%"):
            right = self._unary()
            if operator == "*":
                value *= right
            elif right == 0:
                raise MonitorError("division by zero")
            else:
                quotient = abs(value) // abs(right) * (1 if (value < 0) == (right < 0) else -1)
                value = quotient if operator == "/" else value - quotient * right
        return value

    def _unary(self) -> int:
        char = self._peek()
        if char in ("+", "-", "~") and char:
            self.at += 1
            value = self._unary()
            return value if char == "+" else -value if char == "-" else ~value
        if char == "(":
            self.at += 1
            value = self._sum()
            if self._peek() != ")":
                raise MonitorError("')' expected")
            self.at += 1
            return value
        if char == "'":
            return self._character()
        if char == "$":
            return self._read_register()
        return self._number(char)

    def _character(self) -> int:
        if self.text[self.at + 2 : self.at + 3] != "'":
            raise MonitorError("missing terminating ' character")
        value = ord(self.text[self.at + 1])
        self.at += 3
        return value

    def _read_register(self) -> int:
        end = self.at + 1
        while end < len(self.text) and (self.text[end].isalnum() or self.text[end] in "_.:"):
            end += 1
        value = self._register(self.text[self.at + 1 : end])
        if value is None:
            raise MonitorError("unknown register")
        self.at = end
        return value

    def _number(self, char: str) -> int:
        if not char:
            raise MonitorError("unexpected end of expression")
        found = _NUMBER.match(self.text, self.at)
        if found is None:
            raise MonitorError(f"invalid char '{char}' in expression")
        word = found.group()
        value = int(word, 8 if word[0] == "0" and word[1:2] not in ("x", "X") else 0)
        if value > _MASK:
            raise MonitorError("number too large")
        self.at = found.end()
        return value
