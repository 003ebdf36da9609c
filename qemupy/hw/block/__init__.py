"""Disk, CD-ROM and floppy controllers and their drives."""
