/* Opening a decoder: plans memory, packs the weights into the backend's layout, frees the pages of
 * the file that were packed.
 *
 * Sliced linears are those a tensor-parallel group would cut by rows of K: the attention output on
 * head borders, the down projection on blocks of 32. The slices are fixed here, at any degree. */
#include "model_priv.h"

#include <inttypes.h>
#include <stdlib.h>

#define BLOCK_ELEMS   32u
#define POSITIONS_MAX (1u << 24)
#define SCRATCH_ALIGN 16u /* floats: every run begins on a cache line */

struct opening {
    const struct sl_gguf *g;
    struct tensor_map map;
    sl_model_progress *progress;
    void *ctx;
    uint64_t done_bytes, total_bytes;
};

static float *slab_take(struct slab *s, size_t n)
{
    sl_assert(n <= s->n - s->used); /* planned with the same sizes */
    float *p = s->data + s->used;
    s->used += n;
    return p;
}

static size_t padded(uint64_t n)
{
    return (size_t)((n + SCRATCH_ALIGN - 1) / SCRATCH_ALIGN * SCRATCH_ALIGN);
}

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

static void slab_close(struct sl_backend *b, struct slab *s)
{
    if (s->data)
        b->ops->free(b, s->data, s->n * sizeof(float));
}

/* Norms and biases become float32 in memory of the backend. */
static const float *load_vector(struct sl_model *m, const struct sl_gguf_tensor *t)
{
    enum sl_dtype dtype = SL_F32;
    bool known = sl_model_dtype(t->ggml_type, &dtype);
    sl_assert(known);
    float *p = slab_take(&m->vectors, padded(t->n_elems));
    sl_dequantize_row(dtype, t->data, p, (size_t)t->n_elems);
    return p;
}

static struct sl_weight_src src_of(const struct sl_gguf_tensor *t)
{
    struct sl_weight_src s = {
        .n = (uint32_t)t->dims[1], .k = (uint32_t)t->dims[0], .data = t->data};
    bool known = sl_model_dtype(t->ggml_type, &s.dtype);
    sl_assert(known);
    return s;
}

static void note_packed(struct opening *o, const struct sl_gguf_tensor *const *t, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        sl_gguf_release(o->g, t[i]->data, (size_t)t[i]->n_bytes);
        o->done_bytes += t[i]->n_bytes;
    }
    if (o->progress)
        o->progress(o->ctx, o->done_bytes, o->total_bytes);
}

/* One bias over stacked rows; zeros where a part has none. NULL when no part has one. */
static const float *stacked_bias(struct sl_model *m, const struct sl_gguf_tensor *const *t,
                                 const struct sl_gguf_tensor *const *bias, uint32_t n)
{
    uint64_t rows = 0;
    bool any = false;
    for (uint32_t i = 0; i < n; i++) {
        rows += t[i]->dims[1];
        any |= bias && bias[i];
    }
    if (!any)
        return NULL;
    float *p = slab_take(&m->vectors, padded(rows)), *at = p;
    for (uint32_t i = 0; i < n; i++) {
        enum sl_dtype dtype = SL_F32;
        if (bias[i] && sl_model_dtype(bias[i]->ggml_type, &dtype))
            sl_dequantize_row(dtype, bias[i]->data, at, (size_t)bias[i]->n_elems);
        at += t[i]->dims[1];
    }
    return p;
}

