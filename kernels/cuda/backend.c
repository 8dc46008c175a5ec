/* The CUDA backend: opening a device, the op table, the plug-in's entry. */
#include "cuda/backend.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef SLUICE_CUDA_EMU
#define BACKEND_NAME "cuda-emu"
#else
#define BACKEND_NAME "cuda"
#endif

/* ---- errors ---- */

enum sl_status cuda_status(int device, cudaError_t e, const char *what, struct sl_err *err)
{
    if (e == cudaSuccess)
        return SL_OK;
    return sl_fail(err, SL_NO_MEMORY, "cuda: device %d: %s: %s", device, what,
                   cudaGetErrorString(e));
}

bool cuda_ok(struct cuda_backend *b, cudaError_t e, const char *what)
{
    if (!b->failed.status)
        cuda_status(b->device, e, what, e == cudaSuccess ? NULL : &b->failed);
    return !b->failed.status;
}

bool cuda_enter(struct cuda_backend *b)
{
    static _Thread_local int current = -1; /* nobody but this plug-in's backends sets it */
    b->act_rows.x = NULL;
    if (!b->failed.status && current != b->device &&
        cuda_ok(b, cudaSetDevice(b->device), "cudaSetDevice"))
        current = b->device;
    return !b->failed.status;
}

/* ---- the table ---- */

static void cuda_op_parallel(struct sl_backend *b, uint32_t n, void (*fn)(void *ctx, uint32_t i),
                             void *ctx)
{
    sl_team_each(cuda_of(b)->team, n, fn, ctx);
}

_Static_assert(SL_LAUNCHES_MAX == DEV_KERNELS_MAX, "one limit");

static uint32_t cuda_op_launches(struct sl_backend *b, struct sl_launches *out)
{
    struct dev_counts c;
    (void)b;
    dev_count_read(&c);
    for (uint32_t i = 0; i < c.n; i++)
        out[i] = (struct sl_launches){c.of[i].name, c.of[i].n};
    return c.n;
}

static void cuda_op_close(struct sl_backend *base)
{
    struct cuda_backend *b = cuda_of(base);
    if (b->stream)
        cuda_settle(b);
    cuda_plan_close(b);
    cuda_load_close(b);
    if (b->stream)
        cudaStreamDestroy(b->stream);
    if (b->pages)
        cudaStreamDestroy(b->pages);
    if (b->team)
        sl_team_close(b->team);
    free(b->graphs);
    free(b);
}

static const struct sl_backend_ops cuda_ops = {
    .name = BACKEND_NAME,
    .close = cuda_op_close,
    .memory = cuda_op_memory,
    .alloc = cuda_op_alloc,
    .free = cuda_op_free,
    .mirror = cuda_op_mirror,
    .mirror_free = cuda_op_mirror_free,
    .write = cuda_op_write,
    .read = cuda_op_read,
    .finish = cuda_op_finish,
    .page_out = cuda_op_page_out,
    .page_in = cuda_op_page_in,
    .plan = cuda_op_plan,
    .plan_bytes = cuda_op_plan_bytes,
    .stage = cuda_op_stage,
    .replay = cuda_op_replay,
    .weight_pack = cuda_op_weight_pack,
    .weight_bytes = cuda_op_weight_bytes,
    .weight_free = cuda_op_weight_free,
    .kv_open = cuda_op_kv_open,
    .kv_close = cuda_op_kv_close,
    .embed = cuda_op_embed,
    .rms_norm = cuda_op_rms_norm,
    .linear = cuda_op_linear,
    .linear_partial = cuda_op_linear_partial,
    .tree_sum = cuda_op_tree_sum,
    .rope = cuda_op_rope,
    .kv_write = cuda_op_kv_write,
    .rope_kv_write = cuda_op_rope_kv_write,
    .attention = cuda_op_attention,
    .silu_mul = cuda_op_silu_mul,
    .add = cuda_op_add,
    .gather_rows = cuda_op_gather_rows,
    .copy_rows = cuda_op_copy_rows,
    .logit_stats = cuda_op_logit_stats,
    .parallel = cuda_op_parallel,
    .launches = cuda_op_launches,
};

/* ---- opening ---- */

