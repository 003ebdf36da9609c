"""Drive a machine from outside, as a user would: the program as a subprocess, its serial console on standard streams.

The same tests run against another program with QEMU's command line, to prove the tests themselves right:
    QEMUPY_BIN="qemu-system-x86_64 -accel tcg" pytest -m boot tests/boot
QEMUPY_TIMEOUT_SCALE stretches all time limits on slow hosts.
"""

import codecs
import os
import re
import selectors
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

SCALE = float(os.environ.get("QEMUPY_TIMEOUT_SCALE", "1"))
REFERENCE = os.environ.get("QEMUPY_BIN")
ACCELERATORS = ["reference"] if REFERENCE else ["dbt"]

# A guest that works never prints one of these.
ALARM = re.compile(
    r"BUG|WARNING|Call Trace|soft lockup|rcu.*stall|nobody cared|clocksource.*unstable|ata.*(exception|failed)")
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]|\x1b[=>78cM]|[\r\x0e\x0f]")
PARTIAL_ESCAPE = re.compile(r"\x1b(\[[0-9;?]*|[()])?$")


class GuestError(AssertionError):
    """The guest did not do what the test waited for; carries the end of its console."""


def program(accelerator: str) -> list[str]:
    """The words that start a machine."""
    if REFERENCE:
        return shlex.split(REFERENCE)
    beside = Path(sys.executable).with_name("qemupy")
    return [str(beside) if beside.exists() else "qemupy", "-accel", accelerator]


class Machine:
    """A running machine; text() is everything on its console so far, without escape sequences."""

    def __init__(self, accelerator: str, *arguments: str | Path, log: Path, start: list[str] | None = None) -> None:
        self.command = [*(start or program(accelerator)), *map(str, arguments)]
        self.log = log
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT)
        assert self.process.stdin and self.process.stdout
        self._stdin = self.process.stdin
        self._stdout = self.process.stdout
        os.set_blocking(self._stdout.fileno(), False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._stdout, selectors.EVENT_READ)
        self._raw = bytearray()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._pending = ""  # an escape sequence that has not ended yet
        self._text = ""
        self._position = 0  # in text(): what expect() has consumed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.process.kill()
        self.process.wait()
        self._read(0.1)
        self.log.write_bytes(self._raw)
        self._selector.close()
        self._stdin.close()
        self._stdout.close()

    def text(self) -> str:
        """The console output so far, without terminal escape sequences and carriage returns."""
        return self._text

    def _read(self, wait: float) -> bool:
        """Wait for output and take it; False when there was none in time or the stream has ended."""
        if not self._selector.select(wait):
            return False
        chunk = os.read(self._stdout.fileno(), 65536)
        self._raw += chunk
        fresh = self._pending + self._decoder.decode(chunk)
        partial = PARTIAL_ESCAPE.search(fresh)
        cut = partial.start() if partial else len(fresh)
        self._pending = fresh[cut:]
        self._text += ESCAPES.sub("", fresh[:cut])
        return bool(chunk)

    def idle(self, seconds: float) -> None:
        """Let the machine run for so long, taking what it prints."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._read(left)

    def expect(self, pattern: str, timeout: float, idle: float = 120) -> re.Match[str]:
        """Wait for a pattern after what was matched last. A guest silent for `idle` seconds has failed already."""
        deadline = time.monotonic() + timeout * SCALE
        quiet_since = time.monotonic()
        while True:
            found = re.compile(pattern).search(self.text(), self._position)
            if found:
                self._position = found.end()
                return found
            if self._read(0.2):
                quiet_since = time.monotonic()
            elif self.process.poll() is not None and not self._read(0):
                raise self._failure(f"ended with status {self.process.returncode} before {pattern!r}")
            if time.monotonic() > deadline:
                raise self._failure(f"no {pattern!r} within {timeout * SCALE:.0f} s")
            if time.monotonic() - quiet_since > idle * SCALE:
                raise self._failure(f"silent for {idle * SCALE:.0f} s while waiting for {pattern!r}")

    def send(self, text: str) -> None:
        """Type on the guest's serial console."""
        self._stdin.write(text.encode())
        self._stdin.flush()

    def run(self, command: str, timeout: float = 60) -> str:
        """Run a shell command in a guest that shows a shell prompt; returns its output, checks its exit status."""
        mark = str(time.monotonic_ns())
        # The quotes keep the echo of what is typed from matching.
        self.send(f"echo {mark}''begin; {command}; echo {mark}''end=$?\n")
        start = self.expect(f"{mark}begin\n", timeout).end()
        found = self.expect(rf"{mark}end=(\d+)\n", timeout)
        if found.group(1) != "0":
            raise self._failure(f"guest command {command!r} failed with {found.group(1)}")
        return self.text()[start:found.start()]

    def wait(self, timeout: float) -> int:
        """Wait for the program to end; returns its exit status."""
        deadline = time.monotonic() + timeout * SCALE
        while self.process.poll() is None:
            if not self._read(0.2) and self.process.poll() is None and time.monotonic() > deadline:
                raise self._failure(f"still running after {timeout * SCALE:.0f} s")
            if time.monotonic() > deadline:
                raise self._failure(f"still running after {timeout * SCALE:.0f} s")
        while self._read(0.1):
            pass
        return self.process.returncode

    def power_off(self, command: str = "poweroff -f", timeout: float = 60) -> None:
        """Have a guest at its shell prompt switch off; look at all it said, on the console and in its log."""
        self.send(f"dmesg; {command}\n")
        status = self.wait(timeout)
        if status:
            raise self._failure(f"ended with status {status}")
        self.check_alarms()

    def check_alarms(self) -> None:
        """Fail on kernel messages that no healthy boot prints."""
        for line in self.text().splitlines():
            if ALARM.search(line):
                raise self._failure(f"alarming line: {line}")

    def _failure(self, what: str) -> GuestError:
        tail = "\n".join(self.text().splitlines()[-40:])
        return GuestError(f"{what}\ncommand: {shlex.join(self.command)}\nend of the console ({self.log}):\n{tail}")


BootFunction = Callable[..., Machine]  # takes the program's arguments
