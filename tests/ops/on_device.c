#include "on_device.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define COPIES_MAX 8
#define CACHES_MAX 4

struct cache {
    struct sl_kv host, dev;
};

struct shim {
    struct sl_backend base;
    struct sl_backend *dev;
    struct cache caches[CACHES_MAX];
};

/* The copies that one call has on the device. */
struct call {
    struct sl_backend *dev;
    struct copy {
        void *host, *dev;
        size_t bytes;
        bool out;
    } at[COPIES_MAX];
    size_t n;
};

static struct call call_of(struct sl_backend *b)
{
    return (struct call){.dev = ((struct shim *)(void *)b)->dev};
}

static void must(enum sl_status s, const struct sl_err *err)
{
    if (s)
        fail_msg("%s", err->msg);
}

static void finish(struct sl_backend *dev)
{
    struct sl_err err;
    must(dev->ops->finish(dev, &err), &err);
}

static void *copy(struct call *c, const void *host, size_t bytes, bool out)
{
    if (!host)
        return NULL;
    for (size_t i = 0; i < c->n; i++)
        if (c->at[i].host == host) {
            c->at[i].out |= out;
            return c->at[i].dev;
        }
    void *p = c->dev->ops->alloc(c->dev, bytes);
    assert_non_null(p);
    assert_true(c->n < COPIES_MAX);
    c->at[c->n++] = (struct copy){(void *)(uintptr_t)host, p, bytes, out};
    c->dev->ops->write(c->dev, p, host, bytes);
    return p;
}

static const float *in(struct call *c, const float *host, size_t n)
{
    return copy(c, host, n * sizeof *host, false);
}

static float *out(struct call *c, float *host, size_t n)
{
    return copy(c, host, n * sizeof *host, true);
}

static const uint32_t *in_words(struct call *c, const uint32_t *host, size_t n)
{
    return copy(c, host, n * sizeof *host, false);
}

static void done(struct call *c)
{
    for (size_t i = 0; i < c->n; i++)
        if (c->at[i].out)
            c->dev->ops->read(c->dev, c->at[i].host, c->at[i].dev, c->at[i].bytes);
    finish(c->dev);
    for (size_t i = 0; i < c->n; i++)
        c->dev->ops->free(c->dev, c->at[i].dev, c->at[i].bytes);
}

/* Floats of n rows of `width`, `stride` apart. */
static size_t span(uint32_t n, uint32_t width, size_t stride)
{
    return n ? (n - 1) * stride + width : 0;
}

/* ---- memory, weights ---- */

static void shim_close(struct sl_backend *b)
{
    struct shim *s = (struct shim *)(void *)b;
    s->dev->ops->close(s->dev);
    free(s);
}

static enum sl_status shim_pack(struct sl_backend *b, const struct sl_weight_src *src,
                                uint32_t n_src, const struct sl_slices *slices, struct sl_weight *w,
                                struct sl_err *err)
{
    struct sl_backend *dev = ((struct shim *)(void *)b)->dev;
    return dev->ops->weight_pack(dev, src, n_src, slices, w, err);
}

static size_t shim_weight_bytes(struct sl_backend *b, const struct sl_weight_src *src,
                                uint32_t n_src)
{
    struct sl_backend *dev = ((struct shim *)(void *)b)->dev;
    return dev->ops->weight_bytes(dev, src, n_src);
}

static void shim_weight_free(struct sl_backend *b, struct sl_weight *w)
{
    struct sl_backend *dev = ((struct shim *)(void *)b)->dev;
    dev->ops->weight_free(dev, w);
}

/* ---- KV: all of it to the device and back around every op ---- */

static enum sl_status shim_kv_open(struct sl_backend *b, const struct sl_kv_config *cfg,
                                   struct sl_kv *kv, struct sl_err *err)
{
    struct shim *s = (struct shim *)(void *)b;
    size_t i = 0;
    while (s->caches[i].host.data)
        assert_true(++i < CACHES_MAX);
    enum sl_status status = s->dev->ops->kv_open(s->dev, cfg, &s->caches[i].dev, err);
    if (status)
        return status;
    *kv = s->caches[i].dev;
    kv->data = calloc(1, kv->bytes);
    assert_non_null(kv->data);
    s->caches[i].host = *kv;
    return SL_OK;
}

static struct cache *cache_of(struct sl_backend *b, const struct sl_kv *kv)
{
    struct shim *s = (struct shim *)(void *)b;
    size_t i = 0;
    while (s->caches[i].host.data != kv->data)
        assert_true(++i < CACHES_MAX);
    return &s->caches[i];
}

static void shim_kv_close(struct sl_backend *b, struct sl_kv *kv)
{
    struct shim *s = (struct shim *)(void *)b;
    struct cache *c = cache_of(b, kv);
    s->dev->ops->kv_close(s->dev, &c->dev);
    free(kv->data);
    c->host = *kv = (struct sl_kv){0};
}

static struct sl_kv *kv_in(struct sl_backend *b, const struct sl_kv *kv)
{
    struct shim *s = (struct shim *)(void *)b;
    struct cache *c = cache_of(b, kv);
    s->dev->ops->write(s->dev, c->dev.data, kv->data, kv->bytes);
    return &c->dev;
}

