"""Keyboard scan codes by QEMU's key names (QKeyCode), as `sendkey` and displays use them.

Set 2 is the table; set 1 is set 2 through the 8042's translation table, which is how set 1 came to be; set 3 differs
only where SET3 says so (IBM PS/2 hardware interface technical reference, "Keyboard"; Chapweske, "The AT keyboard").
"""

from __future__ import annotations

E0, E1, BREAK = 0xE0, 0xE1, 0xF0

_LETTERS = dict(
    zip(
        "abcdefghijklmnopqrstuvwxyz",
        bytes.fromhex("1c322123242b343343 3b424b3a31444d152d 1b2c3c2a1d22351a"),
        strict=True,
    )
)
_DIGITS = dict(zip("1234567890", bytes.fromhex("161e26252e363d3e4645"), strict=True))
_FUNCTIONS = {f"f{i + 1}": c for i, c in enumerate(bytes.fromhex("0506040c030b830a01097807"))}
_KEYPAD = {f"kp_{i}": c for i, c in enumerate(bytes.fromhex("7069727a6b73746c757d"))}

# Codes from 100h up are sent with the prefix E0.
SET2: dict[str, int] = {
    **_LETTERS,
    **_DIGITS,
    **_FUNCTIONS,
    **_KEYPAD,
    "esc": 0x76, "tab": 0x0D, "caps_lock": 0x58, "shift": 0x12, "ctrl": 0x14, "alt": 0x11, "spc": 0x29,
    "alt_r": 0x111, "ctrl_r": 0x114, "shift_r": 0x59, "meta_l": 0x11F, "meta_r": 0x127, "menu": 0x12F,
    "compose": 0x12F, "ret": 0x5A, "backspace": 0x66, "minus": 0x4E, "equal": 0x55, "grave_accent": 0x0E,
    "bracket_left": 0x54, "bracket_right": 0x5B, "backslash": 0x5D, "semicolon": 0x4C, "apostrophe": 0x52,
    "comma": 0x41, "dot": 0x49, "slash": 0x4A, "less": 0x61, "num_lock": 0x77, "scroll_lock": 0x7E,
    "kp_divide": 0x14A, "kp_multiply": 0x7C, "asterisk": 0x7C, "kp_subtract": 0x7B, "kp_add": 0x79,
    "kp_enter": 0x15A, "kp_decimal": 0x71, "kp_comma": 0x6D, "kp_equals": 0x0F, "sysrq": 0x84,
    "insert": 0x170, "delete": 0x171, "home": 0x16C, "end": 0x169, "pgup": 0x17D, "pgdn": 0x17A,
    "up": 0x175, "down": 0x172, "left": 0x16B, "right": 0x174,
    "ro": 0x51, "yen": 0x6A, "henkan": 0x64, "muhenkan": 0x67, "katakanahiragana": 0x13, "hiragana": 0x62,
    "katakana": 0x63, "power": 0x137, "sleep": 0x13F, "wake": 0x15E, "audiomute": 0x123, "volumedown": 0x121,
    "volumeup": 0x132, "audioplay": 0x134, "audiostop": 0x13B, "audionext": 0x14D, "audioprev": 0x115,
    "calculator": 0x12B, "mail": 0x148, "mediaselect": 0x150, "computer": 0x140, "ac_home": 0x13A,
    "ac_back": 0x138, "ac_forward": 0x130, "ac_refresh": 0x120, "ac_bookmarks": 0x118, "find": 0x110,
    "stop": 0x128,
}  # fmt: skip

_FUNCTIONS3 = {f"f{i + 1}": c for i, c in enumerate(bytes.fromhex("070f171f272f373f474f565e"))}
SET3: dict[str, int] = {
    **{name: code for name, code in SET2.items() if code < 0x80},
    **_FUNCTIONS3,
    "esc": 0x08, "print": 0x57, "scroll_lock": 0x5F, "pause": 0x62, "insert": 0x67, "home": 0x6E, "pgup": 0x6F,
    "delete": 0x64, "end": 0x65, "pgdn": 0x6D, "up": 0x63, "left": 0x61, "down": 0x60, "right": 0x6A,
    "num_lock": 0x76, "kp_divide": 0x77, "kp_multiply": 0x7E, "asterisk": 0x7E, "kp_subtract": 0x84, "kp_add": 0x7C,
    "kp_enter": 0x79, "backslash": 0x5C, "caps_lock": 0x14, "ctrl": 0x11, "alt": 0x19, "alt_r": 0x39, "ctrl_r": 0x58,
    "meta_l": 0x8B, "meta_r": 0x8C, "menu": 0x8D, "compose": 0x8D, "less": 0x13,
}  # fmt: skip

# From what the keyboard sends in set 2 to what the 8042 hands on.
TRANSLATION = bytes.fromhex(
    "ff43413f3d3b3c58 644442403e0f2959 65382a701d10025a 66712c1f1e11035b"
    "672e2d201205045c 68392f211413065d 693130232215075e 6a7232241608095f"
    "6b332517180b0a60 6c34352627190c61 6d7328741a0d626e 3a361c1b752b6376"
    "55567778797a0e7b 7c4f7d4b477e7f6f 5253504c4d480145 574e514a37494654"
    "8081824154"
) + bytes(range(0x85, 0x100))

PRINT2 = (bytes((E0, 0x12, E0, 0x7C)), bytes((E0, BREAK, 0x7C, E0, BREAK, 0x12)))
PRINT1 = (bytes((E0, 0x2A, E0, 0x37)), bytes((E0, 0xB7, E0, 0xAA)))
PAUSE2 = (bytes((E1, 0x14, 0x77, E1, BREAK, 0x14, BREAK, 0x77)), b"")
PAUSE1 = (bytes((E1, 0x1D, 0x45, E1, 0x9D, 0xC5)), b"")
SPECIAL: dict[str, dict[int, tuple[bytes, bytes]]] = {
    "print": {1: PRINT1, 2: PRINT2},
    "pause": {1: PAUSE1, 2: PAUSE2},
}
KEY_NAMES = sorted({*SET2, *SPECIAL})


def scan_code(name: str, down: bool, scan_set: int) -> bytes:
    """What a keyboard in set 1, 2 or 3 sends for a key; nothing if it has no such key."""
    special = SPECIAL.get(name)
    if special is not None and scan_set in special:
        return special[scan_set][not down]
    if scan_set == 3:
        code = SET3.get(name)
        if code is None:
            return b""
        return bytes((code,)) if down else bytes((BREAK, code))
    code = SET2.get(name)
    if code is None:
        return b""
    prefix = bytes((E0,)) if code & 0x100 else b""
    code &= 0xFF
    if scan_set == 1:
        return prefix + bytes((TRANSLATION[code] | (0 if down else 0x80),))
    return prefix + (bytes((code,)) if down else bytes((BREAK, code)))


def key_of_number(number: int) -> str | None:
    """The key with a set-1 make code `number`, 80h added if it has the prefix E0 (`sendkey 0x1c`)."""
    for name, code in SET2.items():
        if TRANSLATION[code & 0xFF] | (0x80 if code & 0x100 else 0) == number:
            return name
    return None
