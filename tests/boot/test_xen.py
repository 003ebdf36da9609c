"""Xen, an ELF kernel with a Multiboot header and modules, with Linux as its first domain."""

import pytest
from machine import BootFunction

from qemupy_setup import guests, initramfs

pytestmark = pytest.mark.boot


def test_xen_starts_its_first_domain(boot: BootFunction) -> None:
    dom0 = guests.linux("linux-image-amd64")
    machine = boot("-m", "512", "-nographic", "-kernel", guests.xen(), "-append", "console=com1 com1=115200,8n1",
                   "-initrd", f"{dom0.kernel} console=hvc0 earlyprintk=xen,{dom0.initrd}")
    machine.expect(r"Xen version 4\.17", 60)
    machine.expect("Linux version", 180)
    machine.expect(initramfs.READY, 300)
    machine.check_alarms()
