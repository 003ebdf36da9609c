"""A whole PC in software: the QEMU command line and monitors, devices in Python, one C core."""

__version__ = "0.1.0"
