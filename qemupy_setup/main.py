"""configure.py's commands: setup, boot, test; or, with options only, QEMU's configure."""

import argparse
import os
import subprocess

from qemupy_setup import build, features, system
from qemupy_setup.paths import SOURCE, VENV, VENV_PYTHON
from qemupy_setup.steps import SetupError, fail, step
from qemupy_setup.venv import ensure_venv

EPILOG = """commands:
  setup   install what is missing, build; then build/venv/bin/qemupy runs
  boot    the same, then prepare a Debian guest and boot it in this terminal to a login prompt
  test    the same, then run the fast and the boot tests (--fast: only the fast ones; --long: all)

With options only, set the build up as QEMU's configure does; `ninja -C build` builds.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="configure.py", epilog=EPILOG,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("setup")
    boot = commands.add_parser("boot")
    boot.add_argument("arguments", nargs=argparse.REMAINDER, help="further arguments for qemupy")
    test = commands.add_parser("test")
    which = test.add_mutually_exclusive_group()
    which.add_argument("--fast", action="store_true", help="only the tests that take seconds")
    which.add_argument("--long", action="store_true", help="also the tests that take hours")
    features.add_options(parser)
    return parser


def setup(*more: list[system.Requirement]) -> None:
    """Everything up to a built source tree."""
    wanted = [*system.BUILD, *system.FIRMWARE]
    for group in more:
        wanted += group
    system.install(wanted)
    ensure_venv()
    build.ensure_built()


def configure(options: argparse.Namespace) -> int:
    """QEMU's configure: check, choose, set meson up, show the table."""
    lacking = system.missing(system.BUILD)
    if lacking:
        for req in lacking:
            print(f"    missing: {req.package:<16} ({req.why})")
        raise SetupError("install with: apt-get install " + " ".join(req.package for req in lacking))
    choices = features.decide(options)
    ensure_venv()
    build.configure([f"--prefix={options.prefix}", *(word for c in choices if c.enabled for word in c.feature.meson)])
    print(features.table(choices, options.prefix))
    print("\nnow run: ninja -C build")
    return 0


def boot(arguments: list[str]) -> int:
    """Boot the Debian guest in this terminal."""
    from qemupy_setup import disk

    setup(system.DISK)
    image = disk.debian_disk()
    command = [str(VENV / "bin" / "qemupy"), "-m", "512", "-nographic",
               "-drive", f"file={image},format=raw", *arguments]
    print(f"\n{' '.join(command)}\n\nLog in as {disk.USER}, password {disk.PASSWORD}. "
          "Leave with `poweroff`, or at once with Ctrl-a x.\n", flush=True)
    os.execv(command[0], command)


def test(options: argparse.Namespace) -> int:
    """The tests; the status is that of the first set that fails."""
    setup(system.DISK, system.TEST)
    sets: list[tuple[str, str, list[str]]] = [("fast tests", "not boot and not long", [])]
    if not options.fast:
        from qemupy_setup import guests

        guests.prepare_all()
        processes = str(os.cpu_count() or 1)
        sets.append(("boot tests", "boot and not long", ["-n", processes]))
        if options.long:
            sets.append(("long tests", "long", ["-n", processes]))
    worst = 0
    for title, marker, more in sets:
        with step(title):
            worst = max(worst, _pytest(marker, more))
    return worst


def _pytest(marker: str, more: list[str]) -> int:
    command = [str(VENV_PYTHON), "-m", "pytest", "-m", marker, "--durations=15", *more]
    status = subprocess.run(command, cwd=SOURCE, stdin=subprocess.DEVNULL).returncode
    return 0 if status == 5 else status  # 5: the set is empty


def main(argv: list[str]) -> int:
    """Run configure.py with these arguments."""
    os.environ["PATH"] = system.SYSTEM_PATH
    options = _parser().parse_args(argv)
    try:
        if options.command == "setup":
            setup()
            print(f"now run: {VENV / 'bin' / 'qemupy'}")
            return 0
        if options.command == "boot":
            return boot(options.arguments)
        if options.command == "test":
            return test(options)
        return configure(options)
    except SetupError as error:
        return fail(str(error))
    except KeyboardInterrupt:
        return fail("interrupted; run it again to go on from here")
