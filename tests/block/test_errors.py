"""I/O errors: what the guest is told, when the machine stops, and that nothing is lost when it goes on.

The disk is really full: a small tmpfs of its own."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from qemupy.backends.block.node import Buffer
from qemupy.backends.block.null import NullNode
from qemupy.backends.block.opening import Flags
from qemupy.config import parse_drive
from qemupy.errors import BackendError
from qemupy.vm import RunState
from tests.block.conftest import Machine
from tests.block.files import small_disk

MIB = 1 << 20


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A file system with 1 MiB left, an empty disk of 4 MiB, and `ballast` to be removed."""
    with small_disk(tmp_path / "small") as folder:
        (folder / "ballast").write_bytes(bytes(MIB))
        with (folder / "disk.img").open("wb") as file:
            file.truncate(4 * MIB)
        yield folder


def test_a_full_disk_stops_the_machine_and_cont_goes_on(machine: Machine, full: Path) -> None:
    drive = machine.drive(f"file={full}/disk.img,format=raw")
    data = {n: bytes([n + 1]) * (MIB // 4) for n in range(8)}
    for n, piece in data.items():
        machine.write(drive, f"w{n}", n * MIB // 4, piece)
    machine.wait_for(RunState.IO_ERROR)
    assert machine("info status") == "VM status: paused (io-error)\n"
    assert drive.suspended and machine.errors and all(error == 0 for _, error in machine.errors)
    assert machine("cont") == ""
    machine.wait_for(RunState.IO_ERROR)  # still full
    (full / "ballast").unlink()
    assert machine("cont") == "" and machine("info status") == "VM status: running\n"
    assert machine.wait(*(f"w{n}" for n in data)) == [0] * 8
    assert (full / "disk.img").read_bytes()[: 2 * MIB] == b"".join(data.values()) and not drive.suspended


@pytest.mark.parametrize(("policy", "told"), [("report", errno.ENOSPC), ("ignore", 0)])
def test_a_full_disk_by_policy(machine: Machine, full: Path, policy: str, told: int) -> None:
    drive = machine.drive(f"file={full}/disk.img,format=raw,werror={policy}")
    machine.write(drive, "big", 0, os.urandom(2 * MIB))
    assert machine.wait("big") == [told] and machine.vm.running


def test_a_full_disk_under_a_temporary_snapshot(machine: Machine, full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(full))
    drive = machine.drive(f"file={full}/disk.img,format=raw,snapshot=on")
    machine.write(drive, "big", 0, b"z" * MIB)
    machine.wait_for(RunState.IO_ERROR)
    (full / "ballast").unlink()
    machine("cont")
    assert machine.wait("big") == [0]


def test_reset_forgets_what_waits(machine: Machine, full: Path) -> None:
    drive = machine.drive(f"file={full}/disk.img,format=raw")
    machine.write(drive, "big", 0, b"z" * (2 * MIB))
    machine.wait_for(RunState.IO_ERROR)
    machine("system_reset")
    machine.vm.loop.run_until(lambda: not drive.suspended)
    (full / "ballast").unlink()
    machine("cont")
    assert machine.vm.running and not machine.errors and (full / "disk.img").read_bytes()[-MIB:] == bytes(MIB)


def test_reset_forgets_what_a_commit_holds_back(machine: Machine, tmp_path: Path) -> None:
    """A read that began before the reset must not fill memory of the machine after it."""
    disk = tmp_path / "disk.img"
    disk.write_bytes(b"d" * MIB)
    drive = machine.drive(f"file={disk},format=raw")
    buffer = bytearray(512)
    with machine.vm.bql:
        drive.hold()
        drive.read(0, buffer, lambda error: machine.errors.append(("read", error)))
        machine.vm.reset()
        drive.resume()
    machine.write(drive, "after", 0, b"x" * 512)
    assert machine.wait("after") == [0] and not machine.errors and buffer == bytes(512)


def test_a_machine_with_waiting_requests_is_not_saved(machine: Machine, full: Path, tmp_path: Path) -> None:
    drive = machine.drive(f"file={full}/disk.img,format=raw")
    machine.write(drive, "big", 0, b"z" * (2 * MIB))
    machine.wait_for(RunState.IO_ERROR)
    said = machine(f"migrate file:{tmp_path}/state")
    assert "disk requests of 'ide0-hd0' wait after an I/O error" in said and not (tmp_path / "state").exists()
    assert machine.vm.run_state == RunState.IO_ERROR


def test_a_readonly_image(machine: Machine, tmp_path: Path) -> None:
    """Found at the start: a disk that the guest could not write is refused, as a CD-ROM it is fine."""
    with small_disk(tmp_path / "ro") as folder:
        (folder / "disk.img").write_bytes(bytes(MIB))
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        drive = machine.vm.add_drive(parse_drive(f"file={folder}/disk.img,format=raw", []))
        with pytest.raises(BackendError, match="Read-only file system") as e:
            drive.attach("disk", writable=True)
        assert str(folder) in str(e.value)
        drive.attach("cdrom")
        drive.close()


@contextlib.contextmanager
def loop_device(path: Path) -> Iterator[str]:
    done = subprocess.run(["losetup", "-f", "--show", str(path)], capture_output=True, text=True)
    device = done.stdout.strip()
    if done.returncode or not Path(device).is_block_device():
        pytest.skip(f"cannot make a loop device: {done.stderr.strip()}")
    try:
        yield device
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


def test_a_block_device_whose_medium_vanishes(machine: Machine, tmp_path: Path) -> None:
    """The file behind a loop device is cut to nothing: the device fails until it is whole again."""
    image = tmp_path / "image"
    image.write_bytes(bytes(4 * MIB))
    with loop_device(image) as device:
        drive = machine.drive(f"file={device},format=raw,cache=none,werror=stop,rerror=stop,discard=unmap")
        assert drive.node is not None and drive.node.children()["file"].format == "host_device"
        machine.write(drive, "first", 0, b"1" * 4096)
        assert machine.wait("first") == [0]
        os.truncate(image, 0)
        buffer = bytearray(4096)
        with machine.vm.bql:
            drive.read(MIB, buffer, lambda error: machine.errors.append(("read", error)))
        machine.wait_for(RunState.IO_ERROR)
        machine("cont")
        machine.wait_for(RunState.IO_ERROR)
        os.truncate(image, 4 * MIB)
        machine("cont")
        assert machine.wait("read") == [0] and machine.vm.running
        with pytest.raises(OSError, match="Cannot resize device files"):
            drive.node.truncate(MIB)
        with machine.vm.bql:
            drive.close()


class Flaky(NullNode):
    """Fails with `error` as long as there is one: a device that was unplugged and comes back."""

    driver = "null-co"
    error = errno.EIO

    def write(self, offset: int, data: Buffer) -> None:
        if self.error:
            raise OSError(self.error, os.strerror(self.error))

    def read(self, offset: int, data: memoryview) -> None:
        self.write(offset, data)
        data[:] = b"r" * len(data)

    def read_cached(self, offset: int, buffers: object) -> bool:
        return False

    def flush(self) -> None:
        self.write(0, b"")


@pytest.mark.parametrize(
    ("options", "write", "read", "flush"),
    [
        ("", "report", "report", "report"),
        ("werror=stop", "stop", "report", "stop"),
        ("rerror=stop", "report", "stop", "report"),
        ("werror=ignore,rerror=ignore", "ignore", "ignore", "ignore"),
        ("werror=report,rerror=stop", "report", "stop", "report"),
    ],
)
def test_policies(machine: Machine, options: str, write: str, read: str, flush: str) -> None:
    vm = machine.vm
    for kind, action in (("write", write), ("read", read), ("flush", flush)):
        drive = vm.add_drive(parse_drive(f"media=cdrom,id={kind},if=none,readonly=off,{options}".rstrip(","), []))
        flaky = Flaky(MIB)
        drive.change(vm.graph.adopt(flaky, Flags()))
        errors: list[int] = []
        buffer = bytearray(512)
        with vm.bql:
            if kind == "write":
                drive.write(0, buffer, errors.append)
            elif kind == "read":
                drive.read(0, buffer, errors.append)
            else:
                drive.flush(errors.append)
        if action != "stop":
            assert vm.loop.run_until(lambda errors=errors: bool(errors))
            assert errors == [errno.EIO if action == "report" else 0] and vm.running
            continue
        machine.wait_for(RunState.IO_ERROR)
        assert not errors
        flaky.error = 0
        machine("cont")
        assert vm.loop.run_until(lambda errors=errors: bool(errors)) and errors == [0]
        assert kind != "read" or buffer == b"r" * 512
