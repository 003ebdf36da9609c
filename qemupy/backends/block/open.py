"""Drives and nodes from their configuration."""

from __future__ import annotations

import os

from qemupy.backends.block.drive import Drive, DrivePolicy
from qemupy.backends.block.file import FileNode
from qemupy.backends.block.node import Node
from qemupy.backends.block.opening import Flags, Graph
from qemupy.config import DriveConfig
from qemupy.errors import BackendError, ConfigError
from qemupy.main_loop.loop import MainLoop
from qemupy.main_loop.workers import Workers
from qemupy.records import replace


def drive_flags(config: DriveConfig) -> Flags:
    """What the drive's nodes inherit."""
    return Flags(
        readonly=config.readonly,
        auto_read_only=True,
        direct=config.cache in ("none", "off", "directsync"),
        no_flush=config.cache == "unsafe",
    )


def open_medium(config: DriveConfig, graph: Graph) -> Node | None:
    """The top node of a drive, None for a drive without."""
    options, flags = dict(config.options), drive_flags(config)
    if config.format is not None:
        options["driver"] = config.format
    if config.file is None and not config.options and config.format is None:
        return None
    if not config.snapshot or config.readonly:
        return graph.open(options, flags, config.file)
    base = graph.open(options, flags.for_backing(), config.file)
    try:
        return _temporary_snapshot(base, graph, replace(flags, no_flush=True, readonly=False))
    finally:
        graph.release(base)


def _temporary_snapshot(base: Node, graph: Graph, flags: Flags) -> Node:
    """`snapshot=on`: a qcow2 image over the other one, in a file that nobody else sees and that is gone at the end."""
    import tempfile

    from qemupy.backends.block.qcow2.create import create

    folder = os.environ.get("TMPDIR", "/var/tmp")
    try:
        handle, path = tempfile.mkstemp(prefix="vl.", dir=folder)
        os.close(handle)
    except OSError as e:
        raise BackendError(f"Could not create a temporary file in {folder}: {e.strerror}") from None
    try:
        file = FileNode(path, locking="off")
        try:
            create(file, base.length)
        finally:
            file.close()
        options = {"driver": "qcow2", "file.driver": "file", "file.filename": path, "file.locking": "off"}
        return graph.open({**options, "backing": base.node_name}, flags)
    except OSError as e:
        raise BackendError(f"Could not create temporary overlay '{path}': {e.strerror}") from None
    finally:
        os.unlink(path)


def open_drive(config: DriveConfig, loop: MainLoop, workers: Workers, graph: Graph) -> Drive:
    """A drive as `-drive` says; its image is locked when a device takes it (`Drive.attach`)."""
    policy = DrivePolicy(config.cache in ("writethrough", "directsync"), config.werror, config.rerror)
    node = open_medium(config, graph)
    drive = Drive(config.id, loop, workers, graph, node, removable=config.removable, policy=policy)
    drive.flags = drive_flags(config)
    return drive


def open_blockdev(options: dict[str, str], graph: Graph) -> Node:
    """A node that `-blockdev` asks for; it stays until the end, whoever uses it."""
    if not options.get("driver"):
        raise ConfigError("Parameter 'driver' is missing")
    if not options.get("node-name"):
        raise ConfigError("'node-name' must be specified for the root node")
    node = graph.open(options)
    graph.held.append(node)
    return node


def drive_on_node(name: str, loop: MainLoop, workers: Workers, graph: Graph) -> Drive:
    """For `-device ...,drive=NODE`: a drive without a name of its own, over a node made by `-blockdev`."""
    node = graph.find(name)
    if any(use.role == "root" for use in node.uses):
        raise BackendError(f"Node '{name}' is already used by another device")
    node.references += 1
    drive = Drive(name, loop, workers, graph, node)
    drive.anonymous = True
    return drive
