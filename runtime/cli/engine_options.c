/* From the engine's options to its configuration, and back to flags for child processes. */
#include "engine_options.h"

#include <sluice/kernels/dtype.h>

#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>

struct holder {
    struct engine_options engine;
};
#define ROW(...) ENGINE_OPTION_ROW(struct holder, engine, __VA_ARGS__)
static const struct sl_option rows[] = {ENGINE_OPTION_TABLE(ROW)};
#define N_ROWS (sizeof rows / sizeof *rows)

/* Cores this process may use, which may be fewer than the machine has. */
static uint32_t n_cores(void)
{
    cpu_set_t set;
    int n = sched_getaffinity(0, sizeof set, &set) ? 1 : CPU_COUNT(&set);
    return n > 0 ? (uint32_t)n : 1;
}

static enum sl_status not_built(const char *option, const char *value, struct sl_err *err)
{
    return sl_fail_param(err, SL_UNSUPPORTED, option, "--%s %s is not implemented", option, value);
}

static enum sl_status check_built(const struct engine_options *o, struct sl_err *err)
{
    if (strcmp(o->speculation, "off") != 0)
        return not_built("speculation", o->speculation, err);
    if (o->tensor_parallel_size * o->pipeline_parallel_size > SL_LIMIT_ranks)
        return sl_fail_param(err, SL_USAGE, "tensor-parallel-size",
                             "--tensor-parallel-size %lld x --pipeline-parallel-size %lld: at most "
                             "%d ranks",
                             (long long)o->tensor_parallel_size,
                             (long long)o->pipeline_parallel_size, SL_LIMIT_ranks);
    return SL_OK;
}

enum sl_status engine_options_config(const struct engine_options *o, uint32_t n_processes,
                                     struct sl_engine_config *out, struct sl_err *err)
{
    memset(out, 0, sizeof *out);
    enum sl_status s = check_built(o, err);
    if (s != SL_OK)
        return s;
    uint32_t n_ranks = (uint32_t)(o->tensor_parallel_size * o->pipeline_parallel_size);
    uint32_t share = n_cores() / ((n_processes ? n_processes : 1) * n_ranks);
    out->place.tp = (uint32_t)o->tensor_parallel_size;
    out->place.pp = (uint32_t)o->pipeline_parallel_size;
    out->place.op_timeout_ms = (uint32_t)o->rank_timeout_ms;
    out->backend = o->backend;
    out->cuda_plugin = o->cuda_plugin;
    out->device_given = o->device >= 0;
    out->device = out->device_given ? (uint32_t)o->device : 0;
    out->device_turn = (uint32_t)o->device_turn;
    out->isa = SL_ISA_AUTO;
    if (o->isa && !sl_isa_parse(o->isa, &out->isa))
        return sl_fail_param(err, SL_USAGE, "isa", "--isa %s is unknown", o->isa);
    if (!sl_dtype_parse(o->kv_cache_dtype, &out->kv_dtype))
        return sl_fail_param(err, SL_USAGE, "kv-cache-dtype", "--kv-cache-dtype %s is unknown",
                             o->kv_cache_dtype);
    out->n_threads = o->threads ? (uint32_t)o->threads : share ? share : 1;
    out->max_seqs = (uint32_t)o->max_num_seqs;
    out->max_batch_tokens = (uint32_t)o->max_num_batched_tokens;
    out->max_len = (uint32_t)o->max_model_len;
    out->kv_bytes = (uint64_t)o->kv_cache_memory_bytes;
    out->page_size = (uint32_t)o->page_size;
    out->prefix_cache = o->enable_prefix_caching;
    return SL_OK;
}

/* Flag and value of one row, or two NULLs when it is unset. */
static bool row_args(const struct sl_option *row, const struct engine_options *o,
                     struct sl_arena *arena, const char *args[2])
{
    const char *at = (const char *)o + row->offset;
    char text[128];
    args[0] = args[1] = NULL;
    if (row->kind == SL_OPT_FLAG) {
        snprintf(text, sizeof text, "--%s%s", *(const bool *)at ? "" : "no-", row->name);
        args[0] = sl_arena_strndup(arena, text, strlen(text));
        return args[0] != NULL;
    }
    const char *value = NULL;
    if (row->kind == SL_OPT_STRING || row->kind == SL_OPT_CHOICE) {
        memcpy(&value, at, sizeof value);
    } else {
        int64_t number;
        memcpy(&number, at, sizeof number);
        snprintf(text, sizeof text, "%" PRId64, number);
        if (number != 0 || row->min < 0)
            value = sl_arena_strndup(arena, text, strlen(text));
    }
    if (!value)
        return true;
    snprintf(text, sizeof text, "--%s", row->name);
    args[0] = sl_arena_strndup(arena, text, strlen(text));
    args[1] = value;
    return args[0] != NULL;
}

enum sl_status engine_options_args(const struct engine_options *o, struct sl_arena *arena,
                                   const char **argv, uint32_t argv_max, uint32_t *n,
                                   struct sl_err *err)
{
    for (size_t i = 0; i < N_ROWS; i++) {
        const char *args[2];
        if (!row_args(&rows[i], o, arena, args))
            return sl_fail(err, SL_NO_MEMORY, "no memory for a worker's arguments");
        for (int k = 0; k < 2 && args[k]; k++) {
            if (*n >= argv_max)
                return sl_fail(err, SL_USAGE, "a worker takes at most %u arguments", argv_max);
            argv[(*n)++] = args[k];
        }
    }
    return SL_OK;
}
