"""Boot tests run once for each accelerator."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from machine import ACCELERATORS, BootFunction, Machine


@pytest.fixture(params=ACCELERATORS)
def accelerator(request: pytest.FixtureRequest) -> str:
    """The name that -accel takes."""
    return str(request.param)


@pytest.fixture
def boot(accelerator: str, tmp_path: Path) -> Iterator[BootFunction]:
    """A function that starts a machine with these arguments; the machine ends with the test."""
    with ExitStack() as stack:
        count = 0

        def start(*arguments: str | Path) -> Machine:
            nonlocal count
            count += 1
            return stack.enter_context(Machine(accelerator, *arguments, log=tmp_path / f"console{count}.log"))

        yield start
