"""A Linux guest whose translations never fit the code cache: all is dropped and made again, with the same results."""

from pathlib import Path

import pytest
from machine import REFERENCE, Machine

from qemupy_setup import guests, initramfs

pytestmark = pytest.mark.skipif(REFERENCE is not None, reason="looks at our own counters")
WORK = ("i=0; while [ $i -lt 20 ]; do dd if=/dev/zero bs=64k count=4 2>/dev/null | md5sum | cut -c1-8; i=$((i+1)); "
        "done | uniq -c")


@pytest.mark.boot
@pytest.mark.parametrize("size", [1, 2])
def test_cloud_kernel_with_constant_eviction(size: int, tmp_path: Path) -> None:
    guest = guests.linux("linux-image-cloud-amd64", "amd64")
    arguments = ("-m", "256", "-nographic", "-kernel", guest.kernel, "-initrd", guest.initrd, "-append",
                 "console=ttyS0,115200")  # fmt: skip
    with Machine(f"dbt,tb-size={size}", *arguments, log=tmp_path / "console.log") as machine:
        machine.expect(initramfs.READY, 300)
        machine.expect(initramfs.PROMPT, 60)
        assert machine.run(WORK, 120).split() == ["20", "ec87a838"]
        machine.send("\x01c")
        machine.expect("QEMU", 60)
        machine.send("info jit\n")
        assert int(machine.expect(r"code cache flushes\s+(\d+)", 60).group(1)) >= 8 // size
        machine.send("quit\n")
        assert machine.wait(60) == 0
