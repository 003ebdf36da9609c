"""The tools' verdicts: ruff and mypy --strict."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def verdict(*command: str | Path) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, "\n".join((done.stdout + done.stderr).splitlines()[-80:])


def test_ruff() -> None:
    verdict(sys.executable, "-m", "ruff", "check", "--quiet", ".")


def test_mypy() -> None:
    verdict(sys.executable, "-m", "mypy", "--strict", "qemupy", "qemupy_setup", "configure.py")
