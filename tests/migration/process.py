"""qemupy as processes of its own: a guest that checks its memory, and monitors on sockets."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

SCALE = float(os.environ.get("QEMUPY_TIMEOUT_SCALE", "1"))
PROGRAM = Path(sys.executable).with_name("qemupy")
PROMPT = b"(qemu) "


def counting_guest(folder: Path, name: str = "counting") -> Path:
    """A floppy image with the boot sector of counting.S, or another."""
    image = folder / f"{name}.img"
    flags = ["-nostdlib", "-static", "-Wl,-Ttext=0x7c00", "-Wl,--oformat=binary", "-Wl,--build-id=none"]
    source = Path(__file__).with_name(f"{name}.S")
    subprocess.run(["gcc", "-m32", *flags, "-o", image, source], check=True, capture_output=True)
    os.truncate(image, 1440 * 1024)
    return image


class Monitor:
    """A human monitor on a Unix socket."""

    def __init__(self, path: Path, patience: float = 60 * SCALE) -> None:
        deadline = time.monotonic() + 20 * SCALE
        while True:
            self._socket = socket.socket(socket.AF_UNIX)
            try:
                self._socket.connect(str(path))
                break
            except OSError:
                self._socket.close()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        self._socket.settimeout(patience)
        self.until_prompt()

    def until_prompt(self) -> str:
        got = b""
        while not got.endswith(PROMPT):
            chunk = self._socket.recv(65536)
            assert chunk, got
            got += chunk
        return got.decode().replace("\r\n", "\n")

    def send(self, command: str) -> None:
        self._socket.sendall(command.encode() + b"\n")

    def run(self, command: str) -> str:
        """The answer without the echoed command and the prompt."""
        self.send(command)
        return "\n".join(self.until_prompt().splitlines()[1:-1])

    def close(self) -> None:
        self._socket.close()


class Process:
    """A qemupy with two monitors (`mon`, `other`) and the debug console of the counting guest in a file."""

    count = 0
    patience = 30 * SCALE  # seconds until a machine that does not get on has failed

    def __init__(self, folder: Path, *arguments: str | Path) -> None:
        Process.count += 1
        base = folder / f"m{Process.count}"
        self.output = base.with_suffix(".e9")
        self.errors = base.with_suffix(".err")
        paths = [base.with_suffix(f".mon{n}") for n in range(2)]
        monitors = [f"unix:{path},server=on,wait=off" for path in paths]
        command = [PROGRAM, "-m", "16", "-display", "none", "-serial", "none", "-net", "none", "-nodefaults",
                   "-chardev", f"file,id=e9,path={self.output}", "-device", "isa-debugcon,chardev=e9,id=e9",
                   "-monitor", monitors[0], "-monitor", monitors[1], *arguments]  # fmt: skip
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(list(map(str, command)), stderr=errors, stdin=subprocess.DEVNULL)
        self._paths = paths
        self._monitors: dict[int, Monitor] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        for monitor in self._monitors.values():
            monitor.close()
        self.process.kill()
        self.process.wait()

    def _monitor(self, n: int) -> Monitor:
        if n not in self._monitors:
            self._monitors[n] = Monitor(self._paths[n], 2 * self.patience)
        return self._monitors[n]

    @property
    def mon(self) -> Monitor:
        return self._monitor(0)

    @property
    def other(self) -> Monitor:
        return self._monitor(1)

    @property
    def stderr(self) -> str:
        return self.errors.read_text()

    def passes(self) -> int:
        """Good passes so far; fails on a bad one."""
        text = self.output.read_bytes() if self.output.exists() else b""
        assert b"E" not in text, "the guest found wrong memory"
        return text.count(b".")

    def wait_passes(self, more: int = 3) -> None:
        """Until the guest has made so many further good passes."""
        goal = self.passes() + more
        deadline = time.monotonic() + self.patience
        while self.passes() < goal:
            assert self.process.poll() is None, self.stderr
            assert time.monotonic() < deadline, f"{self.passes()} passes, {goal} wanted; {self.stderr}"
            time.sleep(0.01)

    def wait(self) -> int:
        return self.process.wait(self.patience)
