"""Monitors on the chardevs the options name."""

from __future__ import annotations

import os
import sys

from qemupy.backends.chardev.base import CharBackend
from qemupy.errors import QemupyError
from qemupy.vm import Vm


def attach_monitors(vm: Vm) -> None:
    """`-monitor` and `-mon`, and one on the mux of every `mon:` serial port."""
    for n, (text, _mode) in enumerate(vm.config.monitors):
        if text == "none":
            continue
        if text == "stdio" and os.isatty(0) and os.isatty(1):
            from qemupy.monitor.terminal import TerminalMonitor

            TerminalMonitor(vm).start()
            vm.monitored = True
            continue
        try:
            backend = vm.chardevs.frontend(vm.chardevs.add_short(text, f"compat_monitor{n}"), monitor=True)
        except QemupyError as e:
            raise type(e)(f"-monitor {text}: {e}") from None
        _session(vm, backend)
        vm.monitored = vm.monitored or text != "null"
    for n, text in enumerate(vm.config.serials):
        if text.startswith("mon:"):
            _session(vm, vm.chardevs.frontend(f"serial{n}", monitor=True))
            vm.monitored = True
    for mux in vm.chardevs.muxes.values():
        mux.commit = lambda: _commit_all(vm)


def _session(vm: Vm, backend: CharBackend) -> None:
    from qemupy.monitor.hmp import HmpSession  # all commands with it: only where there is a monitor

    HmpSession(vm, backend)


def _commit_all(vm: Vm) -> None:
    """Ctrl-a s. Nobody waits for the answer: mistakes go to whoever started the program."""

    from qemupy.monitor.block_commands import commit

    def report(error: QemupyError | None) -> None:
        if error is not None:
            sys.stderr.write(f"qemupy: {error}\n")

    try:
        commit(vm, "all", report)
    except QemupyError as e:
        report(e)