static struct sl_batch stage(struct call *c, const struct sl_kv *kv, const struct sl_batch *batch,
                             const struct sl_attn *a)
{
    struct sl_err err;
    struct sl_step_rows rows = {.batch = *batch}, staged;
    struct sl_step_limits limits = {.n_tok = batch->n_tok,
                                    .n_seq = batch->n_seq,
                                    .page_size = kv->cfg.page_size,
                                    .n_stages = 1,
                                    .n_heads = a ? a->n_heads : 0,
                                    .head_dim = kv->cfg.head_dim};
    for (uint32_t t = 0; t < batch->n_tok; t++)
        if (batch->pos[t] >= limits.n_positions)
            limits.n_positions = batch->pos[t] + 1;
    for (uint32_t s = 0; s < batch->n_seq; s++) {
        uint32_t n = (batch->page_start[s + 1] - batch->page_start[s]) * kv->cfg.page_size;
        limits.n_positions = n > limits.n_positions ? n : limits.n_positions;
    }
    must(c->dev->ops->plan(c->dev, &limits, &err), &err);
    c->dev->ops->stage(c->dev, kv, &rows, 0, &staged);
    return staged.batch;
}

static void shim_kv_write(struct sl_backend *b, struct sl_kv *kv, uint32_t layer,
                          const struct sl_batch *batch, const float *k, const float *v,
                          uint32_t stride)
{
    struct call c = call_of(b);
    struct sl_kv *dev = kv_in(b, kv);
    size_t n = span(batch->n_tok, kv->cfg.n_kv_heads * kv->cfg.head_dim, stride);
    const float *dk = in(&c, k, n), *dv = in(&c, v, n);
    struct sl_batch staged = stage(&c, dev, batch, NULL);
    c.dev->ops->kv_write(c.dev, dev, layer, &staged, dk, dv, stride);
    c.dev->ops->read(c.dev, kv->data, dev->data, kv->bytes);
    done(&c);
}

static void shim_attention(struct sl_backend *b, const struct sl_kv *kv, uint32_t layer,
                           const struct sl_batch *batch, const struct sl_attn *a, const float *q,
                           float *o)
{
    struct call c = call_of(b);
    struct sl_kv *dev = kv_in(b, kv);
    uint32_t width = a->n_heads * kv->cfg.head_dim;
    const float *dq = in(&c, q, span(batch->n_tok, width, a->q_stride));
    float *d = out(&c, o, span(batch->n_tok, width, a->out_stride));
    struct sl_batch staged = stage(&c, dev, batch, a);
    c.dev->ops->attention(c.dev, dev, layer, &staged, a, dq, d);
    done(&c);
}

/* ---- the other ops ---- */

static void shim_embed(struct sl_backend *b, const struct sl_weight_src *table, const uint32_t *ids,
                       uint32_t n_tok, float *o)
{
    struct call c = call_of(b);
    struct sl_weight_src t = *table;
    t.data = copy(&c, table->data, table->n * sl_weight_src_row_bytes(table), false);
    c.dev->ops->embed(c.dev, &t, in_words(&c, ids, n_tok), n_tok,
                      out(&c, o, (size_t)n_tok * table->k));
    done(&c);
}

static void shim_rms_norm(struct sl_backend *b, const float *x, const float *w, float eps,
                          uint32_t n_tok, uint32_t dim, float *o)
{
    struct call c = call_of(b);
    const float *dx = in(&c, x, (size_t)n_tok * dim), *dw = in(&c, w, dim);
    c.dev->ops->rms_norm(c.dev, dx, dw, eps, n_tok, dim, out(&c, o, (size_t)n_tok * dim));
    done(&c);
}

static void plan_linear(struct call *c, const struct sl_weight *w, uint32_t n_tok)
{
    struct sl_err err;
    struct sl_step_limits limits = {.n_tok = n_tok, .n_seq = 1, .page_size = 16, .n_stages = 1};
    limits.k_max[w->dtype] = w->k;
    must(c->dev->ops->plan(c->dev, &limits, &err), &err);
}

static void shim_linear(struct sl_backend *b, const struct sl_weight *w, const float *x,
                        uint32_t x_stride, uint32_t n_tok, const float *bias, bool accumulate,
                        float *y, uint32_t y_stride)
{
    struct call c = call_of(b);
    plan_linear(&c, w, n_tok);
    const float *dx = in(&c, x, span(n_tok, w->k, x_stride)), *db = in(&c, bias, w->n);
    c.dev->ops->linear(c.dev, w, dx, x_stride, n_tok, db, accumulate,
                       out(&c, y, span(n_tok, w->n, y_stride)), y_stride);
    done(&c);
}

