/* The environment of the emulated runtime, the only place that reads it.
 *
 * It stands in for a library that is configured from outside the program, as CUDA_VISIBLE_DEVICES
 * does: who asks for a device does not know whether it is emulated. Every variable is checked. What
 * is wrong is told, and then there is no driver, so that nothing runs in another way than asked. */
#include "emu/runtime.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_MEMORY ((uint64_t)4 << 30)

static bool number(const char *name, uint64_t max, uint64_t *v)
{
    const char *text = getenv(name);
    char *end;
    if (!text || !*text)
        return true;
    errno = 0;
    uint64_t n = strtoull(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end || errno || n > max) {
        fprintf(stderr, "cuda-emu: %s: '%s' is no number up to %llu\n", name, text,
                (unsigned long long)max);
        return false;
    }
    *v = n;
    return true;
}

static bool words(const char *name, char out[ENV_TEXT_MAX])
{
    const char *text = getenv(name);
    out[0] = '\0';
    if (!text)
        return true;
    if (strlen(text) >= ENV_TEXT_MAX) {
        fprintf(stderr, "cuda-emu: %s is longer than %d bytes\n", name, ENV_TEXT_MAX - 1);
        return false;
    }
    memcpy(out, text, strlen(text) + 1);
    return true;
}

void env_read(struct env *e)
{
    uint64_t devices = 1, memory = DEFAULT_MEMORY, seed = 0, threads = 1, driver = 1;
    bool ok = number("SLUICE_CUDA_EMU_DEVICES", EMU_DEVICES_MAX, &devices);
    ok &= number("SLUICE_CUDA_EMU_MEMORY", (uint64_t)1 << 46, &memory);
    ok &= number("SLUICE_CUDA_EMU_SEED", UINT64_MAX, &seed);
    ok &= number("SLUICE_CUDA_EMU_THREADS", 64, &threads);
    ok &= number("SLUICE_CUDA_EMU_DRIVER", 1, &driver);
    ok &= words("SLUICE_CUDA_EMU_COUNTS", e->counts);
    ok &= words("SLUICE_CUDA_EMU_FAULT", e->fault);
    e->config = (struct emu_config){
        .n_devices = (uint32_t)devices,
        .no_driver = !driver || !ok,
        .memory = (size_t)memory,
        .seed = seed,
        .n_threads = (uint32_t)threads,
        .n_processors = 4,
        .shared_max = 99 << 10, /* sm_86, sm_89, sm_120: what fits here fits everywhere */
        .major = 8,
        .minor = 6,
    };
}

struct emu_config emu_config_default(void)
{
    struct env e;
    env_read(&e);
    return e.config;
}
