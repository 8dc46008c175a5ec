/* The CUDA backend, a plug-in of its own that is loaded only when it is asked for: compiled by nvcc
 * for devices ("cuda"), or from the same sources by the host's compiler for the emulator
 * ("cuda-emu"). */
#ifndef SLUICE_KERNELS_CUDA_H
#define SLUICE_KERNELS_CUDA_H

#include <sluice/base/err.h>
#include <sluice/kernels/op.h>
#include <stdint.h>

/* Bumped with any change to this file or to op.h. The program and its plug-ins are built together;
 * this tells a stale one. */
#define SL_CUDA_ABI 2

struct sl_cuda_config {
    uint32_t device;    /* of those the runtime shows */
    uint32_t n_threads; /* of the host, for loading and sampling; >= 1 */
};

struct sl_cuda_device {
    char name[64];
    char arch[16]; /* "sm_90", "emulated" */
    uint64_t total_bytes, free_bytes;
};

/* What a plug-in gives. SL_NO_MEMORY ("no device or memory") where there is no device, driver or
 * memory, or where it fails. */
struct sl_cuda_plugin {
    uint32_t abi;
    const char *name; /* "cuda" or "cuda-emu": the backend's name */
    enum sl_status (*count)(uint32_t *n, struct sl_err *err);
    enum sl_status (*describe)(uint32_t device, struct sl_cuda_device *out, struct sl_err *err);
    enum sl_status (*open)(const struct sl_cuda_config *cfg, struct sl_backend **out,
                           struct sl_err *err);
};
/* The plug-in's symbol for this. */
#define SL_CUDA_ENTRY "sl_cuda_plugin"
typedef const struct sl_cuda_plugin *sl_cuda_entry(void);

bool sl_cuda_is_backend(const char *name);
/* The plug-in of backend `name`, from the file `path` or, with NULL, from beside the program
 * (program's folder, ../lib, ../lib/sluice). It stays loaded. SL_NO_MEMORY where there is none. */
enum sl_status sl_cuda_load(const char *name, const char *path, const struct sl_cuda_plugin **out,
                            struct sl_err *err);
/* What else a loaded plug-in of backend `name` gives, or NULL. */
void *sl_cuda_symbol(const char *name, const char *symbol);

#endif
