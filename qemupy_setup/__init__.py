"""Set-up, build and test guests: what configure.py and the boot tests share. Standard library only, no qemupy import."""
