"""Opening nodes: from options, as `-drive`, `-blockdev` and image files give them, to a graph of nodes.

Options are flat, `file.driver=...`: QEMU's nested objects with the names of the levels joined by dots. Options for
everything (`read-only`, `cache.direct`, ...) become `Flags`; children inherit most of them. What is left belongs to
the driver, which takes it from its `Opening`; an option that nobody took is a mistake.
"""

from __future__ import annotations

from qemupy import options as syntax
from qemupy.backends.block.drivers import DRIVERS, find_driver, probe
from qemupy.backends.block.filenames import filename_options
from qemupy.backends.block.node import Node
from qemupy.backends.block.permissions import Use, backing_use
from qemupy.config import DRIVE_KEYS, NODE_KEYS
from qemupy.errors import BackendError, ConfigError
from qemupy.records import record, replace

DETECT_ZEROES = ("off", "on", "unmap")
PROBE_SIZE = 2048
MAX_CHAIN = 200  # a backing chain longer than that goes in a circle
Options = dict[str, str]


@record(frozen=True)
class Flags:
    """What every node has, whatever its driver."""

    readonly: bool = False
    auto_read_only: bool = False
    direct: bool = False  # past the host's page cache (O_DIRECT)
    no_flush: bool = False
    discard: bool = False  # hand discards on (`discard=unmap`)
    detect_zeroes: str = "off"

    def updated(self, options: Options) -> Flags:
        """With the options for everything, which are taken out."""

        def switch(key: str, default: bool) -> bool:
            return syntax.boolean(key, options.pop(key)) if key in options else default

        discard = options.pop("discard", None)
        if discard not in (None, "ignore", "off", "unmap", "on"):
            raise ConfigError("Invalid discard option")
        detect = options.pop("detect-zeroes", self.detect_zeroes)
        if detect not in DETECT_ZEROES:
            raise ConfigError(f"Parameter 'detect-zeroes' does not accept value '{detect}'")
        flags = Flags(
            switch("read-only", self.readonly),
            switch("auto-read-only", self.auto_read_only),
            switch("cache.direct", self.direct),
            switch("cache.no-flush", self.no_flush),
            discard in ("unmap", "on") if discard is not None else self.discard,
            detect,
        )
        if flags.detect_zeroes == "unmap" and not flags.discard:
            raise ConfigError(
                "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap"
            )
        return flags

    def for_file(self) -> Flags:
        """Of the child `file`: formats decide about discards, so it passes on all it gets."""
        return replace(self, discard=True, detect_zeroes="off")

    def for_backing(self) -> Flags:
        return replace(self, readonly=True, auto_read_only=False, discard=False, detect_zeroes="off")


class Graph:
    """All nodes by name, and how they are made."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.held: list[Node] = []  # by the user, who made them with -blockdev
        self.warnings: list[str] = []  # for the user, from opening; who opens prints and clears them
        self._made = 0

    def new_name(self) -> str:
        """A node name in the form of QEMU's own, which no user can give."""
        self._made += 1
        return f"#block{100 + self._made}"

    def find(self, name: str) -> Node:
        node = self.nodes.get(name)
        if node is None:
            raise BackendError(f"Cannot find device='' nor node-name='{name}'")
        return node

    def open(self, options: Options, flags: Flags | None = None, filename: str | None = None, *,
             depth: int = 0) -> Node:  # fmt: skip
        """A new node with one reference, the caller's. `filename` is one that a user or an image file gives: with
        `json:` or a protocol in front, or a path. Raises BackendError or ConfigError with everything closed again."""
        options = dict(options)
        if filename is not None and filename.startswith("json:"):
            options = {**_json_options(filename), **options}
            filename = None
        name = options.pop("node-name", "")
        self._check_name(name)
        opening = Opening(self, options, (flags or Flags()).updated(options), name or self.new_name(), depth)
        try:
            node = opening.run(filename)
        except BaseException:
            opening.undo()
            raise
        self.nodes[node.node_name] = node
        return node

    def adopt(self, node: Node, flags: Flags, name: str = "") -> Node:
        """Enter a node that was made without `open`."""
        node.node_name, node.flags, node.references, node.uses = name or self.new_name(), flags, 1, []
        self.nodes[node.node_name] = node
        return node

    def _check_name(self, name: str) -> None:
        if name and not (name[0].isalpha() and all(c.isalnum() or c in "-._" for c in name) and len(name) < 32):
            raise ConfigError(f"Invalid node-name: '{name}'")
        if name in self.nodes:
            raise ConfigError(f"Duplicate nodes with node-name='{name}'")

    def release(self, node: Node) -> None:
        """Give up a reference; with the last one the node is closed and its children are released."""
        node.references -= 1
        if node.references:
            return
        self.nodes.pop(node.node_name, None)
        children = node.children()
        node.close()
        for child in children.values():
            child.uses = [use for use in child.uses if use.parent != f"node '{node.node_name}'"]
            self.release(child)


    def close(self) -> None:
        """The end: let go of what only the user held."""
        while self.held:
            self.release(self.held.pop())


def _json_options(filename: str) -> Options:
    try:
        return syntax.parse(filename.removeprefix("json:"))
    except ConfigError as e:
        raise BackendError(f"Could not parse the JSON options: {e}") from None


