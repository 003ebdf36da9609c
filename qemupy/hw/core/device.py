"""`Device`: a State with register handlers and wires.

    class Speaker(Device):
        irq: IrqLine                          # wire
        gate: int = u8()                      # state, reset value, snapshot

        @on_read(0)
        def read_gate(self) -> int: ...

    dev = Speaker(irq=line)
    ports.map(0x61, dev.bank())               # the board decides where

A device knows neither its address nor its IRQ number. Guest mistakes are logged, never raised.
"""

from __future__ import annotations

from typing import Any, ClassVar

from qemupy.hw.core import registers
from qemupy.hw.core.state import State


class Device(State):
    qdev_name: ClassVar[str] = ""
    __banks__: ClassVar[dict[str, registers.RegisterSpec]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__banks__ = registers.collect(cls)

    def bank(self, name: str = "", label: str = "") -> registers.RegisterBank:
        """The register bank `name`, bound to this device; `label` is what maps and logs call it."""
        spec = self.__banks__.get(name)
        if spec is None:
            raise TypeError(f"{type(self).__name__} has no register bank {name!r}")
        own = self.qdev_name or type(self).__name__
        return registers.RegisterBank(self, spec, label or (f"{own}.{name}" if name else own))
