/* Reports of a launch name places of this test's source: those that bear a mark. */
#ifndef SLUICE_TESTS_KERNELS_EMU_REPORT_H
#define SLUICE_TESTS_KERNELS_EMU_REPORT_H

#include <stdio.h>
#include <string.h>

#include "direct.h"

/* The line of `file` of this folder with the comment MARK name. */
static inline int line_of(const char *file, const char *name)
{
    char text[512], want[64];
    int line = 0, found = 0;
    snprintf(text, sizeof text, SL_TESTS_DIR "/kernels/emu/%s", file);
    FILE *f = fopen(text, "r");
    assert_non_null(f);
    snprintf(want, sizeof want, "/* MARK %s */", name);
    while (fgets(text, sizeof text, f)) {
        line++;
        if (strstr(text, want))
            found = line;
    }
    fclose(f);
    if (!found)
        fail_msg("no mark '%s' in %s", name, file);
    return found;
}

static inline bool is_reported(const char *what, const char *file, const char *mark)
{
    char place[128];
    snprintf(place, sizeof place, "%s:%d", file, line_of(file, mark));
    return strstr(direct_report, what) && strstr(direct_report, place);
}

static inline void assert_reported(const char *what, const char *file, const char *mark)
{
    if (!is_reported(what, file, mark))
        fail_msg("no '%s' at %s (line %d) in: %s", what, mark, line_of(file, mark), direct_report);
}

#endif
