"""What the qcow2 tests share: our images and qemu-img's over the same files."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from qemupy.backends.block.qcow2 import Qcow2Image
from tests.block.files import LocalFile, MemoryFile

needs_qemu_img = pytest.mark.skipif(
    not (shutil.which("qemu-img") and shutil.which("qemu-io")), reason="qemu-img and qemu-io are not installed"
)


@contextmanager
def opened(path: Path, *, readonly: bool = False, discard: bool = True) -> Iterator[Qcow2Image]:
    file = LocalFile(path, readonly)
    try:
        image = Qcow2Image(file, str(path), readonly, discard)
        yield image
        image.close()
    finally:
        file.close()


def in_memory(file: MemoryFile) -> Qcow2Image:
    return Qcow2Image(file, "memory", readonly=False, discard=True)


def content(image: Qcow2Image) -> bytes:
    data = bytearray(image.length)
    image.read(0, memoryview(data))
    return bytes(data)


def read(image: Qcow2Image, offset: int, length: int) -> bytes:
    data = bytearray(length)
    image.read(offset, memoryview(data))
    return bytes(data)


def qemu_img(*words: str | Path) -> str:
    done = subprocess.run(["qemu-img", *map(str, words)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"qemu-img {words}: {done.stdout}{done.stderr}"
    return done.stdout


def qemu_io(path: Path, *commands: str) -> str:
    """Run qemu-io commands in one process."""
    text = "".join(f"{command}\n" for command in commands)
    done = subprocess.run(
        ["qemu-io", "-f", "qcow2", "-d", "unmap", str(path)], input=text, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0 and "failed" not in done.stdout + done.stderr, done.stdout + done.stderr
    return done.stdout


def check(path: Path) -> dict[str, Any]:
    """qemu-img's verdict; `corruptions` and `leaks` are missing from it when there are none."""
    done = subprocess.run(["qemu-img", "check", "--output=json", str(path)], capture_output=True, text=True)
    assert done.returncode in (0, 2, 3), done.stderr
    verdict: dict[str, Any] = json.loads(done.stdout)
    verdict["messages"] = done.stderr
    return verdict


def assert_clean(path: Path) -> None:
    verdict = check(path)
    assert not verdict.get("corruptions") and not verdict.get("leaks"), verdict


def assert_content(path: Path, expected: bytes | bytearray, tmp_path: Path) -> None:
    """qemu-img reads this from the image."""
    raw = tmp_path / "expected.raw"
    raw.write_bytes(expected)
    qemu_img("compare", "-f", "qcow2", "-F", "raw", path, raw)
