/* Opening a decoder or a rank's shard of it: plans memory, packs the weights into the backend's
 * layout; and the same plan without opening. */
#include "model_priv.h"

#include <inttypes.h>
#include <stdlib.h>

#define POSITIONS_MAX        (1u << 24)
#define PAGE_SIZE            16u
#define MICRO_ROWS_MIN       16u
#define ALL_TO_ALL_ROWS      32u /* and of each rank: */
#define ALL_TO_ALL_ROWS_EACH 8u

static enum sl_status slab_open(struct sl_backend *b, struct slab *s, size_t n, struct sl_err *err)
{
    size_t bytes;
    if (!sl_size_mul(n, sizeof(float), &bytes))
        return sl_fail(err, SL_NO_MEMORY, "model: %zu floats are too many", n);
    s->data = b->ops->alloc(b, bytes);
    if (!s->data)
        return sl_fail(err, SL_NO_MEMORY, "model: no memory for %zu bytes", bytes);
    s->n = n;
    return SL_OK;
}

static enum sl_status slab_mirror(struct sl_backend *b, struct slab *s, struct sl_err *err)
{
    s->mirror = b->ops->mirror(b, s->data, s->n * sizeof(float));
    return s->mirror ? SL_OK : sl_fail(err, SL_NO_MEMORY, "model: no memory for %zu floats", s->n);
}

static void slab_mirror_close(struct sl_backend *b, struct slab *s)
{
    if (s->mirror)
        b->ops->mirror_free(b, s->mirror, s->data, s->n * sizeof(float));
    s->mirror = NULL;
}

static void slab_close(struct sl_backend *b, struct slab *s)
{
    slab_mirror_close(b, s);
    if (s->data)
        b->ops->free(b, s->data, s->n * sizeof(float));
}

/* Floats for partial sums of one linear: mine and everybody's, however they are exchanged. */
static uint64_t parts_floats(const struct sl_model *m, const struct group_sum *s, uint64_t rows)
{
    uint64_t tp = m->shard.tp, gathered = rows, scattered = 0;
    if (tp == 1)
        return 0;
    if (s->scatters && rows >= m->all_to_all_rows) {
        gathered = m->all_to_all_rows;
        scattered = s->n_parts[m->shard.tp_rank] * rows + s->tree.n_parts * ((rows + tp - 1) / tp);
    }
    gathered *= s->tree.n_parts;
    return (gathered > scattered ? gathered : scattered) * m->cfg.dim;
}

enum { N_SCRATCH = 13 };

/* The floats behind each scratch pointer. Every factor is below 2^32 and every width below 2^26:
 * products and their sum fit. */
static void scratch_sizes(const struct sl_model *m, size_t n[N_SCRATCH])
{
    const struct sl_model_config *c = &m->cfg;
    const struct sl_shard *s = &m->shard;
    uint64_t n_tok = m->max_batch_tokens, n_log = m->max_logit_rows;
    uint64_t rows = n_tok > n_log ? n_tok : n_log;
    uint64_t q = (uint64_t)m->part.heads.n * c->head_dim;
    uint64_t kv = (uint64_t)m->part.kv_heads.n * c->head_dim;
    uint64_t half = (uint64_t)m->max_positions * (c->n_rot / 2);
    uint64_t o = parts_floats(m, &m->o_sum, rows), down = parts_floats(m, &m->down_sum, rows);
    uint64_t logits = n_log * c->n_vocab;
    bool collects = m->has_head && s->tp_rank == 0;
    const uint64_t want[N_SCRATCH] = {n_tok * c->dim,
                                      m->has_head ? n_log * c->dim : 0,
                                      rows * c->dim,
                                      rows * (q + 2 * kv),
                                      n_tok * q,
                                      rows * 2 * m->part.ffn.n,
                                      rows * m->part.ffn.n,
                                      o > down ? o : down,
                                      s->tp_rank > 0 ? n_log * m->part.vocab.n : 0,
                                      collects && s->tp > 1 ? logits : 0,
                                      collects && s->pp > 1 ? logits : 0,
                                      half,
                                      half};
    for (size_t i = 0; i < N_SCRATCH; i++)
        n[i] = padded(want[i]);
}

