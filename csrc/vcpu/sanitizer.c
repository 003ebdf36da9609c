/* Only in builds with AddressSanitizer. Before every call that does not return, raising a guest exception above all,
 * the compiler calls into the sanitizer's library, which uses vector registers. The guest's may be live in them: they
 * are parked first (CORE 3). */
#include "cpu/fpu.h"
#include "memory/safepoint.h"

#include <dlfcn.h>

void __asan_handle_no_return(void);

/* Hidden, so that the core's own calls lead here and nobody else's. */
__attribute__((no_sanitize("address", "undefined"), visibility("hidden"))) void __asan_handle_no_return(void) {
    static void (*library)(void);
    if (current_cpu) fpu_park(current_cpu);
    if (!library) library = (void (*)(void))dlsym(RTLD_DEFAULT, "__asan_handle_no_return");
    library();
}
