/* The reference backend: every op in the most naive form, one thread, sums in double, no
 * quantisation of activations. Compared with the others by tolerance. */
#include <sluice/base/exact.h>
#include <sluice/base/mem.h>
#include <sluice/kernels/op.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "host.h"
#include "num.h"
#include "ref/ref.h"

static void ref_close(struct sl_backend *b)
{
    free(b);
}

static void *ref_alloc(struct sl_backend *b, size_t bytes)
{
    (void)b;
    return sl_pages_alloc(bytes);
}

static void ref_free(struct sl_backend *b, void *p, size_t bytes)
{
    (void)b;
    if (p)
        sl_pages_free(p, bytes);
}

/* Keeps the rows as the file has them, one source after the other. */
static enum sl_status ref_weight_pack(struct sl_backend *b, const struct sl_weight_src *src,
                                      uint32_t n_src, const struct sl_slices *slices,
                                      struct sl_weight *out, struct sl_err *err)
{
    (void)b;
    struct sl_weight w;
    enum sl_status status = sl_weight_check(src, n_src, slices, &w, err);
    if (status != SL_OK)
        return status;
    size_t row_bytes = sl_dtype_bytes(src->dtype, src->k), at = 0;
    if (!sl_size_mul(row_bytes, w.n, &w.bytes))
        return sl_fail(err, SL_NO_MEMORY, "weight: %u rows of %u overflow", w.n, src->k);
    uint8_t *data = sl_pages_alloc(w.bytes);
    if (!data)
        return sl_fail(err, SL_NO_MEMORY, "weight: %zu bytes refused", w.bytes);
    for (uint32_t i = 0; i < n_src; i++)
        for (uint32_t r = 0; r < src[i].n; r++, at += row_bytes)
            memcpy(data + at, (const uint8_t *)src[i].data + r * sl_weight_src_row_bytes(&src[i]),
                   row_bytes);
    w.data = data;
    *out = w;
    return SL_OK;
}

static size_t ref_weight_bytes(struct sl_backend *b, const struct sl_weight_src *src,
                               uint32_t n_src)
{
    (void)b;
    size_t bytes = 0;
    for (uint32_t i = 0; i < n_src; i++)
        bytes += sl_dtype_bytes(src[i].dtype, src[i].k) * src[i].n;
    return bytes;
}

static void ref_weight_free(struct sl_backend *b, struct sl_weight *w)
{
    (void)b;
    if (w->data)
        sl_pages_free(w->data, w->bytes);
    *w = (struct sl_weight){0};
}

static void ref_embed(struct sl_backend *b, const struct sl_weight_src *table, const uint32_t *ids,
                      uint32_t n_tok, float *out)
{
    size_t row_bytes = sl_weight_src_row_bytes(table);
    b->n_op_calls++;
    for (uint32_t t = 0; t < n_tok; t++) {
        sl_assert(ids[t] < table->n);
        sl_dequantize_row(table->dtype, (const uint8_t *)table->data + ids[t] * row_bytes,
                          out + (size_t)t * table->k, table->k);
    }
}

static void ref_rms_norm(struct sl_backend *b, const float *x, const float *w, float eps,
                         uint32_t n_tok, uint32_t dim, float *out)
{
    b->n_op_calls++;
    for (uint32_t t = 0; t < n_tok; t++, x += dim, out += dim) {
        double ss = 0.0;
        for (uint32_t i = 0; i < dim; i++)
            ss += (double)x[i] * (double)x[i];
        double r = 1.0 / sqrt(ss / dim + (double)eps);
        for (uint32_t i = 0; i < dim; i++)
            out[i] = (float)((double)x[i] * r * (double)w[i]);
    }
}

static double dot(const float *a, const float *b, size_t n)
{
    double sum = 0.0;
    for (size_t i = 0; i < n; i++)
        sum += (double)a[i] * (double)b[i];
    return sum;
}

