"""Line editing for monitors on plain chardevs (sockets, ptys, the mux): what a dumb peer and a terminal both stand.

Keys as in QEMU's monitor: arrows, Ctrl-A E B F D U K W P N, Home, End, Del, Backspace, Tab for completion.
"""

from __future__ import annotations

from collections.abc import Callable

_ESCAPES = {"[A": "up", "[B": "down", "[C": "right", "[D": "left", "[H": "home", "[F": "end", "OH": "home",
            "OF": "end", "[1~": "home", "[4~": "end", "[3~": "delete"}  # fmt: skip
_CONTROL = {1: "home", 2: "left", 4: "delete", 5: "end", 6: "right", 11: "kill", 14: "down", 16: "up", 21: "clear",
            23: "word", 8: "backspace", 127: "backspace"}  # fmt: skip


class Readline:
    """`enter(line)` is called for every line; `complete(text)` answers whole-line candidates."""

    HISTORY = 64
    LIMIT = 4095

    def __init__(self, write: Callable[[str], None], prompt: str, enter: Callable[[str], None],
                 complete: Callable[[str], list[str]]) -> None:  # fmt: skip
        self.prompt = prompt
        self.history: list[str] = []
        self.line, self.cursor = "", 0
        self._write, self._enter, self._complete = write, enter, complete
        self._recall = 0
        self._escape = ""
        self._carriage = False
        self.suspended = False  # a command is still running: what is typed waits
        self._waiting = ""

    def show(self) -> None:
        """Print the prompt and what has been typed."""
        self._write(self.prompt + self.line + "\b" * (len(self.line) - self.cursor))

    def clear(self) -> None:
        self.line, self.cursor, self._escape = "", 0, ""

    def feed(self, data: bytes) -> None:
        self._take(data.decode("utf-8", "replace"))

    def resume(self) -> None:
        """The command has ended: take what was typed meanwhile."""
        self.suspended = False
        waiting, self._waiting = self._waiting, ""
        self._take(waiting)

    def _take(self, text: str) -> None:
        for at, char in enumerate(text):
            if self.suspended:
                self._waiting += text[at:]
                return
            self._key(char)

    def _key(self, char: str) -> None:
        if self._escape:
            self._continue_escape(char)
        elif char == "\x1b":
            self._escape = char
        elif char == "\n" and self._carriage:
            self._carriage = False  # the second half of CR LF
            return
        elif char in "\r\n":
            self._finish_line()
        elif char == "\t":
            self._tab()
        elif ord(char) in _CONTROL:
            self._edit(_CONTROL[ord(char)])
        elif ord(char) >= 32 and len(self.line) < self.LIMIT:
            self._insert(char)
        self._carriage = char == "\r"

    def _continue_escape(self, char: str) -> None:
        self._escape += char
        body = self._escape[1:]
        if len(body) == 1 and body in "[O":
            return
        if body[0] == "[" and (body[-1].isdigit() or body[-1] == ";") and len(body) < 12:
            return
        self._escape = ""
        if body in _ESCAPES:
            self._edit(_ESCAPES[body])

    def _finish_line(self) -> None:
        self._write("\n")
        line = self.line
        self.clear()
        if line and (not self.history or self.history[-1] != line):
            self.history = [*self.history, line][-self.HISTORY :]
        self._recall = len(self.history)
        self._enter(line)

    def _insert(self, text: str) -> None:
        tail = self.line[self.cursor :]
        self.line = self.line[: self.cursor] + text + tail
        self.cursor += len(text)
        self._write(text + tail + "\b" * len(tail))

    def _redraw(self, line: str, cursor: int) -> None:
        """Replace the visible line."""
        self._write("\b" * self.cursor + line + "\x1b[K" + "\b" * (len(line) - cursor))
        self.line, self.cursor = line, cursor

    def _edit(self, action: str) -> None:
        line, at = self.line, self.cursor
        if action == "left" and at > 0:
            self._write("\b")
            self.cursor -= 1
        elif action == "right" and at < len(line):
            self._write(line[at])
            self.cursor += 1
        elif action == "home":
            self._write("\b" * at)
            self.cursor = 0
        elif action == "end":
            self._write(line[at:])
            self.cursor = len(line)
        elif action == "backspace" and at > 0:
            self._redraw(line[: at - 1] + line[at:], at - 1)
        elif action == "delete" and at < len(line):
            self._redraw(line[:at] + line[at + 1 :], at)
        elif action == "kill":
            self._redraw(line[:at], at)
        elif action == "clear":
            self._redraw(line[at:], 0)
        elif action == "word":
            start = len(line[:at].rstrip().rpartition(" ")[0])
            start += 1 if start else 0
            self._redraw(line[:start] + line[at:], start)
        elif action in ("up", "down"):
            self._recall_line(-1 if action == "up" else 1)

    def _recall_line(self, step: int) -> None:
        at = self._recall + step
        if 0 <= at <= len(self.history):
            self._recall = at
            line = self.history[at] if at < len(self.history) else ""
            self._redraw(line, len(line))

    def _tab(self) -> None:
        head = self.line[: self.cursor]
        found = self._complete(head)
        if not found:
            return
        common = found[0]
        for each in found[1:]:
            while not each.startswith(common):
                common = common[:-1]
        if len(found) == 1:
            common += " "
        if len(common) > len(head):
            self._insert(common[len(head) :])
        elif len(found) > 1:
            words = [each.rpartition(" ")[2] for each in found]
            width = max(map(len, words)) + 2
            columns = max(80 // width, 1)
            rows = ["".join(w.ljust(width) for w in words[i : i + columns]) for i in range(0, len(words), columns)]
            self._write("\n" + "\n".join(row.rstrip() for row in rows) + "\n")
            self.show()
