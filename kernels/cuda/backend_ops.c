/* The ops that launch kernels: each enqueues and returns. */
#include <sluice/base/mem.h>

#include "check.h"
#include "cuda/backend.h"
#include "num.h"

/* b, ready for an op; NULL after a failure. */
static struct cuda_backend *ready(struct sl_backend *base)
{
    struct cuda_backend *b = cuda_of(base);
    base->n_op_calls++;
    return cuda_enter(b) ? b : NULL;
}

void cuda_op_embed(struct sl_backend *base, const struct sl_weight_src *table, const uint32_t *ids,
                   uint32_t n_tok, float *out)
{
    struct cuda_backend *b = ready(base);
    sl_assert(sl_weight_src_row_bytes(table) == sl_dtype_bytes(table->dtype, table->k));
    if (b)
        cuda_ok(b, cuda_embed(b->stream, table->dtype, table->data, table->k, ids, n_tok, out),
                "embed");
}

/* The form that all weights of k inputs want, if the scratch can take such rows; else SL_F32. */
static enum sl_dtype form_wanted(const struct cuda_backend *b, uint32_t n_tok, uint32_t k)
{
    for (uint32_t i = 0; i < b->n_forms; i++)
        for (int t = 0; t < SL_N_DTYPE; t++)
            if (b->forms[i].k == k && b->forms[i].forms == 1u << t && n_tok <= b->limits.n_tok &&
                cuda_act_bytes((enum sl_dtype)t, n_tok, k) <= b->act_bytes)
                return (enum sl_dtype)t;
    return SL_F32;
}

/* `out` has just been written, and so was the scratch unless `form` is SL_F32. */
static void remember(struct cuda_backend *b, const float *out, uint32_t n_tok, uint32_t k,
                     enum sl_dtype form)
{
    if (form != SL_F32)
        b->act_rows =
            (struct act_rows){.x = out, .stride = k, .n_tok = n_tok, .k = k, .dtype = form};
}

void cuda_op_rms_norm(struct sl_backend *base, const float *x, const float *w, float eps,
                      uint32_t n_tok, uint32_t dim, float *out)
{
    struct cuda_backend *b = ready(base);
    if (!b)
        return;
    enum sl_dtype form = form_wanted(b, n_tok, dim);
    cudaError_t e = form == SL_F32
                        ? cuda_rms_norm(b->stream, x, w, eps, n_tok, dim, out)
                        : cuda_norm_quantize(b->stream, form, x, w, eps, n_tok, dim, out, b->act);
    if (cuda_ok(b, e, "rms_norm"))
        remember(b, out, n_tok, dim, form);
}

/* Rows of one call of the kernels: as many as the scratch was planned for. */
static uint32_t rows_at_once(struct cuda_backend *b, const struct cuda_weight *w)
{
    if (w->dtype == SL_F32)
        return UINT32_MAX;
    if (cuda_act_bytes(w->dtype, b->limits.n_tok, w->k) <= b->act_bytes && b->limits.n_tok)
        return b->limits.n_tok;
    if (!b->failed.status)
        sl_fail(&b->failed, SL_NO_MEMORY, "cuda: a linear of %u inputs was not planned", w->k);
    return 0;
}

struct linear_call {
    const struct cuda_weight *w;
    const struct cuda_parts *parts;
    const float *x;
    uint32_t x_stride, n_tok;
    const float *bias;
    bool accumulate;
    float *out;
    uint32_t out_stride;
    size_t plane;
};

static bool holds(const struct act_rows *a, const struct linear_call *c)
{
    return a->x == c->x && (a->stride == c->x_stride || c->n_tok == 1) && a->n_tok >= c->n_tok &&
           a->k == c->w->k && cuda_form(a->dtype) == cuda_form(c->w->dtype);
}

/* Does the product leave its x as it is? */
static bool keeps_x(const struct linear_call *c)
{
    const float *x_end = c->x + (size_t)(c->n_tok - 1) * c->x_stride + c->w->k;
    const float *out_end =
        c->out + (c->parts->n - 1) * c->plane + (size_t)(c->n_tok - 1) * c->out_stride + c->w->n;
    return (uintptr_t)out_end <= (uintptr_t)c->x || (uintptr_t)c->out >= (uintptr_t)x_end;
}

