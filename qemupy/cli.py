"""The `qemupy` command. Everything is imported only when it is needed: `-version` must answer in an instant."""

from __future__ import annotations

import gc
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from qemupy.config import Config
    from qemupy.vm import Vm

QEMU_VERSION = "7.2.22"  # the version whose interfaces we follow; clients parse it


def version_text() -> str:
    """First line in QEMU's form, for version parsers; our own version in brackets."""
    from qemupy import __version__

    return f"QEMU emulator version {QEMU_VERSION} (qemupy {__version__})\nqemupy, a PC in software in Python and C"


def main(argv: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    if any(word in ("-version", "--version") for word in arguments):
        print(version_text())
        return 0
    program = os.path.basename(sys.argv[0] or "qemupy")
    from qemupy.errors import QemupyError

    gc.disable()  # what a start imports and builds stays: to look through it for garbage takes a tenth of the time
    try:
        return _run(program, arguments)
    except QemupyError as e:
        sys.stderr.write(f"{program}: {e}\n")
        return 1
    except BrokenPipeError:
        return 1
    except MemoryError:
        sys.stderr.write(f"{program}: cannot set up guest memory: Cannot allocate memory\n")
        return 1
    finally:
        gc.enable()


def _run(program: str, arguments: list[str]) -> int:
    if any(word in ("-help", "--help", "-h", "-?") for word in arguments):
        from qemupy.cli_help import option_help

        print(option_help())
        return 0
    from qemupy import command_line

    try:
        config, warnings = command_line.parse(arguments)
    except command_line.Help as topic:
        from qemupy.cli_help import topic_help

        print(topic_help(str(topic)))
        return 0
    for warning in warnings:
        sys.stderr.write(f"{program}: warning: {warning}\n")
    return run_config(config)


def run_config(config: Config) -> int:
    """Build the machine and run it to its end."""
    from qemupy import trace
    from qemupy.vcpu.interp import InterpAccel
    from qemupy.vm import Vm

    if config.log_file is not None:
        trace.open_log(config.log_file)
    accel = InterpAccel(
        config.ram + (256 << 20), config.accel, icount=config.icount, seed=config.seed, perfmap=config.perfmap
    )
    accel.set_log_ranges(config.log_ranges)
    vm = Vm(config, accel)
    vm.set_log_mask(config.log_mask)
    try:
        _build(vm)
        _warn_of_missing_features(vm)
        begin = _begin(vm)
    except BaseException:
        vm.close()
        raise
    if config.pidfile is not None:
        with open(config.pidfile, "w", encoding="ascii") as file:
            file.write(f"{os.getpid()}\n")
    _end_on_signals(vm)
    sys.setswitchinterval(1e-4)
    gc.freeze()
    gc.enable()
    return vm.run(begin)


def _begin(vm: Vm) -> Callable[[], None] | None:
    """What happens in place of starting a machine that was just switched on."""
    if vm.config.loadvm is not None:
        from qemupy.migration.snapshots import begin_with

        tag = vm.config.loadvm
        return lambda: begin_with(vm, tag)
    if vm.config.incoming is None:
        return None
    from qemupy.migration.incoming import Incoming

    with _blame(f"-incoming {vm.config.incoming}"):
        incoming = vm.services[Incoming] = Incoming(vm, vm.config.incoming)
    return incoming.begin


def _build(vm: Vm) -> None:
    from importlib import import_module

    from qemupy.backends.block.open import open_blockdev
    from qemupy.memory import transaction
    from qemupy.monitor.attach import attach_monitors

    for options in vm.config.blockdevs:
        with _blame("-blockdev"):
            open_blockdev(options, vm.graph)
    for drive in vm.config.drives:
        with _blame(drive.option):
            vm.add_drive(drive)
    for warning in vm.graph.warnings:
        sys.stderr.write(f"qemupy: warning: {warning}\n")
    vm.graph.warnings.clear()
    _make_chardevs(vm)
    with vm.bql, transaction():
        import_module("qemupy.hw.i386.pc").build(vm)
    attach_monitors(vm)


def _warn_of_missing_features(vm: Vm) -> None:
    """All vCPUs are of one model: the first one speaks for them."""
    for feature in vm.vcpus[0].missing_features():
        sys.stderr.write(f"qemupy: warning: this host doesn't support requested feature: {feature}\n")


def _make_chardevs(vm: Vm) -> None:
    """`-chardev`, then the serial ports: vm.serials has a backend, or None for `none`, for each port."""
    for text in vm.config.chardevs:
        with _blame(f"-chardev {text}"):
            vm.chardevs.add(text)
    for n, text in enumerate(vm.config.serials):
        with _blame(f"-serial {text}"):
            vm.serials.append(
                None if text == "none" else vm.chardevs.frontend(vm.chardevs.add_short(text, f"serial{n}"))
            )
    if not vm.serials and not vm.config.nodefaults:
        vm.serials.append(vm.chardevs.frontend(vm.chardevs.add_short("null", "serial0")))


class _blame:
    """Errors inside get the option in front that they come from."""

    def __init__(self, option: str) -> None:
        self.option = option

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        from qemupy.errors import QemupyError

        if self.option and isinstance(error, QemupyError):
            raise type(error)(f"{self.option}: {error}") from None


def _end_on_signals(vm: Vm) -> None:
    """Ctrl-C, SIGTERM and SIGHUP end the machine with disk writes flushed."""
    import signal

    def end(number: int, frame: object) -> None:
        sys.stderr.write(f"qemupy: terminating on signal {number}\n")
        vm.request_shutdown("host-signal")

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)


if __name__ == "__main__":
    sys.exit(main())
