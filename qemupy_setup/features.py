"""QEMU-style build options: --enable-X / --disable-X, and the table of what was found."""

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qemupy_setup.steps import SetupError
from qemupy_setup.system import have_file


@dataclass(frozen=True)
class Feature:
    """One optional part: what it is, whether the host has what it needs, which package would bring it."""

    name: str
    what: str
    default: str = "disabled"  # or "auto": on where the host has what it needs
    present: Callable[[], bool] = lambda: True
    package: str = ""
    meson: tuple[str, ...] = ()  # options for meson when it is on
    planned: bool = False  # the option exists for scripts that pass it; there is no such part yet


FEATURES = [
    Feature("debug", "C core without optimization, with assertions",
            meson=("-Dbuildtype=debug", "-Doptimization=0")),
    Feature("sanitizers", "address and undefined-behaviour sanitizers in the C core",
            present=have_file("/usr/lib/gcc/x86_64-linux-gnu/12/libasan.so",
                              *map(str, Path("/usr/lib/gcc/x86_64-linux-gnu").glob("*/libasan.so"))),
            package="libgcc-12-dev", meson=("-Db_sanitize=address,undefined", "-Db_lundef=false")),
    Feature("werror", "compiler warnings are errors", meson=("-Dwerror=true",)),
    Feature("kvm", "KVM accelerator (/dev/kvm)", planned=True),
    Feature("slirp", "user-mode network", planned=True),
]


@dataclass(frozen=True)
class Choice:
    """The outcome for one feature."""

    feature: Feature
    enabled: bool
    remark: str


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add --prefix and one --enable/--disable pair for each feature."""
    parser.add_argument("--prefix", default="/usr/local", help="where `ninja install` puts things [/usr/local]")
    for feature in FEATURES:
        key = feature.name.replace("-", "_")
        state = "not in this version" if feature.planned else feature.default
        parser.add_argument(f"--enable-{feature.name}", dest=key, action="store_true", default=None,
                            help=f"{feature.what} [{state}]")
        parser.add_argument(f"--disable-{feature.name}", dest=key, action="store_false", help=argparse.SUPPRESS)


def decide(options: argparse.Namespace) -> list[Choice]:
    """Match the wishes with what the host has; a wish that cannot be met is an error."""
    choices = []
    for feature in FEATURES:
        wish = getattr(options, feature.name.replace("-", "_"))
        choices.append(_decide_one(feature, wish))
    return choices


def _decide_one(feature: Feature, wish: bool | None) -> Choice:
    if feature.planned:
        if wish:
            raise SetupError(f"--enable-{feature.name}: there is no {feature.what} in this version of qemupy")
        return Choice(feature, False, "not in this version")
    if wish is False or (wish is None and feature.default == "disabled"):
        return Choice(feature, False, "disabled" if wish is False else "default")
    if feature.present():
        return Choice(feature, True, "enabled" if wish else "found")
    if wish:
        raise SetupError(f"--enable-{feature.name}: not found, install the package {feature.package}")
    return Choice(feature, False, f"not found, install {feature.package}")


def table(choices: list[Choice], prefix: str) -> str:
    """The summary in QEMU's manner."""
    lines = ["", "qemupy is configured:", f"    {'prefix':<12} : {prefix}",
             f"    {'host CPUs':<12} : {os.cpu_count()}"]
    for choice in choices:
        state = "YES" if choice.enabled else "NO"
        lines.append(f"    {choice.feature.name:<12} : {state:<4} ({choice.remark}) {choice.feature.what}")
    return "\n".join(lines)
