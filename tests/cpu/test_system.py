"""The system architecture, checked by guests of our own (guest/*.S; expected values from the Intel SDM)."""

import shutil

import pytest

from tests.cpu.sysguest import Record, run_core

pytestmark = pytest.mark.skipif(not (shutil.which("as") and shutil.which("ld")), reason="needs binutils")

NONE, USER_DONE = 0xFFFFFFFF00000000, 0x8000000000
PAGE_FAULT = 14 << 32


def rights_model(index: int) -> int:
    """What long64's matrix must report: SDM vol 3A 4.6.1 (determination of access rights), error code by 4.7."""
    access, wp, smep, smap, ac = index & 7, index >> 3 & 1, index >> 4 & 1, index >> 5 & 1, index >> 6 & 1
    page_w, page_u, nx = index >> 7 & 1, index >> 8 & 1, index >> 9 & 1
    user, kind = access >= 3, access % 3  # read, write, fetch
    if user:
        allowed = page_u and (kind != 1 or page_w) and (kind != 2 or not nx)
    elif kind == 2:
        allowed = not nx and not (page_u and smep)
    else:
        allowed = not (page_u and smap and not ac) and (kind != 1 or page_w or not wp)
    if allowed:
        return USER_DONE if user else NONE
    error = 1 | (kind == 1) << 1 | user << 2 | (kind == 2) << 4
    return PAGE_FAULT | error


def wrong(records: list[Record]) -> list[str]:
    return [f"{r.name}: {r.value:#x}, expected {r.expected:#x}" for r in records if r.value != r.expected]


def test_long_mode() -> None:
    records = [r for r in run_core("long64") if not r.name.isdigit()]
    assert wrong(records) == []
    assert len(records) >= 335


def test_page_rights_in_every_combination() -> None:
    records = [r for r in run_core("long64") if r.name.isdigit()]
    assert len(records) == 768
    bad = [(r.name, hex(r.value)) for r in records if r.value != rights_model(int(r.name))]
    assert bad == []


def test_protected_and_real_mode() -> None:
    """Segments, gates, tasks, virtual-8086 mode, 32-bit and PAE paging, real and unreal mode."""
    records = run_core("prot32")
    assert wrong(records) == []
    assert len(records) >= 225
