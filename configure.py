#!/usr/bin/env python3
"""The one door: set-up, build, boot, tests and QEMU-style build options. Needs nothing but a bare python3."""

import sys

from qemupy_setup.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
