"""The floors: a module imports only from floors below its own, in Python and in C (ARCHITECTURE.md)."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "qemupy"

# Longest name wins. Units of one floor do not import each other; a unit is one line here, except that every folder
# and file of hw that is not named is a unit of its own.
FLOORS = {
    "qemupy": 0, "qemupy.errors": 0, "qemupy.trace": 0, "qemupy.config": 0, "qemupy.options": 0, "qemupy._core": 0,
    "qemupy.command_line": 0, "qemupy.accel_options": 0, "qemupy.scatter": 0, "qemupy.records": 0,
    "qemupy.main_loop": 1,
    "qemupy.memory": 2, "qemupy.backends": 2,
    "qemupy.hw.core": 3, "qemupy.vcpu": 3,
    "qemupy.hw": 4,
    "qemupy.vm": 5,
    "qemupy.migration": 6,
    "qemupy.monitor": 7,
    "qemupy.hw.i386": 8,
    "qemupy.cli": 9, "qemupy.cli_help": 9, "qemupy.__main__": 9, "qemupy.testing": 9,
}
DEVICE_FLOOR = 4
BUSES = {"qemupy.hw.isa", "qemupy.hw.pci", "qemupy.hw.virtio"}
# Files of floor 0 may use each other in this order.
GROUND = ["qemupy", "qemupy.records", "qemupy.errors", "qemupy.trace", "qemupy.options", "qemupy.accel_options",
          "qemupy.config", "qemupy.command_line", "qemupy.scatter"]
# Several modules that are one unit.
SAME_UNIT = {"qemupy.cli_help": "qemupy.cli", "qemupy.__main__": "qemupy.cli"}

C_FLOORS = {
    "base": 0, "cpu": 1, "decode": 2, "mmu": 3, "memory": 3, "apic": 3, "interp": 4, "virtq": 4, "jit": 5, "vcpu": 6,
}
# Headers that state an interface between floors are seen from the floors that implement it.
C_SHARED = {
    "decode/insn.h": 2,
    "api.h": 0,
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def unit(module: str) -> tuple[str, int]:
    """The unit a module belongs to, and its floor."""
    name = module
    while name not in FLOORS:
        name = name.rpartition(".")[0]
    floor = FLOORS[name]
    if floor == DEVICE_FLOOR:
        name = ".".join(module.split(".")[:3])
    return SAME_UNIT.get(name, name), floor


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Every module of ours that a file imports, wherever the import stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "qemupy":
                    yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            if node.module and node.module.split(".")[0] == "qemupy":
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    known = full in FLOORS or (ROOT / Path(*full.split("."))).with_suffix(".py").exists() \
                        or (ROOT / Path(*full.split("."))).is_dir()
                    yield node.lineno, full if known else node.module


def is_protocol_module(module: str) -> bool:
    """Is this a base module of the backends, or a package that only hands its base module on?"""
    if module.endswith(".base"):
        return True
    path = ROOT / Path(*module.split(".")) / "__init__.py"
    return path.exists() and all(name == f"{module}.base" for _line, name in imports(path))


def breach(importer: str, imported: str) -> str:
    """Why this import is not allowed; empty if it is."""
    here, floor = unit(importer)
    there, below = unit(imported)
    if here == there:
        return ""
    if floor == below == 0:
        allowed = there not in GROUND or here not in GROUND or GROUND.index(there) < GROUND.index(here)
        return "" if allowed else f"floor 0 is used in the order {GROUND}"
    if below > floor:
        return f"floor {below} is above floor {floor}"
    if below == floor:
        return "" if floor == DEVICE_FLOOR and there in BUSES else f"{there} is a neighbour on floor {floor}"
    if floor == DEVICE_FLOOR and there == "qemupy.backends" and not is_protocol_module(imported):
        return "a device knows backends only by the Protocols in their base modules"
    return ""


def test_python_floors() -> None:
    breaches = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for line, imported in imports(path):
            why = breach(module_name(path), imported)
            if why:
                breaches.append(f"{path.relative_to(ROOT)}:{line}: imports {imported}: {why}")
    assert not breaches, "\n".join(breaches)


def test_the_rules_bite() -> None:
    assert breach("qemupy.hw.char.serial", "qemupy.vm")
    assert breach("qemupy.hw.char.serial", "qemupy.hw.timer.rtc")
    assert breach("qemupy.hw.char.serial", "qemupy.backends.chardev.sockets")
    assert breach("qemupy.memory.region", "qemupy.backends.block.base")
    assert breach("qemupy.hw.core.device", "qemupy.vcpu.accel")
    assert not breach("qemupy.hw.char.serial", "qemupy.backends.chardev.base")
    assert not breach("qemupy.hw.char.serial", "qemupy.hw.isa.bus")
    assert not breach("qemupy.hw.i386.pc", "qemupy.hw.char.serial")


def test_nothing_outside_the_program_is_imported_by_it() -> None:
    for path in sorted(PACKAGE.rglob("*.py")):
        assert not re.search(r"^\s*(from|import) (qemupy_setup|tests|pytest)\b", path.read_text(), re.M) \
            or "testing" in path.parts, path


def test_c_floors() -> None:
    breaches = []
    for path in sorted((ROOT / "csrc").glob("*/*.[ch]")):
        floor = C_FLOORS[path.parent.name]
        for number, line in enumerate(path.read_text().splitlines(), 1):
            found = re.match(r'#\s*include "([^"]+)"', line)
            if not found:
                continue
            header = found.group(1)
            folder = header.partition("/")[0] if "/" in header else path.parent.name
            below = C_SHARED.get(header, C_FLOORS.get(folder, -1))
            if below > floor:
                breaches.append(f"{path.relative_to(ROOT)}:{number}: includes {header} from a floor above")
    assert not breaches, "\n".join(breaches)
