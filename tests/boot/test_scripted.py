"""The examples of docs/snapshots.md do what they promise: boot once, then ten jobs, each from the same state."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from machine import REFERENCE, SCALE, program

from qemupy_setup import guests

pytestmark = [pytest.mark.boot, pytest.mark.skipif(bool(REFERENCE), reason="examples of our own")]
EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    guest = guests.linux("linux-image-cloud-amd64")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", tmp_path / "disk.qcow2", "64M"], check=True)
    return ["-m", "256", "-kernel", str(guest.kernel), "-initrd", str(guest.initrd), "-append", "console=ttyS0 quiet"]


def test_ten_jobs_from_a_shell_script(tmp_path: Path, options: list[str], accelerator: str) -> None:
    environment = {**os.environ, "QEMUPY": program(accelerator)[0]}
    done = subprocess.run([EXAMPLES / "ten-jobs.sh", tmp_path / "disk.qcow2", *options], env=environment,
                          capture_output=True, text=True, timeout=300 * SCALE)
    assert done.stdout.splitlines() == [f"job {n}: 0 before" for n in range(1, 11)], done.stdout + done.stderr
    assert done.returncode == 0


def test_ten_jobs_over_a_monitor_socket(tmp_path: Path, options: list[str], accelerator: str) -> None:
    sockets = [tmp_path / "monitor", tmp_path / "serial"]
    machine = subprocess.Popen([
        *program(accelerator), *options, "-display", "none", "-drive", f"file={tmp_path}/disk.qcow2,format=qcow2",
        "-monitor", f"unix:{sockets[0]},server=on,wait=off", "-serial", f"unix:{sockets[1]},server=on,wait=off",
    ])  # fmt: skip
    try:
        while not all(path.exists() for path in sockets):
            time.sleep(0.05)
        done = subprocess.run([sys.executable, EXAMPLES / "ten_jobs.py", *sockets], capture_output=True, text=True,
                              timeout=300 * SCALE)
        assert done.stdout.splitlines() == [f"job {n}: {6 * n}" for n in range(1, 11)], done.stdout + done.stderr
        assert machine.wait(30 * SCALE) == 0
    finally:
        machine.kill()
