"""Set-up, build and test guests: shared by configure.py and the boot tests. Standard library only; no qemupy."""
