"""SMART of a healthy disk (ATA/ATAPI-6 8.54; attribute layout as drives and smartctl use it)."""

from __future__ import annotations

import struct

from qemupy.hw.block.ide import PIO_IN, IdeDrive
from qemupy.hw.core import boolean

READ_DATA, READ_THRESHOLDS, AUTOSAVE, SAVE, EXECUTE, READ_LOG = 0xD0, 0xD1, 0xD2, 0xD3, 0xD4, 0xD5
ENABLE, DISABLE, RETURN_STATUS = 0xD8, 0xD9, 0xDA

# id, flags, value, worst, raw, threshold
ATTRIBUTES = [
    (0x01, 0x0003, 100, 100, 0, 6),  # raw read error rate
    (0x03, 0x0003, 100, 100, 0, 0),  # spin-up time
    (0x04, 0x0002, 100, 100, 100, 20),  # start/stop count
    (0x05, 0x0003, 100, 100, 0, 36),  # reallocated sectors
    (0x09, 0x0003, 100, 100, 1, 0),  # power-on hours
    (0x0C, 0x0003, 100, 100, 0, 0),  # power cycles
    (0xBE, 0x0003, 69, 69, 31, 50),  # airflow temperature
]


def _checksummed(page: bytearray) -> bytes:
    page[511] = -sum(page[:511]) & 0xFF
    return bytes(page)


class SmartMixin(IdeDrive):
    smart_enabled: bool = boolean(reset=True)
    smart_autosave: bool = boolean(reset=True)

    def smart(self) -> None:
        if (self.lba_high, self.lba_mid) != (0xC2, 0x4F) or (not self.smart_enabled and self.features != ENABLE):
            self.abort()
            return
        pages = {READ_DATA: self._values, READ_THRESHOLDS: self._thresholds, READ_LOG: self._log}
        if self.features in pages:
            self._send(pages[self.features]())
        elif self.features == AUTOSAVE and self.count in (0x00, 0xF1):
            self.smart_autosave = self.count == 0xF1
            self.finish()
        elif self.features in (ENABLE, DISABLE):
            self.smart_enabled = self.features == ENABLE
            self.finish()
        elif self.features == SAVE or self.features == RETURN_STATUS:
            self.finish()  # signature registers left alone: no threshold exceeded
        elif self.features == EXECUTE and self.lba_low in (0, 1, 2):
            self.finish()
        else:
            self.abort()

    def _send(self, page: bytes | None) -> None:
        if page is None:
            self.abort()
            return
        self.data[:] = page
        self.position = 0
        self.begin_pio(PIO_IN, 512)

    def _values(self) -> bytes:
        page = bytearray(512)
        page[0] = 1
        for n, (ident, flags, value, worst, raw, _) in enumerate(ATTRIBUTES):
            struct.pack_into("<BHBBQ", page, 2 + 12 * n, ident, flags, value, worst, raw)
        page[362] = 0x02 | (0x80 if self.smart_autosave else 0)  # off-line data collection completed
        struct.pack_into("<H", page, 364, 288)
        page[367], page[368], page[370], page[372], page[373] = 0x1B, 3, 1, 2, 54
        return _checksummed(page)

    def _thresholds(self) -> bytes:
        page = bytearray(512)
        page[0] = 1
        for n, attribute in enumerate(ATTRIBUTES):
            page[2 + 12 * n], page[3 + 12 * n] = attribute[0], attribute[5]
        return _checksummed(page)

    def _log(self) -> bytes | None:
        """Log directory, summary error log, self-test log: all empty."""
        page = bytearray(512)
        if self.count != 1:
            return None
        if self.lba_low == 0:
            page[0] = 1
            return bytes(page)
        if self.lba_low in (1, 6):
            page[0] = 1
            return _checksummed(page)
        return None
