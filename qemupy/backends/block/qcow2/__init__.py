"""The qcow2 format (QEMU's docs/interop/qcow2.txt), versions 2 and 3, read and written.

`Qcow2Image` is an open image, over any file-like thing with the calls of `ByteFile`; `create` makes one, `commit`
writes an overlay down into its backing image. How the parts fit together: `header` (fields and checks), `tables`
(entries in memory), `refcount` (which host clusters are in use), `metadata` (all of it, with requests and locks), `transaction`
(the order of writes), `mapping` (guest offset to host cluster), `disk`, `snapshots`, `image`; `compress`, `bitmaps`,
`check`, `create` and `commit` each do what their name says.
"""

from qemupy.backends.block.qcow2.commit import commit
from qemupy.backends.block.qcow2.create import create
from qemupy.backends.block.qcow2.image import Qcow2Image
from qemupy.backends.block.qcow2.snapshots import SnapshotInfo

__all__ = ["Qcow2Image", "SnapshotInfo", "commit", "create"]