/* Packs n linears of one input: stacked when their types agree, side by side otherwise. */
static enum sl_status group_pack(struct sl_model *m, struct opening *o,
                                 const struct sl_gguf_tensor *const *t,
                                 const struct sl_gguf_tensor *const *bias, uint32_t n,
                                 const struct sl_slices *slices, struct group *out,
                                 struct sl_err *err)
{
    struct sl_weight_src src[GROUP_MAX];
    bool same = true;
    for (uint32_t i = 0; i < n; i++) {
        src[i] = src_of(t[i]);
        same &= src[i].dtype == src[0].dtype;
    }
    uint32_t step = same ? n : 1;
    for (uint32_t i = 0; i < n; i += step) {
        uint32_t w = out->n;
        enum sl_status status =
            m->b->ops->weight_pack(m->b, &src[i], step, slices, &out->w[w], err);
        if (status)
            return status;
        out->n++;
        out->at[w] = out->n_out;
        out->n_out += out->w[w].n;
        out->bias[w] = stacked_bias(m, &t[i], bias ? &bias[i] : NULL, step);
        m->weight_bytes += out->w[w].bytes;
    }
    note_packed(o, t, n);
    return SL_OK;
}

/* On head borders, and on whole blocks where heads are smaller than those. */
static struct sl_slices o_slices(const struct sl_model_config *c)
{
    uint32_t unit = c->head_dim;
    while (unit % BLOCK_ELEMS != 0 && unit < q_dim(c))
        unit += c->head_dim;
    if (unit % BLOCK_ELEMS != 0 || q_dim(c) % unit != 0)
        return sl_slices_one(q_dim(c));
    return sl_slices_cut(q_dim(c), unit);
}

static struct sl_slices down_slices(const struct sl_model_config *c)
{
    if (c->ffn_dim % BLOCK_ELEMS != 0)
        return sl_slices_one(c->ffn_dim);
    return sl_slices_cut(c->ffn_dim, BLOCK_ELEMS);
}

static enum sl_status layer_pack(struct sl_model *m, struct opening *o, uint32_t l,
                                 struct sl_err *err)
{
    const struct sl_gguf_tensor *const *t = o->map.layers[l];
    struct layer *y = &m->layers[l];
    struct sl_slices one = sl_slices_one(m->cfg.dim);
    struct sl_slices by_head = o_slices(&m->cfg), by_block = down_slices(&m->cfg);
    y->attn_norm = load_vector(m, t[T_ATTN_NORM]);
    y->ffn_norm = load_vector(m, t[T_FFN_NORM]);
    enum sl_status status = group_pack(m, o, &t[T_Q], &t[T_Q_BIAS], 3, &one, &y->qkv, err);
    if (!status)
        status = group_pack(m, o, &t[T_O], &t[T_O_BIAS], 1, &by_head, &y->o, err);
    if (!status)
        status = group_pack(m, o, &t[T_GATE], NULL, 2, &one, &y->gate_up, err);
    if (!status)
        status = group_pack(m, o, &t[T_DOWN], NULL, 1, &by_block, &y->down, err);
    return status;
}

static enum sl_status pack_all(struct sl_model *m, struct opening *o, struct sl_err *err)
{
    struct sl_slices one = sl_slices_one(m->cfg.dim);
    m->embed = src_of(o->map.model[T_EMBED]);
    m->out_norm = load_vector(m, o->map.model[T_OUT_NORM]);
    for (uint32_t l = 0; l < m->cfg.n_layers; l++) {
        enum sl_status status = layer_pack(m, o, l, err);
        if (status)
            return status;
    }
    const struct sl_gguf_tensor *head = o->map.model[m->cfg.tied_head ? T_EMBED : T_HEAD];
    return group_pack(m, o, &head, NULL, 1, &one, &m->head, err);
}

static uint64_t matrix_bytes(const struct opening *o, uint32_t n_layers, bool tied)
{
    uint64_t n = o->map.model[tied ? T_EMBED : T_HEAD]->n_bytes;
    for (uint32_t l = 0; l < n_layers; l++)
        for (int i = 0; i < N_LAYER_SLOT; i++) {
            const struct sl_gguf_tensor *t = o->map.layers[l][i];
            if (t && t->n_dims > 1)
                n += t->n_bytes;
        }
    return n;
}