static void shim_linear_partial(struct sl_backend *b, const struct sl_weight *w, const float *x,
                                uint32_t x_stride, uint32_t n_tok, float *o)
{
    struct call c = call_of(b);
    struct sl_tree_node nodes[SL_SLICES_MAX];
    uint32_t n = sl_tree_cut(w->slices.first, w->slices.n, w->slices.total, nodes);
    plan_linear(&c, w, n_tok);
    const float *dx = in(&c, x, span(n_tok, w->k, x_stride));
    c.dev->ops->linear_partial(c.dev, w, dx, x_stride, n_tok, out(&c, o, (size_t)n * n_tok * w->n));
    done(&c);
}

static void shim_tree_sum(struct sl_backend *b, const struct sl_tree *tree, const float *parts,
                          uint32_t n_tok, uint32_t n, const float *bias, bool accumulate, float *y,
                          uint32_t y_stride)
{
    struct call c = call_of(b);
    const float *dp = in(&c, parts, (size_t)tree->n_parts * n_tok * n), *db = in(&c, bias, n);
    c.dev->ops->tree_sum(c.dev, tree, dp, n_tok, n, db, accumulate,
                         out(&c, y, span(n_tok, n, y_stride)), y_stride);
    done(&c);
}

static void shim_rope(struct sl_backend *b, const struct sl_rope *rope, float *x, uint32_t stride,
                      uint32_t n_heads, uint32_t head_dim, const uint32_t *pos, uint32_t n_tok)
{
    struct call c = call_of(b);
    struct sl_rope r = *rope;
    size_t n = (size_t)rope->n_pos * (rope->n_rot / 2);
    r.cos = in(&c, rope->cos, n);
    r.sin = in(&c, rope->sin, n);
    const uint32_t *dpos = in_words(&c, pos, n_tok);
    c.dev->ops->rope(c.dev, &r, out(&c, x, span(n_tok, n_heads * head_dim, stride)), stride,
                     n_heads, head_dim, dpos, n_tok);
    done(&c);
}

static void shim_silu_mul(struct sl_backend *b, const float *gu, uint32_t n_tok, uint32_t dim,
                          float *o)
{
    struct call c = call_of(b);
    const float *d = in(&c, gu, (size_t)2 * n_tok * dim);
    c.dev->ops->silu_mul(c.dev, d, n_tok, dim, out(&c, o, (size_t)n_tok * dim));
    done(&c);
}

static void shim_add(struct sl_backend *b, float *x, const float *y, size_t n)
{
    struct call c = call_of(b);
    const float *d = in(&c, y, n);
    c.dev->ops->add(c.dev, out(&c, x, n), d, n);
    done(&c);
}

/* `x` has as many rows as are asked for, which holds for the tests. */
static void shim_gather_rows(struct sl_backend *b, const float *x, const uint32_t *rows,
                             uint32_t n_rows, uint32_t dim, float *o)
{
    struct call c = call_of(b);
    const float *dx = in(&c, x, (size_t)n_rows * dim);
    const uint32_t *dr = in_words(&c, rows, n_rows);
    c.dev->ops->gather_rows(c.dev, dx, dr, n_rows, dim, out(&c, o, (size_t)n_rows * dim));
    done(&c);
}

static void shim_copy_rows(struct sl_backend *b, const float *from, uint32_t from_stride,
                           uint32_t n_rows, uint32_t n, float *to, uint32_t to_stride)
{
    struct call c = call_of(b);
    const float *d = in(&c, from, span(n_rows, n, from_stride));
    c.dev->ops->copy_rows(c.dev, d, from_stride, n_rows, n, out(&c, to, span(n_rows, n, to_stride)),
                          to_stride);
    done(&c);
}

static void shim_logit_stats(struct sl_backend *b, const float *logits, uint32_t n_rows, uint32_t n,
                             float *max, uint32_t *argmax, float *log_sum)
{
    struct call c = call_of(b);
    const float *d = in(&c, logits, (size_t)n_rows * n);
    float *m = out(&c, max, n_rows), *l = out(&c, log_sum, n_rows);
    uint32_t *a = copy(&c, argmax, n_rows * sizeof *argmax, true);
    c.dev->ops->logit_stats(c.dev, d, n_rows, n, m, a, l);
    done(&c);
}

static const struct sl_backend_ops shim_ops = {
    .name = "on device",
    .close = shim_close,
    .weight_pack = shim_pack,
    .weight_bytes = shim_weight_bytes,
    .weight_free = shim_weight_free,
    .kv_open = shim_kv_open,
    .kv_close = shim_kv_close,
    .embed = shim_embed,
    .rms_norm = shim_rms_norm,
    .linear = shim_linear,
    .linear_partial = shim_linear_partial,
    .tree_sum = shim_tree_sum,
    .rope = shim_rope,
    .kv_write = shim_kv_write,
    .attention = shim_attention,
    .silu_mul = shim_silu_mul,
    .add = shim_add,
    .gather_rows = shim_gather_rows,
    .copy_rows = shim_copy_rows,
    .logit_stats = shim_logit_stats,
};

struct sl_backend *on_device_open(struct sl_backend *device)
{
    struct shim *s = calloc(1, sizeof *s);
    assert_non_null(s);
    s->base = (struct sl_backend){.ops = &shim_ops, .isa = device->isa, .n_threads = 1};
    s->dev = device;
    return &s->base;
}
