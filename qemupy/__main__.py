"""`python -m qemupy`."""

import sys

from qemupy.cli import main

sys.exit(main())
