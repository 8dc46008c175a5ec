/* Which rows and columns of which tensors a rank packs, and the packing. */
#include "model_priv.h"

#include <stdlib.h>

/* Linears of one input to be packed as a group: rows of each tensor, columns of all. */
struct cut {
    const struct sl_gguf_tensor *t[GROUP_MAX], *bias[GROUP_MAX];
    struct sl_run rows[GROUP_MAX], cols;
    uint32_t n;
    struct sl_slices slices;
};

static struct sl_run times(struct sl_run r, uint32_t unit)
{
    return (struct sl_run){r.first * unit, r.n * unit};
}

static struct cut qkv_cut(const struct sl_model *m, const struct sl_gguf_tensor *const *t)
{
    struct sl_run q = times(m->part.heads, m->cfg.head_dim);
    struct sl_run kv = times(m->part.kv_heads, m->cfg.head_dim);
    return (struct cut){.t = {t[T_Q], t[T_K], t[T_V]},
                        .bias = {t[T_Q_BIAS], t[T_K_BIAS], t[T_V_BIAS]},
                        .rows = {q, kv, kv},
                        .cols = {0, m->cfg.dim},
                        .n = 3,
                        .slices = sl_slices_one(m->cfg.dim)};
}

static struct cut o_cut(const struct sl_model *m, const struct sl_gguf_tensor *const *t)
{
    return (struct cut){.t = {t[T_O]},
                        .bias = {t[T_O_BIAS]},
                        .rows = {{0, m->cfg.dim}},
                        .cols = times(m->part.heads, m->cfg.head_dim),
                        .n = 1,
                        .slices = shard_o_slices(m)};
}

static struct cut gate_up_cut(const struct sl_model *m, const struct sl_gguf_tensor *const *t)
{
    return (struct cut){.t = {t[T_GATE], t[T_UP]},
                        .rows = {m->part.ffn, m->part.ffn},
                        .cols = {0, m->cfg.dim},
                        .n = 2,
                        .slices = sl_slices_one(m->cfg.dim)};
}

static struct cut down_cut(const struct sl_model *m, const struct sl_gguf_tensor *const *t)
{
    return (struct cut){.t = {t[T_DOWN]},
                        .rows = {{0, m->cfg.dim}},
                        .cols = m->part.ffn,
                        .n = 1,
                        .slices = shard_down_slices(m)};
}

static struct cut head_cut(const struct sl_model *m, const struct tensor_map *map)
{
    return (struct cut){.t = {map->model[m->cfg.tied_head ? T_EMBED : T_HEAD]},
                        .rows = {m->part.vocab},
                        .cols = {0, m->cfg.dim},
                        .n = 1,
                        .slices = sl_slices_one(m->cfg.dim)};
}

static struct sl_weight_src src_of(const struct sl_gguf_tensor *t, struct sl_run rows,
                                   struct sl_run cols)
{
    struct sl_weight_src s = {.n = rows.n, .k = cols.n};
    bool known = sl_model_dtype(t->ggml_type, &s.dtype);
    sl_assert(known);
    s.row_bytes = sl_dtype_bytes(s.dtype, (size_t)t->dims[0]);
    size_t at = rows.first * s.row_bytes + sl_dtype_bytes(s.dtype, cols.first);
    s.data = t->data ? (const uint8_t *)t->data + at
                     : NULL; /* a file may be planned for without its data */
    return s;
}

/* The sources of a cut; false when their types differ, so that they cannot be stacked. */
static bool sources_of(const struct cut *c, struct sl_weight_src *out)
{
    bool same = true;
    for (uint32_t i = 0; i < c->n; i++) {
        out[i] = src_of(c->t[i], c->rows[i], c->cols);
        same &= out[i].dtype == out[0].dtype;
    }
    return same;
}

/* Bytes of the file that a cut has. */
static uint64_t file_bytes_of(const struct cut *c)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < c->n; i++) {
        struct sl_weight_src s = src_of(c->t[i], c->rows[i], c->cols);
        bytes += (uint64_t)sl_dtype_bytes(s.dtype, s.k) * s.n;
    }
    return bytes;
}

static uint64_t packed_bytes_of(const struct sl_model *m, const struct cut *c)
{
    struct sl_weight_src src[GROUP_MAX];
    uint32_t step = sources_of(c, src) ? c->n : 1;
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < c->n; i += step)
        bytes += m->b->ops->weight_bytes(m->b, &src[i], step);
    return bytes;
}

