"""Sizes that keep the code readable: 800 lines to a file, 80 to a function; exceptions are listed with reasons."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILE_LINES = 800
FUNCTION_LINES = 80

# path -> why it is longer
LONG_FILES: dict[str, str] = {}
# path:function -> why it is longer
LONG_FUNCTIONS: dict[str, str] = {}


def sources() -> Iterator[Path]:
    yield ROOT / "configure.py"
    for folder in ("qemupy", "qemupy_setup", "csrc", "tests"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".c", ".h"):
                yield path


def python_functions(text: str) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno
            yield node.name, node.end_lineno - node.lineno + 1


def c_functions(text: str) -> Iterator[tuple[str, int]]:
    """Functions as clang-format leaves them: the head starts in column 0 and the body ends with } in column 0."""
    name, start = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if re.match(r"[a-zA-Z].*\(", line) and not line.endswith((";", "}")):
            name, start = re.findall(r"(\w+)\(", line)[0], number
        elif name and line.startswith("}"):
            yield name, number - start + 1
            name = ""


def test_files() -> None:
    long = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in sources()}
    over = [f"{name}: {lines} lines" for name, lines in long.items() if lines > FILE_LINES and name not in LONG_FILES]
    assert not over, "\n".join(over)


def test_functions() -> None:
    over = []
    for path in sources():
        find = python_functions if path.suffix == ".py" else c_functions
        for name, lines in find(path.read_text()):
            key = f"{path.relative_to(ROOT)}:{name}"
            if lines > FUNCTION_LINES and key not in LONG_FUNCTIONS:
                over.append(f"{key}: {lines} lines")
    assert not over, "\n".join(over)


def test_exceptions_are_still_needed() -> None:
    for name in LONG_FILES:
        assert len((ROOT / name).read_text().splitlines()) > FILE_LINES, f"{name} is short enough now"
    for key in LONG_FUNCTIONS:
        name, function = key.split(":")
        text = (ROOT / name).read_text()
        find = python_functions if name.endswith(".py") else c_functions
        assert any(f == function and lines > FUNCTION_LINES for f, lines in find(text)), f"{key} is short enough now"
