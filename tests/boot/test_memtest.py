"""memtest86+: every byte of a small RAM written and read back in many orders, from a kernel image."""

import re

import pytest
from machine import BootFunction, Machine

from qemupy_setup import guests

pytestmark = pytest.mark.boot


def start(boot: BootFunction) -> Machine:
    machine = boot("-m", "16", "-nographic", "-kernel", guests.memtest(), "-append", "console=ttyS0,115200")
    machine.expect("Memtest86", 60)
    return machine


def no_errors(machine: Machine) -> bool:
    counts = re.findall(r"Errors: +(\d+)", machine.text())
    return bool(counts) and set(counts) == {"0"}


def test_four_tests_pass(boot: BootFunction) -> None:
    machine = start(boot)
    # The screen names the running test every other second; they run in order from #0, so #4 means four are done.
    machine.expect(r"#([4-9]|10) +\[", 300)
    assert no_errors(machine)


@pytest.mark.long
def test_whole_pass(boot: BootFunction) -> None:
    machine = start(boot)
    machine.expect(r"Pass: +[1-9]", 3600)
    assert no_errors(machine)
