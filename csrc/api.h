/* The core's interface: a C header and, through build_cffi.py, the cffi declaration of qemupy._core.lib. */
#ifndef QPY_API_H
#define QPY_API_H

#include <stdint.h>

const char *qpy_core_version(void);

#endif
