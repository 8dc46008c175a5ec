/* How large an engine becomes: limits from options, model and memory, before anything is loaded. */
#include "engine.h"

#include <sluice/base/log.h>
#include <sluice/kernels/cuda.h>
#include <stdlib.h>
#include <string.h>

#define SEQS_DEFAULT         64
#define QUEUE_DEFAULT        256
#define PAGE_DEFAULT         16
#define BATCH_TOKENS_DEFAULT 512
#define KV_MEMORY_SHARE      4  /* at most a quarter of the host's memory unless told otherwise */
#define DEVICE_KEEPS         16 /* this share of a device's is left for kernels and others */

static uint32_t or_default(uint32_t given, uint32_t def)
{
    return given ? given : def;
}

static enum sl_status open_cuda(const struct sl_engine_config *cfg, const char *name,
                                struct sl_backend **out, struct sl_err *err)
{
    const struct sl_cuda_plugin *p;
    struct sl_cuda_config cuda = {.n_threads = or_default(cfg->n_threads, 1)};
    uint32_t n = 0;
    enum sl_status s = sl_cuda_load(name, cfg->cuda_plugin, &p, err);
    if (s || (s = p->count(&n, err)))
        return s;
    /* The ranks and workers of one machine share its devices out. */
    cuda.device = cfg->device_given ? cfg->device : (cfg->device_turn + cfg->place.rank) % n;
    if ((s = p->open(&cuda, out, err)))
        return s;
    sl_log(SL_LOG_DEBUG, "rank %u computes on device %u of %u (%s)", cfg->place.rank, cuda.device,
           n, (*out)->arch);
    return SL_OK;
}

enum sl_status sl_engine_open_backend(const struct sl_engine_config *cfg, struct sl_backend **out,
                                      struct sl_err *err)
{
    const char *name = cfg->backend ? cfg->backend : "cpu";
    if (!strcmp(name, "ref"))
        return sl_ref_open(out, err);
    if (sl_cuda_is_backend(name))
        return open_cuda(cfg, name, out, err);
    if (strcmp(name, "cpu") != 0)
        return sl_fail_param(err, SL_UNSUPPORTED, "backend", "backend '%s' is not implemented",
                             name);
    struct sl_cpu_config cpu = {.isa = cfg->isa, .n_threads = or_default(cfg->n_threads, 1)};
    return sl_cpu_open(&cpu, out, err);
}

/* Limits that follow from the configuration and the model. */
static enum sl_status plan_limits(struct sl_engine *e, const struct sl_engine_config *cfg,
                                  const struct sl_model_config *m, struct sl_err *err)
{
    struct sl_engine_info *i = &e->info;
    i->max_seqs = or_default(cfg->max_seqs, SEQS_DEFAULT);
    i->queue_max = or_default(cfg->queue_max, QUEUE_DEFAULT);
    i->page_size = or_default(cfg->page_size, PAGE_DEFAULT);
    i->max_len = or_default(cfg->max_len, m->ctx_max);
    i->max_batch_tokens = or_default(cfg->max_batch_tokens, BATCH_TOKENS_DEFAULT);
    i->n_vocab = m->n_vocab;
    i->n_threads = e->backend->n_threads;
    if (i->max_len > m->ctx_max)
        return sl_fail_param(err, SL_USAGE, "max-model-len",
                             "max-model-len %u is longer than the model's context of %u",
                             i->max_len, m->ctx_max);
    if (SL_ATTN_SEGMENT % i->page_size)
        return sl_fail_param(err, SL_USAGE, "page-size", "page-size %u does not divide %d",
                             i->page_size, SL_ATTN_SEGMENT);
    if (i->max_batch_tokens < i->max_seqs)
        i->max_batch_tokens = i->max_seqs;
    return SL_OK;
}

