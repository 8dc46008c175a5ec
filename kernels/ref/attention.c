/* Reference attention: the whole row of scores, softmax and weighted sum in double. */
#include <sluice/base/exact.h>
#include <sluice/base/mem.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "num.h"
#include "ref/ref.h"

enum sl_status sl_ref_kv_open(struct sl_backend *b, const struct sl_kv_config *cfg,
                              struct sl_kv *out, struct sl_err *err)
{
    (void)b;
    struct sl_kv kv;
    enum sl_status status = sl_kv_plan(cfg, 0, &kv, err);
    if (status != SL_OK)
        return status;
    kv.data = sl_pages_alloc(kv.bytes);
    if (!kv.data)
        return sl_fail(err, SL_NO_MEMORY, "kv: %zu bytes refused", kv.bytes);
    *out = kv;
    return SL_OK;
}

void sl_ref_kv_close(struct sl_backend *b, struct sl_kv *kv)
{
    (void)b;
    if (kv->data)
        sl_pages_free(kv->data, kv->bytes);
    *kv = (struct sl_kv){0};
}

static void store_i8(const float *x, uint32_t n, int8_t *q, uint8_t *scale_at)
{
    float amax = 0.0f;
    bool bad = false;
    for (uint32_t i = 0; i < n; i++) {
        amax = fabsf(x[i]) > amax ? fabsf(x[i]) : amax;
        bad = bad || !isfinite(x[i]);
    }
    float d = bad ? NAN : amax / 127.0f;
    d = d < SL_TINY_D ? 0.0f : d;
    for (uint32_t i = 0; i < n; i++)
        q[i] = bad || d == 0.0f ? 0 : (int8_t)lrintf(x[i] * (1.0f / d));
    memcpy(scale_at, &d, sizeof d);
}

void sl_ref_kv_write(struct sl_backend *b, struct sl_kv *kv, uint32_t layer,
                     const struct sl_batch *batch, const float *k, const float *v, uint32_t stride)
{
    const struct sl_kv_config *c = &kv->cfg;
    b->n_op_calls++;
    for (uint32_t s = 0; s < batch->n_seq; s++) {
        for (uint32_t t = batch->q_start[s]; t < batch->q_start[s + 1]; t++) {
            uint32_t pos = batch->pos[t], slot = pos % c->page_size;
            uint8_t *page = sl_kv_page(kv, layer, sl_batch_page(batch, s, pos, c->page_size));
            for (uint32_t i = 0; i < 2 * c->n_kv_heads; i++) {
                uint32_t half = i & 1, h = i / 2;
                const float *x = (half ? v : k) + (size_t)t * stride + (size_t)h * c->head_dim;
                uint8_t *dst = page + sl_kv_row_at(c, half, h, slot);
                if (c->dtype == SL_I8)
                    store_i8(x, c->head_dim, (int8_t *)dst,
                             page + sl_kv_scale_at(c, half, h, slot));
                else
                    sl_quantize_row(c->dtype, x, dst, c->head_dim);
            }
        }
    }
}

struct ref_row {
    const struct sl_kv *kv;
    const struct sl_batch *batch;
    uint32_t layer, seq, kv_head;
};

static void load_row(const struct ref_row *r, uint32_t half, uint32_t pos, float *dst)
{
    const struct sl_kv_config *c = &r->kv->cfg;
    uint32_t slot = pos % c->page_size;
    uint32_t number = sl_batch_page(r->batch, r->seq, pos, c->page_size);
    const uint8_t *page = sl_kv_page(r->kv, r->layer, number);
    const uint8_t *src = page + sl_kv_row_at(c, half, r->kv_head, slot);
    if (c->dtype != SL_I8) {
        sl_dequantize_row(c->dtype, src, dst, c->head_dim);
        return;
    }
    float scale;
    memcpy(&scale, page + sl_kv_scale_at(c, half, r->kv_head, slot), sizeof scale);
    for (uint32_t i = 0; i < c->head_dim; i++)
        dst[i] = (float)(int8_t)src[i] * scale;
}

static void attend(const struct ref_row *r, const float *q, float scale, uint32_t n_pos,
                   double *score, float *out)
{
    uint32_t dim = r->kv->cfg.head_dim;
    float row[1024];
    double sum_of[1024] = {0}, max = -INFINITY, sum = 0.0;
    for (uint32_t p = 0; p < n_pos; p++) {
        load_row(r, 0, p, row);
        double s = 0.0;
        for (uint32_t d = 0; d < dim; d++)
            s += (double)q[d] * (double)row[d];
        score[p] = s * (double)scale;
        max = score[p] > max ? score[p] : max;
    }
    for (uint32_t p = 0; p < n_pos; p++) {
        double w = sl_exp_f64(score[p] - max);
        load_row(r, 1, p, row);
        for (uint32_t d = 0; d < dim; d++)
            sum_of[d] += w * (double)row[d];
        sum += w;
    }
    for (uint32_t d = 0; d < dim; d++)
        out[d] = (float)(sum_of[d] / sum);
}

void sl_ref_attention(struct sl_backend *b, const struct sl_kv *kv, uint32_t layer,
                      const struct sl_batch *batch, const struct sl_attn *a, const float *q,
                      float *out)
{
    uint32_t dim = kv->cfg.head_dim, group = a->n_heads / a->n_kv_heads;
    b->n_op_calls++;
    for (uint32_t s = 0; s < batch->n_seq; s++) {
        for (uint32_t t = batch->q_start[s]; t < batch->q_start[s + 1]; t++) {
            uint32_t n_pos = batch->pos[t] + 1;
            double *score = malloc(n_pos * sizeof *score);
            sl_assert(score);
            for (uint32_t h = 0; h < a->n_heads; h++) {
                struct ref_row row = {kv, batch, layer, s, a->kv_first + h / group};
                attend(&row, q + (size_t)t * a->q_stride + (size_t)h * dim, a->scale, n_pos, score,
                       out + (size_t)t * a->out_stride + (size_t)h * dim);
            }
            free(score);
        }
    }
}