/* Calls visit for every cut of the shard. */
static void each_cut(const struct sl_model *m, const struct tensor_map *map,
                     void (*visit)(const struct sl_model *m, const struct cut *c, void *ctx),
                     void *ctx)
{
    for (uint32_t l = 0; l < m->part.layers.n; l++) {
        const struct sl_gguf_tensor *const *t = map->layers[m->part.layers.first + l];
        const struct cut cuts[] = {qkv_cut(m, t), o_cut(m, t), gate_up_cut(m, t), down_cut(m, t)};
        for (size_t i = 0; i < sizeof cuts / sizeof *cuts; i++)
            visit(m, &cuts[i], ctx);
    }
    if (m->has_head) {
        struct cut head = head_cut(m, map);
        visit(m, &head, ctx);
    }
}

static void add_bytes(const struct sl_model *m, const struct cut *c, void *ctx)
{
    uint64_t *bytes = ctx;
    bytes[0] += packed_bytes_of(m, c);
    bytes[1] += file_bytes_of(c);
}

uint64_t weights_bytes(const struct sl_model *m, const struct tensor_map *map, uint64_t *file_bytes)
{
    uint64_t bytes[2] = {0, 0};
    each_cut(m, map, add_bytes, bytes);
    *file_bytes = bytes[1];
    return bytes[0];
}

static void note_k(const struct sl_model *m, const struct cut *c, void *ctx)
{
    uint32_t *k_max = ctx;
    struct sl_weight_src src[GROUP_MAX];
    (void)m;
    sources_of(c, src);
    for (uint32_t i = 0; i < c->n; i++)
        if (src[i].k > k_max[src[i].dtype])
            k_max[src[i].dtype] = src[i].k;
}

void weights_k_max(const struct sl_model *m, const struct tensor_map *map,
                   uint32_t k_max[SL_N_DTYPE])
{
    each_cut(m, map, note_k, k_max);
}

size_t weights_vector_floats(const struct sl_model *m)
{
    const struct sl_model_config *c = &m->cfg;
    size_t q = (size_t)m->part.heads.n * c->head_dim, kv = (size_t)m->part.kv_heads.n * c->head_dim;
    size_t biases = padded(q) + 2 * padded(kv) + padded(c->dim);
    size_t out_norm = m->has_head ? padded(c->dim) : 0;
    return out_norm + m->part.layers.n * (2 * padded(c->dim) + biases);
}

float *slab_take(struct slab *s, size_t n)
{
    sl_assert(n <= s->n - s->used); /* planned with the same sizes */
    float *p = s->data + s->used;
    s->used += n;
    return p;
}

/* Elements `run` of a vector, as float32. */
static void load_run(const struct sl_gguf_tensor *t, struct sl_run run, float *out)
{
    enum sl_dtype dtype = SL_F32;
    bool known = sl_model_dtype(t->ggml_type, &dtype);
    sl_assert(known);
    sl_dequantize_row(dtype, (const uint8_t *)t->data + sl_dtype_bytes(dtype, run.first), out,
                      run.n);
}

static const float *load_norm(struct sl_model *m, const struct sl_gguf_tensor *t)
{
    float *p = slab_take(&m->vectors, padded(m->cfg.dim));
    load_run(t, (struct sl_run){0, m->cfg.dim}, slab_host(&m->vectors, p));
    return p;
}

/* One bias over the stacked rows of parts [first, first + n); zeros where a part has none. NULL
 * when no part has one. */
static const float *stacked_bias(struct sl_model *m, const struct cut *c, uint32_t first,
                                 uint32_t n)
{
    size_t rows = 0;
    bool any = false;
    for (uint32_t i = first; i < first + n; i++) {
        rows += c->rows[i].n;
        any |= c->bias[i] != NULL;
    }
    if (!any)
        return NULL;
    float *p = slab_take(&m->vectors, padded(rows)), *at = slab_host(&m->vectors, p);
    for (uint32_t i = first; i < first + n; i++) {
        if (c->bias[i])
            load_run(c->bias[i], c->rows[i], at);
        at += c->rows[i].n;
    }
    return p;
}

