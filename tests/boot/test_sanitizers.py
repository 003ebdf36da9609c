"""Two guests boot on a core built with the address and undefined-behaviour sanitizers, which find nothing to say."""

import subprocess
import sys
from pathlib import Path

import pytest
from machine import REFERENCE, Machine

from qemupy_setup import guests, initramfs

pytestmark = [pytest.mark.long, pytest.mark.skipif(bool(REFERENCE), reason="builds our own core")]

ROOT = Path(__file__).parents[2]
SLOW = 3000


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Runs the package in this tree with the sanitized core in place of its own."""
    folder = tmp_path_factory.mktemp("sanitized")
    build, package = folder / "build", folder / "qemupy"
    options = ["-Db_sanitize=address,undefined", "-Db_lundef=false", "-Dinplace=false"]
    meson = Path(sys.executable).with_name("meson")
    subprocess.run([meson, "setup", build, ROOT, *options], check=True, capture_output=True)
    subprocess.run(["ninja", "-C", build], check=True, capture_output=True)
    package.mkdir()
    for path in (ROOT / "qemupy").iterdir():
        if not path.name.startswith(("_core", "__pycache__")):
            (package / path.name).symlink_to(path)
    core = next((build / "csrc").glob("_core*.so"))
    (package / core.name).symlink_to(core)
    runtime = subprocess.run(["gcc", "-print-file-name=libasan.so"], check=True, capture_output=True, text=True)
    return {"PYTHONPATH": str(folder), "LD_PRELOAD": runtime.stdout.strip(),
            "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1", "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1"}


@pytest.mark.parametrize(("package", "arch", "cpu"), [
    ("linux-image-cloud-amd64", "amd64", "max"),
    ("linux-image-686", "i386", "pentium3"),
])
def test_guest_boots_sanitized(package: str, arch: str, cpu: str, accelerator: str, environment: dict[str, str],
                               tmp_path: Path) -> None:  # fmt: skip
    guest = guests.linux(package, arch)
    words = [f"{key}={value}" for key, value in environment.items()]
    program = ["env", *words, sys.executable, "-P", "-m", "qemupy", "-accel", accelerator]
    arguments = ("-m", "256", "-nographic", "-cpu", cpu, "-kernel", guest.kernel, "-initrd", guest.initrd,
                 "-append", "console=ttyS0,115200")
    with Machine(accelerator, *arguments, log=tmp_path / "console.log", start=program) as machine:
        machine.expect(initramfs.READY, SLOW, idle=600)
        machine.expect(initramfs.PROMPT, SLOW, idle=600)
        assert machine.run("echo $((6 * 7))", SLOW).strip() == "42"
        digest = machine.run("dd if=/dev/zero bs=64k count=16 2>/dev/null | md5sum", SLOW)
        assert digest.startswith("b6d81b360a5672d80c27430f39153e2c")
        machine.power_off(timeout=300)
        assert "runtime error" not in machine.text() and "AddressSanitizer" not in machine.text()