static size_t vector_floats(const struct sl_model_config *c)
{
    size_t biases = padded(q_dim(c)) + 2 * padded(kv_dim(c)) + padded(c->dim);
    return padded(c->dim) + c->n_layers * (2 * padded(c->dim) + biases);
}

static enum sl_status plan_scratch(struct sl_model *m, struct sl_err *err)
{
    const struct sl_model_config *c = &m->cfg;
    uint64_t n_tok = m->max_batch_tokens, n_log = m->max_logit_rows;
    uint64_t rows = n_tok > n_log ? n_tok : n_log;
    uint64_t half = (uint64_t)m->max_positions * (c->n_rot / 2);
    /* Every factor is below 2^32 and every width below 2^26: products and their sum fit. */
    size_t n[] = {padded(n_tok * c->dim),
                  padded(n_log * c->dim),
                  padded(rows * c->dim),
                  padded(rows * (q_dim(c) + 2 * (uint64_t)kv_dim(c))),
                  padded(n_tok * q_dim(c)),
                  padded(rows * 2 * c->ffn_dim),
                  padded(rows * c->ffn_dim),
                  padded(half),
                  padded(half)};
    float **at[] = {&m->x, &m->x_rows, &m->h, &m->qkv, &m->attn, &m->gate_up, &m->act};
    size_t total = 0;
    for (size_t i = 0; i < sizeof n / sizeof *n; i++)
        total += n[i];
    enum sl_status status = slab_open(m->b, &m->scratch, total, err);
    if (status)
        return status;
    for (size_t i = 0; i < sizeof at / sizeof *at; i++)
        *at[i] = slab_take(&m->scratch, n[i]);
    m->rope.cos = slab_take(&m->scratch, n[7]);
    m->rope.sin = slab_take(&m->scratch, n[8]);
    return SL_OK;
}

/* The angles of position p depend on p alone, so parts of the table are made in parallel. */
#define ROPE_CHUNK 64u
struct rope_job {
    struct sl_model *m;
    const float *factors;
};

static void rope_chunk(void *ctx, uint32_t i)
{
    const struct rope_job *job = ctx;
    const struct sl_model *m = job->m;
    uint32_t first = i * ROPE_CHUNK, left = m->max_positions - first;
    size_t at = (size_t)first * (m->cfg.n_rot / 2);
    sl_rope_table(m->cfg.n_rot, first, left < ROPE_CHUNK ? left : ROPE_CHUNK, m->cfg.rope_base,
                  m->cfg.rope_scale, job->factors, (float *)(uintptr_t)m->rope.cos + at,
                  (float *)(uintptr_t)m->rope.sin + at);
}

static enum sl_status make_rope(struct sl_model *m, const struct sl_gguf_tensor *freqs,
                                struct sl_err *err)
{
    struct rope_job job = {.m = m};
    float *factors = NULL;
    if (freqs) {
        enum sl_dtype dtype = SL_F32;
        factors = calloc((size_t)freqs->n_elems, sizeof *factors);
        if (!factors || !sl_model_dtype(freqs->ggml_type, &dtype)) {
            free(factors);
            return sl_fail(err, SL_NO_MEMORY, "model: no memory for the rope factors");
        }
        sl_dequantize_row(dtype, freqs->data, factors, (size_t)freqs->n_elems);
        for (uint64_t i = 0; i < freqs->n_elems; i++)
            if (!(factors[i] >= 1e-3f && factors[i] <= 1e6f)) {
                enum sl_status status = sl_fail(
                    err, SL_MODEL, "model: rope factor %" PRIu64 " is %g", i, (double)factors[i]);
                free(factors);
                return status;
            }
        job.factors = factors;
    }
    m->rope.kind = m->cfg.rope_kind;
    m->rope.n_rot = m->cfg.n_rot;
    m->rope.n_pos = m->max_positions;
    m->b->ops->parallel(m->b, (m->max_positions + ROPE_CHUNK - 1) / ROPE_CHUNK, rope_chunk, &job);
    free(factors);
    return SL_OK;
}