/* Packs the linears of a cut: stacked when their types agree, side by side otherwise. */
static enum sl_status cut_pack(struct sl_model *m, struct opening *o, const struct cut *c,
                               struct group *out, struct sl_err *err)
{
    struct sl_weight_src src[GROUP_MAX];
    uint32_t step = sources_of(c, src) ? c->n : 1;
    for (uint32_t i = 0; i < c->n; i += step) {
        uint32_t w = out->n;
        enum sl_status status =
            m->b->ops->weight_pack(m->b, &src[i], step, &c->slices, &out->w[w], err);
        if (status)
            return status;
        out->n++;
        out->at[w] = out->n_out;
        out->n_out += out->w[w].n;
        out->bias[w] = stacked_bias(m, c, i, step);
        m->weight_bytes += out->w[w].bytes;
    }
    for (uint32_t i = 0; i < c->n; i++)
        sl_gguf_release(o->g, c->t[i]->data, (size_t)c->t[i]->n_bytes);
    o->done_bytes += file_bytes_of(c);
    if (o->progress)
        o->progress(o->ctx, o->done_bytes, o->total_bytes);
    return SL_OK;
}

static enum sl_status layer_pack(struct sl_model *m, struct opening *o, uint32_t l,
                                 struct sl_err *err)
{
    const struct sl_gguf_tensor *const *t = o->map.layers[m->part.layers.first + l];
    const struct cut cuts[] = {qkv_cut(m, t), o_cut(m, t), gate_up_cut(m, t), down_cut(m, t)};
    struct layer *y = &m->layers[l];
    struct group *groups[] = {&y->qkv, &y->o, &y->gate_up, &y->down};
    y->attn_norm = load_norm(m, t[T_ATTN_NORM]);
    y->ffn_norm = load_norm(m, t[T_FFN_NORM]);
    enum sl_status status = SL_OK;
    for (size_t i = 0; i < sizeof cuts / sizeof *cuts && !status; i++)
        status = cut_pack(m, o, &cuts[i], groups[i], err);
    return status;
}

size_t weights_embed_bytes(const struct sl_model *m, const struct tensor_map *map, bool copied)
{
    if (m->shard.pp_rank > 0 || copied != m->b->on_device)
        return 0;
    return (size_t)map->model[T_EMBED]->n_bytes;
}

/* Rows are looked up in the file's mapping where that can be read, else in a copy. */
static enum sl_status load_embed(struct sl_model *m, struct opening *o, struct sl_err *err)
{
    const struct sl_gguf_tensor *t = o->map.model[T_EMBED];
    size_t bytes = weights_embed_bytes(m, &o->map, true);
    if (m->shard.pp_rank > 0)
        return SL_OK;
    m->embed = src_of(t, (struct sl_run){0, m->cfg.n_vocab}, (struct sl_run){0, m->cfg.dim});
    if (!bytes)
        return SL_OK;
    m->embed.data = m->embed_copy = m->b->ops->alloc(m->b, bytes);
    if (!m->embed_copy)
        return sl_fail(err, SL_NO_MEMORY, "model: no memory for %zu bytes of embedding", bytes);
    m->embed_bytes = bytes;
    m->weight_bytes += bytes;
    m->b->ops->write(m->b, m->embed_copy, t->data, bytes);
    return m->b->ops->finish(m->b, err);
}

static enum sl_status write_vectors(struct sl_model *m, struct sl_err *err)
{
    size_t bytes = m->vectors.n * sizeof(float);
    m->b->ops->write(m->b, m->vectors.data, m->vectors.mirror, bytes);
    return m->b->ops->finish(m->b, err);
}

enum sl_status weights_pack(struct sl_model *m, struct opening *o, struct sl_err *err)
{
    enum sl_status status = load_embed(m, o, err);
    if (m->has_head)
        m->out_norm = load_norm(m, o->map.model[T_OUT_NORM]);
    for (uint32_t l = 0; l < m->part.layers.n && !status; l++)
        status = layer_pack(m, o, l, err);
    if (m->has_head && !status) {
        struct cut head = head_cut(m, &o->map);
        status = cut_pack(m, o, &head, &m->head, err);
    }
    return status ? status : write_vectors(m, err);
}

static void group_close(struct sl_backend *b, struct group *g)
{
    for (uint32_t i = 0; i < g->n; i++)
        b->ops->weight_free(b, &g->w[i]);
}

void weights_close(struct sl_model *m)
{
    for (uint32_t l = 0; m->layers && l < m->part.layers.n; l++) {
        group_close(m->b, &m->layers[l].qkv);
        group_close(m->b, &m->layers[l].o);
        group_close(m->b, &m->layers[l].gate_up);
        group_close(m->b, &m->layers[l].down);
    }
    group_close(m->b, &m->head);
    if (m->embed_copy)
        m->b->ops->free(m->b, m->embed_copy, m->embed_bytes);
}
