"""Monitors: typed commands on a Vm (`commands.py`), their HMP faces (`hmp_*.py`), and the session on a chardev."""

from __future__ import annotations


def load_commands() -> None:
    """Enter all HMP commands in the table."""
    from qemupy.monitor import hmp_block, hmp_cpu, hmp_info, hmp_machine, hmp_memory, hmp_migration, hmp_snapshots

    assert hmp_block and hmp_cpu and hmp_info and hmp_machine and hmp_memory and hmp_migration and hmp_snapshots
