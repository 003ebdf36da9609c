"""The human monitor: runs command lines against a Vm, and sits on a chardev as a frontend.

`Hmp.execute` is what every face uses: the line editor here, the prompt_toolkit front end, QMP's human-monitor-command.
It runs in the main loop with the BQL held.
"""

from __future__ import annotations

from collections.abc import Callable

from qemupy.backends.chardev.base import CLOSED, MUX_IN, MUX_OUT, OPENED, CharBackend
from qemupy.errors import QemupyError
from qemupy.monitor import load_commands
from qemupy.monitor.command import Arguments, Command, Format, UsageError, commands, info_commands
from qemupy.monitor.cpu_registers import register_value
from qemupy.monitor.readline import Readline
from qemupy.vm import Vm

PROMPT = "(qemu) "
QEMU_VERSION = "7.2.22"


class _Running:
    """A command line being carried out; `end` counts once."""

    def __init__(self, done: Callable[[str], None]) -> None:
        self.out: list[str] = []
        self.held = False  # it goes on as a job
        self._done: Callable[[str], None] | None = done

    def end(self, error: QemupyError | None) -> None:
        done, self._done = self._done, None
        if done is None:
            return
        if error is not None:
            self.out.append(_error_text(error))
        done("".join(self.out))


def _error_text(error: QemupyError) -> str:
    if isinstance(error, UsageError):
        return f'{error}\nTry "help {error.command}" for more information\n'
    return f"{error}\n" if getattr(error, "plain", False) else f"Error: {error}\n"


class Hmp:
    """One monitor. Output of the running command goes to `print`."""

    def __init__(self, vm: Vm) -> None:
        load_commands()
        self.vm = vm
        self.cpu = 0  # the current vCPU
        self.default_format = Format(1, "x", 4)
        self.ended = False  # quit was entered: no further prompt
        self._out: list[str] = []
        self._running = _Running(lambda output: None)
        self.history: Callable[[], list[str]] = list

    def banner(self) -> str:
        return f"QEMU {QEMU_VERSION} monitor - type 'help' for more information\n"

    def print(self, text: str = "") -> None:
        self._out.append(text + "\n")

    def write(self, text: str) -> None:
        """Without line end."""
        self._out.append(text)

    def register(self, name: str) -> int | None:
        """`$name` in expressions."""
        with self.vm.paused():
            return register_value(self.vm.vcpus[self.cpu].state(), name)

    def run(self, line: str, done: Callable[[str], None]) -> None:
        """Run one line; `done` gets its output, errors included: at once, or when the job it started has ended."""
        command = self._running = _Running(done)
        self._out = command.out
        try:
            self._dispatch(line)
        except QemupyError as e:
            command.end(e)
        if not command.held:
            command.end(None)

    def execute(self, line: str) -> str:
        """Run one line to its end, turning the main loop while a job runs; its output."""
        answer: list[str] = []
        self.run(line, answer.append)
        while not answer:
            self.vm.loop.iterate(50_000_000)
        return answer[0]

    def hold(self) -> Callable[[QemupyError | None], None]:
        """For a handler that starts a job: the command ends when the function answered is called."""
        self._running.held = True
        return self._running.end

    def _dispatch(self, line: str) -> None:
        at = len(line) - len(line.lstrip())
        end = at
        while end < len(line) and line[end] not in " \t/":
            end += 1
        name = line[at:end]
        if not name or name.startswith("#"):
            return
        command = commands.get(name)
        if command is None:
            self.print(f"unknown command: '{name}'")
            return
        if command.name == "info" and line[end:].strip():
            found = self._find_info(line, end)
            if found is None:
                return
            command, end = found
        command.handler(self, *Arguments(self, command, name, line, end).read())

    def _find_info(self, line: str, end: int) -> tuple[Command, int] | None:
        at = end + len(line[end:]) - len(line[end:].lstrip())
        stop = at
        while stop < len(line) and line[stop] not in " \t":
            stop += 1
        command = info_commands.get(line[at:stop])
        if command is None:
            self.print(f"unknown command: 'info {line[at:stop]}'")
            return None
        return command, stop

    def complete(self, text: str) -> list[str]:
        """Whole-line candidates for `text`: commands, then `info` items, help topics, drives and keys."""
        words = text.split(" ")
        if len(words) == 1:
            return sorted(name for name in commands if name.startswith(words[0]))
        pool: list[str] = []
        if len(words) == 2 and words[0] in ("info", "help", "?"):
            pool = sorted(info_commands if words[0] == "info" else commands)
        elif len(words) == 3 and words[0] in ("help", "?") and words[1] == "info":
            pool = sorted(info_commands)
        elif words[0] in ("block_resize", "change", "commit", "drive_del", "eject"):
            pool = sorted(self.vm.drives)
        elif words[0] == "sendkey" and len(words) == 2:
            from qemupy.monitor.keys import QCODES

            head, dash, last = words[1].rpartition("-")
            return [f"sendkey {head}{dash}{key}" for key in QCODES if key.startswith(last)]
        return [" ".join([*words[:-1], word]) for word in pool if word.startswith(words[-1])]


class HmpSession:
    """An Hmp on a chardev. On a mux it speaks only while it has the focus."""

    def __init__(self, vm: Vm, backend: CharBackend) -> None:
        self.hmp = Hmp(vm)
        self._backend = backend
        self._muted = False
        self._greeted = False
        self._entering = False
        self._line = Readline(self._send, PROMPT, self._enter, self.hmp.complete)
        self.hmp.history = lambda: self._line.history
        backend.connect(self._line.feed, lambda: 0 if self._line.suspended else 4096, self._event)

    def _send(self, text: str) -> None:
        if not self._muted:
            self._backend.write(text.replace("\n", "\r\n").encode())

    def _greet(self) -> None:
        self._greeted = True
        self._send(self.hmp.banner())
        self._line.show()

    def _event(self, event: str) -> None:
        if event == OPENED:
            self._line.clear()
            self._muted = getattr(self._backend, "filename", "") == "mux"
            if not self._muted:
                self._greet()
        elif event == CLOSED:
            self._greeted = False
        elif event == MUX_IN:
            self._muted = False
            if self._greeted:
                self._send("\n")
                self._line.show()
            else:
                self._greet()
        elif event == MUX_OUT:
            self._send("\n")
            self._muted = True

    def _enter(self, line: str) -> None:
        self._line.suspended = self._entering = True
        self.hmp.run(line, self._answer)
        self._entering = False

    def _answer(self, output: str) -> None:
        """At once, in the middle of a chunk of input; or later, when a job has ended."""
        self._line.suspended = False
        self._send(output)
        if not self.hmp.ended:
            self._line.show()
        if not self._entering:
            self._line.resume()
            self._backend.accept_input()
