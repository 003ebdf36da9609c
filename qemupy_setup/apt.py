"""Files out of Debian packages, without installing them: a private apt for amd64 and i386 beside the host's own.

The host's apt sources, keys and proxies are used; its package lists and list of architectures stay as they are.
"""

import os
import re
from pathlib import Path

from qemupy_setup.paths import cache_dir
from qemupy_setup.steps import SetupError, locked, made_once, run, stdout_of, step
from qemupy_setup.system import update

HOST_APT = Path("/etc/apt")


def release() -> str:
    """The host's Debian release name; guests are made of the same release."""
    fields = dict(re.findall(r'^(\w+)="?([^"\n]*)', Path("/etc/os-release").read_text(), re.M))
    if fields.get("ID") != "debian" or not fields.get("VERSION_CODENAME"):
        raise SetupError("guests are made from Debian's packages: this needs a Debian 12 host")
    return str(fields["VERSION_CODENAME"])


def sources() -> str:
    """The host's apt sources that carry its Debian release, in one-line style, without foreign repositories."""
    name = release()
    lines: list[str] = []
    for path in [HOST_APT / "sources.list", *sorted((HOST_APT / "sources.list.d").glob("*"))]:
        if not path.is_file():
            continue
        text = path.read_text()
        found = _deb822(text) if path.suffix == ".sources" else re.findall(r"^deb\s.*", text, re.M)
        lines += [line for line in found if re.search(rf"\s{name}[-\w/]*\s.*\bmain\b", line)]
    if not lines:
        raise SetupError(f"no apt source for Debian {name} with component main in /etc/apt")
    return "\n".join(dict.fromkeys(lines)) + "\n"


def _deb822(text: str) -> list[str]:
    """The stanzas of a .sources file as one-line entries."""
    lines = []
    for stanza in re.split(r"\n\s*\n", text):
        body = re.sub(r"^#.*\n?", "", stanza, flags=re.M)
        fields = {key.lower(): " ".join(value.split())
                  for key, value in re.findall(r"^([\w-]+):((?:.*(?:\n[ \t].*)*))", body, re.M)}
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes") == "no":
            continue
        signed = fields.get("signed-by", "")
        option = f"[signed-by={signed}] " if signed.startswith("/") else ""
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                lines.append(f"deb {option}{uri} {suite} {fields.get('components', '')}")
    return lines


def acquire_options() -> str:
    """The host's settings for fetching (proxies, certificates, checks) as text for an apt configuration file."""
    kept = r"Acquire::(https?|Retries|ForceIPv[46]|Check-\S+|Languages|Allow\S+)\b"
    dump = stdout_of(["apt-config", "dump", "--no-empty"])
    return "".join(f"{line}\n" for line in dump.splitlines() if re.match(kept, line))


def _private_apt() -> list[str]:
    """Words that run apt on the private configuration, whose lists are fetched on the first call."""
    root = cache_dir() / "apt"
    config = root / "apt.conf"
    ready = root / f"lists-{release()}-ready"
    with locked(root / ".lock"):
        if not ready.exists():
            for folder in ("lists/partial", "archives/partial", "etc/preferences.d", "etc/apt.conf.d"):
                (root / folder).mkdir(parents=True, exist_ok=True)
            (root / "status").touch()
            (root / "sources.list").write_text(sources())
            config.write_text(_config(root) + acquire_options())
            with step("fetch the package lists for guests"):
                update(["env", f"APT_CONFIG={config}"])
            ready.touch()
    return ["env", f"APT_CONFIG={config}"]


def _config(root: Path) -> str:
    return f"""\
APT::Architecture "amd64";
APT::Architectures {{ "amd64"; "i386"; }};
APT::Sandbox::User "root";
Dir::State "{root}";
Dir::State::lists "{root}/lists";
Dir::State::status "{root}/status";
Dir::Cache "{root}";
Dir::Cache::archives "{root}/archives";
Dir::Etc::sourcelist "{root}/sources.list";
Dir::Etc::sourceparts "{root}/etc/none";
Dir::Etc::preferencesparts "{root}/etc/preferences.d";
Dir::Etc::trusted "/etc/apt/trusted.gpg";
Dir::Etc::trustedparts "/etc/apt/trusted.gpg.d";
"""


def _newest_kernel(apt: list[str], package: str, arch: str) -> str:
    """The kernel package that a meta package such as linux-image-cloud-amd64 depends on."""
    shown = stdout_of([*apt, "apt-cache", "show", "--no-all-versions", f"{package}:{arch}"])
    found = re.search(r"^Depends:.*?(linux-image-\d\S*)", shown, re.M)
    if not found:
        raise SetupError(f"{package}: no kernel package among what it depends on")
    return found.group(1)


def package_tree(package: str, arch: str = "amd64") -> Path:
    """The files of a package (for a kernel's meta package: of the kernel, without modules), unpacked in the cache."""
    return _unpacked(package, arch, f"{package}_{arch}", ["./boot"])  # modules are 300 MB, and few guests load any


def kernel_modules(package: str, patterns: list[str], title: str, arch: str = "amd64") -> Path:
    """Those files of a kernel's meta package that match, such as `./lib/modules/*/kernel/drivers/virtio`."""
    return _unpacked(package, arch, f"{package}_{arch}_{title}", patterns)


def _unpacked(package: str, arch: str, name: str, kernel_files: list[str]) -> Path:
    def unpack(result: Path) -> None:
        apt = _private_apt()
        meta = re.fullmatch(r"linux-image-(cloud-)?(amd64|686|686-pae)", package)
        real = _newest_kernel(apt, package, arch) if meta else package
        folder = result.parent
        words = [*apt, "apt-get", "-q", "download", f"{real}:{arch}"]
        run(words, cwd=folder)
        (archive,) = folder.glob("*.deb")
        result.mkdir()
        if meta:
            tar = 'deb="$0" to="$1"; shift; dpkg-deb --fsys-tarfile "$deb" | tar -xC "$to" --wildcards "$@"'
            run(["sh", "-c", tar, archive, result, *kernel_files])
        else:
            run(["dpkg-deb", "-x", archive, result])

    folder = cache_dir() / "packages"
    folder.mkdir(parents=True, exist_ok=True)
    return made_once(folder / name, f"fetch {package} ({arch})", unpack)


def one_file(tree: Path, pattern: str) -> Path:
    """The one file of a package tree that matches a pattern."""
    found = sorted(path for path in tree.glob(pattern) if os.path.isfile(path))
    if not found:
        raise SetupError(f"{tree}: no file {pattern}")
    return found[-1]
