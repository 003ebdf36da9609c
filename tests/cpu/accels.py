"""The accelerators that tests of the core run under."""

from qemupy.accel_options import ACCELERATORS

ACCELS = list(ACCELERATORS)
