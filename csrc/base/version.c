/* The version the core was built as; Python compares it with its own, so that a stale extension is noticed. */
#include "api.h"

const char *qpy_core_version(void) { return "0.1.0"; }
