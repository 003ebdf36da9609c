"""Where things lie: the source tree, the build folder and the cache of guests."""

import os
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent
BUILD = SOURCE / "build"
VENV = BUILD / "venv"
VENV_PYTHON = VENV / "bin" / "python3"


def cache_dir() -> Path:
    """The folder of prepared guests: $QEMUPY_CACHE, or qemupy in the user's cache folder (XDG base directories)."""
    own = os.environ.get("QEMUPY_CACHE")
    if own:
        return Path(own).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "qemupy"
