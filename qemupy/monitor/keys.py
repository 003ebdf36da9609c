"""QEMU's key names (QKeyCode), and how `sendkey` spells the shifted ones."""

from __future__ import annotations

from qemupy.errors import MonitorError

QCODES = (
    "shift", "shift_r", "alt", "alt_r", "ctrl", "ctrl_r", "menu", "esc", "1", "2", "3", "4", "5", "6", "7", "8", "9",
    "0", "minus", "equal", "backspace", "tab", "q", "w", "e", "r", "t", "y", "u", "i", "o", "p", "bracket_left",
    "bracket_right", "ret", "a", "s", "d", "f", "g", "h", "j", "k", "l", "semicolon", "apostrophe", "grave_accent",
    "backslash", "z", "x", "c", "v", "b", "n", "m", "comma", "dot", "slash", "asterisk", "spc", "caps_lock", "f1", "f2",
    "f3", "f4", "f5", "f6", "f7", "f8", "f9", "f10", "num_lock", "scroll_lock", "kp_divide", "kp_multiply",
    "kp_subtract", "kp_add", "kp_enter", "kp_decimal", "sysrq", "kp_0", "kp_1", "kp_2", "kp_3", "kp_4", "kp_5", "kp_6",
    "kp_7", "kp_8", "kp_9", "less", "f11", "f12", "print", "home", "pgup", "pgdn", "end", "left", "up", "down", "right",
    "insert", "delete", "pause", "meta_l", "meta_r", "compose", "ro", "hiragana", "henkan", "yen", "muhenkan",
    "katakanahiragana", "kp_comma", "kp_equals", "power", "sleep", "wake",
)  # fmt: skip
_KNOWN = frozenset(QCODES)


def parse_keys(text: str) -> list[str]:
    """`ctrl-alt-f1` to key names. `<` is accepted for `less`, as in QEMU."""
    names = []
    for word in text.replace("<", "less").split("-"):
        name = {"return": "ret", "space": "spc", "enter": "ret"}.get(word, word)
        if name not in _KNOWN:
            error = MonitorError(f"invalid parameter: {word}")
            error.plain = True  # type: ignore[attr-defined]
            raise error
        names.append(name)
    return names