static void ref_linear(struct sl_backend *b, const struct sl_weight *w, const float *x,
                       uint32_t x_stride, uint32_t n_tok, const float *bias, bool accumulate,
                       float *y, uint32_t y_stride)
{
    size_t row_bytes = sl_dtype_bytes(w->dtype, w->k);
    b->n_op_calls++;
    float *row = malloc(w->k * sizeof *row);
    sl_assert(row);
    for (uint32_t n = 0; n < w->n; n++) {
        sl_dequantize_row(w->dtype, (const uint8_t *)w->data + n * row_bytes, row, w->k);
        for (uint32_t t = 0; t < n_tok; t++) {
            float *out = y + (size_t)t * y_stride + n;
            double sum = dot(x + (size_t)t * x_stride, row, w->k);
            sum += bias ? (double)bias[n] : 0.0;
            *out = (float)(sum + (accumulate ? (double)*out : 0.0));
        }
    }
    free(row);
}

static void ref_linear_partial(struct sl_backend *b, const struct sl_weight *w, const float *x,
                               uint32_t x_stride, uint32_t n_tok, float *out)
{
    const struct sl_slices *s = &w->slices;
    size_t row_bytes = sl_dtype_bytes(w->dtype, w->k);
    struct sl_tree_node nodes[SL_SLICES_MAX];
    uint32_t n_parts = sl_tree_cut(s->first, s->n, s->total, nodes);
    b->n_op_calls++;
    float *row = malloc(w->k * sizeof *row);
    sl_assert(row);
    for (uint32_t n = 0; n < w->n; n++) {
        sl_dequantize_row(w->dtype, (const uint8_t *)w->data + n * row_bytes, row, w->k);
        for (uint32_t i = 0; i < n_parts * n_tok; i++) {
            const struct sl_tree_node *p = &nodes[i / n_tok];
            uint32_t k0 = s->border[p->first - s->first];
            uint32_t k1 = s->border[p->first + p->n - s->first];
            const float *xt = x + (size_t)(i % n_tok) * x_stride;
            out[(size_t)i * w->n + n] = (float)dot(xt + k0, row + k0, k1 - k0);
        }
    }
    free(row);
}

static void ref_tree_sum(struct sl_backend *b, const struct sl_tree *tree, const float *parts,
                         uint32_t n_tok, uint32_t n, const float *bias, bool accumulate, float *y,
                         uint32_t y_stride)
{
    b->n_op_calls++;
    for (size_t i = 0; i < (size_t)n_tok * n; i++) {
        float *out = y + i / n * y_stride + i % n;
        double sum = bias ? (double)bias[i % n] : 0.0;
        for (uint32_t p = 0; p < tree->n_parts; p++)
            sum += (double)parts[(size_t)p * n_tok * n + i];
        *out = (float)(sum + (accumulate ? (double)*out : 0.0));
    }
}

static void ref_rope(struct sl_backend *b, const struct sl_rope *rope, float *x, uint32_t stride,
                     uint32_t n_heads, uint32_t head_dim, const uint32_t *pos, uint32_t n_tok)
{
    uint32_t half = rope->n_rot / 2;
    bool neox = rope->kind == SL_ROPE_NEOX;
    b->n_op_calls++;
    for (uint32_t i = 0; i < n_tok * n_heads * half; i++) {
        uint32_t t = i / half / n_heads, h = i / half % n_heads, j = i % half;
        sl_assert(pos[t] < rope->n_pos);
        float *head = x + (size_t)t * stride + (size_t)h * head_dim;
        float *pa = head + (neox ? j : 2 * j), *pb = head + (neox ? j + half : 2 * j + 1);
        double c = (double)rope->cos[(size_t)pos[t] * half + j];
        double s = (double)rope->sin[(size_t)pos[t] * half + j];
        double a = (double)*pa, v = (double)*pb;
        *pa = (float)(a * c - v * s);
        *pb = (float)(v * c + a * s);
    }
}

