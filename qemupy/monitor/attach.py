"""Monitors on the chardevs the options name."""

from __future__ import annotations

from qemupy.vm import Vm


def attach_monitors(vm: Vm) -> None:
    """`-monitor`, `-mon`, and one for every `mon:` serial port."""
