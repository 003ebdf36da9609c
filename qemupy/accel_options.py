"""`-accel`, `-icount` and `-seed`: what runs the guest's code, and how its time goes."""

from __future__ import annotations

from collections.abc import Sequence

from qemupy import options
from qemupy.errors import ConfigError
from qemupy.records import record

# What the core has. QEMU's name for its translator stands for the best of ours.
ACCELERATORS = {"dbt": "translate hot code", "interp": "interpret every instruction"}
DEFAULT_ACCEL = "dbt"
_ALIASES = {"tcg": DEFAULT_ACCEL}

_TRANSLATOR_KEYS = ("lockstep", "one-insn-per-tb", "split-wx", "tb-size", "thread")
_KVM_KEYS = (
    "dirty-ring-size", "igd-passthru", "kernel-irqchip", "kvm-shadow-mem", "notify-vmexit", "notify-window",
)  # fmt: skip
MAX_SHIFT = 10


@record(frozen=True)
class AccelConfig:
    """One `-accel`. The rest is for translators; an interpreter has no use for it."""

    name: str = DEFAULT_ACCEL
    thread: str = ""  # single or multi, if that was said
    tb_size: int = 0  # code cache in MiB; 0: the translator chooses
    one_insn_per_tb: bool = False
    split_wx: bool = True
    lockstep: str = ""  # for tests: compare with the interpreter, by `block` or by `chain` of blocks


@record(frozen=True)
class Icount:
    """`-icount`: an instruction takes 1 << shift ns of guest time."""

    shift: int = 3
    adaptive: bool = False  # shift=auto: the shift follows the host's speed
    align: bool = False  # the guest waits where it is ahead of the host
    sleep: bool = True  # HLT takes as long as it says; off: it jumps to the next deadline


@record(frozen=True)
class Candidate:
    """An accelerator asked for; the first one that works is taken."""

    text: str
    name: str
    given: dict[str, str]
    listed: bool  # in `-machine accel=a:b`, where what does not exist is passed over


def parse_accel(text: str) -> Candidate:
    given = options.parse(text, "accel")
    name = given.pop("accel", "")
    if not name:
        raise ConfigError("Parameter 'accel' is missing")
    if name not in (*ACCELERATORS, *_ALIASES, "kvm"):
        raise ConfigError(f"invalid accelerator {name}{options.did_you_mean(name, [*ACCELERATORS, *_ALIASES])}")
    keys = _KVM_KEYS if name == "kvm" else _TRANSLATOR_KEYS
    for key in given:
        if key not in keys:
            raise ConfigError(f"Property '{name}-accel.{key}' not found{options.did_you_mean(key, keys)}")
    if name != "kvm":
        _properties(name, given)
    return Candidate(text, name, given, False)


def parse_list(text: str) -> list[Candidate]:
    """`-machine accel=kvm:tcg`."""
    return [Candidate(text, name, {}, True) for name in text.split(":") if name]


def _properties(name: str, given: dict[str, str]) -> AccelConfig:
    thread = given.get("thread", "")
    if thread not in ("", "single", "multi"):
        raise ConfigError(f"Invalid 'thread' setting {thread}")
    try:
        tb_size = int(given.get("tb-size", "0"), 0)
    except ValueError:
        tb_size = -1
    if not 0 <= tb_size < 1 << 32:
        raise ConfigError(f"Parameter 'tb-size' expects a number of MiB, not '{given['tb-size']}'")
    return AccelConfig(
        name=_ALIASES.get(name, name),
        thread=thread,
        tb_size=tb_size,
        one_insn_per_tb=options.boolean("one-insn-per-tb", given.get("one-insn-per-tb", "off")),
        split_wx=options.boolean("split-wx", given.get("split-wx", "on")),
        lockstep=_lockstep(given.get("lockstep", "off")),
    )


def _lockstep(value: str) -> str:
    modes = {"off": "", "on": "block", "block": "block", "chain": "chain"}
    if value not in modes:
        raise ConfigError(f"Parameter 'lockstep' expects one of {', '.join(modes)}, not '{value}'")
    return modes[value]


def choose(candidates: Sequence[Candidate], warnings: list[str]) -> AccelConfig:
    """The first candidate there is; the default one if none was asked for, or only KVM was."""
    if any(c.listed for c in candidates) and not all(c.listed for c in candidates):
        raise ConfigError('The -accel and "-machine accel=" options are incompatible')
    failed = False
    for candidate in candidates:
        if candidate.name in ACCELERATORS or candidate.name in _ALIASES:
            chosen = _properties(candidate.name, candidate.given)
            if failed:
                warnings.append(f"falling back to {candidate.name}")
            return chosen
        failed = True
        warnings.append("KVM is not supported" if candidate.name == "kvm" else f"invalid accelerator {candidate.name}")
    if candidates and candidates[-1].name != "kvm":
        raise ConfigError(f"invalid accelerator {candidates[-1].name}")
    if failed:
        warnings.append(f"falling back to {DEFAULT_ACCEL}")
    return AccelConfig()


def parse_icount(text: str) -> Icount | None:
    """None: nothing that switches it on."""
    given = options.parse(text, "shift")
    options.refuse_unknown(given, ("shift", "align", "sleep", "rr", "rrfile", "rrsnapshot"))
    if "rr" in given:
        raise ConfigError("record and replay is not supported")
    align = options.boolean("align", given.get("align", "off"))
    sleep = options.boolean("sleep", given.get("sleep", "on"))
    if "shift" not in given:
        if "align" in given:
            raise ConfigError("Please specify shift option when using align")
        return None
    if align and not sleep:
        raise ConfigError("align=on and sleep=off are incompatible")
    if given["shift"] == "auto":
        return Icount(adaptive=True, align=align, sleep=sleep)
    try:
        shift = int(given["shift"], 0)
    except ValueError:
        shift = -1
    if not 0 <= shift <= MAX_SHIFT:
        raise ConfigError(f"icount: Invalid shift value '{given['shift']}' (0 to {MAX_SHIFT}, or auto)")
    return Icount(shift=shift, align=align, sleep=sleep)


def parse_seed(text: str) -> int:
    try:
        seed = int(text, 0)
    except ValueError:
        seed = -1
    if not 0 <= seed < 1 << 64:
        raise ConfigError(f"Invalid seed number: {text}")
    return seed
