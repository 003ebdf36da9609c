"""What every device is made of. Devices import from here; see `device.py` for the form and `state.py` for fields."""

from qemupy.hw.core.device import Device
from qemupy.hw.core.dma import Dma, FlatDma
from qemupy.hw.core.fields import (
    array,
    boolean,
    buffer,
    fifo,
    i64,
    nested,
    nested_list,
    prop,
    text,
    timer,
    transient,
    u8,
    u16,
    u32,
    u64,
)
from qemupy.hw.core.irq import IrqLine, IrqOr, split, unconnected
from qemupy.hw.core.registers import RegisterBank, on_read, on_read_burst, on_write, on_write_burst
from qemupy.hw.core.registry import register
from qemupy.hw.core.state import State
from qemupy.main_loop.clock import Clock, ManualClock, Timer
from qemupy.trace import log_guest_error, log_unimp

__all__ = [
    "Clock", "Device", "Dma", "FlatDma", "IrqLine", "IrqOr", "ManualClock", "RegisterBank", "State", "Timer",
    "array", "boolean", "buffer", "fifo", "i64", "log_guest_error", "log_unimp", "nested", "nested_list", "on_read",
    "on_read_burst", "on_write", "on_write_burst", "prop", "register", "split", "text", "timer", "transient", "u8",
    "u16", "u32", "u64", "unconnected",
]  # fmt: skip
