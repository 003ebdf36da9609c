"""A guest on a disk that is full, or whose server went away: it is told, or the machine pauses and goes on (policy)."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine import BootFunction, Machine

pytestmark = pytest.mark.boot

MIB = 1 << 20
LEFT_WELL, LEFT_WITH_ERROR = 0x10 << 1 | 1, 0x20 << 1 | 1  # isa-debug-exit makes (value << 1) | 1 the exit status


@pytest.fixture
def floppy(tmp_path: Path) -> Path:
    code = tmp_path / "diskwriter.bin"
    subprocess.run(["gcc", "-m32", "-nostdlib", "-static", "-no-pie",
                    "-Wl,--build-id=none,-Ttext=0x7c00,--oformat=binary,-melf_i386",
                    "-o", code, Path(__file__).with_name("diskwriter.S")], check=True)
    image = tmp_path / "floppy.img"
    image.write_bytes(code.read_bytes().ljust(1440 << 10, b"\0"))
    return image


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A file system with 1 MiB left, an empty disk of 4 MiB, and `ballast` to be removed."""
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount a tmpfs: {done.stderr.strip()}")
    (folder / "ballast").write_bytes(bytes(2 * MIB))
    with (folder / "disk.img").open("wb") as file:
        file.truncate(4 * MIB)
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def start(boot: BootFunction, floppy: Path, drive: str) -> Machine:
    machine = boot("-m", "16", "-nographic", "-drive", f"file={floppy},format=raw,if=floppy", "-boot", "a",
                   "-drive", drive, "-device", "isa-debug-exit,iobase=0xf4,iosize=0x04")
    machine.expect("writing", 60)
    return machine


def wait_for_the_pause(machine: Machine) -> None:
    machine.send("\x01c")
    machine.expect(r"\(qemu\) ", 10)
    for _ in range(100):
        machine.send("info status\n")
        if machine.expect(r"VM status: ([^\n]*)\n", 10).group(1) == "paused (io-error)":
            return
        time.sleep(0.1)
    raise AssertionError("the machine was not paused")


def go_on(machine: Machine) -> None:
    """QEMU looks for the server only now and then: it may stop again."""
    for _ in range(100):
        machine.send("cont\n")
        machine.idle(0.5)
        if "all written and read" in machine.text():
            machine.send("quit\n")
            assert machine.wait(30) == 0
            return
    raise AssertionError("the machine did not go on")


def check(path: Path) -> None:
    content = path.read_bytes()
    for block in range(64):
        assert int.from_bytes(content[block * 32768 : block * 32768 + 2], "little") == block


def test_a_full_disk_pauses_the_guest(boot: BootFunction, floppy: Path, full: Path) -> None:
    machine = start(boot, floppy, f"file={full}/disk.img,format=raw")
    wait_for_the_pause(machine)
    (full / "ballast").unlink()
    machine.send("cont\n")
    machine.send("\x01c")
    machine.expect("all written and read", 60)
    assert machine.wait(30) == LEFT_WELL
    check(full / "disk.img")


def test_a_full_disk_is_reported_if_wanted(boot: BootFunction, floppy: Path, full: Path) -> None:
    machine = start(boot, floppy, f"file={full}/disk.img,format=raw,werror=report")
    machine.expect("disk error", 60)
    assert machine.wait(30) == LEFT_WITH_ERROR


def test_a_server_that_goes_away_and_comes_back(boot: BootFunction, floppy: Path, tmp_path: Path) -> None:
    if shutil.which("qemu-nbd") is None:
        pytest.skip("qemu-nbd is not installed")
    disk, path = tmp_path / "disk.img", tmp_path / "nbd"
    disk.write_bytes(bytes(4 * MIB))

    def serve() -> subprocess.Popen[bytes]:
        path.unlink(missing_ok=True)
        process = subprocess.Popen(["qemu-nbd", "-t", "-f", "raw", "-k", path, disk])
        while not path.exists():
            assert process.poll() is None
            time.sleep(0.01)
        return process

    server = serve()
    try:
        machine = boot("-m", "16", "-nographic", "-S", "-drive", f"file={floppy},format=raw,if=floppy", "-boot", "a",
                       "-drive", f"file=nbd:unix:{path},format=raw,werror=stop,rerror=stop")
        machine.send("\x01c")
        machine.expect(r"\(qemu\) ", 30)
        server.kill()
        server.wait()
        machine.send("cont\n\x01c")
        wait_for_the_pause(machine)
        server = serve()
        go_on(machine)
    finally:
        server.kill()
        server.wait()
    check(disk)
