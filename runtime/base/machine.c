/* What this machine says of itself. */
#include <sluice/base/machine.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void sl_cpu_model_name(char *out, size_t size)
{
    char line[256];
    FILE *f = fopen("/proc/cpuinfo", "re");
    snprintf(out, size, "unknown");
    while (f && fgets(line, sizeof line, f)) {
        const char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) != 0 || !colon)
            continue;
        snprintf(out, size, "%.*s", (int)strcspn(colon + 2, "\n"), colon + 2);
        break;
    }
    if (f)
        fclose(f);
}

void sl_machine_memory(uint64_t *total_bytes, uint64_t *available_bytes)
{
    static const char *const names[2] = {"MemTotal:", "MemAvailable:"};
    uint64_t *const out[2] = {total_bytes, available_bytes};
    char line[256];
    FILE *f = fopen("/proc/meminfo", "re");
    *total_bytes = *available_bytes = 0;
    while (f && fgets(line, sizeof line, f))
        for (int i = 0; i < 2; i++)
            if (!strncmp(line, names[i], strlen(names[i])))
                *out[i] = strtoull(line + strlen(names[i]), NULL, 10) * 1024;
    if (f)
        fclose(f);
}