static size_t scratch_floats(const struct sl_model *m)
{
    size_t n[N_SCRATCH], total = 0;
    scratch_sizes(m, n);
    for (size_t i = 0; i < N_SCRATCH; i++)
        total += n[i];
    return total;
}

static enum sl_status open_scratch(struct sl_model *m, struct sl_err *err)
{
    float **at[] = {&m->x,   &m->x_rows, &m->h,      &m->qkv,        &m->attn,      &m->gate_up,
                    &m->act, &m->parts,  &m->logits, &m->all_logits, &m->out_logits};
    size_t n[N_SCRATCH], n_at = sizeof at / sizeof *at;
    scratch_sizes(m, n);
    enum sl_status status = slab_open(m->b, &m->scratch, scratch_floats(m), err);
    if (status)
        return status;
    for (size_t i = 0; i < n_at; i++)
        *at[i] = slab_take(&m->scratch, n[i]);
    m->rope_tables = slab_take(&m->scratch, n[n_at] + n[n_at + 1]);
    m->q_start = calloc((size_t)m->max_batch_tokens + 1, sizeof *m->q_start);
    if (!m->q_start)
        return sl_fail(err, SL_NO_MEMORY, "model: no memory for %u rows", m->max_batch_tokens);
    return SL_OK;
}

/* The angles of position p depend on p alone, so parts of the table are made in parallel. */
#define ROPE_CHUNK 64u
struct rope_job {
    const struct sl_model *m;
    const float *factors;
    float *cos, *sin;
};

static void rope_chunk(void *ctx, uint32_t i)
{
    const struct rope_job *job = ctx;
    const struct sl_model *m = job->m;
    uint32_t first = i * ROPE_CHUNK, left = m->max_positions - first;
    size_t at = (size_t)first * (m->cfg.n_rot / 2);
    sl_rope_table(m->cfg.n_rot, first, left < ROPE_CHUNK ? left : ROPE_CHUNK, m->cfg.rope_base,
                  m->cfg.rope_scale, job->factors, job->cos + at, job->sin + at);
}

/* Both tables, which lie one behind the other. */
static enum sl_status fill_rope(struct sl_model *m, float *tables, const float *factors,
                                struct sl_err *err)
{
    size_t n = padded((uint64_t)m->max_positions * (m->cfg.n_rot / 2));
    size_t bytes = 2 * n * sizeof *tables;
    float *host = m->b->ops->mirror(m->b, tables, bytes);
    if (!host)
        return sl_fail(err, SL_NO_MEMORY, "model: no memory for %u angles", m->max_positions);
    struct rope_job job = {m, factors, host, host + n};
    m->b->ops->parallel(m->b, (m->max_positions + ROPE_CHUNK - 1) / ROPE_CHUNK, rope_chunk, &job);
    m->b->ops->write(m->b, tables, host, bytes);
    enum sl_status status = m->b->ops->finish(m->b, err);
    m->b->ops->mirror_free(m->b, host, tables, bytes);
    m->rope = (struct sl_rope){.kind = m->cfg.rope_kind,
                               .n_rot = m->cfg.n_rot,
                               .n_pos = m->max_positions,
                               .cos = tables,
                               .sin = tables + n};
    return status;
}

static enum sl_status check_factors(const float *factors, uint64_t n, struct sl_err *err)
{
    for (uint64_t i = 0; i < n; i++)
        if (!(factors[i] >= 1e-3f && factors[i] <= 1e6f))
            return sl_fail(err, SL_MODEL, "model: rope factor %" PRIu64 " is %g", i,
                           (double)factors[i]);
    return SL_OK;
}

