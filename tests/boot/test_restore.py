"""A boot that is interrupted twenty times: the whole machine is written to a file and goes on in a new process."""

import random
import socket
import time
from pathlib import Path

import pytest
from machine import REFERENCE, SCALE, BootFunction, Machine

from qemupy_setup import guests, initramfs

pytestmark = pytest.mark.boot

MOMENTS = 20
SEED = 20
# QEMU 7.2 has no file: transport.
SAVE, LOAD = ("exec:cat>{}", "exec:cat {}") if REFERENCE else ("file:{}", "file:{}")


class Monitor:
    """A human monitor on a socket."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(60 * SCALE)
        deadline = time.monotonic() + 20 * SCALE
        while True:
            try:
                self.socket.connect(str(path))
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        self._until_prompt()

    def _until_prompt(self) -> str:
        text = b""
        while not text.endswith(b") "):
            chunk = self.socket.recv(65536)
            assert chunk, f"the monitor closed after {text!r}"
            text += chunk
        return text.decode(errors="replace")

    def command(self, line: str) -> str:
        self.socket.sendall(line.encode() + b"\n")
        return self._until_prompt()

    def quit(self) -> None:
        self.socket.sendall(b"quit\n")


def write_and_end(machine: Machine, monitor: Monitor, state: Path) -> str:
    """Write the machine to a file and end the process; what it printed up to then."""
    monitor.command("stop")
    answer = monitor.command(f'migrate "{SAVE.format(state)}"')
    assert "rror" not in answer, answer
    monitor.quit()
    assert machine.wait(30) == 0
    monitor.socket.close()
    return machine.text()


def test_twenty_moments_of_a_boot(boot: BootFunction, tmp_path: Path) -> None:
    guest = guests.linux("linux-image-cloud-amd64")
    socket_path, state = tmp_path / "monitor", tmp_path / "state"
    arguments = ["-m", "256", "-display", "none", "-serial", "stdio",
                 "-monitor", f"unix:{socket_path},server=on,wait=off",
                 "-kernel", guest.kernel, "-initrd", guest.initrd, "-append", "console=ttyS0,115200"]
    moments = random.Random(SEED)
    machine = boot(*arguments)
    monitor = Monitor(socket_path)
    console = ""
    for _ in range(MOMENTS):
        time.sleep(moments.uniform(0.02, 2.0))
        console += write_and_end(machine, monitor, state)
        socket_path.unlink(missing_ok=True)
        machine = boot(*arguments, "-incoming", LOAD.format(state))
        monitor = Monitor(socket_path)
        monitor.command("cont")
    if initramfs.READY not in console:
        machine.expect(initramfs.READY, 240)
    machine.send("\n")
    machine.expect(initramfs.PROMPT, 60)
    assert machine.run("echo $((6 * 7))").strip() == "42"
    machine.send("poweroff -f\n")
    assert machine.wait(60) == 0
    machine.check_alarms()
    assert "Linux version" in console + machine.text()
