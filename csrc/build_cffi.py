"""Generate the C source of the extension module qemupy._core from api.h (cffi, API mode).

api.h is both the C header of the core and the cffi declaration text. cffi knows no preprocessor, so the few directives
allowed in api.h are resolved here: include guards and #include vanish, `#ifdef QPY_CFFI` / `#ifndef QPY_CFFI` / #else /
#endif choose, `#define NAME number` is kept. C never defines QPY_CFFI; `extern "Python"` blocks live under it.
"""

import re
import sys

import cffi


def cdef_text(header: str) -> str:
    """The declarations in api.h as cffi reads them."""
    out: list[str] = []
    active = [True]
    header = re.sub(r"/\*.*?\*/", lambda m: "\n" * m.group().count("\n"), header, flags=re.S)
    for line in header.splitlines():
        words = line.split()
        directive = words[0] if words and words[0].startswith("#") else ""
        if directive in ("#ifdef", "#ifndef"):
            known = words[1] == "QPY_CFFI"
            active.append(active[-1] and ((directive == "#ifdef") == known))
        elif directive == "#else":
            active[-1] = active[-2] and not active[-1]
        elif directive == "#endif":
            active.pop()
        elif active[-1] and (not directive or (directive == "#define" and len(words) == 3)):
            out.append(line)
    return "\n".join(out)


def main() -> None:
    header, output = sys.argv[1:]
    ffi = cffi.FFI()
    with open(header) as file:
        ffi.cdef(cdef_text(file.read()))
    ffi.set_source("qemupy._core", '#include "api.h"')
    ffi.emit_c_code(output)


if __name__ == "__main__":
    main()