/* The count stays what it was where there is no driver: some runtimes do not touch it then. */
static enum sl_status plugin_count(uint32_t *n, struct sl_err *err)
{
    int count = 0;
    *n = 0;
    cudaError_t e = cudaGetDeviceCount(&count);
    if (e != cudaSuccess)
        return sl_fail(err, SL_NO_MEMORY, "cuda: no device: %s", cudaGetErrorString(e));
    if (count <= 0)
        return sl_fail(err, SL_NO_MEMORY, "cuda: no device");
    *n = (uint32_t)count;
    return SL_OK;
}

static void name_arch(const struct cudaDeviceProp *p, char arch[16])
{
#ifdef SLUICE_CUDA_EMU
    (void)p;
    snprintf(arch, 16, "emulated");
#else
    snprintf(arch, 16, "sm_%d%d", p->major, p->minor);
#endif
}

static enum sl_status check_device(uint32_t device, struct sl_err *err)
{
    uint32_t n;
    enum sl_status s = plugin_count(&n, err);
    if (!s && device >= n)
        s = sl_fail_param(err, SL_NO_MEMORY, "device", "cuda: device %u of %u", device, n);
    return s;
}

static enum sl_status plugin_describe(uint32_t device, struct sl_cuda_device *out,
                                      struct sl_err *err)
{
    struct cudaDeviceProp p;
    size_t n_free = 0, total = 0;
    enum sl_status s = check_device(device, err);
    if (s)
        return s;
    int d = (int)device;
    if ((s = cuda_status(d, cudaGetDeviceProperties(&p, d), "cudaGetDeviceProperties", err)) ||
        (s = cuda_status(d, cudaSetDevice(d), "cudaSetDevice", err)) ||
        (s = cuda_status(d, cudaMemGetInfo(&n_free, &total), "cudaMemGetInfo", err)))
        return s;
    *out = (struct sl_cuda_device){.total_bytes = total, .free_bytes = n_free};
    snprintf(out->name, sizeof out->name, "%.63s", p.name);
    name_arch(&p, out->arch);
    return SL_OK;
}

static enum sl_status open_device(struct cuda_backend *b, struct sl_err *err)
{
    struct cudaDeviceProp p;
    const unsigned flags = cudaStreamNonBlocking;
    if (!cuda_enter(b) ||
        !cuda_ok(b, cudaGetDeviceProperties(&p, b->device), "cudaGetDeviceProperties") ||
        !cuda_ok(b, cudaStreamCreateWithFlags(&b->stream, flags), "cudaStreamCreate") ||
        !cuda_ok(b, cudaStreamCreateWithFlags(&b->pages, flags), "cudaStreamCreate")) {
        *err = b->failed;
        return err->status;
    }
    name_arch(&p, b->base.arch);
    b->base.device = (uint32_t)b->device;
    b->base.stream = b->stream;
    return SL_OK;
}

enum sl_status cuda_plugin_open(const struct sl_cuda_config *cfg, struct sl_backend **out,
                                struct sl_err *err)
{
    *out = NULL;
    enum sl_status s = check_device(cfg->device, err);
    if (s)
        return s;
    struct cuda_backend *b = calloc(1, sizeof *b);
    if (b)
        b->graphs = calloc(GRAPHS_MAX, sizeof *b->graphs);
    if (!b || !b->graphs) {
        free(b);
        return sl_fail(err, SL_NO_MEMORY, "cuda: out of memory");
    }
    b->device = (int)cfg->device;
    b->base = (struct sl_backend){
        .ops = &cuda_ops, .on_device = true, .isa = SL_ISA_SCALAR, .n_threads = cfg->n_threads};
    s = sl_team_open(cfg->n_threads, &b->team, err);
    if (!s)
        s = open_device(b, err);
    if (s)
        cuda_op_close(&b->base);
    else
        *out = &b->base;
    return s;
}

__attribute__((visibility("default"))) sl_cuda_entry sl_cuda_plugin;

const struct sl_cuda_plugin *sl_cuda_plugin(void)
{
    static const struct sl_cuda_plugin plugin = {.abi = SL_CUDA_ABI,
                                                 .name = BACKEND_NAME,
                                                 .count = plugin_count,
                                                 .describe = plugin_describe,
                                                 .open = cuda_plugin_open};
    return &plugin;
}
