/* Where in the source a thread's call of the runtime stands. A file of its own, since kernels are
 * also run without the runtime. */
#include "emu/runtime.h"

static __thread struct emu_site site;

void emu_at(const char *file, int line)
{
    site = (struct emu_site){file, line};
}

struct emu_site emu_site_now(void)
{
    return site;
}