/* KV bytes of a page at the rank that needs most: all of them have the same pages. */
static uint64_t page_bytes_max(const struct sl_engine *e, const struct sl_model_config *m,
                               enum sl_dtype dtype)
{
    uint64_t most = 0;
    for (uint32_t r = 0; r < e->shard.tp * e->shard.pp; r++) {
        struct sl_shard s = sl_shard_of_rank(r, e->shard.tp, e->shard.pp);
        uint64_t bytes = sl_model_kv_token_bytes(m, &s, dtype) * e->info.page_size;
        most = bytes > most ? bytes : most;
    }
    return most;
}

/* Memory for the KV cache unless told otherwise: a share of the host's, or what weights and scratch
 * leave of the device's. */
static enum sl_status kv_room(struct sl_engine *e, const struct sl_engine_config *cfg,
                              uint64_t *room, struct sl_err *err)
{
    uint64_t total, n_free, taken = (uint64_t)e->info.max_seqs * e->info.n_vocab * sizeof(float);
    struct sl_model_plan p;
    e->backend->ops->memory(e->backend, &total, &n_free);
    if (!e->backend->on_device) {
        *room = total / KV_MEMORY_SHARE / ((uint64_t)e->shard.tp * e->shard.pp);
        return SL_OK;
    }
    struct sl_model_options o = sl_engine_model_options(e);
    enum sl_status s = sl_model_plan(cfg->gguf, e->backend, &o, cfg->kv_dtype, &p, err);
    if (s)
        return s;
    taken += p.weight_bytes + p.scratch_bytes + total / DEVICE_KEEPS;
    *room = n_free > taken ? n_free - taken : 0;
    return SL_OK;
}

/* As many pages as every sequence at full length could need, or as memory allows. */
static enum sl_status plan_pages(struct sl_engine *e, const struct sl_engine_config *cfg,
                                 const struct sl_model_config *m, struct sl_err *err)
{
    struct sl_engine_info *i = &e->info;
    uint64_t page_bytes = page_bytes_max(e, m, cfg->kv_dtype);
    uint64_t seq_pages = (i->max_len + i->page_size - 1) / i->page_size;
    uint64_t pages = seq_pages * i->max_seqs;
    uint64_t room = cfg->kv_bytes;
    enum sl_status s = room ? SL_OK : kv_room(e, cfg, &room, err);
    if (s)
        return s;
    if (cfg->kv_bytes || pages > room / page_bytes)
        pages = room / page_bytes;
    if (pages > UINT32_MAX / 2)
        pages = UINT32_MAX / 2;
    if (pages < 2)
        return sl_fail_param(err, SL_NO_MEMORY, "kv-cache-memory-bytes",
                             "kv cache of %llu bytes holds fewer than 2 pages of %llu bytes",
                             (unsigned long long)room, (unsigned long long)page_bytes);
    i->n_pages = (uint32_t)pages;
    if (pages * i->page_size < i->max_len)
        i->max_len = (uint32_t)pages * i->page_size; /* no sequence can be longer than the pool */
    return SL_OK;
}

static enum sl_status place(struct sl_engine *e, const struct sl_engine_config *cfg,
                            const struct sl_model_config *m, struct sl_err *err)
{
    const struct sl_engine_place *p = &cfg->place;
    e->shard = sl_shard_of_rank(p->rank, or_default(p->tp, 1), or_default(p->pp, 1));
    return sl_shard_check(m, &e->shard, err);
}

enum sl_status sl_engine_size(struct sl_engine *e, const struct sl_engine_config *cfg,
                              struct sl_model_config *m, struct sl_err *err)
{
    enum sl_status s = sl_model_read_config(cfg->gguf, m, err);
    if (s || (s = place(e, cfg, m, err)) || (s = sl_engine_open_backend(cfg, &e->backend, err)) ||
        (s = plan_limits(e, cfg, m, err)))
        return s;
    return plan_pages(e, cfg, m, err);
}

struct sl_model_options sl_engine_model_options(const struct sl_engine *e)
{
    return (struct sl_model_options){.shard = e->shard,
                                     .max_batch_tokens = e->info.max_batch_tokens,
                                     .max_positions = e->info.max_len,
                                     .max_logit_rows = e->info.max_seqs,
                                     .max_seqs = e->info.max_seqs,
                                     .page_size = e->info.page_size};
}

