/* One step of a decoder of the llama family: pre-norm blocks of grouped-query attention with rotary
 * positions (Su et al. 2021, Ainslie et al. 2023) and a gated SiLU feed-forward (Shazeer 2020).
 *
 * Every op works row by row, so the last layer may drop the rows nobody wants logits of as soon as
 * their K and V are written, without touching a bit of the others. */
#include "model_priv.h"

static void group_run(struct sl_model *m, const struct group *g, const float *x, uint32_t x_stride,
                      uint32_t n_tok, bool accumulate, float *y)
{
    for (uint32_t i = 0; i < g->n; i++)
        m->b->ops->linear(m->b, &g->w[i], x, x_stride, n_tok, g->bias[i], accumulate, y + g->at[i],
                          g->n_out);
}

/* Q, K and V of every row into qkv, K and V into the cache. */
static void write_kv(struct sl_model *m, uint32_t l, struct sl_kv *kv, const struct sl_batch *batch)
{
    const struct sl_model_config *c = &m->cfg;
    const struct sl_backend_ops *ops = m->b->ops;
    const struct layer *y = &m->layers[l];
    uint32_t n_tok = batch->n_tok, stride = y->qkv.n_out;
    float *k = m->qkv + q_dim(c), *v = k + kv_dim(c);
    ops->rms_norm(m->b, m->x, y->attn_norm, c->rms_eps, n_tok, c->dim, m->h);
    group_run(m, &y->qkv, m->h, c->dim, n_tok, false, m->qkv);
    ops->rope(m->b, &m->rope, m->qkv, stride, c->n_heads, c->head_dim, batch->pos, n_tok);
    ops->rope(m->b, &m->rope, k, stride, c->n_kv_heads, c->head_dim, batch->pos, n_tok);
    ops->kv_write(m->b, kv, l, batch, k, v, stride);
}

/* The rest of a block over n rows: x += o(attn), then x += down(silu(gate) * up). */
static void project(struct sl_model *m, uint32_t l, const float *attn, float *x, uint32_t n)
{
    const struct sl_model_config *c = &m->cfg;
    const struct sl_backend_ops *ops = m->b->ops;
    const struct layer *y = &m->layers[l];
    group_run(m, &y->o, attn, q_dim(c), n, true, x);
    ops->rms_norm(m->b, x, y->ffn_norm, c->rms_eps, n, c->dim, m->h);
    group_run(m, &y->gate_up, m->h, c->dim, n, false, m->gate_up);
    ops->silu_mul(m->b, m->gate_up, n, c->ffn_dim, m->act);
    group_run(m, &y->down, m->act, c->ffn_dim, n, true, x);
}

static enum sl_status check_step(const struct sl_model *m, const struct sl_batch *batch,
                                 const uint32_t *tokens, const uint32_t *logit_rows,
                                 uint32_t n_logit_rows, struct sl_err *err)
{
    if (batch->n_tok > m->max_batch_tokens || n_logit_rows > m->max_logit_rows)
        return sl_fail(err, SL_FAILED,
                       "model: step of %u rows and %u rows of logits, planned for %u and %u",
                       batch->n_tok, n_logit_rows, m->max_batch_tokens, m->max_logit_rows);
    for (uint32_t i = 0; i < batch->n_tok; i++) {
        if (tokens[i] >= m->cfg.n_vocab)
            return sl_fail(err, SL_INVALID, "model: token %u, the vocabulary has %u", tokens[i],
                           m->cfg.n_vocab);
        if (batch->pos[i] >= m->max_positions)
            return sl_fail(err, SL_INVALID, "model: position %u, planned for %u", batch->pos[i],
                           m->max_positions);
    }
    for (uint32_t i = 0; i < n_logit_rows; i++)
        if (logit_rows[i] >= batch->n_tok)
            return sl_fail(err, SL_FAILED, "model: logits of row %u in a step of %u", logit_rows[i],
                           batch->n_tok);
    return SL_OK;
}

enum sl_status sl_model_forward(struct sl_model *m, struct sl_kv *kv, const struct sl_batch *batch,
                                const uint32_t *tokens, const uint32_t *logit_rows,
                                uint32_t n_logit_rows, float *logits, struct sl_err *err)
{
    const struct sl_model_config *c = &m->cfg;
    const struct sl_backend_ops *ops = m->b->ops;
    enum sl_status status = check_step(m, batch, tokens, logit_rows, n_logit_rows, err);
    if (status || batch->n_tok == 0)
        return status;
    ops->embed(m->b, &m->embed, tokens, batch->n_tok, m->x);
    uint32_t last = c->n_layers - 1;
    for (uint32_t l = 0; l <= last; l++) {
        write_kv(m, l, kv, batch);
        if (l == last && n_logit_rows == 0)
            return SL_OK;
        ops->attention(m->b, kv, l, batch, m->qkv, m->layers[l].qkv.n_out, c->n_heads,
                       c->attn_scale, m->attn);
        if (l < last)
            project(m, l, m->attn, m->x, batch->n_tok);
    }
    float *attn_rows = m->qkv; /* free again, and wide enough */
    ops->gather_rows(m->b, m->attn, logit_rows, n_logit_rows, q_dim(c), attn_rows);
    ops->gather_rows(m->b, m->x, logit_rows, n_logit_rows, c->dim, m->x_rows);
    project(m, last, attn_rows, m->x_rows, n_logit_rows);
    ops->rms_norm(m->b, m->x_rows, m->out_norm, c->rms_eps, n_logit_rows, c->dim, m->h);
    group_run(m, &m->head, m->h, c->dim, n_logit_rows, false, logits);
    return SL_OK;
}
