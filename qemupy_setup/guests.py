"""The guests the tests boot: each function returns files in the cache, prepared from Debian packages on first use."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qemupy_setup import apt, initramfs
from qemupy_setup.disk import debian_disk
from qemupy_setup.paths import cache_dir
from qemupy_setup.steps import made_once, run, step

ISO_KERNEL_ARGS = "console=ttyS0,115200"


@dataclass(frozen=True)
class LinuxGuest:
    """What -kernel and -initrd take."""

    kernel: Path
    initrd: Path


def _file(name: str, title: str, make: Callable[[Path], None]) -> Path:
    folder = cache_dir() / "guests"
    folder.mkdir(parents=True, exist_ok=True)
    return made_once(folder / name, title, make)


def busybox(arch: str) -> Path:
    """The statically linked busybox for amd64 or i386."""
    return apt.one_file(apt.package_tree("busybox-static", arch), "bin/busybox")


def busybox_initrd(arch: str) -> Path:
    """The busybox initramfs for amd64 or i386."""

    def make(path: Path) -> None:
        path.write_bytes(initramfs.busybox_initramfs(busybox(arch)))

    return _file(f"busybox-{arch}-2.cpio.gz", f"make the busybox initramfs ({arch})", make)


def linux(package: str, arch: str = "amd64") -> LinuxGuest:
    """The kernel of a Debian kernel meta package with the busybox initramfs."""
    return LinuxGuest(apt.one_file(apt.package_tree(package, arch), "boot/vmlinuz-*"), busybox_initrd(arch))


# In the order they are loaded; `drivers/` of the kernel's modules
DISK_MODULES = (
    "virtio/virtio.ko", "virtio/virtio_ring.ko", "virtio/virtio_pci_legacy_dev.ko", "virtio/virtio_pci_modern_dev.ko",
    "virtio/virtio_pci.ko", "block/virtio_blk.ko", "char/hw_random/virtio-rng.ko", "scsi/scsi_common.ko",
    "scsi/scsi_mod.ko", "scsi/sd_mod.ko", "ata/libata.ko", "ata/ata_piix.ko",
)  # fmt: skip


def linux_with_disks() -> LinuxGuest:
    """The cloud kernel with an initramfs that loads the drivers of virtio devices and IDE disks, modules there."""
    package = "linux-image-cloud-amd64"

    def make(path: Path) -> None:
        patterns = [f"./lib/modules/*/kernel/drivers/{name}" for name in DISK_MODULES]
        tree = apt.kernel_modules(package, patterns, "disks")
        modules = [apt.one_file(tree, f"lib/modules/*/kernel/drivers/{name}") for name in DISK_MODULES]
        path.write_bytes(initramfs.busybox_initramfs(busybox("amd64"), modules=modules))

    initrd = _file("busybox-disks-2.cpio.gz", "make the busybox initramfs with disk drivers", make)
    return LinuxGuest(linux(package).kernel, initrd)


# Packages that TinyCC needs to compile, and what of them
COMPILER = {
    "tcc": ("usr/bin/tcc", "usr/lib/x86_64-linux-gnu/tcc"),
    "libc6": ("lib/x86_64-linux-gnu/libc.so.6", "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", "lib64",
              "lib/x86_64-linux-gnu/libm.so.6", "lib/x86_64-linux-gnu/libmvec.so.1",
              "lib/x86_64-linux-gnu/libdl.so.2", "lib/x86_64-linux-gnu/libpthread.so.0"),
    "libc6-dev": ("usr/include", *(f"usr/lib/x86_64-linux-gnu/{name}" for name in (
        "crt1.o", "crti.o", "crtn.o", "libc.so", "libc_nonshared.a"))),
    "linux-libc-dev": ("usr/include/linux", "usr/include/asm-generic", "usr/include/x86_64-linux-gnu/asm"),
}  # fmt: skip


def linux_with_compiler() -> LinuxGuest:
    """The cloud kernel with an initramfs in which TinyCC compiles C."""

    def make(path: Path) -> None:
        files = {entry.name: entry for package, names in COMPILER.items()
                 for entry in initramfs.tree_entries(apt.package_tree(package), names)}  # fmt: skip
        path.write_bytes(initramfs.busybox_initramfs(busybox("amd64"), files=files.values()))

    return LinuxGuest(linux("linux-image-cloud-amd64").kernel,
                      _file("busybox-tcc-2.cpio.gz", "make the busybox initramfs with a C compiler", make))


def installer(arch: str) -> LinuxGuest:
    """Debian's installer, network boot, text mode."""
    tree = apt.package_tree(f"debian-installer-12-netboot-{arch}")
    folder = tree / f"usr/lib/debian-installer/images/12/{arch}/text/debian-installer/{arch}"
    return LinuxGuest(apt.one_file(folder, "linux"), apt.one_file(folder, "initrd.gz"))


def memtest() -> Path:
    """memtest86+ as a kernel image."""
    return apt.one_file(apt.package_tree("memtest86+"), "boot/memtest86+x64.bin")


def ipxe() -> Path:
    """iPXE as a kernel of the oldest boot protocols, which starts in real mode."""
    return apt.one_file(apt.package_tree("ipxe"), "boot/ipxe.lkrn")


def xen() -> Path:
    """The Xen hypervisor: an ELF image with a Multiboot header."""

    def unpack(path: Path) -> None:
        packed = apt.one_file(apt.package_tree("xen-hypervisor-4.17-amd64"), "boot/xen-*.gz")
        run(["sh", "-c", 'gzip -dc "$0" > "$1"', packed, path])

    return _file("xen-4.17", "unpack Xen", unpack)


def grub_iso() -> Path:
    """A CD-ROM whose GRUB shows a menu and starts the cloud kernel."""

    def make(path: Path) -> None:
        guest = linux("linux-image-cloud-amd64")
        tree = path.parent / "iso"
        (tree / "boot/grub").mkdir(parents=True)
        for source, name in ((guest.kernel, "vmlinuz"), (guest.initrd, "initrd.gz")):
            (tree / "boot" / name).write_bytes(source.read_bytes())
        (tree / "boot/grub/grub.cfg").write_text(
            "serial --unit=0 --speed=115200\nterminal_output serial\nterminal_input serial\nset timeout=3\n"
            f"menuentry 'cloud kernel' {{\n  linux /boot/vmlinuz {ISO_KERNEL_ARGS}\n  initrd /boot/initrd.gz\n}}\n")
        modules = apt.package_tree("grub-pc-bin") / "usr/lib/grub/i386-pc"
        run(["grub-mkrescue", "-d", modules, "-o", path, tree])

    return _file("grub-2.iso", "make the GRUB CD-ROM", make)


ALL: list[Callable[[], object]] = [
    debian_disk,
    lambda: linux("linux-image-cloud-amd64"),
    linux_with_disks,
    linux_with_compiler,
    lambda: linux("linux-image-amd64"),
    lambda: linux("linux-image-686", "i386"),
    lambda: linux("linux-image-686-pae", "i386"),
    lambda: installer("amd64"),
    lambda: installer("i386"),
    memtest,
    ipxe,
    xen,
    grub_iso,
]


def prepare_all() -> None:
    """Make every guest of the boot tests, so that no test waits for a download."""
    with step("prepare the guests"):
        for make in ALL:
            make()
