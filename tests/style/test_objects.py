"""The light floors of the core run with the guest's vector state in the host's registers: what may they call?

They are compiled without vector registers, but gcc still emits calls of memcpy and friends, and libc's versions use
vectors. So every symbol the light objects take from outside the core is listed here with the reason why it is safe.
"""

import re
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parents[2] / "csrc"
OBJECTS = SOURCES.parent / "build" / "csrc"

SETUP = "called while the machine is made or ended, never with guest state in the registers"
ALLOWED = {
    "_GLOBAL_OFFSET_TABLE_": "not a function",
    "__tls_get_addr": "touches general registers only",
    "__divti3": "libgcc, general registers only", "__modti3": "libgcc, general registers only",
    "__udivti3": "libgcc, general registers only", "__umodti3": "libgcc, general registers only",
    "_setjmp": "saves general registers only", "__sigsetjmp": "saves general registers only",
    "longjmp": "restores general registers only", "_longjmp": "restores general registers only",
    "getrandom": "a bare system call",
    "clock_gettime": "the kernel's vDSO touches general registers only",
    "syscall": "the kernel keeps the vector registers",
    "abort": "the process ends", "__assert_fail": "the process ends", "__stack_chk_fail": "the process ends",
    **dict.fromkeys(["malloc", "calloc", "realloc", "free", "mmap64", "mmap", "munmap", "madvise", "ftruncate64",
                     "ftruncate", "close", "sigaction", "signal", "memfd_create", "mprotect",
                     "pthread_create", "pthread_join", "pthread_sigmask", "prctl", "sigfillset",
                     "sigemptyset", "sigaltstack"], SETUP),
}


def symbols(option: str, archives: list[Path]) -> set[str]:
    command = ["nm", "--format=posix", option, *archives]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {line.split()[0] for line in text.splitlines() if re.match(r"\w+ \w\b", line)}


def thin(name: str) -> list[Path]:
    return sorted((OBJECTS / f"lib{name}.a.p").glob("*.o"))


def test_light_objects_call_nothing_that_uses_vectors() -> None:
    light, heavy = thin("light"), thin("heavy")
    assert light, f"no objects in {OBJECTS}: build first (ninja -C build)"
    sanitized = any(name.startswith("__asan") for name in symbols("--undefined-only", light))
    if sanitized:
        pytest.skip("sanitizer builds make every exit heavy")
    headers = "\n".join(path.read_text() for path in SOURCES.glob("*/*.h"))
    own = symbols("--defined-only", [*light, *heavy]) | set(re.findall(r"\b[a-z]\w*(?=\()", headers))
    own |= {word for line in headers.splitlines() if line.startswith("extern") for word in re.findall(r"\w+", line)}
    foreign = symbols("--undefined-only", light) - own
    unknown = {name for name in foreign if name not in ALLOWED and not name.startswith("Zydis")}
    assert not unknown, f"light objects call {sorted(unknown)}: use our own, or list them here with the reason"