static enum sl_status make_rope(struct sl_model *m, const struct sl_gguf_tensor *freqs,
                                struct sl_err *err)
{
    float *factors = NULL;
    enum sl_dtype dtype = SL_F32;
    enum sl_status status = SL_OK;
    if (freqs) {
        factors = calloc((size_t)freqs->n_elems, sizeof *factors);
        if (!factors || !sl_model_dtype(freqs->ggml_type, &dtype)) {
            free(factors);
            return sl_fail(err, SL_NO_MEMORY, "model: no memory for the rope factors");
        }
        sl_dequantize_row(dtype, freqs->data, factors, (size_t)freqs->n_elems);
        status = check_factors(factors, freqs->n_elems, err);
    }
    if (!status)
        status = fill_rope(m, m->rope_tables, factors, err);
    free(factors);
    return status;
}

static uint32_t or_default(uint32_t given, uint32_t def)
{
    return given ? given : def;
}

/* Configuration and place in the group; the tensors of the file go to *map. */
static enum sl_status place(struct sl_model *m, const struct sl_gguf *g, struct sl_backend *b,
                            const struct sl_model_options *o, struct tensor_map *map,
                            struct sl_err *err)
{
    if (o->max_batch_tokens == 0 || o->max_positions == 0 || o->max_positions > POSITIONS_MAX)
        return sl_fail(err, SL_CONFIG, "model: %u rows a step and %u positions cannot be planned",
                       o->max_batch_tokens, o->max_positions);
    enum sl_status status = sl_model_read_config(g, &m->cfg, err);
    if (!status)
        status = sl_shard_check(&m->cfg, &o->shard, err);
    if (!status)
        status = tensor_map_open(g, &m->cfg, map, err);
    if (status)
        return status;
    m->b = b;
    m->max_batch_tokens = o->max_batch_tokens;
    m->max_positions = o->max_positions;
    m->max_logit_rows = o->max_logit_rows;
    m->max_seqs = or_default(o->max_seqs, o->max_batch_tokens);
    m->page_size = or_default(o->page_size, PAGE_SIZE);
    m->loose_sums = o->loose_sums;
    shard_place(m, &o->shard);
    uint32_t each = ALL_TO_ALL_ROWS_EACH * m->shard.tp;
    m->micro_batches = or_default(o->micro_batches, m->shard.pp);
    m->micro_rows_min = or_default(o->micro_rows_min, MICRO_ROWS_MIN);
    m->all_to_all_rows =
        or_default(o->all_to_all_rows, each > ALL_TO_ALL_ROWS ? each : ALL_TO_ALL_ROWS);
    return SL_OK;
}

static struct sl_step_limits step_limits(const struct sl_model *m, const struct tensor_map *map)
{
    struct sl_step_limits limits = {.n_tok = m->max_batch_tokens,
                                    .n_seq = m->max_seqs,
                                    .n_logit_rows = m->max_logit_rows,
                                    .n_positions = m->max_positions,
                                    .page_size = m->page_size,
                                    .n_stages = m->shard.pp > 1 ? m->micro_batches : 1,
                                    .n_heads = m->part.heads.n,
                                    .head_dim = m->cfg.head_dim};
    weights_k_max(m, map, limits.k_max);
    return limits;
}

static enum sl_status plan_steps(struct sl_model *m, const struct tensor_map *map,
                                 struct sl_err *err)
{
    struct sl_step_limits limits = step_limits(m, map);
    m->step_bytes = m->b->ops->plan_bytes(m->b, &limits);
    return m->b->ops->plan(m->b, &limits, err);
}

static enum sl_status open_all(struct sl_model *m, struct opening *o, struct sl_err *err)
{
    m->layers = calloc(m->part.layers.n, sizeof *m->layers);
    if (!m->layers)
        return sl_fail(err, SL_NO_MEMORY, "model: no memory for %u layers", m->part.layers.n);
    weights_bytes(m, &o->map, &o->total_bytes);
    enum sl_status status = slab_open(m->b, &m->vectors, weights_vector_floats(m), err);
    if (!status)
        status = slab_mirror(m->b, &m->vectors, err);
    if (!status)
        status = open_scratch(m, err);
    if (!status)
        status = make_rope(m, o->map.model[T_ROPE_FREQS], err);
    if (!status)
        status = weights_pack(m, o, err);
    slab_mirror_close(m->b, &m->vectors);
    return status ? status : plan_steps(m, &o->map, err);
}

