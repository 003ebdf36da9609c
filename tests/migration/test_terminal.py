"""The monitor on a terminal while `-loadvm` loads: what is typed is for the machine that is loaded."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

from tests.migration.process import SCALE, Process

SLOW_LOAD = """
import sys, time
from qemupy import cli
from qemupy.migration.snapshots import Snapshots
read = Snapshots._read_state
def slowly(*arguments):
    time.sleep(2)
    return read(*arguments)
Snapshots._read_state = slowly
sys.exit(cli.main(sys.argv[1:]))
"""


def until(terminal: int, wanted: bytes) -> bytes:
    got, deadline = b"", time.monotonic() + 20 * SCALE
    while wanted not in got:
        left = deadline - time.monotonic()
        assert left > 0, repr(got)
        if select.select([terminal], [], [], left)[0]:
            got += os.read(terminal, 65536)
            if b"\x1b[6n" in got:  # prompt_toolkit asks where the cursor is
                os.write(terminal, b"\x1b[1;1R")
                got = got.replace(b"\x1b[6n", b"")
    return got


def test_commands_typed_before_the_load_ended_wait_for_it(tmp_path: Path) -> None:
    disk = tmp_path / "a.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "64M"], check=True)
    drive = ["-drive", f"file={disk},format=qcow2"]
    with Process(tmp_path, *drive) as process:
        assert process.mon.run("savevm ready") == ""
        process.mon.send("quit")
        assert process.wait() == 0
    console = tmp_path / "again.e9"
    words = ["-m", "16", "-display", "none", "-serial", "none", "-net", "none", "-nodefaults", *drive,
             "-chardev", f"file,id=e9,path={console}", "-device", "isa-debugcon,chardev=e9,id=e9",
             "-monitor", "stdio", "-loadvm", "ready"]  # fmt: skip
    ours, theirs = pty.openpty()
    begun = time.monotonic()
    child = subprocess.Popen([sys.executable, "-c", SLOW_LOAD, *words], stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    try:
        until(ours, b"(qemu)")
        os.write(ours, b"stop\r")
        os.write(ours, b"info status\r")
        told = until(ours, b"VM status: paused")
        assert time.monotonic() - begun > 2, "answered before the machine was loaded"
        assert b"Error" not in told
        os.write(ours, b"quit\r")
        child.wait(20 * SCALE)
    finally:
        child.kill()
        child.wait()
        os.close(ours)
