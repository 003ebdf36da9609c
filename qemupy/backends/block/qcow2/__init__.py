"""The qcow2 format (QEMU's docs/interop/qcow2.txt), versions 2 and 3, read and written.

`Qcow2Image` is an open image over any file with the calls of `ByteFile`, `driver.Qcow2Node` the same as a
node of the block graph; `create` makes an image. How the parts fit together: `header` (fields and checks), `tables`
(entries in memory), `refcount` (which host clusters are in use), `metadata` (all of it, with requests and locks),
`transaction` (the order of writes), `mapping` (guest offset to host cluster), `disk`, `snapshots`,
`image`; `compress`, `bitmaps`, `check` and `create` each do what their name says.
"""

from qemupy.backends.block.qcow2.create import create
from qemupy.backends.block.qcow2.image import Qcow2Image
from qemupy.backends.block.qcow2.snapshots import SnapshotInfo

__all__ = ["Qcow2Image", "SnapshotInfo", "create"]