enum sl_status sl_model_open(const struct sl_gguf *g, struct sl_backend *b,
                             const struct sl_model_options *options, struct sl_model **out,
                             struct sl_err *err)
{
    *out = NULL;
    struct sl_model *m = calloc(1, sizeof *m);
    if (!m)
        return sl_fail(err, SL_NO_MEMORY, "model: no memory");
    struct opening o = {.g = g, .progress = options->progress, .ctx = options->ctx};
    enum sl_status status = place(m, g, b, options, &o.map, err);
    if (!status && !sl_gguf_tensor_at(g, 0)->data)
        status = sl_fail(err, SL_MODEL, "model: the file was opened without its tensor data");
    if (!status)
        status = open_all(m, &o, err);
    tensor_map_close(&o.map);
    if (status)
        sl_model_close(m);
    else
        *out = m;
    return status;
}

enum sl_status sl_model_plan(const struct sl_gguf *g, struct sl_backend *b,
                             const struct sl_model_options *o, enum sl_dtype kv_dtype,
                             struct sl_model_plan *out, struct sl_err *err)
{
    struct sl_model m = {0};
    struct tensor_map map = {0};
    enum sl_status status = place(&m, g, b, o, &map, err);
    if (status)
        return status;
    uint64_t file_bytes;
    struct sl_step_limits limits = step_limits(&m, &map);
    *out = (struct sl_model_plan){.part = m.part,
                                  .weight_bytes = weights_bytes(&m, &map, &file_bytes) +
                                                  weights_vector_floats(&m) * sizeof(float) +
                                                  weights_embed_bytes(&m, &map, true),
                                  .scratch_bytes = scratch_floats(&m) * sizeof(float) + b->ops->plan_bytes(b, &limits),
                                  .mapped_bytes = weights_embed_bytes(&m, &map, false),
                                  .kv_token_bytes =
                                      sl_model_kv_token_bytes(&m.cfg, &m.shard, kv_dtype)};
    tensor_map_close(&map);
    return SL_OK;
}

void sl_model_close(struct sl_model *m)
{
    if (!m)
        return;
    weights_close(m);
    slab_close(m->b, &m->vectors);
    slab_close(m->b, &m->scratch);
    free(m->q_start);
    free(m->layers);
    free(m);
}

const struct sl_model_config *sl_model_config(const struct sl_model *m)
{
    return &m->cfg;
}

const struct sl_shard *sl_model_shard(const struct sl_model *m)
{
    return &m->shard;
}

uint64_t sl_model_weight_bytes(const struct sl_model *m)
{
    return m->weight_bytes + m->vectors.n * sizeof(float);
}

uint64_t sl_model_scratch_bytes(const struct sl_model *m)
{
    return m->scratch.n * sizeof(float) + m->step_bytes;
}

size_t sl_model_exchange_floats(const struct sl_model *m)
{
    size_t n[N_SCRATCH];
    uint64_t logits = (uint64_t)m->max_logit_rows * m->cfg.n_vocab;
    scratch_sizes(m, n);
    const uint64_t each[] = {n[2] /* a row's width, all rows */, n[7] /* parts */, padded(logits)};
    uint64_t most = 0;
    for (size_t i = 0; i < sizeof each / sizeof *each; i++)
        most = each[i] > most ? each[i] : most;
    return (size_t)most;
}

struct sl_model_class sl_model_class(const struct sl_model *m)
{
    return (struct sl_model_class){.n_attn_slices = m->loose_sums ? 0 : o_slices(&m->cfg).n,
                                   .n_ffn_slices = m->loose_sums ? 0 : down_slices(&m->cfg).n,
                                   .attn_segment = SL_ATTN_SEGMENT,
                                   .numerics_revision = SL_NUMERICS_REVISION};
}