static void ref_silu_mul(struct sl_backend *b, const float *gu, uint32_t n_tok, uint32_t dim,
                         float *out)
{
    b->n_op_calls++;
    for (uint32_t t = 0; t < n_tok; t++, gu += 2 * (size_t)dim, out += dim) {
        for (uint32_t i = 0; i < dim; i++) {
            double g = (double)gu[i];
            out[i] = (float)(g / (1.0 + sl_exp_f64(-g)) * (double)gu[dim + i]);
        }
    }
}

static void ref_add(struct sl_backend *b, float *x, const float *y, size_t n)
{
    b->n_op_calls++;
    for (size_t i = 0; i < n; i++)
        x[i] += y[i];
}

static void ref_gather_rows(struct sl_backend *b, const float *x, const uint32_t *rows,
                            uint32_t n_rows, uint32_t dim, float *out)
{
    b->n_op_calls++;
    for (uint32_t i = 0; i < n_rows; i++)
        memcpy(out + (size_t)i * dim, x + (size_t)rows[i] * dim, dim * sizeof *out);
}

static void ref_copy_rows(struct sl_backend *b, const float *from, uint32_t from_stride,
                          uint32_t n_rows, uint32_t n, float *to, uint32_t to_stride)
{
    b->n_op_calls++;
    for (uint32_t i = 0; i < n_rows; i++)
        memcpy(to + (size_t)i * to_stride, from + (size_t)i * from_stride, n * sizeof *to);
}

static void ref_logit_stats(struct sl_backend *b, const float *logits, uint32_t n_rows, uint32_t n,
                            float *max, uint32_t *argmax, float *log_sum)
{
    b->n_op_calls++;
    for (uint32_t r = 0; r < n_rows; r++, logits += n) {
        uint32_t best = 0;
        bool nan = false;
        double sum = 0.0;
        for (uint32_t i = 0; i < n; i++) {
            best = logits[i] > logits[best] ? i : best;
            nan = nan || logits[i] != logits[i];
        }
        for (uint32_t i = 0; i < n; i++)
            sum += sl_exp_f64((double)logits[i] - (double)logits[best]);
        max[r] = nan ? NAN : logits[best];
        argmax[r] = nan ? 0 : best;
        log_sum[r] = nan ? NAN : (float)sl_log_f64(sum);
    }
}

static void ref_parallel(struct sl_backend *b, uint32_t n, void (*fn)(void *ctx, uint32_t i),
                         void *ctx)
{
    b->n_op_calls++;
    for (uint32_t i = 0; i < n; i++)
        fn(ctx, i);
}

static const struct sl_backend_ops ref_ops = {
    .name = "ref",
    .close = ref_close,
    SL_HOST_MEMORY_OPS,
    .alloc = ref_alloc,
    .free = ref_free,
    .weight_pack = ref_weight_pack,
    .weight_bytes = ref_weight_bytes,
    .weight_free = ref_weight_free,
    .kv_open = sl_ref_kv_open,
    .kv_close = sl_ref_kv_close,
    .embed = ref_embed,
    .rms_norm = ref_rms_norm,
    .linear = ref_linear,
    .linear_partial = ref_linear_partial,
    .tree_sum = ref_tree_sum,
    .rope = ref_rope,
    .kv_write = sl_ref_kv_write,
    .attention = sl_ref_attention,
    .silu_mul = ref_silu_mul,
    .add = ref_add,
    .gather_rows = ref_gather_rows,
    .copy_rows = ref_copy_rows,
    .logit_stats = ref_logit_stats,
    .parallel = ref_parallel,
};

enum sl_status sl_ref_open(struct sl_backend **out, struct sl_err *err)
{
    struct sl_backend *b = calloc(1, sizeof *b);
    *out = b;
    if (!b)
        return sl_fail(err, SL_NO_MEMORY, "ref: out of memory");
    *b = (struct sl_backend){
        .ops = &ref_ops, .isa = SL_ISA_SCALAR, .arch = "scalar", .n_threads = 1};
    return SL_OK;
}
