"""A Debian disk image made from packages, without loop devices: what an installation on a PC would leave.

One bootable ext4 partition at 1 MiB; GRUB's boot.img in the first 440 bytes and its core image from sector 1, as
grub-install lays them out (GNU GRUB manual, "BIOS installation"). Serial and VGA console; root's password is known.
"""

import hashlib
import struct
from pathlib import Path

from qemupy_setup import apt
from qemupy_setup.paths import SOURCE, cache_dir
from qemupy_setup.steps import as_root, made_once, run

USER = "root"
PASSWORD = "qemupy"

PACKAGES = ["linux-image-amd64", "systemd-sysv", "udev", "ifupdown", "isc-dhcp-client", "openssh-server", "lz4",
            "iproute2", "procps", "kmod", "pciutils"]
DISK_SIZE = 3 << 30
SECTOR = 512
PARTITION_START = 1 << 20
FS_UUID = "5f0e9b5e-9d2c-4d6b-8f5b-6c1f0a7e2b10"

GRUB_MODULES = ["biosdisk", "part_msdos", "ext2", "linux", "normal", "serial", "terminal", "search", "search_fs_uuid",
                "echo", "test", "configfile", "ls", "cat", "reboot", "halt", "sleep", "minicmd"]
GRUB_CFG = f"""\
serial --unit=0 --speed=115200
terminal_input serial console
terminal_output serial console
set timeout_style=hidden
set timeout=1
menuentry 'Debian GNU/Linux' {{
    search --set=root --fs-uuid {FS_UUID}
    linux /vmlinuz root=UUID={FS_UUID} ro console=tty0 console=ttyS0,115200 net.ifnames=0
    initrd /initrd.img
}}
"""

# The initramfs carries what finds the root file system on any of the disk controllers, not every driver there is.
INITRAMFS_HOOK = """\
#!/bin/sh
[ "$1" = prereqs ] && exit 0
. /usr/share/initramfs-tools/hook-functions
manual_add_modules ext4 sd_mod ata_piix ata_generic ahci nvme virtio_pci virtio_blk virtio_scsi
"""
BEFORE_PACKAGES = f"""\
set -eu
mkdir -p "$1/etc/initramfs-tools/conf.d" "$1/etc/initramfs-tools/hooks"
printf 'MODULES=list\\nCOMPRESS=lz4\\n' > "$1/etc/initramfs-tools/conf.d/qemupy"
cat > "$1/etc/initramfs-tools/hooks/qemupy" <<'END'
{INITRAMFS_HOOK}END
chmod 755 "$1/etc/initramfs-tools/hooks/qemupy"
"""
AFTER_PACKAGES = f"""\
set -eu
echo '{USER}:{PASSWORD}' | chroot "$1" chpasswd
echo debian > "$1/etc/hostname"
tr -d - < /proc/sys/kernel/random/uuid > "$1/etc/machine-id"
printf '127.0.0.1\\tlocalhost\\n127.0.1.1\\tdebian\\n' > "$1/etc/hosts"
echo 'UUID={FS_UUID} / ext4 errors=remount-ro 0 1' > "$1/etc/fstab"
printf 'auto lo\\niface lo inet loopback\\nallow-hotplug eth0\\niface eth0 inet dhcp\\n' > "$1/etc/network/interfaces"
chroot "$1" systemctl disable -q apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \\
    e2scrub_all.timer e2scrub_reap.service fstrim.timer
mkdir -p "$1/boot/grub"
cat > "$1/boot/grub/grub.cfg" <<'END'
{GRUB_CFG}END
rm -rf "$1"/var/cache/apt/archives/*.deb "$1"/var/lib/apt/lists/*
"""


def debian_disk() -> Path:
    """The raw disk image in the cache, made if it is not there. Never boot it writable in a test: copy it first."""
    folder = cache_dir() / "guests"
    folder.mkdir(parents=True, exist_ok=True)
    return made_once(folder / f"debian-{apt.release()}-{_recipe()}.img", "make the Debian disk", _make_disk)


def _recipe() -> str:
    """A name for what goes into the image, so that a cached image of an older recipe is not used."""
    text = repr((PACKAGES, DISK_SIZE, GRUB_MODULES, BEFORE_PACKAGES, AFTER_PACKAGES))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _make_disk(image: Path) -> None:
    work = image.parent
    tree = work / "tree"
    _install_debian(work, tree)
    _partition(image)
    run([*as_root(), "mke2fs", "-q", "-t", "ext4", "-F", "-d", tree, "-U", FS_UUID, "-L", "root",
         "-O", "^metadata_csum_seed,^orphan_file", "-E", f"offset={PARTITION_START},root_owner=0:0",
         image, f"{(DISK_SIZE - PARTITION_START) >> 10}k"])
    _install_grub(image)


def _install_debian(work: Path, tree: Path) -> None:
    (work / "sources.list").write_text(apt.sources())
    (work / "fetch.conf").write_text(apt.acquire_options())
    for name, text in (("before.sh", BEFORE_PACKAGES), ("after.sh", AFTER_PACKAGES)):
        (work / name).write_text(text)
    run([*as_root(), "mmdebstrap", "--variant=minbase", "--format=directory", f"--include={','.join(PACKAGES)}",
         f"--aptopt={work / 'fetch.conf'}", f"--essential-hook=sh {work / 'before.sh'} \"$1\"",
         f"--customize-hook=sh {work / 'after.sh'} \"$1\"", "--skip=cleanup/reproducible/machine-id",
         apt.release(), tree, work / "sources.list"], cwd=SOURCE)
    run([*as_root(), "rm", "-f", tree / "etc/apt/apt.conf.d/99mmdebstrap"])


def _partition(image: Path) -> None:
    with image.open("wb") as file:
        file.truncate(DISK_SIZE)
    table = f"label: dos\nstart={PARTITION_START // SECTOR}, type=83, bootable\n"
    run(["sfdisk", "-q", image], stdin=table.encode())


def _install_grub(image: Path) -> None:
    modules = apt.package_tree("grub-pc-bin") / "usr/lib/grub/i386-pc"
    core_path = image.parent / "core.img"
    run(["grub-mkimage", "-O", "i386-pc", "-d", modules, "-p", "(hd0,msdos1)/boot/grub", "-o", core_path,
         *GRUB_MODULES])
    core = bytearray(core_path.read_bytes())
    if len(core) > PARTITION_START - SECTOR:
        raise AssertionError("GRUB's core image does not fit before the partition")
    # The first sector of the core loads the others by a block list at its end: LBA of the next sector (diskboot.S).
    struct.pack_into("<Q", core, SECTOR - 12, 2)
    boot = bytearray((modules / "boot.img").read_bytes())
    struct.pack_into("<Q", boot, 0x5C, 1)  # LBA of the core image's first sector (boot.S, kernel_sector)
    with image.open("r+b") as file:
        file.write(boot[:440])  # the partition table and disk signature stay
        file.seek(SECTOR)
        file.write(core)
