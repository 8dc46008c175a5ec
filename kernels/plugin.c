/* Finds and loads the CUDA plug-ins: see sluice/kernels/cuda.h. */
#include <sluice/kernels/cuda.h>

#include <sluice/base/mem.h>

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const struct {
    const char *backend, *file;
} known[] = {{"cuda", "libsluice_cuda.so"}, {"cuda-emu", "libsluice_cuda_emu.so"}};

static _Atomic(void *) handles[sizeof known / sizeof *known]; /* once loaded */

static const char *file_of(const char *backend)
{
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(backend, known[i].backend))
            return known[i].file;
    return NULL;
}

bool sl_cuda_is_backend(const char *name)
{
    return file_of(name) != NULL;
}

/* The first of the places beside the program that has the file; false: none has. */
static bool find_beside(const char *file, char path[PATH_MAX])
{
    static const char *const places[] = {"", "../lib/", "../lib/sluice/"};
    char exe[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    if (n <= 0)
        return false;
    exe[n] = 0;
    int folder = (int)(strrchr(exe, '/') - exe) + 1;
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        int len = snprintf(path, PATH_MAX, "%.*s%s%s", folder, exe, places[i], file);
        if (len < PATH_MAX && access(path, R_OK) == 0)
            return true;
    }
    return false;
}

static enum sl_status load(const char *backend, const char *path, const struct sl_cuda_plugin **out,
                           struct sl_err *err)
{
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!handle)
        return sl_fail_param(err, SL_NO_MEMORY, "backend", "backend %s: %s", backend, dlerror());
    sl_cuda_entry *entry;
    void *symbol = dlsym(handle, SL_CUDA_ENTRY);
    memcpy(&entry, &symbol, sizeof entry); /* C has no cast from data to functions */
    const struct sl_cuda_plugin *p = symbol ? entry() : NULL;
    if (!p || p->abi != SL_CUDA_ABI || strcmp(p->name, backend) != 0) {
        enum sl_status s = sl_fail_param(
            err, SL_NO_MEMORY, "backend", "backend %s: %s is %s of version %u, wanted %u", backend,
            path, p ? p->name : "no plug-in", p ? p->abi : 0, SL_CUDA_ABI);
        dlclose(handle);
        return s;
    }
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(backend, known[i].backend))
            handles[i] = handle;
    *out = p;
    return SL_OK;
}

enum sl_status sl_cuda_load(const char *name, const char *path, const struct sl_cuda_plugin **out,
                            struct sl_err *err)
{
    char beside[PATH_MAX];
    const char *file = file_of(name);
    if (!file)
        return sl_fail_param(err, SL_USAGE, "backend", "backend '%s' is unknown", name);
    if (path)
        return load(name, path, out, err);
    if (!find_beside(file, beside))
        return sl_fail_param(err, SL_NO_MEMORY, "backend",
                             "backend %s: this program was built without %s", name, file);
    return load(name, beside, out, err);
}

void *sl_cuda_symbol(const char *name, const char *symbol)
{
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(name, known[i].backend) && handles[i])
            return dlsym(handles[i], symbol);
    return NULL;
}