uint64_t sl_engine_kv_room(const struct sl_engine *e)
{
    return page_bytes_max(e, sl_model_config(e->model), e->kv_dtype) * e->info.n_pages;
}

/* The KV cache is not counted: it takes memory as it fills, and had it before. */
enum sl_status sl_engine_has_room(const struct sl_engine *e, struct sl_err *err)
{
    uint64_t total, available;
    struct sl_model_plan p;
    struct sl_model_options o = sl_engine_model_options(e);
    enum sl_status s = sl_model_plan(e->gguf, e->backend, &o, e->kv_dtype, &p, err);
    e->backend->ops->memory(e->backend, &total, &available);
    if (s || !available || p.weight_bytes + p.scratch_bytes <= available)
        return s;
    return sl_fail(err, SL_NO_MEMORY, "engine: a shard of %llu bytes, %llu bytes are free",
                   (unsigned long long)(p.weight_bytes + p.scratch_bytes),
                   (unsigned long long)available);
}

/* ---- the plan of all ranks ---- */

static enum sl_status plan_rank(const struct sl_engine *e, const struct sl_engine_config *cfg,
                                uint32_t rank, struct sl_engine_plan_rank *out, struct sl_err *err)
{
    const struct sl_engine_info *i = &e->info;
    struct sl_model_options o = sl_engine_model_options(e);
    struct sl_model_plan p;
    o.shard = sl_shard_of_rank(rank, e->shard.tp, e->shard.pp);
    enum sl_status s = sl_model_plan(cfg->gguf, e->backend, &o, cfg->kv_dtype, &p, err);
    if (s)
        return s;
    *out = (struct sl_engine_plan_rank){.rank = rank,
                                        .stage = o.shard.pp_rank,
                                        .layer_first = p.part.layers.first,
                                        .n_layers = p.part.layers.n,
                                        .n_heads = p.part.heads.n,
                                        .n_kv_heads = p.part.kv_heads.n,
                                        .weight_bytes = p.weight_bytes,
                                        .mapped_bytes = p.mapped_bytes,
                                        .scratch_bytes = p.scratch_bytes,
                                        .kv_bytes = p.kv_token_bytes * i->page_size * i->n_pages};
    if (rank == 0)
        out->scratch_bytes += (uint64_t)i->max_seqs * i->n_vocab * sizeof(float);
    return SL_OK;
}

static enum sl_status plan_all(struct sl_engine *e, const struct sl_engine_config *cfg,
                               struct sl_engine_plan *out, struct sl_err *err)
{
    struct sl_model_config m;
    memset(out, 0, sizeof *out);
    enum sl_status s = sl_model_read_config(cfg->gguf, &m, err);
    if (s)
        return s;
    out->tp_max = sl_shard_tp_max(&m);
    out->pp_max = sl_shard_pp_max(&m);
    if ((s = sl_engine_size(e, cfg, &m, err)))
        return s;
    out->limits = e->info;
    if (e->backend->on_device)
        e->backend->ops->memory(e->backend, &out->device_bytes, &out->device_free_bytes);
    out->tp = e->shard.tp;
    out->pp = e->shard.pp;
    out->n_ranks = out->tp * out->pp;
    if (out->n_ranks > SL_LIMIT_ranks)
        return sl_fail_param(err, SL_USAGE, "tensor-parallel-size", "%u ranks, at most %d",
                             out->n_ranks, SL_LIMIT_ranks);
    for (uint32_t r = 0; r < out->n_ranks && !s; r++)
        s = plan_rank(e, cfg, r, &out->ranks[r], err);
    return s;
}

enum sl_status sl_engine_plan(const struct sl_engine_config *cfg, struct sl_engine_plan *out,
                              struct sl_err *err)
{
    struct sl_engine *e = calloc(1, sizeof *e);
    if (!e)
        return sl_fail(err, SL_NO_MEMORY, "engine: no memory");
    enum sl_status s = plan_all(e, cfg, out, err);
    if (e->backend)
        e->backend->ops->close(e->backend);
    free(e);
    return s;
}
