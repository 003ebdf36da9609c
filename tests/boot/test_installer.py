"""Debian's installer, both architectures, as far as its first menu."""

import pytest
from machine import BootFunction

from qemupy_setup import guests

pytestmark = pytest.mark.boot


@pytest.mark.parametrize("arch", ["amd64", "i386"])
def test_language_menu(boot: BootFunction, arch: str) -> None:
    # With less RAM the installer asks about its low-memory mode first.
    guest = guests.installer(arch)
    machine = boot("-m", "1024", "-nographic", "-kernel", guest.kernel, "-initrd", guest.initrd,
                   "-append", "console=ttyS0,115200 TERM=linux")
    machine.expect("Linux version", 60)
    machine.expect("activates buttons", 500)
    text = machine.text()
    assert "Select a language" in text
    assert "English" in text
    machine.check_alarms()
