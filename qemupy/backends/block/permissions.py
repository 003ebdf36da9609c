"""What the users of a node do with it, and what they let others do: QEMU's permissions.

Within the process the graph refuses users that do not agree; between processes the same sets become locks on the image
file (`locks.py`).
"""

from __future__ import annotations

import enum

from qemupy.errors import BackendError
from qemupy.records import record


class Permission(enum.IntFlag):
    """The bit numbers are also the bytes of QEMU's image locks."""

    CONSISTENT_READ = 1 << 0
    WRITE = 1 << 1
    WRITE_UNCHANGED = 1 << 2
    RESIZE = 1 << 3


NOTHING = Permission(0)
EVERYTHING = Permission(15)
NAMES = {
    Permission.CONSISTENT_READ: "consistent read",
    Permission.WRITE: "write",
    Permission.WRITE_UNCHANGED: "write unchanged",
    Permission.RESIZE: "resize",
}


def describe(permissions: Permission) -> str:
    return ", ".join(name for bit, name in NAMES.items() if bit & permissions)


@record(frozen=True)
class Use:
    """One parent of a node. `parent` is how messages name it: `block device 'ide0-hd0'`, `node 'top'`."""

    parent: str
    role: str  # root, file, backing
    used: Permission = NOTHING
    shared: Permission = EVERYTHING


def metadata_use(parent: str, readonly: bool) -> Use:
    """Of the file under a format with metadata: nobody else may write to it, whatever the guest's disk allows."""
    used = Permission.CONSISTENT_READ
    if not readonly:
        used |= Permission.WRITE | Permission.RESIZE
    return Use(parent, "file", used, Permission.CONSISTENT_READ | Permission.WRITE_UNCHANGED)


def backing_use(parent: str) -> Use:
    return Use(
        parent, "backing", Permission.CONSISTENT_READ, Permission.CONSISTENT_READ | Permission.WRITE_UNCHANGED
    )


def check_uses(node_name: str, uses: list[Use]) -> None:
    """Raise BackendError if one user needs what another does not share."""
    for one in uses:
        for other in uses:
            clash = one.used & ~other.shared
            if one is not other and clash:
                raise BackendError(
                    f"Permission conflict on node '{node_name}': permissions '{describe(clash)}' are both required by "
                    f"{one.parent} (uses node '{node_name}' as '{one.role}' child) and unshared by "
                    f"{other.parent} (uses node '{node_name}' as '{other.role}' child)."
                )


def joint_use(uses: list[Use]) -> tuple[Permission, Permission]:
    """What all users together use, and what they all share."""
    used, shared = NOTHING, EVERYTHING
    for use in uses:
        used |= use.used
        shared &= use.shared
    return used, shared
