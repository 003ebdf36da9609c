"""A guest compiles: with Debian's TinyCC, to a file and into its own memory, where the code is then executed."""

import pytest
from machine import BootFunction

from qemupy_setup import guests, initramfs

pytestmark = pytest.mark.boot

# Loops, calls through pointers, floating point, recursion and the C library.
PROGRAM = r"""
#include <stdio.h>
#include <stdlib.h>
static int compare(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }
static long fib(int n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }
int main(int argc, char **argv) {
    int v[1000]; unsigned x = 1, sum = 0; double h = 0;
    for (int i = 0; i < 1000; i++) { x = x * 1103515245 + 12345; v[i] = x >> 16 & 0x7fff; }
    qsort(v, 1000, sizeof v[0], compare);
    for (int i = 0; i < 1000; i++) sum = sum * 31 + v[i];
    for (int i = 1; i <= 1000; i++) h += 1.0 / i;
    printf("%s %u %ld %.9f\n", argv[1], sum, fib(22), h);
    return 0;
}
"""


def expected(word: str) -> str:
    """What the program prints."""
    x, values = 1, []
    for _ in range(1000):
        x = (x * 1103515245 + 12345) & 0xFFFFFFFF
        values.append(x >> 16 & 0x7FFF)
    total = 0
    for value in sorted(values):
        total = (total * 31 + value) & 0xFFFFFFFF
    return f"{word} {total} 17711 {sum(1.0 / i for i in range(1, 1001)):.9f}"


def test_tcc(boot: BootFunction) -> None:
    guest = guests.linux_with_compiler()
    machine = boot("-m", "512", "-nographic", "-kernel", guest.kernel, "-initrd", guest.initrd, "-append",
                   "console=ttyS0,115200")  # fmt: skip
    machine.expect(initramfs.READY, 120)
    machine.expect(initramfs.PROMPT, 30)
    for line in PROGRAM.strip().splitlines():
        machine.run(f"echo '{line}' >> /tmp/p.c")
    machine.run("tcc -o /tmp/p /tmp/p.c", 120)
    assert machine.run("/tmp/p file").strip() == expected("file")
    for _ in range(3):
        assert machine.run("tcc -run /tmp/p.c memory", 120).strip() == expected("memory")
    machine.power_off()