static enum sl_status open_all(struct sl_model *m, struct opening *o, struct sl_err *err)
{
    m->layers = calloc(m->cfg.n_layers, sizeof *m->layers);
    if (!m->layers)
        return sl_fail(err, SL_NO_MEMORY, "model: no memory for %u layers", m->cfg.n_layers);
    o->total_bytes = matrix_bytes(o, m->cfg.n_layers, m->cfg.tied_head);
    enum sl_status status = slab_open(m->b, &m->vectors, vector_floats(&m->cfg), err);
    if (!status)
        status = plan_scratch(m, err);
    if (!status)
        status = make_rope(m, o->map.model[T_ROPE_FREQS], err);
    if (!status)
        status = pack_all(m, o, err);
    return status;
}

enum sl_status sl_model_open(const struct sl_gguf *g, struct sl_backend *b,
                             uint32_t max_batch_tokens, uint32_t max_positions,
                             uint32_t max_logit_rows, sl_model_progress *progress, void *ctx,
                             struct sl_model **out, struct sl_err *err)
{
    *out = NULL;
    if (max_batch_tokens == 0 || max_positions == 0 || max_positions > POSITIONS_MAX)
        return sl_fail(err, SL_CONFIG, "model: %u rows a step and %u positions cannot be planned",
                       max_batch_tokens, max_positions);
    struct sl_model_config cfg;
    enum sl_status status = sl_model_read_config(g, &cfg, err);
    if (status)
        return status;
    if (!sl_gguf_tensor_at(g, 0)->data)
        return sl_fail(err, SL_MODEL, "model: the file was opened without its tensor data");
    struct opening o = {.g = g, .progress = progress, .ctx = ctx};
    status = tensor_map_open(g, &cfg, &o.map, err);
    if (status)
        return status;
    struct sl_model *m = calloc(1, sizeof *m);
    if (!m) {
        status = sl_fail(err, SL_NO_MEMORY, "model: no memory");
        goto out;
    }
    m->cfg = cfg;
    m->b = b;
    m->max_batch_tokens = max_batch_tokens;
    m->max_positions = max_positions;
    m->max_logit_rows = max_logit_rows;
    status = open_all(m, &o, err);
    if (status) {
        sl_model_close(m);
        goto out;
    }
    *out = m;
out:
    tensor_map_close(&o.map);
    return status;
}

static void group_close(struct sl_backend *b, struct group *g)
{
    for (uint32_t i = 0; i < g->n; i++)
        b->ops->weight_free(b, &g->w[i]);
}

void sl_model_close(struct sl_model *m)
{
    if (!m)
        return;
    for (uint32_t l = 0; m->layers && l < m->cfg.n_layers; l++) {
        group_close(m->b, &m->layers[l].qkv);
        group_close(m->b, &m->layers[l].o);
        group_close(m->b, &m->layers[l].gate_up);
        group_close(m->b, &m->layers[l].down);
    }
    group_close(m->b, &m->head);
    slab_close(m->b, &m->vectors);
    slab_close(m->b, &m->scratch);
    free(m->layers);
    free(m);
}

const struct sl_model_config *sl_model_config(const struct sl_model *m)
{
    return &m->cfg;
}

uint64_t sl_model_weight_bytes(const struct sl_model *m)
{
    return m->weight_bytes + m->vectors.n * sizeof(float);
}

uint64_t sl_model_scratch_bytes(const struct sl_model *m)
{
    return m->scratch.n * sizeof(float);
}

struct sl_model_class sl_model_class(const struct sl_model *m)
{
    return (struct sl_model_class){.n_attn_slices = m->layers[0].o.w[0].slices.n,
                                   .n_ffn_slices = m->layers[0].down.w[0].slices.n,
                                   .attn_segment = SL_ATTN_SEGMENT,
                                   .numerics_revision = SL_NUMERICS_REVISION};
}
