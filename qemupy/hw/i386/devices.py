"""All device classes there are: importing their modules enters them in the registry."""

from __future__ import annotations

import importlib
import pkgutil


def load() -> None:
    import qemupy.hw

    for module in pkgutil.walk_packages(qemupy.hw.__path__, "qemupy.hw."):
        if not module.ispkg and not module.name.startswith(("qemupy.hw.core.", "qemupy.hw.i386.")):
            importlib.import_module(module.name)