/* `have`: what the scratch holds. */
static void run_linear(struct cuda_backend *b, const struct linear_call *c, struct act_rows have)
{
    uint32_t step = rows_at_once(b, c->w);
    for (uint32_t row = 0; step && row < c->n_tok && !b->failed.status; row += step) {
        uint32_t n = min_u32(step, c->n_tok - row);
        const float *x = c->x + (size_t)row * c->x_stride;
        if (c->w->dtype != SL_F32 && (row > 0 || !holds(&have, c)))
            cuda_ok(b, cuda_quantize(b->stream, c->w->dtype, x, c->x_stride, n, c->w->k, b->act),
                    "quantize");
        if (!b->failed.status)
            cuda_ok(b,
                    cuda_linear(b->stream, c->w, x, c->x_stride, b->act, n, c->parts, c->bias,
                                c->accumulate, c->out + (size_t)row * c->out_stride, c->out_stride,
                                c->plane),
                    "linear");
    }
    if (c->n_tok && step >= c->n_tok && c->w->dtype != SL_F32 && keeps_x(c))
        b->act_rows = (struct act_rows){.x = c->x,
                                        .stride = c->x_stride,
                                        .n_tok = c->n_tok,
                                        .k = c->w->k,
                                        .dtype = c->w->dtype};
}

void cuda_op_linear(struct sl_backend *base, const struct sl_weight *w, const float *x,
                    uint32_t x_stride, uint32_t n_tok, const float *bias, bool accumulate, float *y,
                    uint32_t y_stride)
{
    struct act_rows have = cuda_of(base)->act_rows;
    struct cuda_backend *b = ready(base);
    const struct cuda_packed *p = w->data;
    sl_assert(w->slices.n == w->slices.total);
    struct linear_call c = {.w = &p->w,
                            .parts = &p->all,
                            .x = x,
                            .x_stride = x_stride,
                            .n_tok = n_tok,
                            .bias = bias,
                            .accumulate = accumulate,
                            .out = y,
                            .out_stride = y_stride};
    if (b)
        run_linear(b, &c, have);
}

void cuda_op_linear_partial(struct sl_backend *base, const struct sl_weight *w, const float *x,
                            uint32_t x_stride, uint32_t n_tok, float *out)
{
    struct act_rows have = cuda_of(base)->act_rows;
    struct cuda_backend *b = ready(base);
    const struct cuda_packed *p = w->data;
    struct linear_call c = {.w = &p->w,
                            .parts = &p->parts,
                            .x = x,
                            .x_stride = x_stride,
                            .n_tok = n_tok,
                            .out = out,
                            .out_stride = w->n,
                            .plane = (size_t)n_tok * w->n};
    if (b)
        run_linear(b, &c, have);
}

void cuda_op_tree_sum(struct sl_backend *base, const struct sl_tree *tree, const float *parts,
                      uint32_t n_tok, uint32_t n, const float *bias, bool accumulate, float *y,
                      uint32_t y_stride)
{
    struct cuda_backend *b = ready(base);
    if (b && n_tok)
        cuda_ok(b, cuda_tree_sum(b->stream, tree, parts, n_tok, n, bias, accumulate, y, y_stride),
                "tree_sum");
}

void cuda_op_rope(struct sl_backend *base, const struct sl_rope *rope, float *x, uint32_t stride,
                  uint32_t n_heads, uint32_t head_dim, const uint32_t *pos, uint32_t n_tok)
{
    struct cuda_backend *b = ready(base);
    sl_assert(rope->n_rot <= head_dim && rope->n_rot % 2 == 0);
    if (b)
        cuda_ok(b,
                cuda_rope(b->stream, rope->kind == SL_ROPE_NEOX, rope->n_rot, rope->cos, rope->sin,
                          x, stride, n_heads, head_dim, pos, n_tok),
                "rope");
}

static struct cuda_kv layer_of(const struct sl_kv *kv, uint32_t layer)
{
    return (struct cuda_kv){.layer = sl_kv_page_at(kv, layer, 0),
                            .page_bytes = kv->page_bytes,
                            .n_kv_heads = kv->cfg.n_kv_heads,
                            .head_dim = kv->cfg.head_dim,
                            .page_size = kv->cfg.page_size,
                            .dtype = kv->cfg.dtype};
}

static struct cuda_batch batch_of(const struct sl_batch *b)
{
    return (struct cuda_batch){.n_seq = b->n_seq,
                               .n_tok = b->n_tok,
                               .q_start = b->q_start,
                               .pos = b->pos,
                               .page_start = b->page_start,
                               .pages = b->pages,
                               .seq_of = b->seq_of,
                               .max_pos = b->max_pos,
                               .max_rows = b->max_rows};
}

