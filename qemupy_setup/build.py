"""meson and ninja: configure the build folder once, rebuild what changed."""

import os
from pathlib import Path

from qemupy_setup.paths import BUILD, SOURCE, VENV, VENV_PYTHON
from qemupy_setup.steps import remove_tree, run, step

MESON = VENV / "bin" / "meson"
# meson's own files in the build folder; the rest (venv) is ours.
MESON_MADE = ["build.ninja", "meson-private", "meson-info", "meson-logs", "csrc", "compile_commands.json",
              ".ninja_deps", ".ninja_log"]


def configure(options: list[str]) -> None:
    """Set the build folder up with exactly these meson options."""
    with step("configure the build"):
        for name in MESON_MADE:
            remove_tree(BUILD / name)
        _meson_setup(options)


def _meson_setup(options: list[str]) -> None:
    # ninja comes from the system, python from the venv: both through PATH, as meson looks for them.
    path = f"{VENV / 'bin'}{os.pathsep}{os.environ['PATH']}"
    run([MESON, "setup", BUILD, SOURCE, "-Dinplace=true", *options], cwd=SOURCE, env={"PATH": path})


def configured() -> bool:
    """Has meson finished setting up the build folder, for the venv that is there?"""
    return (BUILD / "build.ninja").exists() and (BUILD / "meson-private" / "coredata.dat").exists()


def ensure_built() -> None:
    """Bring the extension module up to date, configuring first if that never happened."""
    if not configured():
        configure(["-Dwerror=true"] if os.environ.get("CI") else [])
    with step("build the C core"):
        run(["ninja", "-C", BUILD])
    with step("compile the Python modules"):
        # Not left to the first import: many systems forbid writing bytecode then, and every start would compile anew.
        run([VENV_PYTHON, "-m", "compileall", "-q", SOURCE / "qemupy"], env={"PYTHONDONTWRITEBYTECODE": ""})


def extension() -> Path | None:
    """The built extension module, if there is one."""
    return next((BUILD / "csrc").glob("_core*.so"), None)
