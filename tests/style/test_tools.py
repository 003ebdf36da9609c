"""The tools' verdicts: ruff, mypy --strict and clang-format."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def verdict(*command: str | Path) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, "\n".join((done.stdout + done.stderr).splitlines()[-80:])


def test_ruff() -> None:
    verdict(sys.executable, "-m", "ruff", "check", "--quiet", ".")


def test_mypy() -> None:
    verdict(sys.executable, "-m", "mypy", "--strict", "qemupy", "qemupy_setup", "configure.py")


@pytest.mark.skipif(not shutil.which("clang-format"), reason="clang-format is not installed")
def test_clang_format() -> None:
    files = [path for folder in ("csrc", "tests") for path in sorted((ROOT / folder).rglob("*.[ch]"))]
    assert files
    verdict("clang-format", "--dry-run", "-Werror", "-ferror-limit=5", *files)
