"""A source of random bytes on a virtio bus (virtio 1.2, 5.4): every buffer the driver gives comes back full."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from qemupy.hw.core import prop, register
from qemupy.hw.virtio import VirtioDevice, VirtioPci, VirtQueue
from qemupy.memory.virtqueue import Chain

QUEUE_SIZE = 8
LARGEST = 1 << 16  # bytes given at once; a driver asks again for more


@register("virtio-rng-device", bus="virtio-bus")
class VirtioRng(VirtioDevice):
    device_type = 4

    entropy: Callable[[int], bytes]  # so many random bytes, without waiting
    rng: str = prop(default="", help="id of the -object that the bytes come from")

    def queue_sizes(self) -> list[int]:
        return [QUEUE_SIZE]

    def handle(self, queue: VirtQueue, chain: Chain) -> None:
        written = 0
        for view in chain.writable:
            size = min(len(view), LARGEST - written)
            view[:size] = self.entropy(size)
            written += size
        self.complete(queue, chain, written)


@register("virtio-rng-pci", bus="PCI", aliases=("virtio-rng",))
class VirtioRngPci(VirtioPci):
    class_code = 0x00FF00
    transitional_id = 0x1005
    device_id = 0x1005
    device_class: ClassVar[type[VirtioDevice]] = VirtioRng


@register("virtio-rng-pci-transitional", bus="PCI")
class VirtioRngPciTransitional(VirtioRngPci):
    pass


@register("virtio-rng-pci-non-transitional", bus="PCI")
class VirtioRngPciNonTransitional(VirtioRngPci):
    allow_legacy = False