class Opening:
    """One node while it is opened: what its driver's `open` works with."""

    def __init__(self, graph: Graph, options: Options, flags: Flags, name: str, depth: int) -> None:
        self.graph, self.options, self.flags, self.node_name, self.depth = graph, options, flags, name, depth
        self._children: list[Node] = []
        self._probed_file: Node | None = None

    # For drivers

    @property
    def probed(self) -> bool:
        """Nobody said the format; it was guessed from the first bytes."""
        return self._probed_file is not None

    def take(self, key: str, default: str | None = None) -> str | None:
        """The value of an option of the driver's own."""
        return self.options.pop(key, default)

    def switch(self, key: str, default: bool) -> bool:
        return syntax.boolean(key, self.options.pop(key)) if key in self.options else default

    def size(self, key: str, default: int) -> int:
        return syntax.size(key, self.options.pop(key)) if key in self.options else default

    def choice(self, key: str, known: tuple[str, ...]) -> str:
        """One of `known`, the first by default."""
        value = self.options.pop(key, known[0])
        if value not in known:
            raise ConfigError(f"Parameter '{key}' does not accept value '{value}'{syntax.did_you_mean(value, known)}")
        return value

    def required(self, key: str) -> str:
        if key not in self.options:
            raise ConfigError(f"Parameter '{key}' is missing")
        return self.options.pop(key)

    def child(self, role: str = "file", use: Use | None = None) -> Node:
        """The child that the options `ROLE` (a node's name) or `ROLE.*` say."""
        node = self._open_child(role, self.flags.for_file())
        if node is None:
            raise ConfigError(f'A block device must be specified for "{role}"')
        if use is not None:
            node.add_use(use)
        return node

    def backing(self, filename: str, image_format: str | None) -> Node | None:
        """The backing node: what the options say (`backing=NODE`, `backing=` for none, `backing.*`), else the file an
        image names, resolved against the image's own place by the caller. Always read-only."""
        if self.options.get("backing") in ("", "null"):
            del self.options["backing"]
            return None
        if self.depth >= MAX_CHAIN:
            raise BackendError(f"the backing chain of '{filename}' is longer than {MAX_CHAIN} images")
        node = self._open_child("backing", self.flags.for_backing(), filename or None, image_format)
        if node is not None:
            node.add_use(backing_use(f"node '{self.node_name}'"))
        return node

    # The graph's part

    def _open_child(self, role: str, flags: Flags, filename: str | None = None,
                    image_format: str | None = None) -> Node | None:  # fmt: skip
        if role == "file" and self._probed_file is not None:
            return self._probed_file
        name = self.options.pop(role, None)
        if name is not None:
            node = self.graph.find(name)
            node.references += 1
            self._children.append(node)
            return node
        prefix = f"{role}."
        own = {key[len(prefix) :]: self.options.pop(key) for key in list(self.options) if key.startswith(prefix)}
        if role == "backing":
            if not own and filename is None:
                return None
            if image_format is not None:
                own.setdefault("driver", image_format)
            if "driver" in own and any(key.startswith("file.") for key in own):
                filename = None
        elif not own:
            return None
        node = self.graph.open(own, flags, filename, depth=self.depth + 1)
        self._children.append(node)
        return node

    def run(self, filename: str | None) -> Node:
        name = self.options.pop("driver", None)
        driver = find_driver(name) if name is not None else None
        if filename is not None:
            self._place_filename(filename, driver)
        elif driver is None and "filename" in self.options:
            driver = find_driver("file")
        if driver is None:
            driver = self._probe()
        node = driver.open(self)
        node.node_name, node.flags, node.references = self.node_name, self.flags, 1
        if not hasattr(node, "uses"):
            node.uses = []
        if self.options:
            node.close()
            raise self._unknown_option(driver)
        return node

    def _unknown_option(self, driver: type[Node]) -> ConfigError:
        key = next(iter(self.options))
        kind = "protocol" if driver.is_protocol else "format"
        hint = syntax.did_you_mean(key, (*DRIVE_KEYS, *NODE_KEYS))
        return ConfigError(f"Block {kind} '{driver.driver}' does not support the option '{key}'{hint}")

    def _place_filename(self, filename: str, driver: type[Node] | None) -> None:
        """A file name means the protocol layer: this node itself or its child `file`."""
        found = filename_options(filename)
        if driver is not None and driver.is_protocol:
            if found["driver"] != driver.driver and "filename" not in found:
                raise BackendError(f"'{filename}' is not for the protocol '{driver.driver}'")
            del found["driver"]
            prefix = ""
        else:
            prefix = "file."
        for key, value in found.items():
            self.options.setdefault(prefix + key, value)

    def _probe(self) -> type[Node]:
        """The driver that the first bytes of the child `file` ask for; the child stays open under its name."""
        node = self._open_child("file", self.flags.for_file())
        if node is None:
            raise ConfigError('A block device must be specified for "file"')
        head = bytearray(min(PROBE_SIZE, node.length))
        try:
            node.read(0, memoryview(head))
        except OSError as e:
            raise BackendError(f"Could not read image '{node.filename}': {e.strerror}") from None
        name = probe(bytes(head))
        if name not in DRIVERS:
            raise BackendError(f"'{node.filename}' is an image in {name} format; it is not supported")
        self._probed_file = node
        return find_driver(name)

    def undo(self) -> None:
        """After a failure: let the children go."""
        for node in self._children:
            node.uses = [use for use in node.uses if use.parent != f"node '{self.node_name}'"]
            self.graph.release(node)
        self._children.clear()
