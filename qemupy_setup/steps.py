"""Steps with elapsed time, commands with their output kept for the case of failure, and atomic results.

Everything here may be interrupted at any moment: a result is made under a temporary name and renamed when complete.
"""

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

START = time.monotonic()
TAIL_LINES = 40


class SetupError(Exception):
    """Something the user can mend; its text is one clear message."""


@contextmanager
def step(title: str) -> Iterator[None]:
    """Print a step and, when done, how long it took and the time since the start."""
    print(f"-- {title} ...", flush=True)
    begin = time.monotonic()
    yield
    now = time.monotonic()
    print(f"   done in {now - begin:.1f} s (at {now - START:.1f} s): {title}", flush=True)


def run(command: Sequence[str | Path], *, cwd: Path | None = None, env: Mapping[str, str] | None = None,
        stdin: bytes = b"") -> str:
    """Run a command quietly and return its output; on failure raise with the end of what it said."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(words, cwd=cwd, env={**os.environ, **(env or {})}, input=stdin,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except FileNotFoundError:
        raise SetupError(f"{words[0]}: command not found") from None
    text = done.stdout.decode(errors="replace")
    if done.returncode:
        tail = "\n".join(text.splitlines()[-TAIL_LINES:])
        raise SetupError(f"command failed ({done.returncode}): {' '.join(words)}\n{tail}")
    return text


def stdout_of(command: Sequence[str | Path]) -> str:
    """Run a command and return its standard output only (for output that is parsed)."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    except FileNotFoundError:
        raise SetupError(f"{words[0]}: command not found") from None
    if done.returncode:
        raise SetupError(f"command failed ({done.returncode}): {' '.join(words)}\n{done.stderr.strip()}")
    return done.stdout


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file, so that two runs never make the same thing at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def as_root() -> list[str]:
    """The words to put before a command that needs root; raises if there is no way."""
    if os.geteuid() == 0:
        return []
    if shutil.which("sudo"):
        return ["sudo"]
    raise SetupError("this step needs root or sudo")


def remove_tree(path: Path) -> None:
    """Remove a file or tree, also one with files of other users made under sudo."""
    if not path.exists() and not path.is_symlink():
        return
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        if path.exists():
            run([*as_root(), "rm", "-rf", "--one-file-system", path])
    else:
        path.unlink()


def made_once(target: Path, title: str, make: Callable[[Path], None]) -> Path:
    """Return target, first making it if it is not there: make(path) writes a temporary path, renamed when complete."""
    if target.exists():
        return target
    with locked(target.parent / f".{target.name}.lock"):
        if target.exists():
            return target
        for stale in target.parent.glob(f".{target.name}.tmp-*"):
            remove_tree(stale)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.tmp-", dir=target.parent))
        work.chmod(0o755)
        result = work / "result"
        try:
            with step(title):
                make(result)
                os.sync() if result.is_dir() else _sync_file(result)
                result.rename(target)
        finally:
            remove_tree(work)
    return target


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def fail(message: str) -> int:
    """Print an error the way command-line tools do; returns the exit status."""
    print(f"configure.py: {message}", file=sys.stderr)
    return 1
