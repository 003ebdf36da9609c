"""build/venv: the virtual environment with the Python packages and the `qemupy` launcher for the source tree."""

import hashlib
import sys
import tomllib
from pathlib import Path

from qemupy_setup.paths import SOURCE, VENV, VENV_PYTHON
from qemupy_setup.steps import remove_tree, run, step

# Besides what pyproject.toml names: the tests of one machine run on all its processors.
EXTRA = ["meson-python>=0.15", "meson>=1.1", "pytest-xdist>=3.0"]
STAMP = VENV / ".complete"

# Not pip's editable install: meson-python's import hook rebuilds at import and triples the start-up time.
LAUNCHER = """#!{python}
import sys
from qemupy.cli import main
sys.exit(main())
"""


def _packages() -> list[str]:
    with (SOURCE / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["test"], *EXTRA]


def _fingerprint(packages: list[str]) -> str:
    text = "\n".join([sys.executable, sys.version, str(SOURCE), LAUNCHER, *packages])
    return hashlib.sha256(text.encode()).hexdigest()


def ensure_venv() -> None:
    """Make build/venv, unless a complete one for this Python and these requirements is there."""
    packages = _packages()
    fingerprint = _fingerprint(packages)
    if STAMP.exists() and STAMP.read_text() == fingerprint:
        return
    with step("install Python packages into build/venv"):
        remove_tree(VENV)
        VENV.parent.mkdir(exist_ok=True)
        run([sys.executable, "-m", "venv", VENV])
        run([VENV_PYTHON, "-m", "pip", "install", "-q", *packages])
        _link_source_tree()
        STAMP.write_text(fingerprint)


def _link_source_tree() -> None:
    site = run([VENV_PYTHON, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip()
    Path(site, "qemupy-source.pth").write_text(f"{SOURCE}\n")
    launcher = VENV / "bin" / "qemupy"
    launcher.write_text(LAUNCHER.format(python=VENV_PYTHON))
    launcher.chmod(0o755)