void cuda_op_kv_write(struct sl_backend *base, struct sl_kv *kv, uint32_t layer,
                      const struct sl_batch *batch, const float *k, const float *v, uint32_t stride)
{
    struct cuda_backend *b = ready(base);
    struct cuda_kv to = layer_of(kv, layer);
    struct cuda_batch rows = batch_of(batch);
    if (b)
        cuda_ok(b, cuda_kv_write(b->stream, &to, &rows, k, v, stride), "kv_write");
}

void cuda_op_rope_kv_write(struct sl_backend *base, const struct sl_rope *rope, struct sl_kv *kv,
                           uint32_t layer, const struct sl_batch *batch, const struct sl_qkv *x)
{
    struct cuda_backend *b = ready(base);
    struct cuda_kv to = layer_of(kv, layer);
    struct cuda_batch rows = batch_of(batch);
    const struct cuda_rotary by = {rope->kind == SL_ROPE_NEOX, rope->n_rot, rope->cos, rope->sin};
    sl_assert(rope->n_rot <= kv->cfg.head_dim && rope->n_rot % 2 == 0);
    if (b)
        cuda_ok(
            b,
            cuda_rope_kv_write(b->stream, &by, &to, &rows, x->q, x->n_heads, x->k, x->v, x->stride),
            "rope_kv_write");
}

static bool attention_fits(struct cuda_backend *b, const struct cuda_batch *rows, size_t bytes)
{
    if (bytes <= b->attn_bytes)
        return true;
    if (!b->failed.status)
        sl_fail(&b->failed, SL_NO_MEMORY, "cuda: attention of %u rows up to %u was not planned",
                rows->n_tok, rows->max_pos);
    return false;
}

void cuda_op_attention(struct sl_backend *base, const struct sl_kv *kv, uint32_t layer,
                       const struct sl_batch *batch, const struct sl_attn *a, const float *q,
                       float *out)
{
    struct cuda_backend *b = ready(base);
    struct cuda_kv from = layer_of(kv, layer);
    struct cuda_batch rows = batch_of(batch);
    struct cuda_attn heads = {a->n_heads,  a->kv_first,   a->n_kv_heads,
                              a->q_stride, a->out_stride, a->scale};
    size_t bytes =
        cuda_attention_scratch(rows.n_seq, rows.n_tok, a->n_heads, kv->cfg.head_dim, rows.max_pos);
    if (b && attention_fits(b, &rows, bytes))
        cuda_ok(b, cuda_attention(b->stream, &from, &rows, &heads, q, out, bytes ? b->attn : NULL),
                "attention");
}

void cuda_op_silu_mul(struct sl_backend *base, const float *gu, uint32_t n_tok, uint32_t dim,
                      float *out)
{
    struct cuda_backend *b = ready(base);
    if (!b)
        return;
    enum sl_dtype form = form_wanted(b, n_tok, dim);
    cudaError_t e = form == SL_F32
                        ? cuda_silu_mul(b->stream, gu, n_tok, dim, out)
                        : cuda_silu_quantize(b->stream, form, gu, n_tok, dim, out, b->act);
    if (cuda_ok(b, e, "silu_mul"))
        remember(b, out, n_tok, dim, form);
}

void cuda_op_add(struct sl_backend *base, float *x, const float *y, size_t n)
{
    struct cuda_backend *b = ready(base);
    if (b)
        cuda_ok(b, cuda_add(b->stream, x, y, n), "add");
}

void cuda_op_gather_rows(struct sl_backend *base, const float *x, const uint32_t *rows,
                         uint32_t n_rows, uint32_t dim, float *out)
{
    struct cuda_backend *b = ready(base);
    if (b)
        cuda_ok(b, cuda_gather_rows(b->stream, x, rows, n_rows, dim, out), "gather_rows");
}

void cuda_op_copy_rows(struct sl_backend *base, const float *from, uint32_t from_stride,
                       uint32_t n_rows, uint32_t n, float *to, uint32_t to_stride)
{
    struct cuda_backend *b = ready(base);
    const size_t width = sizeof *to;
    if (b && n_rows)
        cuda_ok(b,
                cudaMemcpy2DAsync(to, to_stride * width, from, from_stride * width, n * width,
                                  n_rows, cudaMemcpyDeviceToDevice, b->stream),
                "copy_rows");
}

void cuda_op_logit_stats(struct sl_backend *base, const float *logits, uint32_t n_rows, uint32_t n,
                         float *max, uint32_t *argmax, float *log_sum)
{
    struct cuda_backend *b = ready(base);
    if (b)
        cuda_ok(b, cuda_logit_stats(b->stream, logits, n_rows, n, max, argmax, log_sum),
                "logit_stats");
}
