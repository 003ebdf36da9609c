"""Numbers of virtio 1.2: status (2.1), feature bits (6), PCI transport (4.1)."""

from __future__ import annotations

ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET, FAILED = 1, 2, 4, 8, 0x40, 0x80

F_NOTIFY_ON_EMPTY, F_ANY_LAYOUT = 1 << 24, 1 << 27  # legacy interface only
F_INDIRECT_DESC, F_EVENT_IDX = 1 << 28, 1 << 29
F_BAD_FEATURE = 1 << 30  # a legacy driver that takes it takes everything it is shown
F_VERSION_1, F_RING_RESET = 1 << 32, 1 << 40
LEGACY_ONLY = F_NOTIFY_ON_EMPTY | F_ANY_LAYOUT | F_BAD_FEATURE

NO_VECTOR = 0xFFFF
ISR_QUEUE, ISR_CONFIG = 1, 2

# PCI ids: transitional devices have their own, others 1040h + device type
VENDOR, MODERN_BASE = 0x1AF4, 0x1040

# Structures, each the type of a vendor capability
CAP_COMMON, CAP_NOTIFY, CAP_ISR, CAP_DEVICE, CAP_PCI = 1, 2, 3, 4, 5
NOTIFY_MULTIPLIER = 4
