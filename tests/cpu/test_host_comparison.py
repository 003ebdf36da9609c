"""Interpreter and translator against the host: every user-mode instruction form (tests/cpu/host)."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TARGET = "tests/cpu/host/hostcmp"


@pytest.fixture(scope="module")
def hostcmp() -> Path:
    """The comparison program, brought up to date in the build directory."""
    build = ROOT / "build"
    subprocess.run(["ninja", "-C", str(build), TARGET], check=True, capture_output=True, timeout=600)
    return build / TARGET


def compare(program: Path, *options: str, timeout: int) -> dict[str, int]:
    """Run it; the counters of its last line. The whole output is shown if something differed."""
    run = subprocess.run([program, *options], capture_output=True, text=True, timeout=timeout)
    counts = {name: int(value) for name, value in re.findall(r"([\w-]+) (\d+)", run.stdout.splitlines()[-1])}
    print(counts)
    assert run.returncode == 0, run.stdout[-8000:]
    return counts


def check_coverage(counts: dict[str, int]) -> None:
    assert counts["sequences"] >= 600 and counts["bad-sequences"] == 0
    assert counts["unimplemented"] == 0
    assert counts["empty"] == 0
    assert counts["long-integer"] >= 600
    assert counts["long-native"] >= 1500
    assert counts["always-fault"] <= 60  # UD0 to UD2, and a few unlucky ones


def test_all_forms(hostcmp: Path) -> None:
    check_coverage(compare(hostcmp, "-n", "10", "-q", "600", timeout=120))


def test_all_forms_translated(hostcmp: Path) -> None:
    check_coverage(compare(hostcmp, "-j", "-n", "10", "-q", "600", timeout=120))


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2, 8))
@pytest.mark.parametrize("tier", [(), ("-j",)], ids=["interp", "dbt"])
def test_all_forms_thoroughly(hostcmp: Path, tier: tuple[str, ...], seed: int) -> None:
    check_coverage(compare(hostcmp, *tier, "-n", "200", "-q", "20000", "-s", str(seed), timeout=900))
